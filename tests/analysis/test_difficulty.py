"""PVI as the paper defines it, out of fold, and what it finds."""

import numpy as np
import pytest

from targen_async.analysis.crossfit import FOLDS, Crossfit, Unfit, crossfit, deal_folds
from targen_async.analysis.difficulty import Difficulty, histogram, measure_difficulty, pvi, pvi_of
from targen_async.analysis.rows import Row, Rows, groups
from tests.analysis.sets import learnable, prose, rows_of


def fitted(rows: Rows) -> Crossfit:
    found = crossfit(rows)
    assert isinstance(found, Crossfit)
    return found


def test_pvi_is_the_gain_in_bits() -> None:
    """-log2 g[y | nothing] + log2 g[y | x] (Ethayarajh et al. 2022, definition 4.1)."""
    given, null = np.array([1.0, 0.5, 0.25]), np.array([0.5, 0.5, 0.5])
    assert pvi(given, null).tolist() == [1, 0, -1]


def test_what_is_measured_is_the_mean_and_its_parts() -> None:
    fit = Crossfit(
        places=np.arange(4),
        labels=("no", "yes"),
        given=np.array([0, 0, 1, 1]),
        probabilities=np.array([[1, 0], [0.5, 0.5], [0.75, 0.25], [0.5, 0.5]]),
        null=np.full((4, 2), 0.5),
    )
    rows = rows_of("abcd", ["no", "no", "yes", "yes"])
    found = measure_difficulty(rows, fit)
    assert isinstance(found, Difficulty)
    assert found.v_information.value == 0
    assert found.label_entropy == 1
    assert found.share_below_0.value == 0.25
    assert {name: part.value for name, part in found.by_label.items()} == {"no": 0.5, "yes": -0.5}
    assert [(row.key, row.pvi, row.predicted) for row in found.lowest] == [("r2", -1.0, "no")]


def test_a_label_that_the_text_tells_has_nearly_all_its_bits() -> None:
    rows = rows_of(
        [f"{'good' if n % 2 else 'bad'} {text}" for n, text in enumerate(prose(300, 5))],
        ["no", "yes"] * 150,
    )
    found = measure_difficulty(rows, fitted(rows))
    assert isinstance(found, Difficulty)
    assert found.v_information.value > 0.9
    assert found.accuracy.value > 0.99


def test_a_label_that_nothing_tells_has_none() -> None:
    labels = [("no", "yes")[n] for n in np.random.default_rng(0).integers(0, 2, 400)]
    found = measure_difficulty(rows := rows_of(prose(400), labels), fitted(rows))
    assert isinstance(found, Difficulty)
    assert abs(found.v_information.value) < 0.03


def test_many_words_that_tell_a_little_each_are_learnt() -> None:
    """No slope of the loss is steep at the start, and the model is not to stay there."""
    rng = np.random.default_rng(0)
    labels = ["no", "yes"] * 3000
    common = rng.integers(0, 50, (6000, 18))
    telling = rng.integers(0, 600, (6000, 2))
    texts = [
        " ".join([*(f"w{word}" for word in line), *(f"{label}{word}" for word in words)])
        for line, words, label in zip(common, telling, labels, strict=True)
    ]
    found = measure_difficulty(rows := rows_of(texts, labels), fitted(rows))
    assert isinstance(found, Difficulty)
    assert found.accuracy.value > 0.8


def test_flipped_labels_have_the_lowest_pvi() -> None:
    rows, flipped = learnable(1500, flipped=0.1)
    values = pvi_of(fitted(rows))
    lowest = np.argsort(values)[: len(values) // 5]
    assert flipped[lowest].sum() >= 0.7 * flipped.sum()


def test_no_row_is_scored_by_a_model_that_has_seen_its_text() -> None:
    """Equal texts with random labels: who has seen one of them knows nothing of the next."""
    rng = np.random.default_rng(1)
    texts = [text for text in prose(150, 12) for _ in range(4)]
    labels = [("no", "yes")[n] for n in np.repeat(rng.integers(0, 2, 150), 4)]
    found = measure_difficulty(rows := rows_of(texts, labels), fitted(rows))
    assert isinstance(found, Difficulty)
    assert found.accuracy.value < 0.62
    # Nor is its strength chosen by rows whose copies it was fitted on: that would reward memory.
    assert abs(found.v_information.value) < 0.05


@pytest.mark.parametrize("text", ["", "..."])
def test_texts_without_words_tell_nothing(text: str) -> None:
    fit = fitted(rows_of([text] * 40, ["no", "yes"] * 20))
    assert pvi_of(fit).tolist() == [0.0] * 40


def test_groups_are_whole_in_a_fold_and_labels_are_spread() -> None:
    group = np.repeat(np.arange(60), 3)
    labels = np.tile([0, 1, 1], 60)
    folds = deal_folds(group, labels, 0)
    assert all(len(set(folds[group == number])) == 1 for number in range(60))
    assert np.bincount(folds).tolist() == [36] * FOLDS
    assert np.bincount(folds[labels == 0]).tolist() == [12] * FOLDS


def test_rows_of_a_seed_or_of_one_long_text_are_a_group() -> None:
    long = "a passage of six words here"
    rows = Rows(
        [
            Row(key="0", fields={"p": long, "q": "x"}, label="a", seed="s"),
            Row(key="1", fields={"p": "short", "q": "y"}, label="a", seed="s"),
            Row(key="2", fields={"p": long, "q": "z"}, label="b"),
            Row(key="3", fields={"p": "short", "q": "x"}, label="b"),
        ]
    )
    found = groups(rows).tolist()
    assert found[0] == found[1] == found[2] != found[3]


def test_the_same_rows_in_another_order_have_the_same_label_map() -> None:
    rows, _ = learnable(100)
    assert fitted(rows).labels == fitted(rows.take(range(99, -1, -1))).labels == ("no", "yes")
    a, b = (fitted(rows).probabilities for _ in range(2))
    assert (a == b).all()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([None] * 20, "no labels"),
        (["a"] * 20, "one label, 'a'"),
        (["a"] * 19 + ["b"], "fewer than two labels have 5 rows"),
        ([f"l{n % 100}" for n in range(1000)], "texts of the rows' own"),
    ],
)
def test_rows_that_have_no_difficulty_say_why(labels: list[str | None], told: str) -> None:
    found = crossfit(rows_of(prose(len(labels), 4), labels))
    assert isinstance(found, Unfit)
    assert told in found.reason


@pytest.mark.parametrize("passages", [1, 4])
def test_rows_of_few_passages_have_no_difficulty(passages: int) -> None:
    """Nothing is left to learn from where all rows of a group are asked: 0 bits is made up."""
    rows = [
        Row(key=str(n), fields={"p": f"passage {n % passages} of a few"}, label="aab"[n % 3])
        for n in range(60)
    ]
    found = crossfit(Rows(rows))
    assert isinstance(found, Unfit)
    assert "fewer than 5 groups" in found.reason


def test_rare_labels_are_left_out_and_counted() -> None:
    rows, _ = learnable(200)
    rare = Rows([*rows.rows, Row(key="x", fields={"text": "a1"}, label="maybe")])
    found = measure_difficulty(rare, fitted(rare))
    assert isinstance(found, Difficulty)
    assert (found.labels, found.rows, found.left_out) == (("no", "yes"), 200, 1)


def test_a_histogram_holds_every_row() -> None:
    found = histogram(np.array([-99.0, -0.1, 0.0, 0.1, 99.0]))
    assert sum(found.counts) == 5
    assert found.counts[0] == found.counts[-1] == 1
    assert found.counts[found.edges.index(0.0)] == 2
