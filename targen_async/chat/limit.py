"""Pacing: how many calls are out at once, and how many calls and tokens a minute."""

import asyncio
import math
from collections import deque
from collections.abc import Callable

from targen_async.chat import ChatClient
from targen_async.chat.adapt import Adaptive
from targen_async.chat.lease import Lease
from targen_async.chat.quota import Place, Quota
from targen_async.errors import ChatError, RateLimited, ServerFault, Unavailable
from targen_async.records import ChatRequest, ChatResult
from targen_async.stats import LimitView

Gate = Callable[[ChatRequest], None]
"""Raises to turn a caller back who has waited in line while the endpoint went away."""

_LOOK_AGAIN_S = 1.0
"""Whoever is first in line asks the gate this often, whatever it waits for."""
_WORTH_SAYING_S = 1.0


class Limited:
    """Lets calls through one after another, in the order they came.

    One line serves calls, tokens and slots: whoever is first pays an estimate to the meters of both
    rates, takes a slot and goes; then the next one steps up. So a large request is never overtaken,
    and no paid call waits behind another, to burst out later. Afterwards the estimate is settled
    with what the call did take. `gate` is asked before paying and again before sending.

    Rates need not be declared: they are learnt from headers and refusals, and so is how much may
    go at once. A declared rate is never exceeded in the long run, whatever an endpoint offers.
    `adaptive`: where no rate is declared, find out below `max_in_flight` how many calls at a time
    serve best. `lease`: shares the rates with other processes.
    """

    def __init__(
        self,
        inner: ChatClient,
        *,
        gate: Gate | None,
        max_in_flight: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        adaptive: bool = False,
        lease: Lease | None = None,
    ) -> None:
        self.in_flight = 0
        self.waiting = 0
        self.refused = 0
        """429s so far."""
        self.sent_s: dict[str, float] = {}
        """Since when calls are out, by their keys."""
        self._inner = inner
        self._gate = gate
        self._most = max_in_flight
        self._declared = (requests_per_minute, tokens_per_minute)
        free = requests_per_minute is None and tokens_per_minute is None
        self._adaptive = Adaptive(max_in_flight) if adaptive and free else None
        self._lease = lease
        self._quota: Quota | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line: deque[Place] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._sent_s = -math.inf
        # Of whoever is first in line.
        self._full = False
        self._until_s = -math.inf

    @property
    def max_in_flight(self) -> int:
        """As many calls as may be out now."""
        return self._adaptive.limit if self._adaptive else self._most

    @property
    def room(self) -> int:
        """Slots that are free and that nobody in line waits for."""
        return 0 if self._line else max(0, self.max_in_flight - self.in_flight)

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Wait in line, then ask. Raises Rejected for a request larger than a minute's tokens."""
        loop, quota = self._loop, self._quota
        if loop is None or quota is None:
            loop = self._loop = asyncio.get_running_loop()
            quota = self._quota = Quota(*self._declared, loop.time())
        place = Place(request)
        quota.estimate(place)
        if not self._goes_at_once(quota, place, loop):
            self.waiting += 1
            try:
                await self._enter(quota, place, loop)
            finally:
                self.waiting -= 1
        try:
            result = await self._inner.complete(request)
        except ChatError as error:
            self._failed(quota, place, error, loop.time())
            raise
        except BaseException:
            quota.abandoned(place)
            raise
        else:
            now_s = loop.time()
            quota.answered(place, result, now_s)
            if self._adaptive:
                stage = quota.costs.stage_of(request)
                took_s = now_s - place.sent_s
                self._adaptive.answered(stage, took_s, self.in_flight, place.out, now_s)
            return result
        finally:
            self.in_flight -= 1
            self.sent_s.pop(request.key, None)
            self._advance(quota, loop)

    def _failed(self, quota: Quota, place: Place, error: ChatError, now_s: float) -> None:
        if isinstance(error, RateLimited):
            self.refused += 1
            if self._lease is not None and self._lease.share < 1:
                quota.ask_others(self._lease, now_s)
            crowded = quota.refused(place, error, now_s)
            # Where few are out, it was the rate that was refused.
            if self._adaptive and crowded and self.in_flight >= 0.75 * self._adaptive.limit:
                self._adaptive.refused(now_s)
            return
        quota.failed(place, error)
        if self._adaptive and isinstance(error, Unavailable | ServerFault):
            self._adaptive.failed(now_s)

    # ---- the line

    def _goes_at_once(self, quota: Quota, place: Place, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether nobody stands in line and this call need not: then it has its slot, paid for."""
        if self._line:
            return False
        if self._gate:
            self._gate(place.request)
        now_s = loop.time()
        if self._wait_s(quota, place, now_s) > 0:
            return False
        self._let_go(quota, place, now_s)
        return True

    async def _enter(self, quota: Quota, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        """Returns holding a slot, paid for; or raises holding nothing."""
        future = place.future = loop.create_future()
        self._line.append(place)
        if len(self._line) == 1:
            self._advance(quota, loop)
        try:
            await future
            if self._gate:
                self._gate(place.request)
        except BaseException:
            if not future.done():
                future.cancel()
            elif not future.cancelled() and future.exception() is None:
                quota.take_back(place)
                self.in_flight -= 1
                self.sent_s.pop(place.request.key, None)
            self._advance(quota, loop)
            raise

    def _advance(self, quota: Quota, loop: asyncio.AbstractEventLoop) -> None:
        """Let through whoever may go; then see to it that the next one is looked at in time."""
        line = self._line
        while line:
            place = line[0]
            future = place.future
            if future is None or future.done():
                line.popleft()
                continue
            try:
                if self._gate:
                    self._gate(place.request)
            except Exception as error:
                line.popleft()
                future.set_exception(error)
                continue
            now_s = loop.time()
            wait_s = self._wait_s(quota, place, now_s)
            if wait_s > 0:
                self._look_at(quota, loop, now_s + min(wait_s, _LOOK_AGAIN_S))
                return
            line.popleft()
            self._let_go(quota, place, now_s)
            future.set_result(None)

    def _look_at(self, quota: Quota, loop: asyncio.AbstractEventLoop, when_s: float) -> None:
        if self._timer is not None:
            if self._timer_s <= when_s:
                return
            self._timer.cancel()
        self._timer_s = when_s
        self._timer = loop.call_at(when_s, self._timer_rang, quota, loop)

    def _timer_rang(self, quota: Quota, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._timer_s = math.inf
        self._advance(quota, loop)

    def _wait_s(self, quota: Quota, place: Place, now_s: float) -> float:
        """Seconds until this call may go; infinite while it waits for a slot."""
        lease = self._lease
        if lease is not None:
            if now_s >= lease.due_s:
                fresh = self._sent_s == -math.inf
                hungry = fresh or bool(self._line and quota.short_of)
                quota.renew(lease, hungry=hungry, now_s=now_s)
            else:
                quota.exchange_news(lease, now_s)
        self._full = self.in_flight >= self.max_in_flight
        if self._full:
            return math.inf
        wait_s = quota.wait_s(place, now_s)
        if lease is not None and lease.joining_until_s > now_s:
            wait_s = max(wait_s, lease.joining_until_s - now_s)
        self._until_s = now_s + wait_s
        return wait_s

    def _let_go(self, quota: Quota, place: Place, now_s: float) -> None:
        quota.pay(place, now_s)
        self.in_flight += 1
        # Where far fewer are out, it is not the limit that decides how many.
        place.out = self.in_flight if self.in_flight >= 0.5 * self.max_in_flight else 0
        self._sent_s = now_s
        self.sent_s[place.request.key] = now_s

    # ---- shown

    def view(self, name: str, *, held: str = "") -> LimitView:
        """What a person may want to know. `held`: why the breaker lets nothing through."""
        now_s = asyncio.get_running_loop().time()
        quota = self._quota or Quota(*self._declared, now_s)
        calls, tokens = quota.requests, quota.tokens
        return LimitView(
            name=name,
            in_flight=self.in_flight,
            most_in_flight=self.max_in_flight,
            waiting=self.waiting,
            requests_per_minute=quota.calls_seen.per_minute(now_s),
            requests_limit=60 * calls.per_s if calls else None,
            tokens_per_minute=quota.tokens_seen.per_minute(now_s),
            tokens_limit=60 * tokens.per_s if tokens else None,
            refused=self.refused,
            waits_for=held or self._waits_for(quota, now_s),
        )

    def _waits_for(self, quota: Quota, now_s: float) -> str:
        silent_s = now_s - self._sent_s
        if not self.waiting or silent_s < _WORTH_SAYING_S:
            return ""
        if self._full:
            return f"waiting {silent_s:.0f} s: all {self.in_flight} calls that may be out are"
        meter = quota.tokens if quota.short_of == "tokens" else quota.requests
        left_s = self._until_s - now_s
        if meter is None or left_s < _WORTH_SAYING_S:
            return ""
        return f"waiting {left_s:.0f} s: {60 * meter.per_s:,.0f} {meter.name} a minute are used up"
