"""Stages: every item once, bounded queues, and an end that comes from either side."""

import gc

import anyio
import pytest

from targen_async.pipeline import Incoming, Send, Stage, each, run_stages


def source(count: int, log: list[int] | None = None):
    async def work(_incoming: Incoming, send: Send) -> None:
        for number in range(count):
            await send(number)
            if log is not None:
                log.append(number)

    return work


def test_every_item_passes_once_whatever_the_workers() -> None:
    seen: list[int] = []

    async def double(item: int, send: Send) -> None:
        await anyio.sleep(0.001 * (item % 3))
        await send(2 * item)

    async def sink(incoming: Incoming, _send: Send) -> None:
        seen.extend([item async for item in incoming])

    anyio.run(
        run_stages,
        [
            Stage(name="source", work=source(100)),
            Stage(name="double", work=each(double), workers=7, capacity=3),
            Stage(name="sink", work=sink),
        ],
    )
    assert sorted(seen) == list(range(0, 200, 2))


def test_a_slow_sink_holds_the_source_back() -> None:
    made: list[int] = []

    async def sink(incoming: Incoming, _send: Send) -> None:
        await anyio.sleep(0.05)
        assert len(made) <= 2 + 1 + 2 + 1
        async for _ in incoming:
            pass

    async def same(item: int, send: Send) -> None:
        await send(item)

    anyio.run(
        run_stages,
        [
            Stage(name="source", work=source(50, made)),
            Stage(name="same", work=each(same), capacity=2),
            Stage(name="sink", work=sink, capacity=2),
        ],
    )
    assert len(made) == 50


def test_a_sink_that_has_enough_ends_the_run() -> None:
    async def endless(_incoming: Incoming, send: Send) -> None:
        number = 0
        while True:
            await send(number)
            number += 1

    async def sink(incoming: Incoming, _send: Send) -> None:
        async for item in incoming:
            if item == 10:
                return

    async def same(item: int, send: Send) -> None:
        await send(item)

    async def main() -> None:
        with anyio.fail_after(2):
            await run_stages(
                [
                    Stage(name="source", work=endless),
                    Stage(name="same", work=each(same), workers=4),
                    Stage(name="sink", work=sink),
                ]
            )

    anyio.run(main)


def test_an_error_in_one_worker_ends_all_and_is_raised() -> None:
    async def fail(item: int, _send: Send) -> None:
        if item == 5:
            raise ValueError("five")

    with pytest.raises(ExceptionGroup) as caught:
        anyio.run(
            run_stages,
            [
                Stage(name="source", work=source(1000)),
                Stage(name="fail", work=each(fail), workers=3),
            ],
        )
    assert isinstance(caught.value.exceptions[0], ValueError)


@pytest.mark.parametrize("own", [(700, 10, 10), (50_000, 5, 5), (0, 10, 10)])
def test_the_collector_is_as_it_was_before(own: tuple[int, int, int]) -> None:
    """Whoever set it seldom, or switched it off, keeps that within the run as well."""
    within: list[tuple[int, int, int]] = []

    async def look(_incoming: Incoming, _send: Send) -> None:
        within.append(gc.get_threshold())

    usual = gc.get_threshold()
    gc.set_threshold(*own)
    try:
        anyio.run(run_stages, [Stage(name="look", work=look)])
        assert gc.get_threshold() == own
    finally:
        gc.set_threshold(*usual)
    assert within == [(10_000, 10, 10) if own[0] == 700 else own]
