"""Bias: how often countries, nationalities, names, genders and jobs are named, and beside what."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import sparse

from targen_async.analysis.entities import KINDS
from targen_async.analysis.estimate import (
    Estimate,
    bootstrap_mean,
    bootstrap_share,
    bounded,
    half_sampling,
)
from targen_async.analysis.mentions import Mentions
from targen_async.analysis.rows import Rows

_SHOWN = 50
_PERMUTATIONS = 1000


class Frequencies(Struct, frozen=True, kw_only=True):
    """What rows name of one kind. A row counts once for each entry."""

    rows_per_1000: Estimate
    """Rows that name at least one."""
    different: int
    entropy: Estimate
    """Bits, of the distribution over entries; 0 where none or one is named."""
    per_1000: Mapping[str, Estimate]
    """The 50 most frequent entries, by rows of 1,000."""


class Gender(Struct, frozen=True, kw_only=True):
    """Rows with words of a gender: pronouns, given names and nouns."""

    rows: int
    female: int
    male: int
    """`female` and `male` both count rows that have words of both."""
    both: int
    share_female: Estimate | None
    """Of the rows with words of one gender only; None where there is none."""


class Bias(Struct, frozen=True, kw_only=True):
    method: str
    """Who found countries, nationalities and names: `rules`, or spaCy and its model."""
    countries: Frequencies
    nationalities: Frequencies
    names: Frequencies
    pronouns: Frequencies
    occupations: Frequencies
    events: Frequencies | None
    """Found by spaCy only; so `products`."""
    products: Frequencies | None
    gender: Gender
    gender_by_label: Mapping[str, Gender]
    gender_by_occupation: Mapping[str, Gender]
    """Of the 50 most frequent occupations."""


class Divergence(Struct, frozen=True, kw_only=True):
    """Two distributions over the entries of one kind."""

    jensen_shannon: Estimate
    """Bits, from 0 (the same) to 1 (nothing in common); Lin 1991."""
    by_chance: float
    """What 95 of 100 random exchanges of rows between the two sets stay under: at this or less,
    the sets do not differ."""
    p_value: float
    """Share of the exchanges that come up to the divergence, it itself counted (Phipson and Smyth
    2010): what many kinds that are looked at together are held against."""


def measure_bias(
    rows: Rows, entities: Mapping[str, Mentions], *, seed: int = 0, model: str | None = None
) -> Bias:
    """Frequencies and gendered co-occurrence; `entities` are those of the same rows, `model` the
    spaCy model that found them."""
    female, male = entities["female"].any, entities["male"].any
    given = np.array([row.label or "" for row in rows.rows], dtype=object)
    labels = () if rows.open_labels else rows.labels
    jobs = entities["occupations"]
    by_job = jobs.found.tocsc()
    return Bias(
        method="rules" if model is None else f"spaCy, {model}",
        **{kind: frequencies(entities[kind], seed) for kind in KINDS},
        events=frequencies(entities["events"], seed) if "events" in entities else None,
        products=frequencies(entities["products"], seed) if "products" in entities else None,
        gender=_gender(female, male, seed),
        gender_by_label={
            label: _gender(female[given == label], male[given == label], seed) for label in labels
        },
        gender_by_occupation={
            jobs.entries[place]: _gender(female[named], male[named], seed)
            for place in _most_frequent(jobs)
            for named in (by_job.indices[by_job.indptr[place] : by_job.indptr[place + 1]],)
        },
    )


def frequencies(mentions: Mentions, seed: int) -> Frequencies:
    counts, rows = mentions.counts, mentions.found.shape[0]
    named = bootstrap_mean(mentions.any.astype(np.float64) * 1000, seed)
    return Frequencies(
        rows_per_1000=named,
        different=len(counts),
        entropy=bounded(
            half_sampling(lambda places: entropy(_sums(mentions.found[places])), rows, seed),
            0.0,
            np.inf,
        ),
        per_1000={
            mentions.entries[place]: bootstrap_share(int(counts[place]), rows, seed, of=1000)
            for place in _most_frequent(mentions)
        },
    )


def _most_frequent(mentions: Mentions) -> list[int]:
    """Places of entries, the most frequent first, by name where two are as frequent."""
    order: list[int] = np.argsort(-mentions.counts, kind="stable")[:_SHOWN].tolist()
    return order


def _gender(female: NDArray[np.bool_], male: NDArray[np.bool_], seed: int) -> Gender:
    one = female ^ male
    return Gender(
        rows=len(female),
        female=int(female.sum()),
        male=int(male.sum()),
        both=int((female & male).sum()),
        share_female=bootstrap_mean(female[one].astype(np.float64), seed) if one.any() else None,
    )


# ---- two distributions


def entropy(counts: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """Shannon entropy of counts, bits."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Jensen-Shannon divergence of two counts or distributions over the same entries, bits."""
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def half(side: NDArray[np.float64]) -> float:
        some = side > 0
        return float((side[some] * np.log2(side[some] / middle[some])).sum()) / 2

    return max(0.0, half(p) + half(q))


def diverge(a: Mentions, b: Mentions, *, seed: int = 0) -> Divergence | None:
    """How far apart two sets' distributions are; None where one of them names nothing."""
    if not len(a.entries) or not len(b.entries):
        return None
    entries = sorted(set(a.entries) | set(b.entries))
    both = sparse.vstack([_laid_out(a, entries), _laid_out(b, entries)]).tocsr()
    own = a.found.shape[0]

    def apart(places: NDArray[np.int64]) -> float:
        mine, theirs = _sums(both[places[places < own]]), _sums(both[places[places >= own]])
        return jensen_shannon(mine, theirs) if mine.sum() and theirs.sum() else 1.0

    kinds, counts = _different(both)
    whole, rng = _sums(both), np.random.default_rng(seed)
    exchanged: list[float] = []
    for _ in range(_PERMUTATIONS):
        # How many rows of each kind fall to the first set.
        drawn = rng.multivariate_hypergeometric(counts, own, method="marginals")
        part = kinds.T @ drawn
        if part.sum() and (whole - part).sum():
            exchanged.append(jensen_shannon(part, whole - part))
    chance = float(np.quantile(exchanged, 0.95)) if exchanged else 1.0
    value = bounded(half_sampling(apart, both.shape[0], seed), 0.0, 1.0)
    reached = sum(found >= value.value for found in exchanged)
    return Divergence(
        jensen_shannon=value, by_chance=chance, p_value=(reached + 1) / (len(exchanged) + 1)
    )


def _laid_out(mentions: Mentions, entries: list[str]) -> sparse.csr_matrix:
    places = {entry: place for place, entry in enumerate(entries)}
    columns = np.array([places[entry] for entry in mentions.entries], dtype=np.int64)
    found = mentions.found.tocoo()
    shape = (found.shape[0], len(entries))
    return sparse.csr_matrix((found.data, (found.row, columns[found.col])), shape=shape)


def _different(found: sparse.csr_matrix) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
    """Each different row once, and how many there are of it."""
    found.sort_indices()
    marks = [
        found.indices[start:end].tobytes() + found.data[start:end].tobytes()
        for start, end in pairwise(found.indptr.tolist())
    ]
    counts, place = Counter(marks), {mark: place for place, mark in enumerate(marks)}
    return found[[place[mark] for mark in counts]], np.array(list(counts.values()), dtype=np.int64)


def _sums(found: sparse.csr_matrix) -> NDArray[np.float64]:
    return np.asarray(found.sum(axis=0), dtype=np.float64).ravel()
