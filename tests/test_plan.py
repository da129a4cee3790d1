"""The plan: quotas, waves and blocks follow from committed prefix and seed, nothing else."""

from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.errors import RunStopped
from targen_async.plan import (
    STARVED_TRIES,
    RowPlan,
    RowPlanState,
    blocks,
    cell,
    deal,
    quotas,
    window_of,
)

LABELS = ("entailment", "contradiction", "neutral")
labels = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=6, unique=True)


def run_to_the_end(
    plan: RowPlan, outcome: dict[str, list[str | None]], random: Random, most: int = 100_000
) -> None:
    """Commit slots with random outcomes by planned label until the quotas are full."""
    slot = plan.state.watermark
    while not plan.done:
        assert slot < most
        assert slot < plan.planned, "the plan waits for a slot that it never planned"
        planned = plan.label(slot)
        usable = random.choice(outcome[planned])
        if usable is not None and plan.wants(usable):
            plan.accept(usable)
        plan.commit(slot, planned, usable)
        slot += 1


@given(st.integers(1, 2000), labels, st.integers(0, 9))
def test_quotas_sum_to_n_and_are_equal_within_one(n: int, names: list[str], seed: int) -> None:
    shares = quotas(n, names, seed)
    assert sum(shares.values()) == n
    assert max(shares.values()) - min(shares.values()) <= 1


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 30), min_size=1), st.integers(0, 9))
def test_a_wave_is_dealt_whole(counts: dict[str, int], seed: int) -> None:
    dealt = list(deal(counts, seed, 0))
    assert Counter(dealt) == Counter(counts)
    assert dealt == list(deal(counts, seed, 0))


