"""RTE: one to four sentences of news, and a statement that they tell, deny or leave open.

A hypothesis repeats a fact in other words. It follows if the premise tells that fact with the same
names and values; a hypothesis on a premise of another's hand quotes it behind a lead-in.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from targen_async.simulator.foreign import clause, holds, sentences
from targen_async.simulator.lexicon import alternatives
from targen_async.simulator.news import News, Told, is_name, news
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("entailment", "not_entailment")
_FOLLOWS, _STRIKES = LABELS
_TOLD = ("It is said that {s}.", "What we learn is that {s}.", "One reads that {s}.")
_DENIED = ("It is not the case that {s}.", "It is wrong to say that {s}.", "It is a myth that {s}.")
_OPEN = (
    "Experts had long expected that {s}.",
    "It came as a relief to many that {s}.",
    "For years, nobody would believe that {s}.",
)
_REASONS = {
    "told": "The premise says this in other words.",
    "denied": "The premise says something that cannot be true at the same time.",
    "open": "The premise does not say whether this is so.",
}
_COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
_QUOTED_WORDS = 14
_TRIES = 20


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` premises; an axis may name a number of sentences from one to four."""
    words = news(small)
    wanted = [n for value in axes for name, n in _COUNTS.items() if f"{name} sentence" in value]
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        facts = rng.choice(wanted or (1, 2, 2, 3, 4))
        topic = words.topic_for(rng, context)
        found[words.passage(rng, topic, facts)] = None
    return list(found)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """A hypothesis; where it shall not follow, the axis `gap` says what it is instead."""
    words = news(small)
    follows = (wish.label == _FOLLOWS) != wish.noisy
    gap = wish.values.get("gap", "").lower()
    opened = gap.startswith("leaves open") or (not gap and rng.random() < 0.5)
    kind = "told" if follows else "open" if opened else "denied"
    told = words.read(wish.seed)
    text = _hypothesis(rng, words, told, kind) if told else _quoting(rng, wish.seed, kind)
    return {"hypothesis": text, "explanation": _REASONS[kind]}


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """The label, read from what the premise tells; None for a hypothesis of another's hand."""
    words = news(small)
    premise, hypothesis = str(row.get("premise", "")), str(row.get("hypothesis", "")).strip()
    said = words.repeats(hypothesis)
    if said:
        told = words.read(premise)
        return _FOLLOWS if any(_agrees(one, other) for one in said for other in told) else _STRIKES
    if words.denies(hypothesis):
        return _STRIKES
    quoted = _QUOTED.fullmatch(hypothesis)
    if quoted is None or not holds(premise, quoted["s"]):
        return None
    return _FOLLOWS if quoted["told"] else _STRIKES


def _agrees(said: Told, told: Told) -> bool:
    """Whether a fact repeats one that is told, in every name and value that it speaks of."""
    return said.fact is told.fact and said.slots.items() <= told.slots.items()


def _hypothesis(rng: random.Random, words: News, told: list[Told], kind: str) -> str:
    one = rng.choice(told)
    if kind == "told":
        return rng.choice(one.fact.also).fill(one.slots)
    if kind == "open":
        return _untold(rng, words, told)
    if rng.random() < 0.3:
        return rng.choice(one.fact.against).fill(one.slots)
    slot = rng.choice(sorted(one.fact.only))
    phrase = rng.choice([phrase for phrase in one.fact.also if slot in phrase.slots])
    return phrase.fill({**one.slots, slot: _other(rng, words, one, slot)})


def _other(rng: random.Random, words: News, told: Told, slot: str) -> str:
    """Another value of the slot."""
    if is_name(slot):
        kind = slot.removesuffix("2")
        return words.new_name(rng, kind, told.fact.topic, list(told.slots.values()))
    return rng.choice([value for value in words.words[slot] if value != told.slots[slot]])


def _untold(rng: random.Random, words: News, told: list[Told]) -> str:
    """A fact of the same topic about somebody or something of the premise that it does not tell."""
    topic = told[0].fact.topic
    cast = [(slot.removesuffix("2"), name) for one in told for slot, name in one.names().items()]
    known = {name for _, name in cast}
    facts = [f for f in words.by_topic[topic] if all(f is not one.fact for one in told)]
    text = ""
    for _ in range(_TRIES):
        phrase = rng.choice(rng.choice(facts or words.by_topic[topic]).also)
        slots = words.fill(rng, phrase.slots, topic, list(dict.fromkeys(cast)), 0.2)
        text = phrase.fill(slots)
        if known & set(slots.values()) and not any(
            _agrees(said, one) for said in words.repeats(text) for one in told
        ):
            break
    return text


def _quoting(rng: random.Random, premise: str, kind: str) -> str:
    """A sentence of the premise behind words that hold it to be true, or not, or add to it."""
    parts = [clause(sentence, _QUOTED_WORDS) for sentence in sentences(premise)]
    part = rng.choice([part for part in parts if part] or ["nothing is known"])
    leads = {"told": _TOLD, "denied": _DENIED, "open": _OPEN}[kind]
    return rng.choice(leads).replace("{s}", part)


def _lead(text: str) -> str:
    return text.partition("{s}")[0]


_QUOTED = re.compile(
    f"(?:(?P<told>{alternatives(map(_lead, _TOLD))})|{alternatives(map(_lead, _DENIED + _OPEN))})"
    r"(?P<s>.+)\.",
    re.DOTALL,
)
