"""Words, and phrases with slots that can be written and read back.

A phrase is text with `{slot}`s. It renders from a mapping of slot values and compiles to a regular
expression that finds the values again, which is how `gold` recomputes a label from text alone.
"""

import random
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[^\W\d_]{3,}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
PRONOUNS = {
    "He": ("He", "She"),
    "he": ("he", "she"),
    "him": ("him", "her"),
    "his": ("his", "her"),
    "His": ("His", "Her"),
    "himself": ("himself", "herself"),
}
_NAME = "[A-Z][a-z]+"
# Enough for some thousand different rows, few enough for a tiny model to learn.
_SMALL_NAMES = 12
_SMALL_WORDS = 6


@cache
def data(name: str) -> dict[str, Any]:
    """The decoded TOML file of that name in `data/`. Shared: do not change it."""
    return tomllib.loads((files(__package__) / "data" / f"{name}.toml").read_text("utf-8"))


@cache
def people(small: bool) -> tuple[tuple[str, bool], ...]:
    """First names, each with whether the pronoun is `he`."""
    words = data("lexicon")
    limit = _SMALL_NAMES if small else None
    women = [(name, False) for name in words["women"][:limit]]
    return tuple(women + [(name, True) for name in words["men"][:limit]])


@cache
def pronoun_of(name: str) -> bool:
    """Whether the pronoun of this first name is `he`; unknown names are called `she`."""
    return name in data("lexicon")["men"]


def person_slots(name: str, he: bool) -> dict[str, str]:
    """The values of {Name} and of every pronoun slot."""
    slots = {slot: forms[0 if he else 1] for slot, forms in PRONOUNS.items()}
    slots["Name"] = name
    return slots


def town(rng: random.Random, small: bool) -> str:
    """A made-up town, such as Elmstead."""
    words = data("lexicon")
    limit = _SMALL_WORDS if small else None
    return f"{rng.choice(words['first'][:limit])}{rng.choice(words['second'][:limit])}"


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def articles(text: str) -> str:
    """The text with `a` turned into `an` before a vowel."""
    return _ARTICLE.sub(r"\1n ", text)


class Phrase:
    """Text with slots. `patterns` gives a slot's regular expression; others take their words."""

    def __init__(
        self, text: str, words: Mapping[str, Sequence[str]], patterns: Mapping[str, str]
    ) -> None:
        self.text = text
        self.slots = tuple(dict.fromkeys(_SLOT.findall(text)))
        self.literals = {word.lower() for word in _WORD.findall(_SLOT.sub(" ", text))}
        self._regex: re.Pattern[str] | None = None
        self._words = words
        self._patterns = patterns

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every slot filled, articles mended."""
        return articles(self.text.format_map(values))

    @property
    def regex(self) -> re.Pattern[str]:
        """Compiled on first use: a run reads back only some of the phrases."""
        if self._regex is None:
            self._regex = re.compile(self._source())
        return self._regex

    def _source(self) -> str:
        parts: list[str] = []
        seen: set[str] = set()
        last = 0
        for match in _SLOT.finditer(self.text):
            literal = re.escape(self.text[last : match.start()])
            parts.append(re.sub(r"\b([Aa])\\ $", r"\1n?\\ ", literal))
            name = match.group(1)
            # A repeated slot must repeat its value.
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{self._slot(name)})")
            seen.add(name)
            last = match.end()
        parts.append(re.escape(self.text[last:]))
        return "".join(parts)

    def _slot(self, name: str) -> str:
        if name in self._patterns:
            return self._patterns[name]
        if name in PRONOUNS:
            return "|".join(PRONOUNS[name])
        if name in ("Name", "person", "person2", "town", "town2"):
            return _NAME
        return alternatives(self._words[name])


def alternatives(words: Iterable[str]) -> str:
    """A regular expression for any of the words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


class PhraseIndex(Generic[T]):
    """Finds which of many phrases a text is, by each phrase's rarest word."""

    def __init__(self, entries: Sequence[tuple[Phrase, T]]) -> None:
        counts: dict[str, int] = {}
        for phrase, _ in entries:
            for word in phrase.literals:
                counts[word] = counts.get(word, 0) + 1
        self._by_word: dict[str, list[tuple[Phrase, T]]] = {}
        for phrase, payload in entries:
            anchor = min(phrase.literals, key=lambda word: (counts[word], word))
            self._by_word.setdefault(anchor, []).append((phrase, payload))

    def find(self, text: str) -> list[tuple[T, dict[str, str]]]:
        """Every phrase that is the whole text, with its slot values."""
        found: list[tuple[T, dict[str, str]]] = []
        for word in dict.fromkeys(_WORD.findall(text)):
            for phrase, payload in self._by_word.get(word.lower(), ()):
                match = phrase.regex.fullmatch(text)
                if match:
                    found.append((payload, match.groupdict()))
        return found


def narrowed(words: Mapping[str, Sequence[str]], small: bool) -> dict[str, tuple[str, ...]]:
    """The word lists, or the first words of each."""
    return {
        name: tuple(values[:_SMALL_WORDS] if small else values) for name, values in words.items()
    }
