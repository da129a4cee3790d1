"""WSC: two participants, a pronoun, and the one word that decides which of them it means.

A text and its twin differ in that word, so frame, word and span1 give the label.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from targen_async.simulator.lexicon import (
    Phrase,
    PhraseIndex,
    capital,
    data,
    narrowed,
    people,
    person_slots,
    pronoun_of,
    town,
)
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("true", "false")
_MARKED = re.compile(r"\*(\w+)\*")


class Frame:
    """What happens between `a` and `b`, and the words that make the pronoun mean the one or the
    other."""

    def __init__(
        self, entry: Mapping[str, Any], words: Mapping[str, Sequence[str]], small: bool
    ) -> None:
        found = _MARKED.search(entry["text"])
        assert found is not None
        self.pronoun: str = found.group(1)
        self.named = "a" not in entry
        self.deciders: dict[str, list[str]] = {
            who: entry[key][: 2 if small else None]
            for who, key in (("a", "first"), ("b", "second"))
        }
        self.words = {"w": [*self.deciders["a"], *self.deciders["b"]], **words}
        for who in () if self.named else ("a", "b"):
            self.words[who] = words[entry[who]]
        slot = f"{{{self.pronoun}}}" if self.named else self.pronoun
        patterns = dict.fromkeys("ab", "[A-Z][a-z]+") if self.named else {}
        self.text = Phrase(_MARKED.sub(slot, entry["text"]), self.words, patterns)
        happens = re.split(",? (?:because|until|but) ", entry["text"])[0]
        pair = "{a} and {b}" if self.named else "the {a} and the {b}"
        happens = happens if self.named else happens.replace("The ", "the ", 1)
        tie = f"{pair}: {happens}, and one of them is {{x}} or {{y}}"
        self.tie = Phrase(tie, {**self.words, "x": self.words["w"], "y": self.words["w"]}, patterns)

    def named_as(self, who: str, slots: Mapping[str, str]) -> str:
        """How the text names a participant, but for the capital at its beginning."""
        return slots[who] if self.named else f"the {slots[who]}"


class Grammar:
    """All frames over one vocabulary."""

    def __init__(self, small: bool) -> None:
        self.small = small
        world, shared = data("wsc"), data("lexicon")["slots"]
        words = {name: shared[name] for name in ("instrument",)}
        words["gift"] = shared["device"]
        words = narrowed({**words, **world["nouns"]}, small)
        self.frames = [
            Frame(entry, words, small)
            for entry in world["frame"]
            if not small or entry.get("small")
        ]
        self.leads: list[str] = [] if small else data("lexicon")["leads"]
        self.closers = [] if small else [Phrase(text, {}, {}) for text in world["closers"]]
        self.ties = PhraseIndex([(frame.tie, frame) for frame in self.frames])
        self.texts = PhraseIndex([(frame.text, frame) for frame in self.frames])

    def draw(self, rng: random.Random, frame: Frame) -> dict[str, str]:
        """Values of a frame's slots: two participants, and what else it speaks of."""
        values = {slot: rng.choice(words) for slot, words in frame.words.items() if len(slot) > 1}
        if frame.named:
            _, he = rng.choice(people(self.small))
            names = [name for name, is_he in people(self.small) if is_he == he]
            values["a"], values["b"] = rng.sample(names, 2)
        else:
            values["a"] = rng.choice(frame.words["a"])
            values["b"] = rng.choice([word for word in frame.words["b"] if word != values["a"]])
        values["person"] = rng.choice(people(self.small))[0]
        values["town"] = town(rng, self.small)
        return values

    def read(self, text: str) -> tuple[Frame, dict[str, str]] | None:
        """The frame of a text and what its slots hold."""
        first = text.strip().partition(". ")[0].rstrip(".") + "."
        lead, comma, rest = first.partition(", ")
        if comma and lead in self.leads:
            first = capital(rest)
        found = self.texts.find(first)
        return found[0] if found else None


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` distinct pairs: two participants, what happens, and the two words that decide."""
    words = grammar(small)
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        frame = rng.choice(words.frames)
        values = words.draw(rng, frame)
        values["x"], values["y"] = (rng.choice(frame.deciders[who]) for who in "ab")
        found[frame.tie.fill(values)] = None
    return list(found)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """A text in which the pronoun means span1, and its twin in which it does not.

    A wish that is noisy has the two texts changed places, or both mean the same participant.
    """
    words = grammar(small)
    read = words.ties.find(wish.seed)
    frame = read[0][0] if read else rng.choice(words.frames)
    # What the seed does not say is drawn once, for both texts.
    values = words.draw(rng, frame) | (read[0][1] if read else {})
    if frame.named:
        values |= person_slots("", pronoun_of(values["a"]))
    lead = f"{rng.choice(words.leads)}, " if words.leads and rng.random() < 0.5 else ""
    closer = ""
    if words.closers and rng.random() < 0.5:
        closer = " " + rng.choice(words.closers).fill({"town": town(rng, small)})
    who, other = rng.sample("ab", 2)
    if "first" in wish.axes or "second" in wish.axes:
        who, other = ("a", "b") if "first" in wish.axes else ("b", "a")
    if read:
        decider = {"a": values["x"], "b": values["y"]}
    else:
        decider = {side: rng.choice(texts) for side, texts in frame.deciders.items()}
    pair = [decider[who], decider[other]]
    if wish.noisy and rng.random() < 0.5:
        pair.reverse()
    elif wish.noisy:
        pair = rng.sample(frame.deciders[rng.choice("ab")], 2)
    texts = [f"{lead}{frame.text.fill({**values, 'w': word})}{closer}" for word in pair]
    texts = [text.replace(f"{lead}The ", f"{lead}the ", 1) if lead else text for text in texts]
    named = re.search(re.escape(frame.named_as(who, values)), texts[0], re.IGNORECASE)
    return {
        "text": texts[0],
        "twin_text": texts[1],
        "span1": named[0] if named else frame.named_as(who, values),
        "span2": values[frame.pronoun] if frame.named else frame.pronoun,
        "explanation": f"The word {pair[0]} fits the one and {pair[1]} the other.",
    }


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """Whether the pronoun means span1, read from text and spans; None for foreign text."""
    read = grammar(small).read(str(row.get("text", "")))
    if read is None:
        return None
    frame, slots = read
    pronoun = slots[frame.pronoun] if frame.named else frame.pronoun
    span1 = str(row.get("span1", "")).strip().lower()
    spans = {who: frame.named_as(who, slots).lower() for who in "ab"}
    if str(row.get("span2", "")).strip() != pronoun or span1 not in spans.values():
        return None
    referent = next(who for who, texts in frame.deciders.items() if slots["w"] in texts)
    return "true" if spans[referent] == span1 else "false"
