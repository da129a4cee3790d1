"""From seeds to slots, and from slots to correction blocks: where the plan meets the streams."""

from collections.abc import Callable, Mapping
from functools import partial

from targen_async.control import RunControl
from targen_async.pipeline import Incoming, Send
from targen_async.plan import RowPlan, blocks, cell, row_key, window_of
from targen_async.records import Block, Seed, SlotAnswer, SlotCall
from targen_async.tasks import Task


class Slots:
    """Turns seeds into calls for rows, within the plan and the window.

    What it sends is the tuple of rows that one call writes.
    """

    def __init__(
        self,
        task: Task,
        plan: RowPlan,
        control: RunControl,
        *,
        rows_per_seed: int,
        random_seed: int,
        start: int,
        window: int,
    ) -> None:
        self._task = task
        self._plan = plan
        self._control = control
        self._rows_per_seed = rows_per_seed
        self._rows_per_call = task.rows_per_call
        self.window_full = False
        """Does the next slot wait for the commit of an early one?"""
        self._random_seed = random_seed
        self._start = start
        self._window = window

    async def work(self, incoming: Incoming, send: Send) -> None:
        async for seed in incoming:
            for place in range(self._rows_per_seed):
                slot = seed.index * self._rows_per_seed + place
                if slot < self._start or slot % self._rows_per_call:
                    continue
                if not self._decided(slot):
                    self.window_full = slot >= self._watermark + self._window
                    await self._control.changed.until(partial(self._decided, slot))
                    self.window_full = False
                if self._over():
                    return
                await send(self._call(slot, seed))

    def _decided(self, slot: int) -> bool:
        return self._over() or self._open(slot)

    def _over(self) -> bool:
        return self._control.draining is not None

    def _open(self, slot: int) -> bool:
        return slot < self._plan.planned and slot < self._watermark + self._window

    @property
    def _watermark(self) -> int:
        return self._plan.state.watermark

    def _call(self, first: int, seed: Seed) -> tuple[SlotCall, ...]:
        axes = cell(self._task.instances.axes, self._plan.turn(first), self._random_seed)
        return tuple(
            SlotCall(
                slot=slot,
                key=row_key(self._task.name, slot, self._rows_per_seed),
                label=self._plan.label(slot),
                member=self._plan.member(slot),
                axes=axes,
                seed=seed,
            )
            for slot in range(first, first + self._rows_per_call)
        )


class Blocks:
    """Gathers slots into the correction blocks they were planned for.

    A slot that brought no valid row is missing from its block: the block is shorter, and the others
    stay where they are.
    """

    def __init__(
        self,
        task: Task,
        plan: RowPlan,
        control: RunControl,
        *,
        size: int,
        seed_of: Callable[[int], int],
        random_seed: int,
    ) -> None:
        self._task = task
        self._plan = plan
        self._control = control
        self._size = size
        self._seed_of = seed_of
        self._random_seed = random_seed
        self._block_of: dict[int, tuple[int, ...]] = {}
        """Slot to the slots of its block, for windows that are not complete yet."""
        self._answers: dict[int, SlotAnswer] = {}

    async def work(self, incoming: Incoming, send: Send) -> None:
        async for answer in incoming:
            slot = answer.call.slot
            if slot not in self._block_of:
                self._draw(slot)
            if answer.failure is not None or answer.invalid is not None:
                await send(answer)
            self._answers[slot] = answer
            block = self._block_of[slot]
            if all(member in self._answers for member in block):
                await self._release(block, send)
        if self._control.draining is None:
            # The seeds ran dry: what waits for rows that will never be is judged without them.
            for block in sorted({self._block_of[slot] for slot in self._answers}):
                await self._release(block, send)

    def _draw(self, slot: int) -> None:
        """Draw the blocks of the window that `slot` lies in."""
        wave, group = self._plan.wave_of(slot)[1], self._plan.grouping.size
        start, end = window_of(wave, slot, self._size, group)
        drawn = blocks(
            start, end, size=self._size, seed_of=self._seed_of, random_seed=self._random_seed
        )
        for block in drawn:
            for member in block:
                self._block_of[member] = tuple(block)

    async def _release(self, block: tuple[int, ...], send: Send) -> None:
        answers = [self._answers.pop(slot) for slot in block if slot in self._answers]
        for slot in block:
            del self._block_of[slot]
        members = tuple(a for a in answers if a.failure is None and a.invalid is None)
        if members:
            await send(Block(key=f"{self._task.name}/x{min(block):06d}", members=members))


def balance(accepted: Mapping[str, int], labels: tuple[str, ...]) -> dict[str, int]:
    """Accepted rows of every label, zero included, in the task's order."""
    return {label: accepted.get(label, 0) for label in labels}
