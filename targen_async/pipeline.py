"""Stages joined by bounded streams. Knows nothing of language models or files.

A stage's work reads a stream to its end and sends what it makes; its end closes the next stage's
stream, so a run ends from its source to its sink without sentinels. A stage that has seen enough
just returns: those before it then find nobody listening and return too.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self

import anyio
from msgspec import Struct

_END: Any = object()
_YOUNG = 10_000
"""Objects that may gather before the collector of cycles looks at them."""


class NobodyListens(Exception):
    """All who read the stream have returned."""


class Incoming:
    """A bounded stream between two stages, on one event loop.

    Whoever waits longest is served first. Sending and receiving return at once where they can,
    without a turn of the loop: a hand-over costs a microsecond or two. It ends when its `senders`
    have left, and what still waits in it has been read.
    """

    def __init__(self, capacity: int, *, senders: int, receivers: int) -> None:
        self.capacity = capacity
        self._senders = senders
        self._receivers = receivers
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._getters: deque[asyncio.Future[Any]] = deque()
        self._putters: deque[tuple[asyncio.Future[None], Any]] = deque()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    async def send(self, item: Any, /) -> None:  # noqa: ANN401
        """Returns when the item has a place. Raises NobodyListens."""
        if not self._receivers:
            raise NobodyListens
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(item)
                return
        if len(self._items) < self.capacity:
            self._items.append(item)
            return
        putter = self._loop.create_future()
        self._putters.append((putter, item))
        await putter

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401
        if self._items:
            item = self._items.popleft()
            self._make_room()
            return item
        if not self._senders:
            raise StopAsyncIteration
        getter = self._loop.create_future()
        self._getters.append(getter)
        item = await getter
        if item is _END:
            raise StopAsyncIteration
        return item

    def take_waiting(self) -> list[Any]:
        """All that waits, without waiting for more."""
        taken: list[Any] = []
        while self._items:
            taken.append(self._items.popleft())
            self._make_room()
        return taken

    def _make_room(self) -> None:
        while self._putters:
            putter, item = self._putters.popleft()
            if not putter.done():
                self._items.append(item)
                putter.set_result(None)
                return

    def sender_left(self) -> None:
        self._senders -= 1
        if not self._senders:
            for getter in self._getters:
                if not getter.done():
                    getter.set_result(_END)

    def receiver_left(self) -> None:
        self._receivers -= 1
        if not self._receivers:
            for putter, _ in self._putters:
                if not putter.done():
                    putter.set_exception(NobodyListens())


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
    makers = [0, *(stage.workers for stage in stages)]
    streams = [
        Incoming(stage.capacity, senders=senders, receivers=stage.workers)
        for stage, senders in zip(stages, makers, strict=False)
    ]
    outlets: list[Incoming | None] = [*streams[1:], None]
    waiting = {stage.name: stream for stage, stream in zip(stages, streams, strict=True)}
    see(lambda: {name: (len(stream), stream.capacity) for name, stream in waiting.items()})
    with _collected_seldom():
        async with anyio.create_task_group() as group:
            for stage, incoming, outgoing in zip(stages, streams, outlets, strict=True):
                for number in range(stage.workers):
                    name = f"{stage.name}-{number}"
                    group.start_soon(_worker, stage, incoming, outgoing, name=name)


@contextmanager
def _collected_seldom() -> Iterator[None]:
    """What is in flight lives for many calls and forms no cycles: with the usual threshold of 700
    objects a tenth of all CPU time goes into looking at it again and again."""
    before = gc.get_threshold()
    if 0 < before[0] < _YOUNG:
        gc.set_threshold(_YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def _worker(stage: Stage, incoming: Incoming, outgoing: Incoming | None) -> None:
    try:
        await stage.work(incoming, _discard if outgoing is None else outgoing.send)
    except NobodyListens:
        # The next stage has all it wants.
        pass
    finally:
        incoming.receiver_left()
        if outgoing is not None:
            outgoing.sender_left()


async def _discard(_item: Any) -> None:  # noqa: ANN401
    """The last stage has nobody to send to."""
