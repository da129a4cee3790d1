"""A number with its 95 % interval, and the difference of two."""

from collections.abc import Callable
from math import hypot

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

RESAMPLES = 500
HALVES = 20
T_95 = 2.093024
"""Student's t of as many halves: their spread is itself known to within a sixth only."""
_AT_ONCE = 5_000_000
"""Draws held in memory at a time."""


class Estimate(Struct, frozen=True, kw_only=True):
    """A number and its 95 % interval; both ends are None where one row or none is measured."""

    value: float
    low: float | None = None
    high: float | None = None
    rows: int
    """How many rows it was measured on: fewer than there are where the measure draws a sample."""


def bootstrap_mean(values: NDArray[np.float64] | NDArray[np.bool_], seed: int) -> Estimate:
    """The mean over rows with the percentile bootstrap (Efron 1979), 500 resamples.

    `values` has shape (rows,), at least one.
    """
    count = len(values)
    mean = float(values.mean())
    if count < 2:
        return Estimate(value=mean, rows=count)
    rng = np.random.default_rng(seed)
    means: list[float] = []
    each = max(1, _AT_ONCE // count)
    while len(means) < RESAMPLES:
        drawn = rng.integers(0, count, (min(each, RESAMPLES - len(means)), count), dtype=np.int32)
        means += values[drawn].mean(axis=1).tolist()
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(value=mean, low=float(low), high=float(high), rows=count)


def bootstrap_share(count: int, rows: int, seed: int, *, of: float = 1.0) -> Estimate:
    """`bootstrap_mean` of `count` ones among noughts, times `of`: a resample's sum is binomial."""
    share = count / rows
    if rows < 2:
        return Estimate(value=share * of, rows=rows)
    drawn = np.random.default_rng(seed).binomial(rows, share, RESAMPLES) / rows
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value=share * of, low=float(low) * of, high=float(high) * of, rows=rows)


def half_sampling(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    seed: int,
    *,
    grows: bool = False,
) -> Estimate:
    """A measure of a set with the interval of random half samples (Shao and Wu 1989).

    `statistic` takes the places of rows; `grows`: it is about proportional to the number of rows,
    so the spread of halves is that of a smaller number and is scaled up to the whole.
    With replacement a set measure would meet copies that are none, so halves are drawn without:
    at half the rows the spread over halves is the standard error of the whole, with 19 degrees of
    freedom. It is laid around the value of all rows, since such measures change with size.
    """
    whole = statistic(np.arange(count))
    if count < 4:
        return Estimate(value=whole, rows=count)
    rng = np.random.default_rng(seed)
    halves = [statistic(np.sort(rng.permutation(count)[: count // 2])) for _ in range(HALVES)]
    error = T_95 * float(np.std(halves, ddof=1))
    if grows:
        error *= whole / float(np.mean(halves))
    return Estimate(value=whole, low=whole - error, high=whole + error, rows=count)


def bounded(estimate: Estimate, low: float, high: float) -> Estimate:
    """The interval cut to what the measure can be."""
    if estimate.low is None or estimate.high is None:
        return estimate
    ends = {"low": max(low, estimate.low), "high": min(high, estimate.high)}
    return Estimate(value=estimate.value, rows=estimate.rows, **ends)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b; the two sets are taken as independent, so their half widths add as squares."""
    value, rows = a.value - b.value, min(a.rows, b.rows)
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(value=value, rows=rows)
    below = hypot(a.value - a.low, b.high - b.value)
    above = hypot(a.high - a.value, b.value - b.low)
    return Estimate(value=value, low=value - below, high=value + above, rows=rows)
