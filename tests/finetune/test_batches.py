"""Batches: little padding, every example once, one order whatever the ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targen_async.errors import UserError
from targen_async.finetune.batches import (
    BatchPlan,
    epoch_steps,
    padding_efficiency,
    plan_batches,
    rank_batches,
    real_tokens,
    run_steps,
)


def mix(rows: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal lengths: sources of median 150 up to 512, targets of median 12 up to 128. With
    this spread random batches of 8 have an efficiency of .45 with one rank and .36 with eight."""
    draw = np.random.default_rng(seed)
    source = np.exp(draw.normal(np.log(150), 0.8, rows)).clip(4, 512).astype(int)
    return source, np.exp(draw.normal(np.log(12), 0.8, rows)).clip(1, 128).astype(int)


def keys(steps: list[tuple[np.ndarray, ...]]) -> list[list[list[int]]]:
    return [[batch.tolist() for batch in step] for step in steps]


@pytest.mark.parametrize(("ranks", "least", "at_random"), [(1, 0.85, 0.46), (8, 0.75, 0.37)])
def test_grouping_leaves_little_padding(ranks: int, least: float, at_random: float) -> None:
    source, target = mix(20_000)
    plan = plan_batches(source, target, tokens=8192, batches=ranks)
    assert padding_efficiency(plan, epoch_steps(plan, 0), ranks) >= least
    shuffled = np.random.default_rng(0).permutation(20_000)
    whole = len(shuffled) // (8 * ranks) * 8 * ranks
    steps = [tuple(step) for step in shuffled[:whole].reshape(-1, ranks, 8)]
    plain = plan_batches(source, target, examples=8 * ranks, batches=ranks, multiple=1)
    assert padding_efficiency(plain, steps, ranks) < at_random


def test_the_efficiency_is_real_over_computed_tokens_in_lockstep() -> None:
    plan = plan_batches([3, 10, 8, 8], [1, 2, 8, 8], examples=4, batches=2)
    steps = [(np.array([0, 1]), np.array([2, 3]))]
    # Padded to 16 + 8 and 8 + 8, two examples each: 48 and 32 tokens, of which 16 and 32 are real.
    assert padding_efficiency(plan, steps, 1) == 48 / 80
    assert padding_efficiency(plan, steps, 2) == 48 / 96


def test_rows_of_an_example_are_computed_as_wide_as_the_widest_of_the_batch() -> None:
    """Ten sequences of ReCoRD and two of COPA cost twelve of the longest one."""
    plan = plan_batches([50, 20], rows=[10, 2], real=[300, 30], examples=2)
    assert padding_efficiency(plan, [(np.array([0, 1]),)]) == 330 / (12 * 56)
    assert real_tokens(plan, (np.array([1]), np.array([0]))) == 330


