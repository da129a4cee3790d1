"""Label quality: the formula on hand-made numbers, planted noise, and what rows tell themselves."""

from collections.abc import Mapping

import numpy as np
import pytest
from msgspec.structs import replace

from targen_async.analysis.crossfit import Unfit, crossfit
from targen_async.analysis.labels import (
    LEAST_NOISE,
    LabelQuality,
    Noise,
    calibrated,
    confident_joint,
    likely_labels,
    measure_labels,
    surer,
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


@pytest.mark.parametrize(("share", "labels"), [(0.0, 2), (0.1, 2), (0.15, 3), (0.2, 2)])
def test_planted_noise_is_estimated_to_within_three_points(share: float, labels: int) -> None:
    rows, flipped = learnable(1500, flipped=share, labels=labels)
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


@pytest.mark.parametrize(("told", "labels"), [(0.3, 2), (0.4, 3), (0.5, 2), (0.8, 2)])
def test_labels_that_some_rows_do_not_tell_are_not_called_wrong(told: float, labels: int) -> None:
    """All labels are right. A model is unsure of the rows that tell nothing: its mistakes are its
    own, which wrong labels of rows that it knows are not."""
    rows, _ = learnable(1000, told=told, labels=labels)
    fit = crossfit(rows)
    found = measure_labels(rows, fit).noise
    if isinstance(found, Unfit):
        assert "may be wrong, or the text does not tell them" in found.reason
        assert likely_labels(fit) == {}
    else:
        assert told > 0.5
        assert found.share.value < LEAST_NOISE


@pytest.mark.long
@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("count", [300, 1000])
def test_what_is_refused_and_what_is_found_over_seeds(count: int, labels: int) -> None:
    """Of 12 sets with wrong labels none is refused, of 9 with right ones none is a fault."""
    for seed in range(3):
        for share in (0.05, 0.1, 0.15, 0.2):
            rows, _ = learnable(count, flipped=share, labels=labels, seed=seed)
            found = measure_labels(rows, crossfit(rows)).noise
            assert isinstance(found, Noise), (share, seed)
            assert found.share.value == pytest.approx(share, abs=0.04 if count == 300 else 0.03)
        for told in (0.3, 0.5, 0.7):
            rows, _ = learnable(count, told=told, labels=labels, seed=seed)
            found = measure_labels(rows, crossfit(rows)).noise
            assert isinstance(found, Unfit) or (found.share.low or 0) < LEAST_NOISE, (told, seed)


def test_wrong_labels_are_found_among_rows_that_tell_nothing() -> None:
    rows, _ = learnable(1500, flipped=0.1, told=0.8)
    found = measure_labels(rows, crossfit(rows)).noise
    assert isinstance(found, Noise)
    assert found.share.value == pytest.approx(0.1, abs=0.03)


def test_wrong_labels_of_one_kind_only_are_noise() -> None:
    """Where only `no` becomes `yes` a model is less sure of `no`, wherever it stands."""
    rows, flipped = learnable(1500, flipped=0.2)
    one_way = Rows(
        [
            replace(row, label="yes") if wrong else row  # What became `no` is `yes` again.
            for row, wrong in zip(rows.rows, flipped, strict=True)
        ]
    )
    assert isinstance(measure_labels(one_way, crossfit(one_way)).noise, Noise)


def test_how_much_surer_by_hand() -> None:
    """Of label 0 the suspect has 0.7: one confirmed row has more, one as much, two less."""
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.6, 0.4], [0.7, 0.3]])
    given, likely = np.array([0, 0, 0, 0, 1]), np.zeros(5, dtype=np.int64)
    assert surer(given, likely, probabilities).tolist() == [1.5 / 4]


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
