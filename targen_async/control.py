"""What the stages tell each other against the stream: demand upstream, and the wish to stop."""

import asyncio
from collections.abc import Callable

import anyio

from targen_async.errors import TargenError

STALLED_S = 5.0


class Signal:
    """Wakes everyone who waits for a change. Waiters look again for themselves."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter


class RunControl:
    """Whether new calls may be sent. Calls already sent are always waited for."""

    def __init__(self) -> None:
        self.changed = Signal()
        self.draining: str | None = None
        """Why nothing new is sent any more."""
        self.moved_at = 0.0
        """When a replay last committed something, on the event loop's clock."""
        self.replaying = False
        """Files are being made again: all that is needed is in the journal, so nothing is sent."""
        self.remaking = False
        """Rows are made anew: contexts and seeds for them are in the journal, as a rule."""
        self.error: TargenError | None = None
        """What ended the run, to be raised once the calls under way are in."""

    def drain(self, reason: str) -> None:
        """Send nothing new; the run ends when the calls under way are in. First reason stays."""
        if self.draining is None:
            self.draining = reason
            self.changed.notify()

    def begin_replay(self, *, files: bool, rows: bool) -> None:
        """Called within the event loop, before the stages run."""
        self.replaying, self.remaking = files, rows
        self.moved_at = anyio.current_time()

    def end_replay(self, *, files: bool = True, rows: bool = True) -> None:
        """All files stand where they stood, or all rows: calls may be sent again."""
        if (files and self.replaying) or (rows and self.remaking):
            self.replaying &= not files
            self.remaking &= not rows
            self.changed.notify()

    @property
    def calm(self) -> bool:
        """May calls be sent, and be sent now?"""
        return self.draining is None and not (self.replaying or self.remaking)

    async def may_send(self, *, ahead: bool) -> bool:
        """Wait out a replay; False when no new calls are taken.

        `ahead`: the call is for a context or a seed, which may be asked for before it is needed.

        A replay in which nothing has moved for `STALLED_S` needs an answer that the journal does
        not hold (a validator was changed, or too few workers look for the next known one): it is
        over.
        """

        def waits() -> bool:
            return (self.replaying or (ahead and self.remaking)) and self.draining is None

        while waits():
            with anyio.move_on_after(STALLED_S) as stalled:
                await self.changed.until(lambda: not waits())
            if stalled.cancelled_caught and anyio.current_time() - self.moved_at >= STALLED_S:
                self.end_replay()
        return self.draining is None

    def fail(self, error: TargenError) -> None:
        """The run cannot go on: drain, then raise the first error."""
        if self.error is None:
            self.error = error
        self.drain(str(error))


class Demand:
    """How many calls a source should have made by now.

    A source makes the next call while what was accepted and what the calls under way should bring
    fall short of `needed`, unless `window` calls wait for one before them. Only *when* a call is
    made depends on it, never what it asks for.
    """

    def __init__(
        self, control: RunControl, *, per_call: int, needed: int, accepted: int, window: int
    ) -> None:
        self._control = control
        self._window = window
        self._per_call = per_call
        self.needed = needed
        self.accepted = accepted
        self._offered = 0
        self._gained = 0
        self._outstanding = 0
        self.closed = False

    def need(self, count: int) -> None:
        """At least `count` in all are wanted."""
        self.needed = max(self.needed, count)
        self._control.changed.notify()

    def settle(self, gained: int) -> None:
        """The next call in order has come back with `gained` accepted items."""
        self._outstanding -= 1
        self._offered += self._per_call
        self._gained += gained
        self.accepted += gained
        self._control.changed.notify()

    def close(self) -> None:
        self.closed = True
        self._control.changed.notify()

    async def next_call(self) -> bool:
        """Wait until another call is due; False when there will be none."""
        await self._control.changed.until(lambda: self._over() or self._due())
        if self._over():
            return False
        self._outstanding += 1
        return True

    def _over(self) -> bool:
        return self.closed or self._control.draining is not None

    def _due(self) -> bool:
        if self._outstanding >= self._window:
            return False
        rate = (self._gained + self._per_call) / (self._offered + self._per_call)
        coming = self._outstanding * self._per_call * min(1.0, rate)
        return self.accepted + coming < self.needed
