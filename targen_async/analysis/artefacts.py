"""Artefacts: what gives the label away without the task being solved."""

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.analysis.crossfit import Crossfit, Unfit, crossfit
from targen_async.analysis.estimate import Estimate, bootstrap_mean, bootstrap_share
from targen_async.analysis.rows import Rows

_READ = 10_000
"""Rows that the baseline of one field alone is measured on at most."""
_NUMBERED = re.compile(r"(.*?)(?:\d+|(?<![A-Za-z])[A-Za-z])")
"""A name with a number or a lone letter at its end."""
_CHOICES = ("choice", "option", "answer", "ending", "solution", "sol")
"""What fields are called of which a label that is a number tells the right one."""


class Position(Struct, frozen=True, kw_only=True, tag="measured"):
    """Where the label tells which field is right, such as choice1 or choice2."""

    shares: Mapping[str, Estimate]
    """Of the rows by the field that is right, a field that never is among them; without a position
    bias the interval of each covers one by the number of fields."""
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
    label_only: Estimate | None
    """Share of the most frequent label: how often it is right to say that without reading a row,
    which all gains are over. None where rows have no labels, or each one of its own."""
    position: Position | Unfit | None
    """None where neither labels nor names of fields tell of choices."""
    length: Mapping[str, Length]
    """By field; empty where labels cannot be classified."""
    one_field: Mapping[str, OneField | Unfit]
    """By field; empty where rows have one field only."""


def measure_artefacts(rows: Rows, *, seed: int = 0) -> Artefacts:
    """Position, length and one-field leaks of a set of one row or more."""
    part = rows.sample(_READ, seed)
    several = len(rows.fields) > 1 and not rows.open_labels
    return Artefacts(
        label_only=None if rows.open_labels else _label_only(rows, seed),
        position=_position(rows, seed),
        length={} if rows.open_labels else _lengths(rows, seed),
        one_field={name: _one_field(part, name, seed) for name in rows.fields} if several else {},
    )


def _label_only(rows: Rows, seed: int) -> Estimate | None:
    given = Counter(row.label for row in rows.rows if row.label is not None)
    if not given:
        return None
    return bootstrap_share(max(given.values()), given.total(), seed)


def _position(rows: Rows, seed: int) -> Position | Unfit | None:
    if rows.open_labels or not rows.labels:
        return None
    slots = _slots(rows)
    if slots is None or isinstance(slots, Unfit):
        return slots
    names = sorted(set(slots.values()), key=rows.fields.index)
    known = [row for row in rows.rows if row.label is not None]
    right = np.array([names.index(slots[row.label or ""]) for row in known])
    words = np.array([[len(row.fields.get(name, "").split()) for name in names] for row in known])
    ordered = np.sort(words, axis=1)
    clear = ordered[:, -1] > ordered[:, -2]
    longest = (words.argmax(axis=1) == right)[clear].astype(np.float64)
    return Position(
        shares={
            name: bootstrap_mean((right == number).astype(np.float64), seed)
            for number, name in enumerate(names)
        },
        longest_is_right=bootstrap_mean(longest, seed)
        if len(longest)
        else Estimate(value=1 / len(names), rows=0),
    )


def _slots(rows: Rows) -> Mapping[str, str] | Unfit | None:
    """Label to the field that it says is right, also labels that no row has; None where there are
    no choices."""
    named = [label for label in rows.labels if label in rows.fields]
    if named:
        stems = {_stem(label) for label in named} - {None}
        names = [name for name in rows.fields if name in named or _stem(name) in stems]
        slots = {name: name for name in names}
        told = f"no field, {named[0]!r} does"
    else:
        names = [name for name in rows.fields if (_stem(name) or "").strip("_- ") in _CHOICES]
        if len(names) < 2:
            return None
        # From 0 as in SuperGLUE's files, unless only counting from 1 has a field for each.
        first = int("0" not in rows.labels and str(len(names)) in rows.labels)
        slots = {str(first + place): name for place, name in enumerate(names)}
        told = f"none of {', '.join(names)}"
    if strange := [label for label in rows.labels if label not in slots]:
        return Unfit(reason=f"label {strange[0]!r} names {told}")
    if len(slots) < 2:
        return Unfit(
            reason=f"all rows have label {named[0]!r}, and no other field is named like it"
        )
    return slots


def _stem(name: str) -> str | None:
    found = _NUMBERED.fullmatch(name)
    return found[1].lower() if found else None


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
