"""News for rte and record: facts that a passage tells, read back from its sentences.

Names of people, places and organisations are made up; a passage tells no fact twice.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from targen_async.simulator.foreign import sentences
from targen_async.simulator.lexicon import (
    Phrase,
    PhraseIndex,
    capital,
    data,
    narrowed,
    people,
    town,
)

PLACEHOLDER = "@placeholder"
_NAMES = {
    "person": "[A-Z][a-z]+ [A-Z][a-z]+",
    "place": "[A-Z][a-z]+",
    "org": "[A-Z][a-z]+ [A-Z][a-z]+",
}
_OWN_NAME = 0.45
"""How often a fact brings in a name of its own although the passage has one that would do."""


class Fact:
    """One kind of fact with the ways to tell, to repeat and to deny it."""

    def __init__(self, entry: Mapping[str, Any], words: Mapping[str, Sequence[str]]) -> None:
        self.topic: str = entry["topic"]
        self.only = frozenset(entry["only"])
        gap = {slot: f"{pattern}|{PLACEHOLDER}" for slot, pattern in _patterns().items()}
        self.says = [Phrase(text, words, _patterns()) for text in entry["says"]]
        self.also = [Phrase(text, words, gap) for text in entry["also"]]
        self.against = [Phrase(text, words, _patterns()) for text in entry["against"]]


class Told(NamedTuple):
    """A fact as a text tells it."""

    fact: Fact
    slots: dict[str, str]

    def names(self) -> dict[str, str]:
        """The slots that hold names of people, places and organisations."""
        return {slot: value for slot, value in self.slots.items() if is_name(slot)}


class News:
    """All facts over one vocabulary."""

    def __init__(self, small: bool) -> None:
        world = data("news")
        self.small = small
        plain = narrowed(world["slots"], small)
        self.words = {**plain, **{f"{name}2": values for name, values in plain.items()}}
        self.families: tuple[str, ...] = narrowed({"all": world["families"]}, small)["all"]
        self.facts = [
            Fact(entry, self.words) for entry in world["fact"] if not small or entry.get("small")
        ]
        self.by_topic: dict[str, list[Fact]] = {}
        for fact in self.facts:
            self.by_topic.setdefault(fact.topic, []).append(fact)
        self.topics: dict[str, Mapping[str, Any]] = {
            topic["name"]: topic for topic in world["topic"] if topic["name"] in self.by_topic
        }
        self.filler: list[str] = world["filler"]
        self._says = PhraseIndex([(phrase, fact) for fact in self.facts for phrase in fact.says])
        self._also = PhraseIndex([(phrase, fact) for fact in self.facts for phrase in fact.also])
        self._against = PhraseIndex([(p, fact) for fact in self.facts for p in fact.against])

    def read(self, passage: str) -> list[Told]:
        """The facts that a passage tells, in its order; none of a passage of another's hand."""
        return [
            Told(fact, slots)
            for sentence in sentences(passage)
            for fact, slots in self._says.find(sentence)[:1]
        ]

    def repeats(self, text: str) -> list[Told]:
        """What a sentence says that may repeat a fact. A name may be the placeholder."""
        return [Told(fact, slots) for fact, slots in self._also.find(text)]

    def denies(self, text: str) -> bool:
        """Whether a sentence denies a fact of the world, whichever it is."""
        return bool(self._against.find(text))

    def topic_for(self, rng: random.Random, context: str) -> str:
        """A topic that the context names; any topic where it names none."""
        lowered = context.lower()
        named = [name for name, topic in self.topics.items() if _named(topic["words"], lowered)]
        return rng.choice(named or sorted(self.topics))

    def passage(
        self, rng: random.Random, topic: str, facts: int, names: int = 0, words: int = 0
    ) -> str:
        """Sentences that tell `facts` facts of a topic, or more for as many names and words.

        A passage of which words are asked for has sentences that tell nothing, too.
        """
        texts: list[str] = []
        cast: list[tuple[str, str]] = []
        for fact in rng.sample(self.by_topic[topic], len(self.by_topic[topic])):
            count = sum(len(text.split()) for text in texts)
            if len(texts) >= facts and len(cast) >= names and count >= words:
                break
            phrase = rng.choice(fact.says)
            slots = self.fill(rng, phrase.slots, topic, cast, _OWN_NAME)
            texts.append(capital(phrase.fill(slots)))
        for text in rng.sample(self.filler, rng.randint(0, 2) if words else 0):
            texts.insert(rng.randint(1, len(texts)), text)
        return " ".join(texts)

    def fill(
        self,
        rng: random.Random,
        slots: Sequence[str],
        topic: str,
        cast: list[tuple[str, str]],
        own: float,
    ) -> dict[str, str]:
        """Values for the slots, names out of the cast where it has them; new ones join it.

        `cast` has (kind, name) pairs, `own` is the rate of new names although the cast has some.
        """
        values: dict[str, str] = {}
        for slot in slots:
            kind = slot.removesuffix("2")
            if kind not in _NAMES:
                values[slot] = rng.choice(self.words[slot])
                continue
            known = [name for of, name in cast if of == kind and name not in values.values()]
            if known and rng.random() >= own:
                values[slot] = rng.choice(known)
            else:
                values[slot] = self.new_name(rng, kind, topic, [name for _, name in cast])
                cast.append((kind, values[slot]))
        return values

    def new_name(self, rng: random.Random, kind: str, topic: str, taken: Sequence[str]) -> str:
        """A name that neither holds another one's nor stands in it."""
        while True:
            name = self._name(rng, kind, topic)
            if not any(name in other or other in name for other in taken):
                return name

    def _name(self, rng: random.Random, kind: str, topic: str) -> str:
        if kind == "person":
            return f"{rng.choice(people(self.small))[0]} {rng.choice(self.families)}"
        if kind == "place":
            return town(rng, self.small)
        form = rng.choice(self.topics[topic]["orgs"])
        body = rng.choice(self.topics[topic].get("bodies", ("",)))
        return str(
            form.format(family=rng.choice(self.families), town=town(rng, self.small), body=body)
        )


@cache
def news(small: bool) -> News:
    return News(small)


def is_name(slot: str) -> bool:
    """Whether a slot holds the name of a person, a place or an organisation."""
    return slot.removesuffix("2") in _NAMES


@cache
def _patterns() -> dict[str, str]:
    return {slot: pattern for name, pattern in _NAMES.items() for slot in (name, f"{name}2")}


def _named(words: Sequence[str], text: str) -> bool:
    return any(re.search(rf"\b{re.escape(word)}", text) for word in words)
