"""Leaks that are planted are found; sets without them are left alone."""

from collections.abc import Sequence

import numpy as np
import pytest

from targen_async.analysis.artefacts import Artefacts, OneField, Position, measure_artefacts
from targen_async.analysis.crossfit import Unfit
from targen_async.analysis.duplicates import Duplicates
from targen_async.analysis.estimate import Estimate
from targen_async.analysis.findings import Finding, findings_of
from targen_async.analysis.labels import LabelQuality
from targen_async.analysis.rows import Row, Rows
from tests.analysis.sets import prose, rows_of

NOTHING = Estimate(value=0.0, rows=0)
NO_DUPLICATES = Duplicates(rows=0, surplus=0, share=NOTHING, clusters=0, listed=())
NO_LABELS = LabelQuality(
    shares={},
    unlabelled=0,
    noise=Unfit(reason="x"),
    correction=None,
    votes=None,
    simulator_gold=None,
)


def leaks(found: Artefacts) -> tuple[Finding, ...]:
    return findings_of(NO_LABELS, NO_DUPLICATES, found, ())


def kinds(found: Artefacts) -> set[str]:
    return {finding.kind for finding in leaks(found)}


def choices(first: float, longer: float = 0.5, count: int = 600) -> Rows:
    """COPA's form: how often the first choice is right, and how often the right one is longer."""
    rng = np.random.default_rng(0)
    texts = iter(prose(3 * count, 6))
    rows = []
    for number in range(count):
        right = "choice1" if rng.random() < first else "choice2"
        pair = {"choice1": next(texts), "choice2": next(texts)}
        long = right if rng.random() < longer else next(n for n in pair if n != right)
        pair[long] += " indeed"
        rows.append(Row(key=str(number), fields={"premise": next(texts), **pair}, label=right))
    return Rows(rows)


def test_a_position_bias_of_70_to_30_is_found() -> None:
    found = measure_artefacts(choices(0.7))
    assert isinstance(found.position, Position)
    assert found.position.shares["choice1"].value == pytest.approx(0.7, abs=0.04)
    assert "position" in kinds(found)
    assert "length" not in kinds(found)
    assert isinstance(measure_artefacts(choices(0.5)).position, Position)
    assert kinds(measure_artefacts(choices(0.5))) == set()


def slots(names: Sequence[str], labels: Sequence[str]) -> Artefacts:
    rows = [
        Row(key=str(n), fields=dict.fromkeys(names, text), label=labels[n % len(labels)])
        for n, text in enumerate(prose(60, 6))
    ]
    return measure_artefacts(Rows(rows))


def shares(found: Artefacts) -> dict[str, float]:
    assert isinstance(found.position, Position), found.position
    return {slot: round(share.value, 3) for slot, share in found.position.shares.items()}


def test_a_choice_that_is_always_right_and_one_that_never_is_are_found() -> None:
    """The other choices are fields too, though no label names them."""
    found = slots(("premise", "choice1", "choice2"), ["choice1"])
    assert shares(found) == {"choice1": 1, "choice2": 0}
    assert "position" in kinds(found)
    found = slots(("choice1", "choice2", "choice3"), ["choice1", "choice2"])
    assert shares(found) == {"choice1": 0.5, "choice2": 0.5, "choice3": 0}
    assert "position" in kinds(found)
    [told] = [one.text for one in leaks(found) if one.kind == "position"]
    assert told.startswith("choice3 is right in 0.0%")


def test_numbers_name_choices_by_their_place() -> None:
    """From 0, as in the files of the hub, or from 1 where no label is 0 and one is the last."""
    names = ("premise", "choice1", "choice2")
    assert shares(slots(names, ["0", "0", "1"])) == {"choice1": 0.667, "choice2": 0.333}
    assert shares(slots(names, ["1", "1", "2"])) == {"choice1": 0.667, "choice2": 0.333}
    assert shares(slots(("option_a", "option_b"), ["0"])) == {"option_a": 1, "option_b": 0}
    # Two sentences are no choices: their numbers are labels such as entailment.
    assert slots(("sentence1", "sentence2"), ["0", "0", "1"]).position is None


