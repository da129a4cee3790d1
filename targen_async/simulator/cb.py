"""CommitmentBank: a statement, embedded so that the author holds, denies or leaves it open."""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from targen_async.simulator import foreign
from targen_async.simulator.lexicon import (
    Phrase,
    PhraseIndex,
    alternatives,
    capital,
    data,
    narrowed,
    people,
    person_slots,
    town,
)
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("entailment", "contradiction", "neutral")
_LONGEST = 20
"""Words of a statement: what the task asks of its seeds."""
_PLAIN_START = re.compile(
    "(?:the|an?|it|there|his|her|their|my|our|this|that|these|those|some|many|most|all|no|in|on"
    "|at|every|each|two|three|several|he|she|they|we|you)",
    re.IGNORECASE,
)
_REASONS = {
    "entailment": "The author is committed to the statement being true.",
    "contradiction": "The author is committed to the statement being false.",
    "neutral": "The author leaves open whether the statement is true.",
}


class Grammar:
    """Statements and the frames that embed them, over one vocabulary."""

    def __init__(self, small: bool) -> None:
        self.small = small
        world = data("cb")
        shared = {name: data("lexicon")["slots"][name] for name in ("city", "day")}
        self.words = narrowed({**shared, **world["slots"]}, small)
        clauses = world["clauses"][::6] if small else world["clauses"]
        self.clauses = [Phrase(text, self.words, {}) for text in clauses]
        self.frames: dict[str, dict[str, list[Phrase]]] = {}
        entries: list[tuple[Phrase, str]] = []
        for frame in world["frame"]:
            if small and not frame.get("small"):
                continue
            phrases = [Phrase(text, {}, {"s": ".+"}) for text in frame["texts"]]
            forms = self.frames.setdefault(frame["label"], {})
            forms.setdefault(frame["form"], []).extend(phrases)
            entries += [(phrase, frame["label"]) for phrase in phrases]
        self.index = PhraseIndex(entries)
        self.openers: list[str] = [] if small else world["openers"]
        self.closers: list[str] = [] if small else world["closers"]
        self.around = re.compile(
            f"(?:(?:{alternatives(self.openers)}) )?(.*?)(?: (?:{alternatives(self.closers)}))?",
            re.DOTALL,
        )


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` distinct plain statements."""
    words = grammar(small)
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        phrase = rng.choice(words.clauses)
        values = {
            slot: rng.choice(words.words[slot]) for slot in phrase.slots if slot in words.words
        }
        values["person"], values["person2"] = (name for name, _ in rng.sample(people(small), 2))
        values["town"], values["town2"] = town(rng, small), town(rng, small)
        if "landmark2" in phrase.slots:
            values["landmark"], values["landmark2"] = rng.sample(words.words["landmark"], 2)
        found[capital(phrase.fill(values)) + "."] = None
    return list(found)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """Premise and hypothesis for one statement. An axis may name a form, such as "a question"."""
    words = grammar(small)
    clause = _clause(_statement(rng, wish.seed))
    label = wish.label if wish.label in LABELS else "neutral"
    if wish.noisy:
        label = rng.choice([other for other in LABELS if other != label])
    choices = words.frames[label]
    forms = [form for form in choices if any(form in value for value in wish.axes)]
    wanted = [phrase for form in forms for phrase in choices[form]]
    frame = rng.choice(wanted or [p for phrases in choices.values() for p in phrases])
    name, he = rng.choice(people(small))
    while name in wish.seed:
        name, he = rng.choice(people(small))
    # The statement may hold braces of its own, so it is put in last.
    before, after = (part.format_map(person_slots(name, he)) for part in frame.text.split("{s}"))
    premise = f"{before}{clause}{after}"
    if words.openers and rng.random() < 0.8:
        premise = f"{rng.choice(words.openers)} {premise}"
    if words.closers and rng.random() < 0.4:
        premise = f"{premise} {rng.choice(words.closers)}"
    return {
        "premise": premise,
        "hypothesis": capital(clause) + ".",
        "explanation": _REASONS[label],
    }


def _statement(rng: random.Random, seed: str) -> str:
    """The seed, or a sentence of it where it is a passage from a corpus."""
    if len(seed.split()) <= _LONGEST:
        return seed
    return foreign.clause(rng.choice(foreign.sentences(seed)), _LONGEST)


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """The label, read from how the premise embeds the hypothesis; None for foreign text."""
    words = grammar(small)
    around = words.around.fullmatch(str(row.get("premise", "")).strip())
    if around is None:
        return None
    clause = _clause(str(row.get("hypothesis", "")))
    for label, slots in words.index.find(around.group(1)):
        if slots["s"] == clause:
            return label
    return None


def _clause(statement: str) -> str:
    """The statement as part of a sentence: no full stop, no capital that only the start gave it."""
    text = statement.strip().rstrip(".!?")
    first, _, _ = text.partition(" ")
    return text[:1].lower() + text[1:] if _PLAIN_START.fullmatch(first) else text
