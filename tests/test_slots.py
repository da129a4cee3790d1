"""Slots stay within plan and window; blocks are the same whatever the order of arrival."""

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from targen_async.control import Demand, RunControl
from targen_async.plan import RowPlan, RowPlanState
from targen_async.records import (
    Block,
    Context,
    Failure,
    Seed,
    SeedCall,
    SlotAnswer,
    SlotCall,
    Usage,
)
from targen_async.slots import Blocks, Slots
from targen_async.tasks import load_task

TASK = load_task("cb")


def plan_of(n: int) -> RowPlan:
    plan = RowPlan(tuple(TASK.labels), 0, RowPlanState())
    plan.aim(n)
    return plan


def seed(index: int) -> Seed:
    call = SeedCall(index=index, context=Context(index=0, text="c", axes={}), axes={})
    return Seed(
        index=index, call=call, first_index=index, offset=0, position=0, notes=(), wasted=Usage()
    )


def test_no_slot_is_sent_beyond_the_window_until_the_watermark_moves() -> None:
    plan, control, sent = plan_of(5000), RunControl(), []

    async def main() -> None:
        slots = Slots(TASK, plan, control, rows_per_seed=1, random_seed=0, start=0, window=1024)

        async def send(rows: tuple[SlotCall, ...]) -> None:
            sent.extend(call.slot for call in rows)

        seeds, incoming = anyio.create_memory_object_stream[Any](5000)
        for index in range(5000):
            seeds.send_nowait(seed(index))
        async with anyio.create_task_group() as group:
            group.start_soon(slots.work, incoming, send)
            await anyio.wait_all_tasks_blocked()
            assert sent == list(range(1024))
            assert slots.window_full, "a person is told which key holds everything up"
            for slot in range(10):
                plan.accept(plan.label(slot))
                plan.commit(slot, plan.label(slot), plan.label(slot))
            control.changed.notify()
            await anyio.wait_all_tasks_blocked()
            assert sent == list(range(1034))
            control.drain("enough")
        incoming.close()
        seeds.close()

    anyio.run(main)


def answered(call: SlotCall, *, lost: bool) -> SlotAnswer:
    failure = Failure(key=call.key, stage="instances", kind="refused", message="", attempts=3)
    return SlotAnswer(
        call=call, offset=0, failure=failure if lost else None, invalid=None, wasted=Usage()
    )


def gathered(order: Callable[[list[int]], None], lost: set[int]) -> dict[str, tuple[int, ...]]:
    """The blocks that come of 60 slots arriving in some order, some of them without a row."""
    plan = plan_of(60)
    blocks = Blocks(TASK, plan, RunControl(), size=4, seed_of=lambda slot: slot // 2, random_seed=7)
    out: dict[str, tuple[int, ...]] = {}
    passed: list[int] = []

    async def send(item: Block | SlotAnswer) -> None:
        if isinstance(item, Block):
            out[item.key] = tuple(member.call.slot for member in item.members)
        else:
            passed.append(item.call.slot)

    async def main() -> None:
        arriving = list(range(60))
        order(arriving)
        stream: MemoryObjectSendStream[Any]
        stream, incoming = anyio.create_memory_object_stream[Any](60)
        for slot in arriving:
            call = SlotCall(
                slot=slot, key=str(slot), member=0, label="neutral", axes={}, seed=seed(slot // 2)
            )
            stream.send_nowait(answered(call, lost=slot in lost))
        stream.close()
        await blocks.work(incoming, send)
        incoming.close()

    anyio.run(main)
    assert sorted(passed) == sorted(lost)
    return out


def test_blocks_do_not_depend_on_the_order_of_arrival() -> None:
    straight = gathered(lambda slots: None, set())
    assert straight == gathered(lambda slots: slots.reverse(), set())
    assert straight == gathered(random.Random(1).shuffle, set())
    assert sorted(slot for block in straight.values() for slot in block) == list(range(60))


def test_a_missing_member_shortens_its_block_and_shifts_nobody() -> None:
    whole, lost = gathered(lambda slots: None, set()), {3, 17, 18, 40}
    shortened = gathered(random.Random(2).shuffle, lost)
    assert shortened == {
        key: kept
        for key, block in whole.items()
        if (kept := tuple(slot for slot in block if slot not in lost))
    }


@pytest.mark.parametrize("limit", [3, 100])
def test_demand_asks_for_what_is_missing_and_no_more_than_the_window(limit: int) -> None:
    async def main() -> int:
        demand = Demand(RunControl(), per_call=10, needed=95, accepted=0, window=limit)
        calls = 0
        while True:
            with anyio.move_on_after(0.01) as scope:
                await demand.next_call()
                calls += 1
            if scope.cancelled_caught:
                return calls

    assert anyio.run(main) == min(10, limit)


def test_demand_makes_up_for_calls_that_bring_little() -> None:
    async def main() -> int:
        control = RunControl()
        demand = Demand(control, per_call=10, needed=100, accepted=0, window=1000)
        calls = 0
        while demand.accepted < 100:
            assert await demand.next_call()
            calls += 1
            demand.settle(2)
        return calls

    assert anyio.run(main) == 50
