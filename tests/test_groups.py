"""Rows that one call writes together: planned, judged apart, and accepted whole where they must."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.plan import Grouping, RowPlan, RowPlanState, members, quotas, window_of
from targen_async.records import Context, Seed, SeedCall, SlotCall, Usage
from targen_async.settle import Settled, settle_together
from targen_async.tasks import Task, check_task, load_task
from tests.test_tasks import _edit, _write

MIXED = Grouping(size=4, labels=("yes", "yes", "no", "no"))
SWAPPED = Grouping(size=2, whole=True, labels=("yes", "no"))
ALIKE = Grouping(size=2, whole=True)
UNEVEN = Grouping(size=3, whole=True, labels=("yes", "no", "yes"))
GROUPINGS = pytest.mark.parametrize(
    "grouping", [MIXED, SWAPPED, ALIKE, UNEVEN], ids=["mixed", "swapped", "alike", "uneven"]
)


def plan_of(grouping: Grouping, n: int, seed: int = 0) -> RowPlan:
    plan = RowPlan(("yes", "no"), seed, RowPlanState(), grouping)
    plan.aim(n)
    return plan


@GROUPINGS
@given(calls=st.integers(1, 60), seed=st.integers(0, 5), luck=st.integers(0, 99))
def test_quotas_are_filled_exactly_whatever_is_lost(
    grouping: Grouping, calls: int, seed: int, luck: int
) -> None:
    """Call by call, some with a row refused; twins only both or not at all."""
    n = 12 * calls
    plan, random, slot = plan_of(grouping, n, seed), Random(luck), 0
    size = grouping.size
    while not plan.done:
        assert slot < plan.planned, "the plan waits for a call that it never planned"
        labels = [plan.label(slot + place) for place in range(size)]
        usable: list[str | None] = [label if random.random() > 0.2 else None for label in labels]
        if grouping.whole and None in usable:
            usable = [None] * size
        if grouping.whole and usable[0] and plan.wants(*labels):
            for label in labels:
                plan.accept(label)
        for place, label in enumerate(usable):
            if not grouping.whole and label and plan.wants(label) and not plan.done:
                plan.accept(label)
            plan.commit(slot + place, labels[place], label)
        slot += size
    assert sum(plan.state.accepted.values()) == n
    if grouping.labels:
        share = grouping.labels.count("yes") / size
        assert plan.state.accepted["yes"] == n * share
    else:
        assert abs(plan.state.accepted["yes"] - n / 2) <= size / 2


@GROUPINGS
def test_a_call_has_the_labels_of_its_group_in_no_fixed_order(grouping: Grouping) -> None:
    plan = plan_of(grouping, 400)
    orders = Counter()
    for first in range(0, plan.planned, grouping.size):
        labels = tuple(plan.label(first + place) for place in range(grouping.size))
        orders[labels] += 1
        assert Counter(labels) == Counter(grouping.labels or labels[:1] * grouping.size)
    assert len(orders) == {4: 6, 3: 3, 2: 2}[grouping.size]
    # A row's member is what the model wrote it as, and members take every place alike.
    places = Counter(members(grouping.size, call, 0)[0] for call in range(400))
    assert min(places.values()) > 0.7 * 400 / grouping.size


@given(st.integers(1, 500), st.integers(0, 9))
def test_quotas_of_twins_are_even(pairs: int, seed: int) -> None:
    shares = quotas(2 * pairs, ("yes", "no", "maybe"), seed, 2)
    assert sum(shares.values()) == 2 * pairs
    assert all(share % 2 == 0 for share in shares.values())
    assert max(shares.values()) - min(shares.values()) <= 2


@GROUPINGS
@given(size=st.integers(1, 12))
def test_a_window_of_blocks_never_parts_a_group(grouping: Grouping, size: int) -> None:
    plan = plan_of(grouping, 240)
    for slot in range(plan.planned):
        start, end = window_of(plan.wave_of(slot)[1], slot, size, grouping.size)
        assert start <= slot < end
        assert start % grouping.size == end % grouping.size == 0


def test_attributes_take_turns_within_each_label() -> None:
    plan = plan_of(ALIKE, 60)
    turns: dict[str, list[int]] = {}
    for slot in range(0, plan.planned, 2):
        turns.setdefault(plan.label(slot), []).append(plan.turn(slot))
        assert plan.turn(slot) == plan.turn(slot + 1)
    assert all(found == list(range(len(found))) for found in turns.values())


# ---- settled together


class _Rows:
    """What settle_together asks of Rows: the task."""

    def __init__(self, task: Task) -> None:
        self.task = task


def settled(slot: int, label: str, reason: Any = None) -> Settled:
    context = Context(index=0, text="c", axes={})
    seed = Seed(
        index=0,
        call=SeedCall(index=0, context=context, axes={}),
        first_index=0,
        offset=0,
        position=0,
        notes=(),
        wasted=Usage(),
    )
    call = SlotCall(slot=slot, key=f"t/0/{slot}", label=label, member=slot, axes={}, seed=seed)
    return Settled(
        call=call,
        row={"label": label},
        quota_class=label,
        texts=[],
        usage=Usage(),
        failures=(),
        transition=None,
        reason=reason,
    )


@pytest.mark.parametrize(
    ("task", "labels", "reasons"),
    [
        ("axg", ("entailment", "entailment"), (None, None)),
        ("axg", ("entailment", "not_entailment"), ("twin", "twin")),
        ("wsc", ("true", "false"), (None, None)),
        ("wsc", ("false", "true"), (None, None)),
        ("wsc", ("true", "true"), ("twin", "twin")),
    ],
)
def test_twins_whose_labels_clash_are_refused(
    task: str, labels: tuple[str, str], reasons: tuple[str | None, ...]
) -> None:
    pair = [settled(place, label) for place, label in enumerate(labels)]
    done = settle_together(_Rows(load_task(task)), pair)  # type: ignore[arg-type]
    assert tuple(one.reason for one in done) == reasons


def test_what_one_twin_is_refused_for_costs_the_other() -> None:
    pair = [settled(0, "entailment"), settled(1, "entailment", "dropped")]
    done = settle_together(_Rows(load_task("axg")), pair)  # type: ignore[arg-type]
    assert [one.reason for one in done] == ["twin", "dropped"]
    assert "t/0/1" in done[0].detail and "dropped" in done[0].detail


# ---- faults of [group]

GROUP = '\n[group]\nsize = 2\nlabels = ["good", "bad"]\n'


def _group_toml() -> str:
    toml = _edit(
        'review = { source = "output", words = [1, 50] }',
        'review = { source = "output", outputs = ["warm_one", "cold_one"] }',
    )
    toml = _edit('review = "the review"', 'warm_one = "a"\ncold_one = "b"', toml)
    toml = _edit('distinct_on = ["review"]', 'rows_per_seed = 2\ndistinct_on = ["warm_one"]', toml)
    return toml + GROUP


TEXTS = {"instances": "{{ seed }} {{ tone }}"}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("size = 2", "size = 1", "expected `int` >= 2"),
        ("size = 2", "size = 3", "names 2 labels for 3 rows"),
        ("size = 2", "size = 3", "names 2 outputs for 3 rows"),
        ('"good", "bad"]', '"good", "bat"]', "there is no label 'bat'"),
        ('"good", "bad"]', '"good", "good"]', "no row would have the label 'bad'"),
        ("rows_per_seed = 2", "rows_per_seed = 3", "must be a multiple of the 2 rows"),
        ("rows_per_seed = 2", 'rows_per_seed = 2\ntemplate_by = "label"', "rows of several labels"),
        ('"cold_one"]', '"warm_one"]', "'warm_one' is named twice"),
        ('"cold_one"]', '"colder"]', "there is no output 'colder'"),
        (', outputs = ["warm_one", "cold_one"]', "", "no field has `outputs`"),
        (GROUP, "", "needs a [group]"),
        (GROUP, GROUP + 'validators = ["x"]\n', "there is no validator 'x'"),
        (GROUP, GROUP + 'validators = ["twins_swap_gender"]\n', "does not have: premise"),
        (GROUP, GROUP + "hole = true\n", "did you mean `whole`?"),
    ],
)
def test_a_fault_of_a_group_is_told(tmp_path: Any, before: str, after: str, words: str) -> None:
    folder = _write(tmp_path / "mood", _group_toml(), TEXTS)
    assert check_task(folder) == []
    _write(folder, _edit(before, after, _group_toml()), TEXTS)
    assert any(words in fault.message for fault in check_task(folder)), check_task(folder)
