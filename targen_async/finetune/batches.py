"""Batches of examples of like length, in one global order that every rank cuts its part from.

Padding is what a batch computes for nothing. Here examples are sorted by padded source and target
length, cut into batches that fill a budget of tokens, and the batches are dealt out in a seeded
order, the longest and the largest first: what does not fit into memory fails within two steps.
Nothing depends on the number of ranks: a step is a fixed number of batches, and rank r of R takes
every R-th of them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.errors import UserError

Lengths = NDArray[np.int64]
Batch = NDArray[np.int64]
"""Numbers of examples."""
Step = tuple[Batch, ...]
"""The batches of one optimiser step, over all ranks and accumulation steps."""
_DRAWN = 0x7A67
"""Keeps this stream of random numbers apart from others that are drawn with the same seed."""


class BatchPlan(Struct, frozen=True, kw_only=True):
    """Everything the order of training depends on."""

    sources: Lengths
    """Source tokens of each example's longest row; all its tokens, where nothing is written."""
    targets: Lengths
    """Target tokens of each example; zeros, where nothing is written."""
    rows: Lengths
    """Rows of each example: more than one where an encoder compares options. All rows of a batch
    are padded to its longest one."""
    real: Lengths
    """Tokens of each example in all its rows, without padding."""
    tokens: int | None = None
    """Most padded tokens of a batch, source and target together. One of `tokens` and `examples`."""
    examples: int | None = None
    """Examples of a step, over all its batches."""
    batches: int = 1
    """Batches of a step: ranks times accumulation steps."""
    random_seed: int = 0
    multiple: int = 8
    """Lengths are padded to a multiple of it, as matrix units want."""


def plan_batches(
    sources: Sequence[int] | Lengths,
    targets: Sequence[int] | Lengths | None = None,
    *,
    rows: Sequence[int] | Lengths | None = None,
    real: Sequence[int] | Lengths | None = None,
    tokens: int | None = None,
    examples: int | None = None,
    batches: int = 1,
    random_seed: int = 0,
    multiple: int = 8,
) -> BatchPlan:
    """A checked plan; an example is one row, all of which is real, where nothing else is said.

    Raises UserError where an example is longer than the budget, where there are fewer examples than
    batches in a step, and where not one of `tokens` and `examples` is given.
    """
    source = np.asarray(sources, np.int64)
    target = np.zeros_like(source) if targets is None else np.asarray(targets, np.int64)
    held = np.ones_like(source) if rows is None else np.asarray(rows, np.int64)
    if (tokens is None) == (examples is None):
        raise UserError("a batch is bounded by tokens or by a number of examples: give one of them")
    if len(source) < batches:
        raise UserError(
            f"{len(source)} examples are too few for {batches} batches a step (ranks times "
            "accumulation); use fewer ranks or more examples"
        )
    if examples is not None and examples < batches:
        raise UserError(
            f"{examples} examples a step cannot fill {batches} batches (ranks times accumulation)"
        )
    plan = BatchPlan(
        sources=source,
        targets=target,
        rows=held,
        real=held * (source + target) if real is None else np.asarray(real, np.int64),
        tokens=tokens,
        examples=examples,
        batches=batches,
        random_seed=random_seed,
        multiple=multiple,
    )
    longest = int(np.max(held * (_padded(plan, source) + _padded(plan, target))))
    if tokens is not None and longest > tokens:
        raise UserError(
            f"an example has {longest} tokens with its padding, and a batch takes {tokens}: raise "
            "the tokens of a batch or cut the texts shorter"
        )
    return plan


def epoch_steps(plan: BatchPlan, epoch: int) -> list[Step]:
    """The steps of an epoch in order: every example once, every batch with at least one.

    A pure function of the plan and the epoch, and of numpy's generator, whose stream may change
    with a version of numpy. All epochs have the same number of steps, so step s of a run is step
    s % n of epoch s // n. Examples of equal padded length change places from epoch to epoch.
    """
    draw = np.random.default_rng([_DRAWN, plan.random_seed, epoch])
    source, target = _padded(plan, plan.sources), _padded(plan, plan.targets)
    shuffled = draw.permutation(len(source))
    # Targets rise in one source length and fall in the next: no jump where a batch spans the two.
    _, rank = np.unique(source, return_inverse=True)
    turned = np.where(rank % 2, -target, target)
    order = shuffled[np.lexsort((plan.rows[shuffled], turned[shuffled], -source[shuffled]))]
    if plan.tokens is not None:
        cuts = _by_tokens(source[order], target[order], plan.rows[order], plan.tokens)
        cuts = _whole_steps(cuts, len(order), plan.batches)
    else:
        cuts = _by_examples(len(order), plan.examples or 1, plan.batches)
    held = np.split(order, cuts[1:-1])
    steps = [tuple(held[n : n + plan.batches]) for n in range(0, len(held), plan.batches)]
    sizes = [(_longest(plan, step), _largest(plan, step)) for step in steps]
    longest = max(range(len(steps)), key=lambda n: sizes[n])
    largest = max(range(len(steps)), key=lambda n: sizes[n][::-1])
    first = list(dict.fromkeys((longest, largest)))
    rest = [n for n in range(len(steps)) if n not in first]
    return [steps[n] for n in (*first, *(rest[n] for n in draw.permutation(len(rest))))]