def check_whole(plan: BatchPlan, epoch: int) -> None:
    steps = epoch_steps(plan, epoch)
    flat = np.concatenate([batch for step in steps for batch in step])
    assert sorted(flat.tolist()) == list(range(len(plan.sources)))
    assert all(len(step) == plan.batches for step in steps)
    assert all(len(batch) for step in steps for batch in step)
    padded = -(-np.stack([plan.sources, plan.targets]) // plan.multiple) * plan.multiple
    if plan.tokens is None:  # Which step is large does not depend on how it is cut.
        steps = [(np.concatenate(step),) for step in steps]
    sizes = [
        [plan.rows[batch].sum() * padded[:, batch].max(axis=1).sum() for batch in step]
        for step in steps
    ]
    assert plan.tokens is None or max(map(max, sizes)) <= plan.tokens
    assert max(map(max, sizes[:2])) == max(map(max, sizes))
    longest = [padded[:, np.concatenate(step)].sum(axis=0).max() for step in steps]
    assert longest[0] == max(longest)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.one_of(
        st.lists(
            st.tuples(st.integers(1, 60), st.integers(0, 30), st.just(1)), min_size=8, max_size=120
        ),
        st.lists(
            st.tuples(st.integers(1, 24), st.just(0), st.integers(1, 8)), min_size=8, max_size=120
        ),
    ),
    batches=st.integers(1, 8),
    bound=st.one_of(
        st.tuples(st.just("tokens"), st.integers(200, 900)),
        st.tuples(st.just("examples"), st.integers(8, 40)),
    ),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_example_once_in_whole_steps_within_bounds(
    lengths: list[tuple[int, int, int]],
    batches: int,
    bound: tuple[str, int],
    seed: int,
    epoch: int,
) -> None:
    source, target, rows = zip(*lengths, strict=True)
    limits = {bound[0]: bound[1]}
    plan = plan_batches(source, target, rows=rows, batches=batches, random_seed=seed, **limits)
    try:
        check_whole(plan, epoch)
    except UserError as error:
        assert "do not fill whole steps" in str(error)
        assert bound[0] == "tokens"
        assert len(lengths) < 4 * batches


def test_the_order_knows_no_ranks() -> None:
    """Step by step the same batches, dealt out to two ranks or worked through by one."""
    source, target = mix(500)
    plan = plan_batches(source, target, tokens=4096, batches=4, random_seed=3)
    for step in epoch_steps(plan, 2):
        alone = rank_batches(step, 0, 1)
        dealt = [rank_batches(step, rank, 2) for rank in range(2)]
        assert [len(own) for own in dealt] == [2, 2]
        for n, batch in enumerate(alone):
            assert (dealt[n % 2][n // 2] == batch).all()
    with pytest.raises(UserError, match="a step of 4 batches cannot be dealt out to 3 ranks"):
        rank_batches(step, 0, 3)


@given(st.integers(1, 70), st.integers(8, 24), st.integers(0, 2**31), st.sampled_from([2, 3, 40]))
def test_a_fixed_number_of_examples_makes_the_same_steps_however_they_are_cut(
    rows: int, examples: int, seed: int, longest: int
) -> None:
    """The examples of step s are a function of seed and s, for one rank as for four."""
    rows += 4
    draw = np.random.default_rng(seed)
    source, target = draw.integers(1, 8 * longest, rows), draw.integers(1, 3, rows)
    found = []
    for batches in (1, 2, 4):
        plan = plan_batches(source, target, examples=examples, batches=batches, random_seed=seed)
        check_whole(plan, 1)
        steps = epoch_steps(plan, 1)
        assert max(len(np.concatenate(step)) for step in steps) <= examples
        found.append([np.concatenate(step).tolist() for step in steps])
    assert found[0] == found[1] == found[2]


def test_a_rest_that_cannot_feed_all_batches_is_shared() -> None:
    for rows in (17, 25):
        plan = plan_batches([5] * rows, examples=8, batches=8)
        check_whole(plan, 0)
        sizes = sorted(len(np.concatenate(step)) for step in epoch_steps(plan, 0))
        assert sizes[0] >= 8
        assert sum(sizes) == rows


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    source, target = mix(2000)
    plan = plan_batches(source, target, tokens=4096, random_seed=5)
    again = plan_batches(source.tolist(), target.tolist(), tokens=4096, random_seed=5)
    other = plan_batches(source, target, tokens=4096, random_seed=6)
    assert keys(epoch_steps(plan, 1)) == keys(epoch_steps(again, 1))
    assert keys(epoch_steps(plan, 1)) != keys(epoch_steps(plan, 2))
    assert keys(epoch_steps(plan, 1)) != keys(epoch_steps(other, 1))
    assert len({len(epoch_steps(plan, epoch)) for epoch in range(5)}) == 1


def test_batches_come_in_no_order_of_length() -> None:
    source, target = mix(5000)
    plan = plan_batches(source, target, tokens=4096)
    widths = [float(source[step[0]].mean()) for step in epoch_steps(plan, 0)[1:]]
    assert abs(np.corrcoef(widths, range(len(widths)))[0, 1]) < 0.2


def test_a_run_goes_on_where_it_stopped() -> None:
    source, target = mix(300)
    plan = plan_batches(source, target, tokens=2048)
    count = len(epoch_steps(plan, 0))
    whole = run_steps(plan, count)
    told = [(epoch, keys([step])) for epoch, step in (next(whole) for _ in range(2 * count + 3))]
    assert [epoch for epoch, _ in told] == [0] * count + [1] * count + [2] * 3
    for start in (0, 5, count, count + 7):
        resumed = run_steps(plan, count, start)
        got = [(epoch, keys([step])) for epoch, step in (next(resumed) for _ in range(4))]
        assert got == told[start : start + 4]


def test_what_cannot_be_batched_is_told() -> None:
    with pytest.raises(UserError, match="3 examples are too few for 4 batches a step"):
        plan_batches([1, 2, 3], tokens=64, batches=4)
    with pytest.raises(UserError, match="an example has 80 tokens with its padding, and a batch t"):
        plan_batches([10, 60], [3, 9], tokens=64)
    with pytest.raises(UserError, match="an example has 72 tokens with its padding, and a batch t"):
        plan_batches([17], rows=[3], tokens=64)
    with pytest.raises(UserError, match="give one of them"):
        plan_batches([1], [1])
    with pytest.raises(UserError, match="4 examples a step cannot fill 8 batches"):
        plan_batches([1] * 9, examples=4, batches=8)
