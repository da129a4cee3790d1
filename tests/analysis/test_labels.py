"""Label quality: the formula on hand-made numbers, planted noise, and what rows tell themselves."""

from collections.abc import Mapping

import numpy as np
import pytest

from targen_async.analysis.crossfit import Unfit, crossfit
from targen_async.analysis.labels import (
    LabelQuality,
    Noise,
    calibrated,
    confident_joint,
    measure_labels,
)
from targen_async.analysis.rows import Row, Rows
from tests.analysis.sets import learnable, prose, rows_of

NOBODY = Unfit(reason="not asked")


def test_the_confident_joint_by_hand() -> None:
    """Thresholds are (0.9 + 0.6 + 0.3) / 3 = 0.6 and (0.8 + 0.6) / 2 = 0.7. Row 2 is given 0 and
    has 0.7 of 1: it counts there. Row 4 reaches neither and counts nowhere."""
    given = np.array([0, 0, 0, 1, 1])
    second = np.array([0.1, 0.4, 0.7, 0.8, 0.6])
    probabilities = np.column_stack([1 - second, second])
    counts, likely = confident_joint(given, probabilities)
    assert counts.tolist() == [[2, 1], [0, 1]]
    assert likely.tolist() == [0, 0, 1, 1, -1]
    # Rows are scaled to the labels' shares, 3/5 and 2/5.
    joint = calibrated(counts, given)
    assert joint == pytest.approx(np.array([[0.4, 0.2], [0.0, 0.4]]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_planted_noise_is_estimated_to_within_three_points(share: float) -> None:
    rows, flipped = learnable(1500, flipped=share)
    found = measure_labels(rows, crossfit(rows)).noise
    assert isinstance(found, Noise)
    assert found.share.value == pytest.approx(share, abs=0.03)
    listed = {int(suspect.key[1:]) for suspect in found.listed}
    if share:
        assert np.mean([flipped[place] for place in listed]) > 0.9
        assert found.suspected == pytest.approx(flipped.sum(), rel=0.2)
    assert sum(sum(line.values()) for line in found.joint.values()) == pytest.approx(1)


def test_what_a_model_cannot_learn_is_not_called_noise() -> None:
    labels = [("no", "yes")[n] for n in np.random.default_rng(0).integers(0, 2, 300)]
    rows = rows_of(prose(300), labels)
    found = measure_labels(rows, crossfit(rows)).noise
    assert isinstance(found, Unfit)
    assert "learns too little" in found.reason


def corrected(*rows: tuple[str, str, tuple[str, ...]], simulated: bool = False) -> Rows:
    return Rows(
        [
            Row(
                key=f"t/{number}/0",
                fields={"text": f"text {number}"},
                label=after,
                label_before_correction=before,
                votes=votes,
                outcome="keep" if before == after else "relabel",
                simulated=simulated,
            )
            for number, (before, after, votes) in enumerate(rows)
        ],
        task="t",
    )


def test_transitions_and_votes() -> None:
    rows = corrected(
        ("a", "a", ("a", "a", "a")), ("a", "b", ("b", "b", "a")), ("b", "b", ("b",)), ("a", "a", ())
    )
    found = measure_labels(rows, NOBODY)
    assert found.shares == {"a": 0.5, "b": 0.5}
    assert found.correction is not None and found.votes is not None
    assert found.correction.transitions == {"a": {"a": 2, "b": 1}, "b": {"b": 1}}
    assert found.correction.changed.value == 0.25
    # Of three votes b, b, a one pair of three agrees.
    assert found.votes.unanimous.value == 0.5
    assert found.votes.agreement.value == pytest.approx((1 + 1 / 3) / 2)
    assert found.simulator_gold is None


def gold(task: str, fields: Mapping[str, str]) -> str | None:
    assert task == "t"
    return None if fields["text"] == "text 3" else "a"


def test_simulated_rows_are_held_against_their_gold() -> None:
    rows = corrected(("a", "a", ()), ("b", "a", ()), ("a", "b", ()), ("a", "a", ()), simulated=True)
    found = measure_labels(rows, NOBODY, gold=gold).simulator_gold
    assert found is not None and found.correct is not None
    assert (found.known, found.unknown) == (3, 1)
    assert found.correct.value == pytest.approx(2 / 3)
    assert found.correct_before_correction is not None
    assert found.correct_before_correction.value == pytest.approx(2 / 3)
    real = corrected(("a", "a", ()))
    assert measure_labels(real, NOBODY, gold=gold).simulator_gold is None


def test_rows_without_labels_have_an_outcome() -> None:
    found: LabelQuality = measure_labels(rows_of(["a", "b"]), NOBODY)
    assert found.shares == {}
    assert found.unlabelled == 2
    assert found.correction is None and found.votes is None
