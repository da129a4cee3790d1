"""Intervals are as wide as measures really spread, over disjoint parts of one large set."""

import numpy as np
import pytest

from targen_async.analysis.analyze import Ways, analyze, estimates
from tests.analysis.test_planted import flip, nli, rows_of

PARTS, ROWS = 40, 250
PLACES = ("In France", "In Kenya", "In Peru", "At home", "Outside", "Nowhere")
PERSONS = ("she", "he", "they", "the nurse", "Anna", "nobody")


def ratios() -> dict[str, float]:
    """Measure to mean standard error by its intervals, by the standard deviation over parts."""
    entries = nli(PARTS * ROWS, told=True)
    flip(entries, 0.15)
    rng = np.random.default_rng(1)
    for entry in entries:
        place, person = PLACES[rng.integers(6)], PERSONS[rng.integers(6)]
        entry["premise"] = f"{place} {person} saw {entry['premise']}"
    rows = rows_of(entries)
    values: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for part in range(PARTS):
        ways = Ways(random_seed=part)
        found, _ = analyze(rows.take(range(part * ROWS, (part + 1) * ROWS)), ways=ways)
        for name, value in estimates(found.data).items():
            if value.low is not None and value.high is not None:
                values.setdefault(name, []).append(value.value)
                errors.setdefault(name, []).append((value.high - value.low) / 2 / 1.96)
    return {
        name: float(np.mean(errors[name]) / np.std(values[name], ddof=1))
        for name in values
        if np.std(values[name]) > 0 and len(values[name]) == PARTS
    }


@pytest.mark.long
def test_intervals_are_as_wide_as_measures_spread() -> None:
    """Standard deviations of 40 parts are themselves known to within a fifth or so. The entropy of
    a nearly even distribution has hardly room to spread, and halves of the rows have more. The most
    frequent label is left out: the larger of two even shares spreads .60 as much as each of them
    (a half-normal), while an interval as narrow as that would miss the true share, which
    test_estimate.py has covered."""
    found = ratios()
    assert len(found) > 20
    del found["artefacts.label_only"]
    for name, ratio in found.items():
        assert 0.65 < ratio < (2.5 if name.endswith("entropy") else 1.5), (name, ratio)
