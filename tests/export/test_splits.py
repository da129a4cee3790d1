"""Splits: by group first, then by label, the same every time."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targen_async.errors import UserError
from targen_async.records import Instance
from targen_async.splits import group_rows, parse_shares, split_rows
from tests.export.runs import ROWS, instance

THREE = {"train": 0.8, "validation": 0.1, "test": 0.1}


def row(seed: int, place: int, label: str, text: str = "", premise: str = "") -> Instance:
    fields = {"premise": premise or f"premise {seed}", "hypothesis": f"h {seed} {place}"}
    return instance((f"rte/{seed:06d}/{place}", fields, label), seed=text)


@st.composite
def many_rows(draw: st.DrawFn) -> tuple[list[Instance], list[str]]:
    """Rows of one or two runs: seeds of several rows, some of which share a seed's text."""
    runs = draw(st.integers(1, 2))
    rows, origin = [], []
    for run in range(runs):
        for seed in range(draw(st.integers(5, 40))):
            text = draw(st.sampled_from(["", "", f"of its own {run} {seed}", "A text.", "a  TEXT"]))
            premise = f"premise {run} {seed}"
            for place in range(draw(st.integers(1, 4))):
                label = draw(st.sampled_from(["yes", "no", "neither"]))
                rows.append(row(seed, place, label, text, premise))
                origin.append(f"run {run}")
    return rows, origin


@given(many_rows(), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_no_group_is_on_two_sides_and_shares_hold(
    drawn: tuple[list[Instance], list[str]], random_seed: int
) -> None:
    rows, runs = drawn
    shares = {"train": 0.6, "test": 0.4}
    try:
        parts = split_rows(rows, shares, random_seed, runs=runs)
    except UserError:
        # One group has nearly all.
        largest = max(len(group) for group in group_rows(rows, runs))
        assert largest > 0.4 * len(rows)
        return
    assert sorted(n for numbers in parts.values() for n in numbers) == list(range(len(rows)))
    side = {n: name for name, numbers in parts.items() for n in numbers}
    for marks in (
        lambda n: (runs[n], rows[n].key.rpartition("/")[0]),
        lambda n: rows[n].provenance.seed.lower().split(),
        lambda n: rows[n].fields["premise"],
    ):
        seen: dict[str, str] = {}
        for n in side:
            if mark := marks(n):
                assert seen.setdefault(str(mark).strip("."), side[n]) == side[n]
    largest = max(len(group) for group in group_rows(rows, runs))
    for name, share in shares.items():
        assert abs(len(parts[name]) - share * len(rows)) < largest + 1e-6
    assert split_rows(rows, shares, random_seed, runs=runs) == parts


@given(
    st.lists(st.sampled_from(["yes", "no", "neither"]), min_size=30, max_size=300),
    st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_labels_are_shared_out_alike(labels: list[str], random_seed: int) -> None:
    rows = [row(seed, 0, label) for seed, label in enumerate(labels)]
    parts = split_rows(rows, THREE, random_seed)
    for name, share in THREE.items():
        assert abs(len(parts[name]) - share * len(rows)) < 1
        found = Counter(labels[n] for n in parts[name])
        for label, count in Counter(labels).items():
            assert abs(found[label] - share * count) <= 2


def test_twins_stay_together() -> None:
    rows = [row(s, place, "yes", "", f"p {s} {place}") for s in range(50) for place in range(2)]
    parts = split_rows(rows, THREE)
    assert {name: len(numbers) for name, numbers in parts.items()} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }
    for numbers in parts.values():
        assert {n ^ 1 for n in numbers} == set(numbers)


def test_small_groups_even_out_what_a_large_one_leaves() -> None:
    rows = [row(0, place, "yes") for place in range(40)]
    rows += [row(seed, 0, "yes") for seed in range(1, 61)]
    parts = split_rows(rows, {"train": 0.5, "test": 0.5})
    assert {name: len(numbers) for name, numbers in parts.items()} == {"train": 50, "test": 50}


def test_open_labels_do_not_send_all_large_groups_to_one_side() -> None:
    sizes = [4] * 20 + [1] * 20
    rows = [row(s, p, f"answer {s} {p}") for s, size in enumerate(sizes) for p in range(size)]
    parts = split_rows(rows, {"train": 0.6, "test": 0.4})
    large = sum(n < 80 for n in parts["test"])
    assert len(parts["test"]) == 40
    assert 24 <= large <= 40


def test_groups_join_over_shared_texts_of_other_seeds() -> None:
    rows = [instance(r, seed=f"s{n // 4}") for n, r in enumerate(ROWS["multirc"])]
    # Three of the four questions are about one passage.
    assert [len(group) for group in group_rows(rows)] == [12, 4]
    chain = [
        row(0, 0, "a", "one", "p"),
        row(1, 0, "a", "two", "p"),
        row(2, 0, "a", "Two!", "q"),
        row(3, 0, "a", "", "r"),
    ]
    assert group_rows(chain) == [[0, 1, 2], [3]]


def test_equal_keys_of_two_runs_say_nothing() -> None:
    rows = [row(0, 0, "a", premise="p"), row(0, 0, "a", premise="q")]
    assert group_rows(rows, ["one", "two"]) == [[0], [1]]
    assert group_rows(rows) == [[0, 1]]


def test_another_random_seed_gives_other_splits_and_row_order_does_not_matter() -> None:
    rows = [row(seed, 0, "ab"[seed % 2]) for seed in range(60)]
    one, two = split_rows(rows, THREE, 1), split_rows(rows, THREE, 2)
    assert one != two
    backwards = split_rows(rows[::-1], THREE, 1)
    keys = {name: {rows[n].key for n in numbers} for name, numbers in one.items()}
    assert keys == {name: {rows[::-1][n].key for n in ns} for name, ns in backwards.items()}


def test_a_split_without_rows_is_refused() -> None:
    rows = [row(0, place, "a") for place in range(10)]
    with pytest.raises(UserError, match="'test' would have no row"):
        split_rows(rows, {"train": 0.9, "test": 0.1})


def test_shares_are_read() -> None:
    assert parse_shares("train=0.8, validation=0.1,test=0.1") == THREE
    assert parse_shares("a=1/3".replace("1/3", "1")) == {"a": 1.0}


@pytest.mark.parametrize(
    "text",
    ["", "train", "train=x", "train=0.5", "train=0.9,test=0.2", "a=0.5,a=0.5", "a/b=1", "a=-1,b=2",
     "a=nan", "a=inf", "../x=1", "a=1,"],
)  # fmt: skip
def test_shares_that_are_none_are_told(text: str) -> None:
    with pytest.raises(UserError, match="--split"):
        parse_shares(text)
