"""Overlap: rows that stand in another file too, such as one that models are tested on."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.analysis.duplicates import near_pairs, normalised
from targen_async.analysis.estimate import Estimate, bootstrap_share
from targen_async.analysis.rows import LEAST_SHARED_WORDS, Rows

GRAM = 13
"""Words in a row (Brown et al. 2020)."""
_LISTED = 1_000

How = Literal["same_text", "13_gram", "near_duplicate"]


class Shared(Struct, frozen=True, kw_only=True):
    """A row and the first row of the other file that it overlaps with."""

    key: str
    other: str
    how: How


class Overlap(Struct, frozen=True, kw_only=True):
    """Rows that overlap with another file. `same_text`: a field of five words or more is a field
    there; `13_gram`: 13 words in a row are there; `near_duplicate`: MinHash, Jaccard of character
    5-grams of 0.8 or more. A row counts once, in this order."""

    other: str
    other_rows: int
    rows: int
    share: Estimate
    by_kind: Mapping[str, int]
    listed: tuple[Shared, ...]
    """The first 1,000."""


def measure_overlap(rows: Rows, other: Rows, *, seed: int = 0) -> tuple[Overlap, NDArray[np.int64]]:
    """The rows that overlap with `other`, and their places."""
    found: dict[int, tuple[int, How]] = {}
    for place, at in near_pairs(rows.texts, other.texts):
        found[place] = (at, "near_duplicate")
    found |= {place: (at, "13_gram") for place, at in _grams(rows, other).items()}
    found |= {place: (at, "same_text") for place, at in _texts(rows, other).items()}
    places = sorted(found)
    kinds = Counter(how for _, how in found.values())
    record = Overlap(
        other=other.name,
        other_rows=len(other),
        rows=len(found),
        share=bootstrap_share(len(found), len(rows), seed),
        by_kind={kind: kinds[kind] for kind in ("same_text", "13_gram", "near_duplicate")},
        listed=tuple(
            Shared(
                key=rows.rows[place].key,
                other=other.rows[found[place][0]].key,
                how=found[place][1],
            )
            for place in places[:_LISTED]
        ),
    )
    return record, np.array(places, dtype=np.int64)


def _texts(rows: Rows, other: Rows) -> dict[int, int]:
    known: dict[str, int] = {}
    for place, row in enumerate(other.rows):
        for text in map(normalised, row.fields.values()):
            if text.count(" ") + 1 >= LEAST_SHARED_WORDS:
                known.setdefault(text, place)
    found: dict[int, int] = {}
    for place, row in enumerate(rows.rows):
        hits = [known[text] for text in map(normalised, row.fields.values()) if text in known]
        if hits:
            found[place] = min(hits)
    return found


def _grams(rows: Rows, other: Rows) -> dict[int, int]:
    hashes, owners = other.tokens.grams(GRAM)
    known, first = np.unique(hashes, return_index=True)
    if not len(known):
        return {}
    own, places = rows.tokens.grams(GRAM)
    at = np.minimum(np.searchsorted(known, own), len(known) - 1)
    hit = np.flatnonzero(known[at] == own)
    found: dict[int, int] = {}
    for place, number in zip(places[hit].tolist(), owners[first[at[hit]]].tolist(), strict=True):
        found.setdefault(place, number)
    return found
