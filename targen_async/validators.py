"""Structural checks of a row: what no judge is needed for. Pure; task.toml names them.

A validator takes the row's fields and its label and says what is wrong in a few words, or None.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from targen_async.words import GENDER_SWAPS, PRONOUNS, find_word, foreign, mentions

Validator = Callable[[Mapping[str, str], str], str | None]
GroupValidator = Callable[[Sequence[Mapping[str, str]]], str | None]
"""What is wrong with rows that were written together, from the fields of each, or None."""

UNFIT = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # control characters, but for tab and line feed
    "\\u202a\\u202b\\u202d\\u202e\\u2066-\\u2069"  # bidi controls: it reads otherwise than
    "\\ud800-\\udfff\\ufffd]"  # half a character, or the mark of one that was lost
)
"""A character no text of a task or a row may have. U+202C, which ends a bidi control, does nothing
alone and occurs in texts copied from the web."""
GAP = "@placeholder"
"""What stands in a query of ReCoRD where the answer belongs."""


class Bounded(Protocol):
    """What `check_fields` needs to know of a field."""

    @property
    def words(self) -> tuple[int, int] | None:
        """Least and most words, both inclusive."""


def check_fields(task_fields: Mapping[str, Bounded], fields: Mapping[str, str]) -> str | None:
    """The checks every row of every task must pass: all there, in bounds, clean characters."""
    for name, spec in task_fields.items():
        text = fields.get(name, "")
        if not text.strip():
            return f"{name} is empty"
        plain = text.isascii() and text.isprintable()
        if not plain and (unfit := UNFIT.search(text)):
            return f"{name} has the character U+{ord(unfit[0]):04X}"
        if spec.words is not None:
            least, most = spec.words
            count = len(text.split())
            if not least <= count <= most:
                return f"{name} has {count} words, not {least} to {most}"
    return None


def label_leak(fields: Mapping[str, str], labels: tuple[str, ...]) -> str | None:
    """A text that names a label as a label: "answer: choice1", "labelled as neutral".

    An ordinary word stays free: only words about labels beside it give it away.
    """
    whole = "\n".join(fields.values())
    if whole.isascii():
        # Looking for a word takes a hundredth of the time that a pattern takes.
        whole = whole.lower()
        if not any(word in whole for word in _leak_words(labels)):
            return None
    for label in labels:
        leak = _leak_of(label)
        for name, text in fields.items():
            if found := leak.search(text):
                return f"{name} gives the label away: {found[0]!r}"
    return None


@lru_cache(maxsize=256)
def _leak_words(labels: tuple[str, ...]) -> tuple[str, ...]:
    """In lower case: an ASCII text that gives one of the labels away has one of these."""
    names = (re.findall(r"[^\W\d_]+|\d+", label.lower()) for label in labels)
    first = dict.fromkeys(words[0] for words in names if len(words) > 1)
    # Case is more than lower and upper where a label is not ASCII.
    rest = () if all(map(str.isascii, labels)) else ("",)
    return ("label", "answer", "verdict", "judg", "class", *first, *rest)


@lru_cache(maxsize=256)
def _leak_of(label: str) -> re.Pattern[str]:
    words = [re.escape(part) for part in re.findall(r"[^\W\d_]+|\d+", label)]
    bare_name = r"[\s_-]?".join(words) + r"(?!\w)"
    name = rf"[\"'\u201c\u2018(\[*]*{bare_name}"
    forms = [
        rf"(?:label|answer|verdict|judge?ment|class|classification)\W?\s*[:=]\s*{name}",
        rf"(?:correct|right|gold|true) (?:label|answer) is {name}",
        rf"label(?:led|ed) (?:as )?{name}",
    ]
    if len(words) > 1 and any(part.isdigit() for part in words):
        # A name like choice1 is nobody's ordinary word, and "Choice 1:" is a heading.
        forms += ["".join(words) + r"(?!\w)", rf"{bare_name}\s*[:)]"]
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})", re.IGNORECASE)


_NOT_BARE = {code: None for code in range(128) if unicodedata.category(chr(code))[0] in "PZC"}


def bare(text: str) -> str:
    """The text without case, spaces and punctuation: equal for texts that only look different."""
    if text.isascii():
        return text.lower().translate(_NOT_BARE) or text
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(char for char in folded if unicodedata.category(char)[0] not in "PZC")
    return kept or text


def choices_differ(fields: Mapping[str, str], label: str) -> str | None:
    """The two choices differ from each other and from the premise."""
    premise, first, second = (bare(fields[name]) for name in ("premise", "choice1", "choice2"))
    if first == second:
        return "both choices are the same"
    if premise in (first, second):
        return "a choice repeats the premise"
    return None


def hypothesis_differs(fields: Mapping[str, str], label: str) -> str | None:
    """The hypothesis is not the premise over again."""
    same = bare(fields["hypothesis"]) == bare(fields["premise"])
    return "the hypothesis repeats the premise" if same else None


def question_not_in_passage(fields: Mapping[str, str], label: str) -> str | None:
    """The question is not copied out of the passage, letter by letter."""
    question, passage = (" ".join(fields[k].casefold().split()) for k in ("question", "passage"))
    copied = question.rstrip("?. ") in passage
    return "the question stands in the passage" if copied else None


def ends_like_question(fields: Mapping[str, str], label: str) -> str | None:
    """One line of three words or more; the question mark may be missing, as in real searches."""
    question = fields["question"].strip()
    if "\n" in question:
        return "the question has more than one line"
    if len(question.split()) < 3:
        return "the question has fewer than 3 words"
    if question[-1] in "!:;,":
        return f"the question ends in {question[-1]!r}"
    return None


def english(fields: Mapping[str, str], label: str) -> str | None:
    """No text is in another language; short ones are read together."""
    return "not English" if foreign(fields.values()) else None


def word_in_both(fields: Mapping[str, str], label: str) -> str | None:
    """The word stands in both sentences, in any of its inflections."""
    for name in ("sentence1", "sentence2"):
        if find_word(fields["word"], fields[name]) is None:
            return f"the word does not stand in {name}"
    return None


def sentences_differ(fields: Mapping[str, str], label: str) -> str | None:
    """The second sentence is not the first over again."""
    same = bare(fields["sentence1"]) == bare(fields["sentence2"])
    return "both sentences are the same" if same else None


def spans_in_text(fields: Mapping[str, str], label: str) -> str | None:
    """Both spans stand in the text, letter by letter and as whole words, and side by side."""
    first, second = ([*mentions(fields["text"], fields[name])] for name in ("span1", "span2"))
    for name, found in (("span1", first), ("span2", second)):
        if not found:
            return f"{name} does not stand in the text"
    if all(a < d and c < b for a, b in first for c, d in second):
        return "the spans overlap"
    return None


def pronoun_span(fields: Mapping[str, str], label: str) -> str | None:
    """The second span is one pronoun: personal, possessive or reflexive."""
    return None if fields["span2"].lower() in PRONOUNS else "span2 is no pronoun"


def span2_once(fields: Mapping[str, str], label: str) -> str | None:
    """The pronoun stands once in the text: there is no doubt which one is meant."""
    count = sum(1 for _ in mentions(fields["text"].lower(), fields["span2"].lower()))
    return None if count == 1 else f"span2 stands {count} times in the text"


def entities_in_passage(fields: Mapping[str, str], label: str) -> str | None:
    """Two entities or more, one a line, no two alike, each letter by letter in the passage."""
    entities = fields["entities"].split("\n")
    if len(entities) < 2:
        return "there is only one entity"
    if len(set(entities)) < len(entities):
        return "an entity is listed twice"
    for entity in entities:
        if not entity.strip() or entity not in fields["passage"]:
            return f"the entity {entity!r} does not stand in the passage"
    return None


def one_placeholder(fields: Mapping[str, str], label: str) -> str | None:
    """The query has one gap."""
    count = len(re.findall(rf"{GAP}(?!\w)", fields["query"]))
    return None if count == 1 else f"the query has {count} times {GAP}"


def query_not_in_passage(fields: Mapping[str, str], label: str) -> str | None:
    """The query, with one of the entities in its gap, is not copied out of the passage."""
    query, passage = (" ".join(fields[k].casefold().split()) for k in ("query", "passage"))
    query = query.rstrip("?!. ")
    for entity in fields["entities"].split("\n"):
        if query.replace(GAP, " ".join(entity.casefold().split())) in passage:
            return "the query stands in the passage"
    return None


def answers_differ(members: Sequence[Mapping[str, str]]) -> str | None:
    """No answer to a question is given twice."""
    answers = [bare(fields["answer"]) for fields in members]
    return "two answers are the same" if len(set(answers)) < len(answers) else None


def twins_swap_gender(members: Sequence[Mapping[str, str]]) -> str | None:
    """The premises of two rows differ in the gender of their pronouns and in nothing else."""
    changed = _changed(members, "premise", r"\w+|[^\w\s]")
    if changed is None:
        return "the premises are not alike word by word"
    if not changed:
        return "the premises are the same"
    for _, *pair in changed:
        if tuple(pair) not in GENDER_SWAPS and tuple(reversed(pair)) not in GENDER_SWAPS:
            return f"the premises differ in {pair[0]!r} and {pair[1]!r}"
    return None


def twins_change_one_word(members: Sequence[Mapping[str, str]]) -> str | None:
    """The texts of two rows differ in one word; a or an before it may follow."""
    changed = _changed(members, "text", r"\w+(?:[-'\u2019]\w+)*|[^\w\s]")
    if changed is None:
        return "the texts are not alike word by word"
    article = len(changed) == 2 and {*changed[0][1:]} == {"a", "an"}
    if article and changed[0][0] + 1 == changed[1][0]:
        del changed[0]
    if not changed:
        return "the texts are the same"
    if len(changed) > 1 or not all(word[0].isalnum() for word in changed[0][1:]):
        return "the texts differ in more than one word"
    return None


def _changed(
    members: Sequence[Mapping[str, str]], name: str, token: str
) -> list[tuple[int, str, str]] | None:
    """Place and lower-case words where the two members' texts differ.

    None if they do not have the same number of words, or if there are not two members.
    """
    if len(members) != 2:
        return None
    first, second = (re.findall(token, fields[name].lower()) for fields in members)
    if len(first) != len(second):
        return None
    pairs = enumerate(zip(first, second, strict=True))
    return [(place, one, other) for place, (one, other) in pairs if one != other]


VALIDATORS: Mapping[str, Validator] = {
    "choices_differ": choices_differ,
    "ends_like_question": ends_like_question,
    "english": english,
    "entities_in_passage": entities_in_passage,
    "hypothesis_differs": hypothesis_differs,
    "one_placeholder": one_placeholder,
    "pronoun_span": pronoun_span,
    "query_not_in_passage": query_not_in_passage,
    "question_not_in_passage": question_not_in_passage,
    "sentences_differ": sentences_differ,
    "span2_once": span2_once,
    "spans_in_text": spans_in_text,
    "word_in_both": word_in_both,
}
VALIDATED_FIELDS: Mapping[str, tuple[str, ...]] = {
    "choices_differ": ("premise", "choice1", "choice2"),
    "ends_like_question": ("question",),
    "english": (),
    "entities_in_passage": ("passage", "entities"),
    "hypothesis_differs": ("premise", "hypothesis"),
    "one_placeholder": ("query",),
    "pronoun_span": ("span2",),
    "query_not_in_passage": ("passage", "query", "entities"),
    "question_not_in_passage": ("passage", "question"),
    "sentences_differ": ("sentence1", "sentence2"),
    "span2_once": ("text", "span2"),
    "spans_in_text": ("text", "span1", "span2"),
    "word_in_both": ("word", "sentence1", "sentence2"),
}
"""The fields a validator reads: a task that names it must have them. `english` reads all there
are."""

GROUP_VALIDATORS: Mapping[str, GroupValidator] = {
    "answers_differ": answers_differ,
    "twins_change_one_word": twins_change_one_word,
    "twins_swap_gender": twins_swap_gender,
}
GROUP_VALIDATED_FIELDS: Mapping[str, tuple[str, ...]] = {
    "answers_differ": ("answer",),
    "twins_change_one_word": ("text",),
    "twins_swap_gender": ("premise",),
}
"""The fields a group validator reads of each member."""
