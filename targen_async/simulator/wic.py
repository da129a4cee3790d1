"""WiC: a word with two senses and sentences that show which one is meant.

A sense is a name for a set of sentences, shared by all words that have it. Reading a sentence back
gives its sense, so `gold` needs the word and the two sentences only.
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
    town,
)
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("true", "false")
_FOREIGN = ("name", "mention")
"""The senses of a word that the lexicon lacks."""
_FORMS = ("w", "W", "s", "ed", "ing")
_LETTERS = re.compile(r"([a-z]) (?:or|to) ([a-z])|([a-z])")
_DOUBLED = re.compile(r"[^aeiou]*(?:qu)?[aeiou][bdgklmnprt]")
_SMALL_WORDS = 3
_SMALL_SENTENCES = 2


class Word:
    """A base form with its two senses."""

    def __init__(self, base: str, senses: Sequence[str], forms: Mapping[str, str]) -> None:
        self.base, self.senses, self.forms = base, tuple(senses), forms


def _noun(base: str, irregular: Mapping[str, str], of: str) -> dict[str, str]:
    return {"w": base, "W": capital(base), "s": irregular.get(base) or _with_s(base), "of": of}


def _verb(base: str, irregular: Mapping[str, str]) -> dict[str, str]:
    if base in irregular:
        past, participle = irregular[base].split()
    else:
        stem = base + base[-1] if _DOUBLED.fullmatch(base) else base
        past = re.sub("([^aeiou])y$", r"\1i", stem.removesuffix("e")) + "ed"
        participle = re.sub("(?<![eoy])e$", "", stem) + "ing"
    return {"w": base, "W": capital(base), "s": _with_s(base), "ed": past, "ing": participle}


def _with_s(base: str) -> str:
    if re.search("(?:s|x|z|ch|sh)$", base):
        return base + "es"
    return re.sub("([^aeiou])y$", r"\1ie", base) + "s"


class Grammar:
    """The words of both parts of speech and the sentences of their senses."""

    def __init__(self, small: bool) -> None:
        self.small = small
        world = data("wic")
        self.slots = narrowed({**data("lexicon")["slots"], **world["slots"]}, small)
        self.leads: list[str] = [] if small else data("lexicon")["leads"]
        self.words: dict[str, Word] = {}
        self.parts: dict[str, list[Word]] = {"noun": [], "verb": []}
        for part in self.parts:
            self._add_words(part, world[f"{part}s"])
        patterns = dict.fromkeys((*_FORMS, "of"), r"[\w-]+(?: [\w-]+)?")
        self.sentences: dict[str, list[Phrase]] = {}
        entries: list[tuple[Phrase, str]] = []
        for senses in (world["nouns"]["senses"], world["verbs"]["senses"], world["foreign"]):
            for sense, texts in senses.items():
                phrases = [
                    Phrase(text, self.slots, patterns)
                    for text in texts[: _SMALL_SENTENCES if small else None]
                ]
                self.sentences.setdefault(sense, phrases)
                entries += [(phrase, sense) for phrase in phrases]
        self.index = PhraseIndex(entries)

    def _add_words(self, part: str, world: Mapping[str, Any]) -> None:
        irregular: Mapping[str, str] = world["irregular"]
        listed = [(pair.split(), words.split(), "") for pair, words in world["words"].items()]
        for word, of in world.get("parts", {}).items():
            listed.append((["bodypart", "objectpart"], [word], of))
        for senses, words, of in listed[:: 4 if self.small else 1]:
            for base in words[: _SMALL_WORDS if self.small else None]:
                if base in self.words:
                    continue  # one entry a word: a row's judge is not told the part of speech
                forms = _noun(base, irregular, of) if part == "noun" else _verb(base, irregular)
                self.words[base] = Word(base, senses, forms)
                self.parts[part].append(self.words[base])

    def draw(self, rng: random.Random, phrase: Phrase, word: Word) -> str:
        """A sentence with the word, as often as not with a time put before it."""
        name, he = rng.choice(people(self.small))
        values = {**person_slots(name, he), **word.forms, "town": town(rng, self.small)}
        for slot in phrase.slots:
            if slot not in values:
                values[slot] = rng.choice(self.slots[slot])
        text = phrase.fill(values)
        if self.leads and rng.random() < 0.5:
            start = text if phrase.text.startswith(("{Name}", "{town}")) else _lowered(text)
            return f"{rng.choice(self.leads)}, {start}"
        return capital(text)

    def read(self, text: str, word: Word) -> set[str]:
        """The senses of the word that a sentence shows."""
        lead, comma, rest = text.partition(", ")
        if comma and lead in self.leads:
            text = rest
        return {
            sense
            for start in {text, capital(text), _lowered(text)}
            for sense, slots in self.index.find(start)
            if sense in word.senses and _fits(word, slots)
        }


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _fits(word: Word, slots: Mapping[str, str]) -> bool:
    return all(slots[form] == text for form, text in word.forms.items() if form in slots)


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` distinct words. Axes may name a part of speech and a range of first letters."""
    words = grammar(small)
    named = [part for part in words.parts if part in axes]
    fitting = [word.base for part in named or words.parts for word in words.parts[part]]
    letters = next((match for value in axes if (match := _LETTERS.fullmatch(value))), None)
    if letters:
        first, last, only = letters.groups()
        within = [base for base in fitting if (first or only) <= base[0] <= (last or only)]
        fitting = within or fitting
    return rng.sample(fitting, min(count, len(fitting)))


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """Two sentences with the word, of one sense or of two."""
    words = grammar(small)
    word = _word_of(words, wish.seed)
    first, second = rng.sample(word.senses, 2)
    same = (wish.label == "true") != wish.noisy
    if same:
        phrases = rng.sample(words.sentences[first], 2)
    else:
        phrases = [rng.choice(words.sentences[sense]) for sense in (first, second)]
    texts = [words.draw(rng, phrase, word) for phrase in phrases]
    count = "same sense" if same else "two senses"
    return {
        "sentence1": texts[0],
        "sentence2": texts[1],
        "explanation": f"The sentences show the word in {'the ' if same else ''}{count}.",
    }


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """Whether both sentences show the word in one sense; None for foreign text."""
    words = grammar(small)
    word = _word_of(words, str(row.get("word", "")))
    first, second = (words.read(str(row.get(f"sentence{n}", "")).strip(), word) for n in (1, 2))
    if not first or not second:
        return None
    return "true" if first & second else "false"


def _word_of(words: Grammar, seed: str) -> Word:
    """The word, or one made of a seed that the lexicon lacks."""
    base = seed.strip()
    known = words.words.get(base.lower())
    return known or Word(base, _FOREIGN, {"w": base})