@pytest.mark.parametrize(
    ("names", "labels", "told"),
    [
        (("left", "right"), ["left"], "no other field is named like it"),
        (("choice1", "choice2"), ["choice1", "neither"], "'neither' names no field"),
        (("choice1", "choice2"), ["yes", "no"], "'no' names none of choice1, choice2"),
        (("choice1", "choice2"), ["0", "7"], "'7' names none of choice1, choice2"),
    ],
)
def test_choices_that_cannot_be_told_apart_say_why(
    names: Sequence[str], labels: Sequence[str], told: str
) -> None:
    found = slots(names, labels).position
    assert isinstance(found, Unfit)
    assert told in found.reason


def test_a_longer_right_choice_is_found() -> None:
    found = measure_artefacts(choices(0.5, longer=0.75))
    assert isinstance(found.position, Position)
    assert found.position.longest_is_right.value == pytest.approx(0.75, abs=0.04)
    assert "length" in kinds(found)


def pairs(*, tell: float, count: int = 600, longer: int = 0) -> Rows:
    """NLI's form: `tell` of the hypotheses that do not follow say `never`."""
    rng = np.random.default_rng(1)
    texts = iter(prose(2 * count, 8))
    rows = []
    for number in range(count):
        follows = bool(rng.integers(2))
        hypothesis = next(texts)
        if not follows:
            hypothesis += " never" * (rng.random() < tell) + " more" * longer
        fields = {"premise": next(texts), "hypothesis": hypothesis}
        label = "entailment" if follows else "not_entailment"
        rows.append(Row(key=str(number), fields=fields, label=label))
    return Rows(rows)


def test_a_hypothesis_only_artefact_is_found_in_its_field() -> None:
    found = measure_artefacts(pairs(tell=0.8))
    one = found.one_field["hypothesis"]
    assert isinstance(one, OneField)
    assert one.accuracy.value > 0.85
    premise = found.one_field["premise"]
    assert isinstance(premise, OneField)
    assert premise.gain.low is not None and premise.gain.low < 0.05
    assert "one_field" in kinds(found)
    assert kinds(measure_artefacts(pairs(tell=0.0))) == set()


def test_always_saying_the_most_frequent_label_is_the_baseline_of_all_others() -> None:
    rows = rows_of(prose(40), ["a"] * 30 + ["b"] * 10)
    found = measure_artefacts(rows).label_only
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == 0.75
    assert found.low < 0.75 < found.high
    assert measure_artefacts(rows_of(prose(4))).label_only is None


def test_a_length_that_tells_the_label_is_found() -> None:
    found = measure_artefacts(pairs(tell=0.0, longer=3))
    length = found.length["hypothesis"]
    assert length.gain.value > 0.35
    assert length.words["not_entailment"].value == length.words["entailment"].value + 3
    assert "length" in kinds(found)


def test_a_length_that_tells_nothing_gains_nothing() -> None:
    """Learnt on one half and asked on the other: chance is not taken for a leak."""
    gains = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        texts = ["x " * number for number in rng.integers(1, 40, 60)]
        rows = rows_of(texts, [("a", "b")[number] for number in rng.integers(0, 2, 60)])
        gains.append(measure_artefacts(rows, seed=seed).length["text"].gain.value)
    assert np.mean(gains) < 0.03


def test_a_field_without_words_gains_nothing() -> None:
    fields = [{"x": text, "y": "..." if n % 3 else ""} for n, text in enumerate(prose(40))]
    rows = [Row(key=str(n), fields=of, label="ab"[n % 2]) for n, of in enumerate(fields)]
    found = measure_artefacts(Rows(rows)).one_field["y"]
    assert isinstance(found, OneField)
    assert found.gain.value == 0


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], [None, None], ["a", "b"]])
def test_sets_that_are_too_small_have_an_outcome(labels: list[str | None]) -> None:
    rows = [Row(key=str(n), fields={"x": "a", "y": "b"}, label=y) for n, y in enumerate(labels)]
    found = measure_artefacts(Rows(rows))
    assert found.position is None
    assert all(isinstance(one, Unfit) for one in found.one_field.values())
