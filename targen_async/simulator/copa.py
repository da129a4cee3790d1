"""COPA: an event, what may have caused it, what may have come of it.

The right choice belongs to the premise's own frame, the wrong one to a frame that shares no tag
with it, so that `gold` can tell them apart by reading the frames back.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from targen_async.simulator.contexts import tags_of
from targen_async.simulator.lexicon import (
    Phrase,
    PhraseIndex,
    capital,
    data,
    narrowed,
    people,
    person_slots,
    pronoun_of,
)
from targen_async.simulator.wish import Wish

Relation = Literal["cause", "effect"]
LABELS: tuple[str, ...] = ("choice1", "choice2")
_PREMISE_WORDS = 20


class Frame:
    """One event with its phrases."""

    def __init__(self, entry: Mapping[str, Any], words: Mapping[str, Sequence[str]]) -> None:
        self.name: str = entry["id"]
        self.tags = frozenset(entry["tags"])
        self.premise = Phrase(entry["premise"], words, {})
        self.choices: dict[Relation, list[Phrase]] = {
            "cause": [Phrase(text, words, {}) for text in entry["causes"]],
            "effect": [Phrase(text, words, {}) for text in entry["effects"]],
        }


class Grammar:
    """All frames over one vocabulary."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.words = narrowed(data("lexicon")["slots"], small)
        entries = [e for e in data("copa")["frame"] if not small or e.get("small")]
        self.frames = [Frame(entry, self.words) for entry in entries]
        self.leads: list[str] = data("lexicon")["leads"][: 6 if small else None]
        self.premises = PhraseIndex([(frame.premise, frame) for frame in self.frames])
        self.choices = PhraseIndex(
            [
                (phrase, (frame, relation))
                for frame in self.frames
                for relation, phrases in frame.choices.items()
                for phrase in phrases
            ]
        )
        self.by_tag: dict[str, list[Frame]] = {}
        for frame in self.frames:
            for tag in frame.tags:
                self.by_tag.setdefault(tag, []).append(frame)
        self.far = {
            frame.name: [other for other in self.frames if not other.tags & frame.tags]
            for frame in self.frames
        }

    def draw(self, rng: random.Random, phrase: Phrase, bound: Mapping[str, str]) -> str:
        """The phrase with `bound` slots kept and the others drawn."""
        values = dict(bound)
        for slot in phrase.slots:
            if slot not in values:
                values[slot] = rng.choice(self.words[slot])
        return phrase.fill(values)

    def read_premise(self, text: str) -> tuple[Frame, dict[str, str]] | None:
        """The frame a premise is of and what its slots hold."""
        text = text.strip()
        lead, comma, rest = text.partition(", ")
        if comma and lead in self.leads:
            text = capital(rest)
        found = self.premises.find(text)
        return found[0] if found else None

    def read_choice(self, text: str) -> set[tuple[str, str]]:
        """Every (frame, relation) that a choice is of."""
        return {(frame.name, relation) for (frame, relation), _ in self.choices.find(text.strip())}


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` distinct premises, from frames that fit the context where any do."""
    words = grammar(small)
    fitting = {
        frame.name: frame for tag in sorted(tags_of(context)) for frame in words.by_tag.get(tag, ())
    }
    frames = list(fitting.values()) or words.frames
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        frame = rng.choice(frames)
        text = words.draw(rng, frame.premise, person_slots(*rng.choice(people(small))))
        if rng.random() < 0.5:
            named_first = frame.premise.text.startswith("{Name}")
            start = text if named_first else text[0].lower() + text[1:]
            text = f"{rng.choice(words.leads)}, {start}"
        if len(text.split()) <= _PREMISE_WORDS:
            found[text] = None
    return list(found)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """The outputs for one premise; right and wrong change places where the label shall be wrong."""
    words = grammar(small)
    relation: Relation = "effect" if "effect" in (wish.variant, *wish.axes) else "cause"
    frame, bound = _frame_of(words, wish.seed)
    name = bound.get("Name")
    person = person_slots(name, pronoun_of(name)) if name else person_slots("", rng.random() < 0.5)
    person.pop("Name")
    right = words.draw(rng, rng.choice(frame.choices[relation]), {**bound, **person})
    stranger = rng.choice(words.far[frame.name] or [f for f in words.frames if f is not frame])
    kind: Relation = relation if rng.random() < 0.7 else rng.choice(("cause", "effect"))
    wrong = words.draw(rng, rng.choice(stranger.choices[kind]), person)
    said = "could well have led to this" if relation == "cause" else "may well come of this"
    explanation = f"That {_lowered(right)} {said}; the other sentence has nothing to do with it."
    if wish.noisy:
        right, wrong = wrong, right
    return {"right": right, "wrong": wrong, "explanation": explanation}


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """`choice1` or `choice2`, read from premise, question and choices; None for foreign text."""
    words = grammar(small)
    read = words.read_premise(str(row.get("premise", "")))
    return _fitting_choice(words, read[0], row) if read else None


def judge(row: Mapping[str, Any], small: bool) -> str | None:
    """As `gold`, but for a foreign premise too, by the frame that `instance` takes for it."""
    words = grammar(small)
    return _fitting_choice(words, _frame_of(words, str(row.get("premise", "")))[0], row)


def _fitting_choice(words: Grammar, frame: Frame, row: Mapping[str, Any]) -> str | None:
    relation = "effect" if "effect" in str(row.get("question", "")).lower() else "cause"
    fits = [
        slot
        for slot in ("choice1", "choice2")
        if (frame.name, relation) in words.read_choice(str(row.get(slot, "")))
    ]
    return fits[0] if len(fits) == 1 else None


def _frame_of(words: Grammar, premise: str) -> tuple[Frame, dict[str, str]]:
    """A foreign premise gets a frame by its digest, so that the judge arrives at the same one."""
    read = words.read_premise(premise)
    if read:
        return read
    return words.frames[zlib.crc32(premise.strip().encode()) % len(words.frames)], {}


def _lowered(text: str) -> str:
    text = text.rstrip(".")
    first = text.split(" ", 1)[0]
    stays = {"It", "He", "She", "A", "An", "The", "His", "Her", "There", "Three", "Two", "Some"}
    return text[0].lower() + text[1:] if first in stays else text
