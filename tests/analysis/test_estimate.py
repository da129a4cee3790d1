"""Intervals cover what they should, and two equal sets do not differ."""

from math import hypot

import numpy as np
import pytest

from targen_async.analysis.diversity import measure_diversity
from targen_async.analysis.estimate import (
    T_95,
    Estimate,
    bootstrap_mean,
    bootstrap_share,
    bounded,
    difference,
    half_sampling,
)
from tests.analysis.sets import prose, rows_of


def test_the_bootstrap_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = bootstrap_mean(values, 0)
    assert found.value == pytest.approx(values.mean())
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2.0 / 2000**0.5, rel=0.12)


def test_half_samples_are_as_wide_as_theory_says() -> None:
    """Of a mean, for which the standard error is known: half samples without replacement."""
    values = np.random.default_rng(2).normal(0.0, 1.0, 1000)
    found = half_sampling(lambda places: float(values[places].mean()), 1000, 0)
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * T_95 / 1000**0.5, rel=0.35)


def test_intervals_of_half_samples_cover_as_often_as_they_say() -> None:
    """Twenty halves tell the spread to within a sixth: 1.96 of it would cover 93.5 %, not 95 %."""
    covered = 0
    for seed in range(2000):
        values = np.random.default_rng(seed).normal(size=40)
        found = half_sampling(lambda places, of=values: float(of[places].mean()), 40, seed)
        covered += (found.low or 0) <= 0 <= (found.high or 0)
    assert 0.94 <= covered / 2000 <= 0.96


@pytest.mark.parametrize("name", ["distinct_2", "self_bleu", "compression_ratio", "vendi"])
def test_intervals_of_set_measures_hold_between_halves_of_one_set(name: str) -> None:
    """Differences of disjoint parts, by their standard errors, have a mean square of about 1."""
    texts, squares = prose(1200, 10), []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(1200)
        parts = (rows_of(texts[n] for n in order[at : at + 150]) for at in (0, 150))
        a, b = (getattr(measure_diversity(part, seed=seed), name) for part in parts)
        apart = difference(a, b)
        squares.append((apart.value / ((apart.high - apart.low) / 2 / 1.96)) ** 2)
    assert 0.3 < np.mean(squares) < 2.6


def test_one_row_has_no_interval() -> None:
    assert bootstrap_mean(np.array([4.0]), 0).low is None
    assert half_sampling(lambda places: 1.0, 1, 0).high is None
    assert difference(bootstrap_mean(np.array([4.0]), 0), bootstrap_mean(np.ones(5), 0)).low is None


def test_half_widths_of_a_difference_add_as_squares() -> None:
    a = Estimate(value=5.0, low=2.0, high=9.0, rows=10)
    b = Estimate(value=1.0, low=-11.0, high=5.0, rows=7)
    wanted = Estimate(value=4.0, low=4.0 - 5.0, high=4.0 + hypot(4, 12), rows=7)
    assert difference(a, b) == wanted


def test_a_difference_covers_nothing_where_nothing_differs() -> None:
    a = bootstrap_mean(np.random.default_rng(3).normal(size=400), 0)
    b = bootstrap_mean(np.random.default_rng(4).normal(0.8, size=400), 0)
    same, apart = difference(a, a), difference(b, a)
    assert same.value == 0 and same.low is not None and same.low < 0 < (same.high or 0)
    assert apart.low is not None and apart.low > 0


def test_a_share_has_the_interval_of_the_bootstrap_over_its_rows() -> None:
    values = np.arange(900) < 180
    slow, fast = bootstrap_mean(values, 0), bootstrap_share(180, 900, 1, of=1000)
    assert (slow.value, fast.value, fast.rows) == (0.2, 200, 900)
    assert slow.low is not None and fast.low is not None
    assert slow.high is not None and fast.high is not None
    assert fast.low == pytest.approx(1000 * slow.low, abs=8)
    assert fast.high == pytest.approx(1000 * slow.high, abs=8)
    assert bootstrap_share(1, 1, 0).low is None


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.34, 0.33, 0.33), (0.6, 0.4)])
def test_the_share_of_the_most_frequent_class_is_covered(shares: tuple[float, ...]) -> None:
    """Also where classes are even. The largest share of each multinomial resample would not do: of
    three even classes its interval never has the true share."""
    drawn = np.random.default_rng(8).multinomial(250, shares, 400)
    found = [bootstrap_share(int(counts.max()), 250, n) for n, counts in enumerate(drawn)]
    covered = [one.low <= max(shares) <= one.high for one in found if one.low and one.high]
    assert len(covered) == 400 and 0.88 < np.mean(covered) < 0.985


def test_an_interval_does_not_leave_what_a_measure_can_be() -> None:
    wide = Estimate(value=0.1, low=-0.3, high=1.2, rows=9)
    assert bounded(wide, 0, 1) == Estimate(value=0.1, low=0, high=1, rows=9)
    assert bounded(Estimate(value=0.5, rows=1), 0, 1).low is None
