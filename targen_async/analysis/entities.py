"""Who and what the texts name, by rules: countries, nationalities, given names, pronouns, jobs.

Words are matched whole, so that a woman is not in Oman, and without what follows an apostrophe, so
that France's is France; capitalised entries as they are written or in capitals. No rule tells
Georgia from Georgia, or Jordan the man from Jordan the country.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pycountry
from msgspec import Struct
from numpy.typing import NDArray
from scipy import sparse

from targen_async.analysis.mentions import Forms, Mentions, Phrase
from targen_async.analysis.rows import Rows
from targen_async.analysis.tagger import tag_entities
from targen_async.analysis.tokens import WORD, Tokens

KINDS = ("countries", "nationalities", "names", "pronouns", "occupations")
"""What is counted by entry; `female` and `male` words are found besides."""
TAGGED_KINDS = ("events", "products")
"""What only a spaCy model finds."""
_ADDED = re.compile(r"'(?:s|d|m|ll|re|ve)$", re.IGNORECASE)


class Spoken(NamedTuple):
    """The words of the texts by the numbers of their bare spellings, shape (words,)."""

    flat: NDArray[np.int32]
    numbers: Mapping[str, int]


class Words(Struct, frozen=True, forbid_unknown_fields=True):
    words: str


class Gendered(Struct, frozen=True, forbid_unknown_fields=True):
    female: str
    male: str
    neutral: str = ""


class Lexicon(Struct, frozen=True, forbid_unknown_fields=True):
    """lexicon.toml."""

    countries: Mapping[str, str]
    not_countries: Words
    nationalities: Words
    names: Gendered
    pronouns: Gendered
    nouns: Gendered
    occupations: Words


def find_entities(rows: Rows, model: str | None = None) -> dict[str, Mentions]:
    """By kind: `countries`, `nationalities`, `names`, `pronouns`, `occupations`, and `female` and
    `male` for words of either gender (pronouns, given names, nouns).

    `model`: a spaCy model that finds the first three, and `events` and `products`, instead of
    rules. Raises UserError where it cannot be loaded.
    """
    tokens, forms = rows.tokens, dict(all_forms())
    tagged: dict[str, Mentions] = {}
    if model is not None:
        tagged = tag_entities(rows, model, forms.pop("countries"), forms.pop("nationalities"))
        del forms["names"]
    cased, folded = _spoken(tokens.cased, tokens.spellings), _spoken(tokens.ids, tokens.words)
    return tagged | {kind: _mentions(tokens, of, cased, folded) for kind, of in forms.items()}


def _bare(word: str) -> str:
    """Without a possessive or a contracted verb: France's, she'll."""
    return _ADDED.sub("", word.replace("\u2019", "'"))


def _spoken(flat: NDArray[np.int32], spellings: Sequence[str]) -> Spoken:
    numbers: dict[str, int] = {}
    bare = [numbers.setdefault(_bare(word), len(numbers)) for word in spellings]
    return Spoken(np.array(bare, dtype=np.int32)[flat] if len(flat) else flat, numbers)


def _mentions(tokens: Tokens, forms: Forms, cased: Spoken, folded: Spoken) -> Mentions:
    """The longest form wins; no word belongs to two of them."""
    taken = np.zeros(len(tokens.cased), dtype=bool)
    owners: list[NDArray[np.int32]] = []
    entries: list[str] = []
    single: dict[bool, dict[int, str]] = {True: {}, False: {}}
    for phrase in sorted(forms, key=lambda words: (-len(words), words)):
        as_written = phrase[0] != phrase[0].lower()
        known = cased if as_written else folded
        for spelled in _spellings(phrase) if as_written else (phrase,):
            numbers = [known.numbers.get(_bare(word), -1) for word in spelled]
            if -1 in numbers:
                continue
            if len(numbers) == 1:
                single[as_written][numbers[0]] = forms[phrase]
                continue
            at = _positions(tokens.owners, known.flat, numbers)
            at = at[~taken[at]]
            for offset in range(len(numbers)):
                taken[at + offset] = True
            owners.append(tokens.owners[at])
            entries += [forms[phrase]] * len(at)
    for as_written, numbered in single.items():
        flat = (cased if as_written else folded).flat
        wanted = np.zeros(max(len(tokens.spellings), 1), dtype=bool)
        wanted[list(numbered)] = True
        at = np.flatnonzero(wanted[flat] & ~taken) if len(flat) else np.zeros(0, dtype=np.int64)
        owners.append(tokens.owners[at])
        entries += [numbered[number] for number in flat[at].tolist()]
    names = tuple(sorted(set(entries)))
    places = {name: place for place, name in enumerate(names)}
    columns = np.array([places[entry] for entry in entries], dtype=np.int64)
    rows = np.concatenate(owners) if owners else np.zeros(0, dtype=np.int32)
    found = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(len(tokens), len(names))
    )
    found.sum_duplicates()
    found.data[:] = 1
    return Mentions(entries=names, found=found)


def _spellings(phrase: Phrase) -> tuple[Phrase, ...]:
    capitals = tuple(word.upper() for word in phrase)
    return (phrase,) if capitals == phrase or len("".join(phrase)) < 4 else (phrase, capitals)


def _positions(
    owners: NDArray[np.int32], flat: NDArray[np.int32], numbers: list[int]
) -> NDArray[np.int64]:
    """Where these words stand in a row within one text."""
    at = np.flatnonzero(flat == numbers[0])
    at = at[at + len(numbers) <= len(flat)]
    for offset, number in enumerate(numbers[1:], 1):
        at = at[flat[at + offset] == number]
    return np.asarray(at[owners[at] == owners[at + len(numbers) - 1]])


# ---- the lexicon


@cache
def all_forms() -> dict[str, Forms]:
    """Every form of every kind."""
    path = Path(__file__).with_name("lexicon.toml")
    lexicon = msgspec.toml.decode(path.read_bytes(), type=Lexicon)
    names: Forms = {(name,): name for name in (lexicon.names.female + lexicon.names.male).split()}
    pronouns: Forms = {
        (word,): gender
        for gender in ("female", "male", "neutral")
        for word in getattr(lexicon.pronouns, gender).split()
    }
    return {
        "countries": _countries(lexicon),
        "nationalities": _groups(lexicon.nationalities.words),
        "names": names,
        "pronouns": pronouns,
        "occupations": _with_plurals(lexicon.occupations.words),
        **{gender: _gendered(lexicon, gender) for gender in ("female", "male")},
    }


def _split(text: str) -> list[str]:
    return [entry.strip() for entry in re.split(r"[;\n]", text) if entry.strip()]


def _phrase(text: str) -> Phrase:
    return tuple(WORD.findall(text))


def _groups(text: str) -> Forms:
    return {(form,): entry.split()[0] for entry in _split(text) for form in entry.split()}


def _with_plurals(text: str) -> Forms:
    return {(form,): job for job in _split(text) for form in (job, f"{job}s")}


def _gendered(lexicon: Lexicon, gender: str) -> Forms:
    tables: Iterable[Gendered] = (lexicon.names, lexicon.pronouns, lexicon.nouns)
    return {(word,): gender for table in tables for word in getattr(table, gender).split()}


def _countries(lexicon: Lexicon) -> Forms:
    """Called by the common name, or by ISO's where that has no comma."""
    left_out = set(_split(lexicon.not_countries.words))
    forms: dict[Phrase, str] = {}
    for country in pycountry.countries:
        further = _split(lexicon.countries.get(country.alpha_2, ""))
        known = [getattr(country, "common_name", country.name), country.name, *further]
        usable = [name for name in known if not set(name) & set(",(") and name not in left_out]
        forms.update({_phrase(name): usable[0] for name in usable})
    return forms
