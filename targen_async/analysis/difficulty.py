"""Difficulty: V-usable information and its pointwise form (Ethayarajh et al. 2022)."""

from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.analysis.crossfit import FOLDS, Crossfit, Unfit
from targen_async.analysis.estimate import Estimate, bootstrap_mean
from targen_async.analysis.rows import Rows

_LEAST = 1e-12
_LISTED = 100
_BINS = (-8.0, 4.0, 0.25)


class HardRow(Struct, frozen=True, kw_only=True):
    """A row that the model would have labelled otherwise, or hardly so."""

    key: str
    label: str
    predicted: str
    pvi: float


class Histogram(Struct, frozen=True, kw_only=True):
    """`counts[i]`: values from `edges[i]` to under `edges[i + 1]`; those outside stand in the
    first and the last."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Difficulty(Struct, frozen=True, kw_only=True, tag="measured"):
    """How much the texts tell of the labels, in bits, to a family of models; by models that have
    not seen the row. Hard rows have a low PVI; below 0 the label is less likely after reading."""

    model: str
    folds: int = FOLDS
    labels: tuple[str, ...]
    """The label map: sorted."""
    rows: int
    left_out: int
    """Rows of labels with fewer than five rows, or without a label."""
    v_information: Estimate
    """Mean PVI, bits; at most the entropy of the labels."""
    label_entropy: float
    """Bits."""
    accuracy: Estimate
    share_below_0: Estimate
    by_label: Mapping[str, Estimate]
    """Mean PVI of each label's rows."""
    histogram: Histogram
    lowest: tuple[HardRow, ...]
    """The 100 rows with the lowest PVI below 0: likely mislabelled."""


def pvi(given: NDArray[np.float64], null: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2 g[y|x] - log2 g'[y], bits, from the two probabilities of each row's own label."""
    return np.log2(np.maximum(given, _LEAST)) - np.log2(np.maximum(null, _LEAST))


def pvi_of(fit: Crossfit) -> NDArray[np.float64]:
    """Out-of-fold PVI of the rows of `fit.places`, bits, shape (m,)."""
    return pvi(fit.of_given, fit.null_of_given)


def measure_difficulty(rows: Rows, fit: Crossfit | Unfit, *, seed: int = 0) -> Difficulty | Unfit:
    """Difficulty from cross-fitted probabilities of the same rows."""
    if isinstance(fit, Unfit):
        return fit
    values = pvi_of(fit)
    shares = np.bincount(fit.given) / len(fit.given)
    predicted = fit.probabilities.argmax(axis=1)
    return Difficulty(
        model=fit.model,
        labels=fit.labels,
        rows=len(values),
        left_out=len(rows) - len(values),
        v_information=bootstrap_mean(values, seed),
        label_entropy=float(-(shares * np.log2(shares)).sum()),
        accuracy=bootstrap_mean((predicted == fit.given).astype(np.float64), seed),
        share_below_0=bootstrap_mean((values < 0).astype(np.float64), seed),
        by_label={
            label: bootstrap_mean(values[fit.given == number], seed)
            for number, label in enumerate(fit.labels)
        },
        histogram=histogram(values),
        lowest=tuple(
            HardRow(
                key=rows.rows[fit.places[at]].key,
                label=fit.labels[fit.given[at]],
                predicted=fit.labels[predicted[at]],
                pvi=float(values[at]),
            )
            for at in np.argsort(values, kind="stable")[:_LISTED]
            if values[at] < 0
        ),
    )


def histogram(values: NDArray[np.float64]) -> Histogram:
    """From -8 to 4 bits in steps of a quarter."""
    low, high, step = _BINS
    edges = np.arange(low, high + step, step)
    counts, _ = np.histogram(np.clip(values, low, high - step / 2), edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))