def test_neighbours_of_a_balanced_wave_differ_within_each_round() -> None:
    dealt = list(deal(dict.fromkeys(LABELS, 100), 3, 0))
    rounds = [dealt[i : i + 3] for i in range(0, 300, 3)]
    assert all(set(turn) == set(LABELS) for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1


@given(
    st.integers(1, 400),
    st.integers(0, 1000),
    st.floats(0.3, 1.0),
    st.floats(0.0, 0.3),
)
def test_n_is_delivered_in_quota_whatever_is_lost_or_relabelled(
    n: int, seed: int, good: float, moved: float
) -> None:
    random = Random(seed)
    outcome = {
        label: [label] * round(good * 100)
        + [LABELS[(i + 1) % 3]] * round(moved * 100)
        + [None] * 10
        for i, label in enumerate(LABELS)
    }
    plan = RowPlan(LABELS, seed, RowPlanState())
    plan.aim(n)
    run_to_the_end(plan, outcome, random)
    assert plan.state.accepted == {k: v for k, v in quotas(n, LABELS, seed).items() if v}


def test_without_losses_not_one_slot_is_planned_too_many() -> None:
    plan = RowPlan(LABELS, 0, RowPlanState())
    plan.aim(1000)
    run_to_the_end(plan, {label: [label] for label in LABELS}, Random(0))
    assert plan.planned == plan.state.watermark == 1000


def test_with_a_tenth_lost_a_few_percent_at_most_are_planned_in_vain() -> None:
    plan = RowPlan(LABELS, 0, RowPlanState())
    plan.aim(2000)
    run_to_the_end(plan, {label: [label] * 9 + [None] for label in LABELS}, Random(0))
    assert plan.planned < 1.05 * 2000 / 0.9


@given(st.integers(20, 200), st.integers(0, 50), st.integers(0, 10**6))
def test_a_plan_restored_from_a_checkpoint_goes_on_as_it_would_have(
    n: int, cut: int, seed: int
) -> None:
    """Traps 7 and 19: the plan is a function of the committed prefix."""
    outcome = {label: [label] * 3 + [None] for label in LABELS}

    def play(interrupted: bool) -> tuple[list[str], object]:
        random, seen = Random(seed), []
        plan = RowPlan(LABELS, 1, RowPlanState())
        plan.aim(n)
        slot = 0
        while not plan.done:
            if interrupted and slot == cut:
                state = msgspec.msgpack.decode(
                    msgspec.msgpack.encode(plan.state), type=RowPlanState
                )
                plan = RowPlan(LABELS, 1, state)
            planned = plan.label(slot)
            seen.append(planned)
            usable = random.choice(outcome[planned])
            if usable is not None and plan.wants(usable):
                plan.accept(usable)
            plan.commit(slot, planned, usable)
            slot += 1
        return seen, msgspec.to_builtins(plan.state)

    assert play(interrupted=True) == play(interrupted=False)


def test_a_label_that_never_comes_stops_the_run_and_is_named() -> None:
    plan = RowPlan(LABELS, 0, RowPlanState())
    plan.aim(3000)
    outcome = {label: [label] for label in LABELS} | {"neutral": ["entailment"]}
    with pytest.raises(RunStopped, match="'neutral' starves: 200 tries gave 0"):
        run_to_the_end(plan, outcome, Random(0))
    assert plan.state.tried["neutral"] == STARVED_TRIES


def test_a_raised_n_plans_only_what_is_missing() -> None:
    plan = RowPlan(LABELS, 0, RowPlanState())
    plan.aim(90)
    run_to_the_end(plan, {label: [label] for label in LABELS}, Random(0))
    plan.aim(120)
    assert not plan.done
    assert plan.planned == 120


@given(
    st.integers(0, 500),
    st.integers(1, 200),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_blocks_hold_every_slot_once_and_no_two_of_a_group(
    start: int, length: int, size: int, group: int, seed: int
) -> None:
    cut = blocks(
        start, start + length, size=size, seed_of=lambda slot: slot // group, random_seed=seed
    )
    assert sorted(slot for block in cut for slot in block) == list(range(start, start + length))
    for block in cut:
        assert len({slot // group for slot in block}) == len(block), "siblings share a block"
        assert len(block) <= max(size, 1)
    assert cut == blocks(
        start, start + length, size=size, seed_of=lambda slot: slot // group, random_seed=seed
    )


def test_blocks_are_a_permutation_not_the_order_of_the_slots() -> None:
    cut = blocks(0, 80, size=10, seed_of=lambda slot: slot, random_seed=0)
    assert cut != [list(range(i, i + 10)) for i in range(0, 80, 10)]


def test_windows_tile_a_wave() -> None:
    plan = RowPlan(LABELS, 0, RowPlanState())
    plan.aim(100)
    wave = plan.state.waves[0]
    edges = [window_of(wave, slot, 8) for slot in range(wave.end)]
    assert sorted(set(edges)) == [(0, 32), (32, 64), (64, 96), (96, 100)]


@given(st.integers(0, 5))
def test_axes_give_every_value_its_share_and_do_not_march_in_step(seed: int) -> None:
    axes = {"domain": tuple("abcdef"), "register": tuple("xyz")}
    cells = [cell(axes, index, seed) for index in range(60)]
    assert set(Counter(c["domain"] for c in cells).values()) == {10}
    assert set(Counter(c["register"] for c in cells).values()) == {20}
    assert len({(c["domain"], c["register"]) for c in cells}) > 10


@pytest.mark.parametrize("noise", [0.1, 0.2, 0.3])
def test_rows_that_change_their_label_are_not_planned_for_twice(noise: float) -> None:
    """A small pilot, then many rows: what one label loses the others gain."""
    random = Random(4)
    plan = RowPlan(("a", "b"), 0, RowPlanState())

    def run(n: int) -> None:
        plan.aim(n)
        slot = plan.state.watermark
        while not plan.done:
            planned = plan.label(slot)
            usable = {"a": "b", "b": "a"}[planned] if random.random() < noise else planned
            if plan.wants(usable):
                plan.accept(usable)
            plan.commit(slot, planned, usable)
            slot += 1

    run(40)
    run(800)
    assert plan.planned <= 1.15 * 800
