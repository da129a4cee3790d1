"""Near duplicates: MinHash bands find them, the exact Jaccard similarity decides."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from rensa import RMinHash

from targen_async.analysis.estimate import Estimate, bounded, half_sampling
from targen_async.analysis.rows import Rows
from targen_async.analysis.tokens import WORD

NGRAM = 5
THRESHOLD = 0.8
_BANDS, _WIDTH = 24, 6
"""At a Jaccard of 0.8, a pair is missed with a chance of (1 - 0.8**6)**24, under 1 in 1,400."""
_AT_ONCE = 2_000
_COMPARED = 8
"""With so many earlier texts of its bucket a text is compared at most; equal ones are one text."""
_LISTED = 100


class Pair(NamedTuple):
    """Two rows that are near duplicates, the earlier first."""

    first: int
    second: int


class Duplicates(Struct, frozen=True, kw_only=True):
    """Clusters of rows of which each is nearly another one (Broder 1997).

    Fields that two rows have in common count for nothing unless all are, so that two questions to
    one passage are two rows. Rows of one seed are compared exactly only, since twins are near.
    """

    method: str = f"MinHash, character {NGRAM}-grams, Jaccard of {THRESHOLD} or more"
    rows: int
    """Rows that stand in a cluster."""
    surplus: int
    """Rows to take out so that each cluster has one left."""
    share: Estimate
    """`surplus` of all rows; its interval is that of half samples, in which a cluster has what is
    left of it."""
    clusters: int
    listed: tuple[tuple[str, ...], ...]
    """Keys of the 100 largest clusters, the largest first."""


def measure_duplicates(rows: Rows, *, seed: int = 0) -> tuple[Duplicates, NDArray[np.int64]]:
    """The clusters, and for each row the place of its cluster's first row, or -1."""
    found = clusters(rows)
    sizes = np.bincount(found, minlength=len(rows))[found]
    in_cluster = sizes > 1
    firsts = [place for place in np.flatnonzero(in_cluster).tolist() if found[place] == place]
    firsts.sort(key=lambda place: (-sizes[place], place))
    surplus = int(in_cluster.sum()) - len(firsts)
    listed = tuple(
        tuple(rows.rows[place].key for place in np.flatnonzero(found == first).tolist())
        for first in firsts[:_LISTED]
    )
    record = Duplicates(
        rows=int(in_cluster.sum()),
        surplus=surplus,
        share=bounded(
            half_sampling(lambda places: _surplus(found[places]), len(rows), seed), 0.0, 1.0
        ),
        clusters=len(firsts),
        listed=listed,
    )
    return record, np.where(in_cluster, found, -1)


def _surplus(found: NDArray[np.int64]) -> float:
    """Share of rows to take out, of rows by their clusters."""
    return 1 - len(np.unique(found)) / len(found)


def clusters(rows: Rows) -> NDArray[np.int64]:
    """For each row the place of the first row of its cluster, which may be its own."""
    fields = [tuple(map(normalised, row.fields.values())) for row in rows.rows]
    first: dict[tuple[str, ...], int] = {}
    parent = [first.setdefault(texts, place) for place, texts in enumerate(fields)]
    seeds = [row.seed for row in rows.rows]
    for place, same in enumerate(parent):
        # A text that several seeds have brought is of none of them.
        if seeds[same] != seeds[place]:
            seeds[same] = ""

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    different = list(first.values())
    for bucket in _buckets(_band_hashes([" ".join(fields[place]) for place in different])):
        places = [different[number] for number in bucket]
        for at, place in enumerate(places):
            for other in places[max(0, at - _COMPARED) : at]:
                a, b = root(other), root(place)
                if a != b and _repeats(fields[other], fields[place], (seeds[other], seeds[place])):
                    parent[max(a, b)] = min(a, b)
    return np.array([root(place) for place in range(len(parent))], dtype=np.int64)


def _repeats(a: tuple[str, ...], b: tuple[str, ...], seeds: tuple[str, str]) -> bool:
    if seeds[0] and seeds[0] == seeds[1]:
        return False
    own = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
    return near(" ".join(x for x, _ in own), " ".join(y for _, y in own))


def near_pairs(texts: Sequence[str], others: Sequence[str]) -> list[Pair]:
    """(place in `texts`, place in `others`) of near duplicates, one pair a text at most."""
    normal = [normalised(text) for text in (*others, *texts)]
    found: dict[int, int] = {}
    for bucket in _buckets(_band_hashes(normal)):
        left = [place for place in bucket if place < len(others)][:_COMPARED]
        for place in bucket[len([p for p in bucket if p < len(others)]) :] if left else ():
            for other in left:
                if place not in found and near(normal[other], normal[place]):
                    found[place] = other
    return [Pair(place - len(others), found[place]) for place in sorted(found)]


def near(a: str, b: str) -> bool:
    if a == b:
        return True
    x, y = shingles(a), shingles(b)
    return len(x & y) >= THRESHOLD * len(x | y)


def normalised(text: str) -> str:
    """The words in lower case, one blank apart."""
    return " ".join(WORD.findall(text.lower()))


def shingles(text: str) -> set[str]:
    """Character 5-grams of a normalised text; the text itself where it is shorter."""
    return {text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))}


def _band_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Shape (bands, texts)."""
    found = np.empty((_BANDS, len(texts)), dtype=np.uint64)
    for start in range(0, len(texts), _AT_ONCE):
        sets = [shingles(text) for text in texts[start : start + _AT_ONCE]]
        digests = np.array(
            RMinHash.digests_from_token_sets(sets, _BANDS * _WIDTH, 1), dtype=np.uint64
        ).reshape(len(sets), _BANDS, _WIDTH)
        bands = np.zeros((len(sets), _BANDS), dtype=np.uint64)
        for column in range(_WIDTH):
            bands = (bands ^ digests[:, :, column]) * np.uint64(0x9E3779B97F4A7C15)
            bands ^= bands >> np.uint64(29)
        found[:, start : start + len(sets)] = bands.T
    return found


def _buckets(hashes: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Places of texts that share a band, in order, band by band."""
    for band in hashes:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, band[order][1:] != band[order][:-1]])
        ends = np.r_[starts[1:], len(order)]
        for start, end in zip(starts, ends, strict=True):
            if end - start > 1:
                yield order[start:end].tolist()
