"""Artefacts: what gives the label away without the task being solved."""

from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.analysis.crossfit import Crossfit, Unfit, crossfit
from targen_async.analysis.estimate import Estimate, bootstrap_mean
from targen_async.analysis.rows import Rows

_READ = 10_000
"""Rows that the baseline of one field alone is measured on at most."""


class Position(Struct, frozen=True, kw_only=True):
    """Where the label names a field, such as choice1 or choice2."""

    shares: Mapping[str, Estimate]
    """Of the rows by the field that is right; without a position bias the interval of each covers
    one by the number of fields."""
    longest_is_right: Estimate
    """Of the rows in which one of these fields is longer, in words, than all others."""


class Length(Struct, frozen=True, kw_only=True):
    """How long a field is, by label."""

    words: Mapping[str, Estimate]
    """Mean by label."""
    gain: Estimate
    """Share of the labels that one guesses right by the length alone, with the most frequent
    label of rows as long (in ten classes of equal size, learnt on the other half), less the share
    of the most frequent label."""


class OneField(Struct, frozen=True, kw_only=True, tag="measured"):
    """A model that reads one field and must not know the label better than without any: the
    hypothesis-only baseline (Gururangan et al. 2018; Poliak et al. 2018)."""

    accuracy: Estimate
    """Out of fold, of 10,000 rows at most."""
    gain: Estimate
    """Accuracy less the share of the most frequent label."""


class Artefacts(Struct, frozen=True, kw_only=True):
    position: Position | None
    """None where labels do not name fields."""
    length: Mapping[str, Length]
    """By field; empty where labels cannot be classified."""
    one_field: Mapping[str, OneField | Unfit]
    """By field; empty where rows have one field only."""


def measure_artefacts(rows: Rows, *, seed: int = 0) -> Artefacts:
    """Position, length and one-field leaks of a set of one row or more."""
    part = rows.sample(_READ, seed)
    several = len(rows.fields) > 1 and not rows.open_labels
    return Artefacts(
        position=_position(rows, seed),
        length={} if rows.open_labels else _lengths(rows, seed),
        one_field={name: _one_field(part, name, seed) for name in rows.fields} if several else {},
    )


def _position(rows: Rows, seed: int) -> Position | None:
    slots = rows.labels
    if rows.open_labels or len(slots) < 2 or not set(slots) <= set(rows.fields):
        return None
    right = np.array([slots.index(row.label) for row in rows.rows if row.label is not None])
    words = np.array(
        [
            [len(row.fields[slot].split()) for slot in slots]
            for row in rows.rows
            if row.label is not None
        ]
    )
    ordered = np.sort(words, axis=1)
    clear = ordered[:, -1] > ordered[:, -2]
    longest = (words.argmax(axis=1) == right)[clear].astype(np.float64)
    return Position(
        shares={
            slot: bootstrap_mean((right == number).astype(np.float64), seed)
            for number, slot in enumerate(slots)
        },
        longest_is_right=bootstrap_mean(longest, seed)
        if len(longest)
        else Estimate(value=1 / len(slots), rows=0),
    )


def _lengths(rows: Rows, seed: int) -> dict[str, Length]:
    known = [row for row in rows.rows if row.label is not None]
    if len(rows.labels) < 2 or len(known) < 4:
        return {}
    given = np.array([rows.labels.index(row.label or "") for row in known])
    return {name: _length(rows, known_words(rows, name), given, seed) for name in rows.fields}


def known_words(rows: Rows, field: str) -> NDArray[np.int64]:
    """Words of a field in each row that has a label."""
    counts = [len(row.fields.get(field, "").split()) for row in rows.rows if row.label is not None]
    return np.array(counts, dtype=np.int64)


def _length(rows: Rows, words: NDArray[np.int64], given: NDArray[np.int64], seed: int) -> Length:
    edges = np.unique(np.quantile(words, np.linspace(0.1, 0.9, 9)))
    classes = np.searchsorted(edges, words, side="right")
    half = np.random.default_rng(seed).permutation(len(words)) % 2
    hits = np.zeros(len(words))
    for side in (0, 1):
        table = np.zeros((len(edges) + 1, len(rows.labels)))
        np.add.at(table, (classes[half != side], given[half != side]), 1)
        prior = table.sum(axis=0)
        guess = (table + 1e-6 * prior).argmax(axis=1)
        mine = half == side
        plain = int(prior.argmax())
        hits[mine] = (guess[classes[mine]] == given[mine]) * 1.0 - (given[mine] == plain) * 1.0
    return Length(
        words={
            label: bootstrap_mean(words[given == number].astype(np.float64), seed)
            for number, label in enumerate(rows.labels)
        },
        gain=bootstrap_mean(hits, seed),
    )


def _one_field(rows: Rows, field: str, seed: int) -> OneField | Unfit:
    fit = crossfit(rows, seed=seed, fields=(field,))
    return fit if isinstance(fit, Unfit) else _gain(fit, seed)


def _gain(fit: Crossfit, seed: int) -> OneField:
    right = (fit.probabilities.argmax(axis=1) == fit.given).astype(np.float64)
    common = (fit.given == np.bincount(fit.given).argmax()).astype(np.float64)
    return OneField(accuracy=bootstrap_mean(right, seed), gain=bootstrap_mean(right - common, seed))