def rank_batches(step: Step, rank: int, ranks: int) -> Step:
    """The batches that one rank works through in a step, one an accumulation step.

    Raises UserError where the batches of a step cannot be dealt out evenly.
    """
    if len(step) % ranks:
        raise UserError(
            f"a step of {len(step)} batches cannot be dealt out to {ranks} ranks: their number has "
            "to be a multiple of the ranks"
        )
    return step[rank::ranks]


def run_steps(plan: BatchPlan, steps_per_epoch: int, start: int = 0) -> Iterator[tuple[int, Step]]:
    """Steps of a run from number `start` on, without end, each with its epoch."""
    epoch, within = divmod(start, steps_per_epoch)
    while True:
        for step in epoch_steps(plan, epoch)[within:]:
            yield epoch, step
        epoch, within = epoch + 1, 0


def padding_efficiency(plan: BatchPlan, steps: Sequence[Step], ranks: int = 1) -> float:
    """Real tokens over computed ones, in (0, 1]. Ranks wait for each other in every batch, so that
    each of them costs as much as the largest of those worked on at a time."""
    real, computed = 0, 0
    for step in steps:
        costs = [_cost(plan, batch) for batch in step]
        real += real_tokens(plan, step)
        computed += sum(max(costs[n : n + ranks]) * ranks for n in range(0, len(costs), ranks))
    return real / computed


def real_tokens(plan: BatchPlan, step: Step) -> int:
    """Tokens of a step without padding."""
    return sum(int(plan.real[batch].sum()) for batch in step)


def _padded(plan: BatchPlan, lengths: Lengths) -> Lengths:
    return -(-lengths // plan.multiple) * plan.multiple


def _cost(plan: BatchPlan, batch: Batch) -> int:
    """Padded tokens of a batch."""
    widths = (_padded(plan, held[batch]).max() for held in (plan.sources, plan.targets))
    return int(plan.rows[batch].sum()) * int(sum(widths))


def _longest(plan: BatchPlan, step: Step) -> int:
    """Padded tokens of the longest row of a step."""
    batch = np.concatenate(step)
    return int((_padded(plan, plan.sources[batch]) + _padded(plan, plan.targets[batch])).max())


def _largest(plan: BatchPlan, step: Step) -> int:
    """Padded tokens of the largest batch of a step; of all of it where it has a fixed number of
    examples, so that their order does not depend on how it is cut."""
    parts = step if plan.tokens is not None else (np.concatenate(step),)
    return max(_cost(plan, batch) for batch in parts)


def _by_tokens(source: Lengths, target: Lengths, rows: Lengths, tokens: int) -> list[int]:
    """Where batches begin, and the end: each as long as its padded tokens stay in the budget."""
    cuts, widest, deepest, held = [0], 0, 0, 0
    for number, (length, depth, more) in enumerate(
        zip(source.tolist(), target.tolist(), rows.tolist(), strict=True)
    ):
        wide, deep = max(widest, length), max(deepest, depth)
        if (held + more) * (wide + deep) > tokens:
            cuts.append(number)
            wide, deep, held = length, depth, 0
        widest, deepest, held = wide, deep, held + more
    return [*cuts, len(source)]


def _whole_steps(cuts: list[int], rows: int, batches: int) -> list[int]:
    """More cuts, through the batches with the most examples, until all steps are whole."""
    lacking = -(len(cuts) - 1) % batches
    if len(cuts) - 1 + lacking > rows:
        raise UserError(
            f"{rows} examples do not fill whole steps of {batches} batches: raise the tokens of a "
            "batch, or use fewer ranks"
        )
    for _ in range(lacking):
        sizes = np.diff(cuts)
        widest = int(np.argmax(sizes))
        cuts.insert(widest + 1, cuts[widest] + int(sizes[widest]) // 2)
    return cuts


def _by_examples(rows: int, examples: int, batches: int) -> list[int]:
    """Steps of `examples`. Where less than half of one is left, it and the step before it share
    evenly: which step has which examples does not depend on `batches`, as long as there are two
    examples for each of these. A step's batches are as even as can be."""
    ends = [*range(examples, rows, examples), rows]
    left = rows - ends[-2] if len(ends) > 1 else rows
    if len(ends) > 1 and left < max(examples / 2, batches):
        before = ends[-3] if len(ends) > 2 else 0
        half = (rows - before) // 2
        ends[-2:] = [before + half, rows] if half >= batches else [rows]
    starts = [0, *ends[:-1]]
    cuts = [0]
    for start, end in zip(starts, ends, strict=True):
        size = end - start
        cuts += [start + size * (n + 1) // batches for n in range(batches)]
    return cuts
