"""Hedging: a call that stalls is sent a second time, and the first complete answer is taken.

The other of the two is abandoned, which leaves its intent in doubt: it is charged at its worst
case, as what became of it is not known (Dean and Barroso, "The Tail at Scale", 2013).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from targen_async.chat import ChatClient
from targen_async.chat.cost import Costs
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Drained, Held
from targen_async.errors import ChatError, ParseError, TargenError
from targen_async.journal import HEDGE
from targen_async.records import ChatRequest, ChatResult

MOST = 0.02
"""Part of the calls that may be sent twice."""
_FEWEST = 50
"""Answers of a stage before its latency is taken to be known."""
_FEW, _MEDIANS = 10, 10.0
"""Before, from so many answers on: a call is late after so many times their median."""
_REMEMBERED = 512
_LATE = 0.9
"""A call is late when this part of its stage's answers took less time."""
_NEVER_BEFORE_S = 1.0
_LOOK_EVERY_S = 0.1
_LEARN_EVERY = 128


class _Stage:
    """Latencies of one kind of call, the newest ones, and what is late among them."""

    __slots__ = ("_count", "_last", "late_s")

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_REMEMBERED)
        self._count = 0
        self.late_s: float | None = None
        """None: not known yet."""

    def learn(self, latency_s: float) -> None:
        self._last.append(latency_s)
        self._count += 1
        if self._count < _FEW or (self._count > _FEWEST and self._count % _LEARN_EVERY):
            return
        known = sorted(self._last)
        late_s = known[int(_LATE * len(known))]
        if self._count < _FEWEST:
            late_s = _MEDIANS * known[len(known) // 2]
        self.late_s = max(late_s, _NEVER_BEFORE_S)


class _Call:
    """A call that is out or waits in line."""

    __slots__ = ("copy", "over", "request", "result", "stage", "task")

    def __init__(
        self, request: ChatRequest, stage: _Stage, task: "asyncio.Task[Any] | None"
    ) -> None:
        self.request = request
        self.stage = stage
        self.task = task
        """Who waits for it, to be woken by the second answer."""
        self.copy: asyncio.Task[None] | None = None
        self.result: ChatResult | None = None
        """Of the second copy, when that came first."""
        self.over = False


class Hedged:
    """Sends late calls twice, where a slot is free that no other call wants.

    Both go through the budget and the limits, and each has an intent of its own; that of the second
    bears the mark `HEDGE` in its key. Only one of the two is ever answered: the other is cancelled
    before its answer could be recorded. Errors of a second copy are nobody's concern. `limited` is
    the part of `inner` that knows of slots. `fits`: is there room for a copy in the budget?
    """

    def __init__(
        self,
        inner: ChatClient,
        limited: Limited,
        *,
        fits: Callable[[ChatRequest], bool] = lambda _copy: True,
    ) -> None:
        self._inner = inner
        self._limited = limited
        self._fits = fits
        self._stages: dict[str, _Stage] = {}
        self._calls: dict[str, _Call] = {}
        self._asked = 0
        self._hedged = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def complete(self, request: ChatRequest) -> ChatResult:
        """One answer. Raises what the first call did when neither brings any."""
        name = Costs.stage_of(request)
        stage = self._stages.get(name)
        if stage is None:
            stage = self._stages[name] = _Stage()
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        call = self._calls[request.key] = _Call(request, stage, task)
        self._asked += 1
        if self._timer is None:
            self._look_later(loop)
        before = task.cancelling() if task else 0
        try:
            result = await self._inner.complete(request)
        except (ChatError, ParseError):
            if call.copy is None:
                raise
            call.task = None
            await asyncio.wait([call.copy])
            if call.result is None:
                raise
            return replace(call.result, key=request.key)
        except asyncio.CancelledError:
            if task is None or call.result is None or task.uncancel() > before:
                raise
            return replace(call.result, key=request.key)
        else:
            stage.learn(result.latency_s)
            return result
        finally:
            call.over = True
            del self._calls[request.key]
            if call.copy is not None:
                call.copy.cancel()

    # ---- the second copies

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_LOOK_EVERY_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send second copies of what is late, the latest first."""
        self._timer = None
        if not self._calls:
            return
        self._look_later(loop)
        left = min(self._limited.room, int(MOST * self._asked) - self._hedged)
        if left <= 0:
            return
        now_s, late = loop.time(), []
        for key, call in self._calls.items():
            limit_s, sent_s = call.stage.late_s, self._limited.sent_s.get(key)
            if limit_s is not None and sent_s is not None and call.copy is None:
                late_s = now_s - sent_s - limit_s
                if late_s > 0:
                    late.append((late_s, key))
        for _, key in sorted(late, reverse=True)[:left]:
            call = self._calls[key]
            copy = replace(call.request, key=key + HEDGE)
            if self._fits(copy):
                self._hedged += 1
                call.copy = loop.create_task(self._ask_again(call, copy, now_s))

    async def _ask_again(self, call: _Call, copy: ChatRequest, now_s: float) -> None:
        if not self._fits(copy):
            return  # Others took the room since: a copy neither waits for it nor ends the run.
        sent_s = self._limited.sent_s.get(call.request.key, now_s)
        try:
            result = await self._inner.complete(copy)
        except (TargenError, Held, Drained):
            return
        if call.over:
            return
        # The first one would have taken at least as long.
        waited_s = asyncio.get_running_loop().time() - sent_s
        call.stage.learn(waited_s)
        call.result = result
        if call.task is not None:
            call.task.cancel()
