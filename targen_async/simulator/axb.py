"""AX-b: two sentences that differ in a small edit, by what in language or logic decides the case.

A pair of sentences is one phrase, so that a slot that both have holds the same in both. `gold`
finds the phrase again and knows from it which way the entailment runs.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from targen_async.simulator.lexicon import Phrase, PhraseIndex, data, narrowed, people, town
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("entailment", "not_entailment")
_FOLLOWS, _STRIKES = LABELS
_NAME = "[A-Z][a-z]+"
_PATTERNS = {"Name": _NAME, "Name2": _NAME, "town": _NAME}
_BETWEEN = "\n"
_VERB_FORMS = ("base", "past", "part", "ing")
_SMALL_ROWS = 6
_WAYS: Mapping[str, Mapping[str, tuple[bool, ...]]] = {
    "same": {_FOLLOWS: (False, True), _STRIKES: ()},
    "one_way": {_FOLLOWS: (False,), _STRIKES: (True,)},
    "against": {_FOLLOWS: (), _STRIKES: (False, True)},
    "apart": {_FOLLOWS: (), _STRIKES: (False, True)},
}
"""Kind of pair to label to whether the sentences stand the other way round."""
_AXES = {
    "says the same": "same",
    "says less": "one_way",
    "says more": "one_way",
    "contradicts": "against",
    "neither follows": "apart",
}
"""What an axis may ask for, to the kind of pair."""


class Pair(NamedTuple):
    """Two sentences as one phrase, and what the second is to the first."""

    phrase: Phrase
    kind: str
    label: str


class Grammar:
    """All pairs over one vocabulary."""

    def __init__(self, small: bool) -> None:
        world = data("axb")
        rows = _SMALL_ROWS if small else None
        self.small = small
        self.verbs: list[list[str]] = world["verbs"][:rows]
        self.nouns: list[list[str]] = world["nouns"][:rows]
        self.places: list[list[str]] = world["places"][:rows]
        self.plain = narrowed(world["slots"], small)
        nouns = [noun for noun, _ in self.nouns]
        self.words: dict[str, Sequence[str]] = {
            **self.plain,
            **dict(zip(_VERB_FORMS, zip(*self.verbs, strict=True), strict=True)),
            "noun": nouns,
            "noun2": nouns,
            "kind": list(dict.fromkeys(kind for _, kind in self.nouns)),
            "city": [city for city, _ in self.places],
            "country": list(dict.fromkeys(country for _, country in self.places)),
        }
        self.pairs = {
            entry["name"]: list(self._pairs(entry))
            for entry in world["phenomenon"]
            if not small or entry.get("small")
        }
        every = [pair for pairs in self.pairs.values() for pair in pairs]
        self.index = PhraseIndex([(pair.phrase, pair.label) for pair in every])
        self.seeds = [self._phrase(text) for text in world["seeds"][: 2 if small else None]]
        self.statements = PhraseIndex([(phrase, True) for phrase in self.seeds])

    def _phrase(self, text: str) -> Phrase:
        return Phrase(text, self.words, _PATTERNS)

    def _pairs(self, entry: Mapping[str, Any]) -> Iterator[Pair]:
        for kind, ways in _WAYS.items():
            for first, second in entry.get(kind, ()):
                for label, turns in ways.items():
                    for turned in turns:
                        texts = (second, first) if turned else (first, second)
                        yield Pair(self._phrase(_BETWEEN.join(texts)), kind, label)

    def fill(self, rng: random.Random, phrase: Phrase, bound: Mapping[str, str]) -> str:
        """The phrase with `bound` slots kept and the others drawn to go with them."""
        said = bound.get("past") or bound.get("part")
        verb = next((forms for forms in self.verbs if said in forms), rng.choice(self.verbs))
        noun, kind = next(
            (pair for pair in self.nouns if pair[0] == bound.get("noun")), rng.choice(self.nouns)
        )
        city, country = rng.choice(self.places)
        names = [name for name, _ in rng.sample(people(self.small), 3)]
        values = {name: rng.choice(words) for name, words in self.plain.items()}
        values |= {"Name": names[0], "town": town(rng, self.small)} | dict(bound)
        values |= dict(zip(_VERB_FORMS, verb, strict=True))
        values |= {"noun": noun, "kind": kind, "city": city, "country": country}
        values["Name2"] = next(name for name in names if name != values["Name"])
        values["noun2"] = rng.choice([other for other, _ in self.nouns if other != noun])
        return phrase.fill(values)


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` distinct statements about what somebody did to a thing somewhere."""
    words = grammar(small)
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        found[words.fill(rng, rng.choice(words.seeds), {})] = None
    return list(found)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """Two sentences on the statement's own matter, by the phenomenon that is asked for.

    An axis may ask for a kind of pair, too, which is heeded where the phenomenon has one.
    """
    words = grammar(small)
    label = _FOLLOWS if (wish.label == _FOLLOWS) != wish.noisy else _STRIKES
    name = wish.values.get("phenomenon", "").partition(":")[0].strip().lower()
    pairs = words.pairs.get(name) or [pair for of in words.pairs.values() for pair in of]
    fitting = [pair for pair in pairs if pair.label == label]
    kinds = {kind for value in wish.axes for said, kind in _AXES.items() if said in value}
    asked = [pair for pair in fitting if pair.kind in kinds]
    bound = next((slots for _, slots in words.statements.find(wish.seed)), {})
    text = words.fill(rng, rng.choice(asked or fitting).phrase, bound)
    sentence1, sentence2 = text.split(_BETWEEN)
    verdict = "must be true, too" if label == _FOLLOWS else "can still be false"
    return {
        "sentence1": sentence1,
        "sentence2": sentence2,
        "explanation": f"Where the first sentence is true, the second one {verdict}.",
    }


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """The label, read from the two sentences; None for sentences of another's hand."""
    pair = _BETWEEN.join(str(row.get(name, "")).strip() for name in ("sentence1", "sentence2"))
    return next((label for label, _ in grammar(small).index.find(pair)), None)
