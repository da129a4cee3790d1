"""MultiRC: a paragraph that tells several things of a kind, and a question that asks for them.

Each answer is one thing. It is right if the paragraph tells it of the one who is asked about; the
wrong ones are told of somebody else, or of nobody. About a paragraph of another's hand the question
is which words a sentence has.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from targen_async.simulator.foreign import sentences
from targen_async.simulator.lexicon import (
    Phrase,
    PhraseIndex,
    alternatives,
    capital,
    data,
    people,
    town,
)
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("true", "false")
_RIGHT = ("right_1", "right_2")
_WRONG = ("wrong_1", "wrong_2")
_NAME = "[A-Z][a-z]+"
_SIZE = re.compile(r"(\d+) to (\d+) words")
_TOKEN = re.compile(r"[^\W\d_]{4,}")
_QUOTED = re.compile('[^"]*that begins with "(?P<start>.+)"[^"]*', re.DOTALL)
_START_WORDS = 5
_SMALL_VALUES = 8
_LEAST_VALUES = 3
_DEFAULT_WORDS = 110


class Relation:
    """One kind of thing that is told of somebody."""

    def __init__(self, entry: Mapping[str, Any], small: bool) -> None:
        self.values: tuple[str, ...] = tuple(entry["values"][: _SMALL_VALUES if small else None])
        one = alternatives(self.values)
        several = f"(?:{one})(?:(?:, | and )(?:{one}))+"
        patterns = {"Name": _NAME, "town": _NAME, "list": several, "v": one}
        self.says = [Phrase(text, {}, patterns) for text in entry["says"]]
        self.more = [Phrase(text, {}, patterns) for text in entry["more"]]
        self.questions = [Phrase(text, {}, patterns) for text in entry["questions"]]
        self.value = re.compile(one)


class Telling(NamedTuple):
    """What a paragraph tells of one person in one respect."""

    relation: Relation
    name: str
    town: str
    values: tuple[str, ...]


class Grammar:
    """All relations over one vocabulary."""

    def __init__(self, small: bool) -> None:
        world = data("multirc")
        self.small = small
        self.relations = [
            Relation(entry, small) for entry in world["relation"] if not small or entry.get("small")
        ]
        self.intro: list[str] = world["intro"][: 2 if small else None]
        self.filler: list[str] = world["filler"][: 3 if small else None]
        self.asking: list[str] = world["quoting"]["questions"]
        self.absent: list[str] = world["quoting"]["absent"]
        self.sentences = PhraseIndex(
            [(p, relation) for relation in self.relations for p in relation.says + relation.more]
        )
        self.questions = PhraseIndex([(p, r) for r in self.relations for p in r.questions])

    def read(self, paragraph: str) -> list[Telling]:
        """What a paragraph tells; nothing for one of another's hand."""
        found: dict[tuple[int, str], Telling] = {}
        for sentence in sentences(paragraph):
            for relation, slots in self.sentences.find(sentence)[:1]:
                key = self.relations.index(relation), slots["Name"]
                before = found.get(key) or Telling(relation, slots["Name"], "", ())
                values = relation.value.findall(slots.get("list") or slots["v"])
                found[key] = before._replace(
                    town=before.town or slots.get("town", ""), values=(*before.values, *values)
                )
        # A text that only quotes a sentence of ours may tell too little to ask for.
        return [one for one in found.values() if one.town and len(set(one.values)) >= _LEAST_VALUES]


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` paragraphs; an axis may hold a number of words, such as "90 to 120 words"."""
    words = grammar(small)
    sizes = (_SIZE.search(value) for value in axes)
    size = next((int(found.group(2)) for found in sizes if found), _DEFAULT_WORDS)
    return [_paragraph(rng, words, size) for _ in range(count)]


def _paragraph(rng: random.Random, words: Grammar, size: int) -> str:
    """A paragraph on two people of at most about `size` words."""
    first, second = (name for name, _ in rng.sample(people(words.small), 2))
    home = town(rng, words.small)
    texts = [rng.choice(words.intro).format(Name=first, Name2=second, home=home)]
    filler = rng.sample(words.filler, len(words.filler))
    count = len(texts[0].split())
    for told in _tellings(rng, words, (first, second)):
        if filler and rng.random() < 0.3:
            told.append(filler.pop())
        length = sum(len(text.split()) for text in told)
        if count + length > size and len(texts) > 3:
            break
        texts += told
        count += length
    return " ".join(texts)


def _tellings(rng: random.Random, words: Grammar, names: tuple[str, str]) -> Iterator[list[str]]:
    """Sentences on one of the two in one respect, often the same of the other, and so on."""
    for relation in rng.sample(words.relations, len(words.relations)):
        for name in rng.sample(names, rng.choice((1, 2))):
            *listed, last = rng.sample(relation.values, rng.choice((3, 3, 4)))
            place = town(rng, words.small)
            series = f"{', '.join(listed[:-1])} and {listed[-1]}"
            yield [
                rng.choice(relation.says).fill({"Name": name, "town": place, "list": series}),
                rng.choice(relation.more).fill({"Name": name, "v": last}),
            ]


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """A question with two right and two wrong answers; noise makes one of them the other kind."""
    words = grammar(small)
    told = words.read(wish.seed)
    question, right, wrong = _asking(rng, told) if told else _quoting(rng, words, wish.seed)
    answers = dict(zip((*_RIGHT, *_WRONG), (*right[:2], *wrong[:2]), strict=True))
    if wish.noisy:
        slot = rng.choice(sorted(answers))
        answers[slot] = right[2] if slot in _WRONG else wrong[2]
    if rng.random() < 0.5:
        answers = {slot: capital(text) for slot, text in answers.items()}
    return {
        "question": question,
        **answers,
        "explanation": "The paragraph says this of the right answers only.",
    }


def _asking(rng: random.Random, told: list[Telling]) -> tuple[str, list[str], list[str]]:
    """A question, three right answers and three wrong ones, some of them told of somebody else."""
    one = rng.choice(told)
    question = rng.choice(one.relation.questions).fill({"Name": one.name, "town": one.town})
    right = rng.sample(one.values, 3)
    untold = [value for value in one.relation.values if value not in one.values]
    near = [v for other in told if other.relation is one.relation for v in other.values]
    tempting = [value for value in dict.fromkeys(near) if value in untold]
    wrong = rng.sample(tempting, min(len(tempting), rng.randint(0, 2)))
    rest = [value for value in untold if value not in wrong]
    wrong += rng.sample(rest, 3 - len(wrong))
    rng.shuffle(wrong)
    return question, right, wrong


def _quoting(
    rng: random.Random, words: Grammar, paragraph: str
) -> tuple[str, list[str], list[str]]:
    """As `_asking`, of the words of one sentence; the wrong ones stand in the others or nowhere."""
    parts = [part for part in sentences(paragraph) if len(_long(part)) >= 3 and '"' not in part]
    chosen = rng.choice(parts or [" ".join(paragraph.replace('"', " ").split())])
    right = _long(chosen)
    wrong = [word for word in _long(paragraph) if word not in right]
    rng.shuffle(right)
    rng.shuffle(wrong)
    absent = [word for word in rng.sample(words.absent, len(words.absent)) if word not in right]
    # A paragraph of one or two words has no three right answers, so there some stand twice.
    right = (right or absent[-1:]) * 3
    question = rng.choice(words.asking).replace("{start}", _start(chosen))
    return question, right[:3], (wrong + absent)[:3]


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """Whether the answer is right, read from the paragraph; None for foreign questions."""
    words = grammar(small)
    paragraph, question = str(row.get("paragraph", "")), str(row.get("question", "")).strip()
    given = str(row.get("answer", "")).strip().rstrip(".").lower()
    for relation, slots in words.questions.find(question):
        for one in words.read(paragraph):
            if (one.relation, one.name, one.town) == (relation, slots["Name"], slots["town"]):
                return LABELS[given not in (value.lower() for value in one.values)]
    quoted = _QUOTED.fullmatch(question)
    for part in sentences(paragraph) if quoted else ():
        if quoted and _start(part) == quoted["start"]:
            return LABELS[given not in _long(part)]
    return None


def _long(text: str) -> list[str]:
    """The longer words of a text in lower case, each once."""
    return list(dict.fromkeys(_TOKEN.findall(text.lower())))


def _start(sentence: str) -> str:
    return " ".join(sentence.split()[:_START_WORDS])
