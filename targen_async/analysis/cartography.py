"""Dataset cartography: what training tells of each row (Swayamdipta et al. 2020)."""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.analysis.crossfit import Crossfit, Unfit
from targen_async.analysis.estimate import Estimate, bootstrap_mean


class Cartography(Struct, frozen=True, kw_only=True):
    """Means over rows. Rows of high confidence and low variability are easy to learn, of high
    variability ambiguous, of low confidence and low variability hard, or mislabelled."""

    model: str
    epochs: int
    confidence: Estimate
    variability: Estimate
    correctness: Estimate


class Map(Struct, frozen=True, kw_only=True):
    """Of the rows of a fit, each of shape (m,)."""

    confidence: NDArray[np.float64]
    """Mean over epochs of the probability of the row's label, by a model trained on the row."""
    variability: NDArray[np.float64]
    """Standard deviation (of all epochs, not of a sample) of the same."""
    correctness: NDArray[np.float64]
    """Share of the epochs after which the row's label was the likeliest."""


def map_of(fit: Crossfit | Unfit) -> Map | None:
    """None for a model that is not trained over epochs."""
    if isinstance(fit, Unfit) or fit.dynamics is None:
        return None
    return Map(
        confidence=fit.dynamics.of_given.mean(axis=0),
        variability=fit.dynamics.of_given.std(axis=0),
        correctness=fit.dynamics.right.mean(axis=0),
    )


def measure_cartography(fit: Crossfit | Unfit, *, seed: int = 0) -> Cartography | None:
    """None for a model that is not trained over epochs."""
    found = map_of(fit)
    if found is None or isinstance(fit, Unfit) or fit.dynamics is None:
        return None
    return Cartography(
        model=fit.model,
        epochs=len(fit.dynamics.right),
        confidence=bootstrap_mean(found.confidence, seed),
        variability=bootstrap_mean(found.variability, seed),
        correctness=bootstrap_mean(found.correctness, seed),
    )
