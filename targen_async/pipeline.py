"""Stages joined by bounded streams. Knows nothing of language models or files.

A stage's work reads a stream to its end and sends what it makes; its end closes the next stage's
stream, so a run ends from its source to its sink without sentinels. A stage that has seen enough
just returns: those before it then find nobody listening and return too.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Struct

Incoming = MemoryObjectReceiveStream[Any]


class Send(Protocol):
    async def __call__(self, item: Any, /) -> None: ...  # noqa: ANN401


Work = Callable[[Incoming, Send], Awaitable[None]]


class Stage(Struct, frozen=True, kw_only=True):
    """`work(incoming, send)` is run by `workers` tasks on one stream; `capacity` items may wait."""

    name: str
    work: Work
    workers: int = 1
    capacity: int = 16


def each(step: Callable[[Any, Send], Awaitable[None]]) -> Work:
    """Work that treats every item alone, in whatever order workers take them."""

    async def work(incoming: Incoming, send: Send) -> None:
        async for item in incoming:
            await step(item, send)

    return work


Queues = Callable[[], dict[str, tuple[int, int]]]
"""Stage to the items that wait before it, and how many may."""


async def run_stages(
    stages: Sequence[Stage], see: Callable[[Queues], None] = lambda _queues: None
) -> None:
    """Run a chain of stages until the last has finished. The first reads an empty stream.

    An error in any worker cancels all of them and is raised as it is; cancellation from outside
    leaves nothing running. `see` is given what tells how full the streams are.
    """
    links = [anyio.create_memory_object_stream[Any](stage.capacity) for stage in stages]
    sends = [send for send, _ in links[1:]] + [None]
    waiting = {stage.name: link[1] for stage, link in zip(stages, links, strict=True)}
    see(
        lambda: {
            name: (
                stream.statistics().current_buffer_used,
                int(stream.statistics().max_buffer_size),
            )
            for name, stream in waiting.items()
        }
    )
    links[0][0].close()
    async with anyio.create_task_group() as group:
        for stage, (_, incoming), outgoing in zip(stages, links, sends, strict=True):
            for number in range(stage.workers):
                group.start_soon(
                    _worker,
                    stage,
                    incoming.clone(),
                    None if outgoing is None else outgoing.clone(),
                    name=f"{stage.name}-{number}",
                )
            incoming.close()
            if outgoing is not None:
                outgoing.close()


async def _worker(
    stage: Stage, incoming: Incoming, outgoing: MemoryObjectSendStream[Any] | None
) -> None:
    try:
        await stage.work(incoming, _discard if outgoing is None else outgoing.send)
    except anyio.BrokenResourceError:
        # The next stage has all it wants.
        pass
    finally:
        incoming.close()
        if outgoing is not None:
            outgoing.close()


async def _discard(_item: Any) -> None:  # noqa: ANN401
    """The last stage has nobody to send to."""
