"""Structural checks of a row: what no judge is needed for. Pure; task.toml names them.

A validator takes the row's fields and its label and says what is wrong in a few words, or None.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

Validator = Callable[[Mapping[str, str], str], str | None]

UNFIT = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # control characters, but for tab and line feed
    "\\u202a\\u202b\\u202d\\u202e\\u2066-\\u2069"  # bidi controls: it reads otherwise than
    "\\ud800-\\udfff\\ufffd]"  # half a character, or the mark of one that was lost
)
"""A character no text of a task or a row may have. U+202C, which ends a bidi control, does nothing
alone and occurs in texts copied from the web."""


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
        if unfit := UNFIT.search(text):
            return f"{name} has the character U+{ord(unfit[0]):04X}"
        if spec.words is not None:
            least, most = spec.words
            count = len(text.split())
            if not least <= count <= most:
                return f"{name} has {count} words, not {least} to {most}"
    return None


def label_leak(fields: Mapping[str, str], labels: Sequence[str]) -> str | None:
    """A text that names a label as a label: "answer: choice1", "labelled as neutral".

    An ordinary word stays free: only words about labels beside it give it away.
    """
    for label in labels:
        leak = _leak_of(label)
        for name, text in fields.items():
            if found := leak.search(text):
                return f"{name} gives the label away: {found[0]!r}"
    return None


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


def bare(text: str) -> str:
    """The text without case, spaces and punctuation: equal for texts that only look different."""
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


VALIDATORS: Mapping[str, Validator] = {
    "choices_differ": choices_differ,
    "ends_like_question": ends_like_question,
    "hypothesis_differs": hypothesis_differs,
    "question_not_in_passage": question_not_in_passage,
}
VALIDATED_FIELDS: Mapping[str, tuple[str, ...]] = {
    "choices_differ": ("premise", "choice1", "choice2"),
    "ends_like_question": ("question",),
    "hypothesis_differs": ("premise", "hypothesis"),
    "question_not_in_passage": ("passage", "question"),
}
"""The fields a validator reads: a task that names it must have them."""
