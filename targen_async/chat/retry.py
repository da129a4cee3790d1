"""Insisting: what to do when a call fails, for one request and for the endpoint as a whole."""

import asyncio
import math
import random
import time
from collections.abc import Callable

import anyio
from msgspec.structs import replace

from targen_async.chat import ChatClient
from targen_async.errors import (
    Denied,
    ParseError,
    RateLimited,
    Rejected,
    RunStopped,
    ServerFault,
    TargenError,
    Unavailable,
)
from targen_async.records import ChatRequest, ChatResult

BACK_OFF_CAP_S = 60.0
_FAILURES_TO_OPEN = 5
_ALONE = 7
"""Calls of one request that may break although others were served since its first one broke. Where
one call in five breaks by chance, so many do for one request in 400,000."""

_STEPS_IN = "calls go to the fallback"


class Held(Exception):
    """The endpoint went away while this call stood in line: nothing was sent."""


class Drained(Exception):
    """No new calls are taken: this one was waiting to be sent, or sent again."""


class Elsewhere(Exception):
    """The endpoint is away, and this caller has another one to ask: nothing was served."""


class Breaker:
    """What is known of one endpoint, shared by everybody who calls it.

    It is *open* after five failures to serve with nothing served between: then one call at a time
    goes out as a probe, after 1 s, 2 s, … 60 s, and everybody else waits. Anything the endpoint
    answers closes it. A 429 with Retry-After holds everybody until then.

    The run is given up when failures have gone on for `give_up_after_s` without one success. The
    time is counted from the first failure after the last success, as an endpoint that nobody asks
    is not silent; all waiting ends at that point at the latest, for one last try. Where
    `limited_for_s` is given, it is the patience with an endpoint that asks for fewer calls: it is
    there, whatever else is wrong.

    Where callers can go `elsewhere`, nobody waits while it is open: a call that comes when a probe
    is due is the probe, and everybody else is turned away. Nor is the run given up then: where it
    would be, the breaker opens, also for an endpoint that says nothing but 429.
    """

    def __init__(
        self,
        *,
        give_up_after_s: float,
        limited_for_s: float | None = None,
        elsewhere: bool = False,
    ) -> None:
        self.resume_at = -math.inf
        self.successes = 0
        self._give_up_after_s = self._patience_s = give_up_after_s
        self._limited_for_s = limited_for_s or give_up_after_s
        self._elsewhere = elsewhere
        self._failing_since: float | None = None
        self._failures = 0
        self._reason = ""
        self._open = False
        self._opened_at = 0.0
        self._opened_clock = ""
        self._probe_at = 0.0
        self._probe_delay_s = 1.0
        self._prober: ChatRequest | None = None
        # In order of coming. A failed probe goes to the end of the line: were it to probe again,
        # one request that breaks its server would keep all the others from being tried.
        self._line: dict[object, None] = {}
        self._changed = anyio.Event()
        self._stopped = anyio.Event()
        self._end: Callable[[], TargenError | Drained] | None = None

    # ---- asked by callers

    async def admit(self, request: ChatRequest) -> None:
        """Wait until `request` may be sent. Raises Denied or RunStopped when none will be, and
        Elsewhere instead of waiting for an endpoint that is away."""
        if self._lets_all_through():
            return
        place = object()
        self._line[place] = None
        try:
            while True:
                self._raise_if_ended()
                now = _now()
                if self._elsewhere and self._open:
                    if self._prober is not None or now < max(self._probe_at, self.resume_at):
                        raise Elsewhere(self._reason)
                    self._prober = request
                    return
                if now < self.resume_at:
                    await self._wait(self.resume_at)
                elif not self._open:
                    return
                elif self._prober is not None:
                    await self._wait(math.inf)
                elif now < self._probe_at:
                    await self._wait(self._probe_at)
                elif next(iter(self._line)) is place:
                    self._prober = request
                    return
                else:
                    await self._wait(math.inf)
        finally:
            del self._line[place]
            if self._open:
                self._notify()

    def check(self, request: ChatRequest) -> None:
        """The gate of `Limited`. Raises Held when `request` may no longer be sent."""
        self._raise_if_ended()
        if self._open and self._prober is not request:
            raise Held
        if not self._resumed():
            raise Held

    def leave(self, request: ChatRequest) -> None:
        """`request` is back, whatever became of it. A probe makes room for the next."""
        if self._prober is request:
            self._prober = None
            self._notify()

    async def back_off(self, delay_s: float) -> None:
        """Sleep, but not past the end of the run, which is raised."""
        with anyio.CancelScope(deadline=min(_now() + delay_s, self._last_try_at())):
            await self._stopped.wait()
        self._raise_if_ended()

    @property
    def state(self) -> str:
        """One line for a person."""
        now = _now()
        if self._end is not None:
            return self._ended
        if self._open:
            down = f"endpoint down for {now - self._opened_at:.0f} s: {self._reason}"
            return f"{down}; {self._then}"
        if now < self.resume_at:
            return f"endpoint asked for a pause; next call in {self._in(self.resume_at)}"
        return "endpoint up"

    @property
    def waits_for(self) -> str:
        """Why nothing is sent right now, for a person; empty where calls may go."""
        now = _now()
        if self._end is not None:
            return self._ended
        if now < self.resume_at:
            return f"waiting {self._in(self.resume_at)}: Retry-After from the endpoint"
        if self._open:
            return f"breaker open since {self._opened_clock}, {self._then}"
        return ""

    # ---- told by callers

    def served(self) -> None:
        """The endpoint did its work."""
        self.successes += 1
        self._failing_since = None
        self._close()

    def answered(self) -> None:
        """The endpoint is there, but did not serve."""
        self._close()

    def limited(self, error: RateLimited, request: ChatRequest) -> bool:
        """Everybody waits as long as the server asks. Whether the breaker is open now."""
        if self._failed(error):
            self._keep_open(error, request)
            return True
        self._close()
        if error.retry_after_s:
            resume_at = min(_now() + error.retry_after_s, self._last_try_at())
            self.resume_at = max(self.resume_at, resume_at)
        return False

    def unavailable(self, error: Unavailable, request: ChatRequest) -> bool:
        """Whether the breaker is open now, so that it does the waiting."""
        over = self._failed(error)
        self._failures += 1
        if over or self._open or self._failures >= _FAILURES_TO_OPEN:
            self._keep_open(error, request)
        return self._open

    def deny(self, error: Denied) -> None:
        """No request can succeed: every caller is told so from now on."""
        message, status, user_fault = str(error), error.status, error.user_fault
        self._stop(lambda: Denied(message, status=status, user_fault=user_fault))

    def drain(self) -> None:
        """Send nothing any more: all who wait are told so, calls that are out may come back."""
        self._stop(lambda: Drained("no new calls"))

    # ---- inside

    def _lets_all_through(self) -> bool:
        return not self._open and self._end is None and self._resumed()

    def _resumed(self) -> bool:
        # While nobody asked for a pause no clock is read.
        if self.resume_at > -math.inf and _now() >= self.resume_at:
            self.resume_at = -math.inf
        return self.resume_at == -math.inf

    def _keep_open(self, error: RateLimited | Unavailable, request: ChatRequest) -> None:
        """Open the breaker, or have the next probe made later after one that failed."""
        now = _now()
        if not self._open:
            self._open = True
            self._opened_at = now
            self._opened_clock = time.strftime("%H:%M:%S")
            self._probe_delay_s = 1.0
        elif self._prober is request:
            self._probe_delay_s = min(2 * self._probe_delay_s, BACK_OFF_CAP_S)
        else:
            return
        self._reason = str(error)
        delay_s = max(self._probe_delay_s, error.retry_after_s or 0.0)
        self._probe_at = min(now + delay_s, self._last_try_at())
        self._notify()

    def _failed(self, error: RateLimited | Unavailable) -> bool:
        """Has this gone on for too long? Raises RunStopped where nobody can go elsewhere."""
        now = _now()
        limited = isinstance(error, RateLimited)
        self._patience_s = self._limited_for_s if limited else self._give_up_after_s
        if self._failing_since is None:
            self._failing_since = now
        elif now >= self._failing_since + self._patience_s:
            if self._elsewhere:
                return True
            message = (
                f"the endpoint has served nothing for {now - self._failing_since:.0f} s: {error}; "
                "everything paid for is kept, and the same command goes on from there"
            )
            self._stop(lambda: RunStopped(message))
            raise RunStopped(message) from error
        return False

    def _last_try_at(self) -> float:
        if self._failing_since is None or (self._elsewhere and self._open):
            return math.inf
        return self._failing_since + self._patience_s

    def _stop(self, end: Callable[[], TargenError | Drained]) -> None:
        # A fresh error for each caller: one object raised by many would collect their traces.
        if self._end is None:
            self._end = end
        self._stopped.set()
        self._notify()

    def _raise_if_ended(self) -> None:
        if self._end is not None:
            raise self._end()

    def _close(self) -> None:
        self._failures = 0
        if self._open:
            self._open = False
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _wait(self, until: float) -> None:
        with anyio.CancelScope(deadline=until):
            await self._changed.wait()

    @property
    def _then(self) -> str:
        """What is done about an endpoint that is away."""
        then = "probing now" if self._prober else f"next probe in {self._in(self._probe_at)}"
        return f"{then}, {_STEPS_IN}" if self._elsewhere else then

    @property
    def _ended(self) -> str:
        end = self._end() if self._end else None
        return f"{end}; {_STEPS_IN}" if self._elsewhere and isinstance(end, Denied) else str(end)

    def _in(self, when: float) -> str:
        return f"{max(when - _now(), 0):.0f} s"


class Retrying:
    """Repeats calls that may yet succeed; sleeps outside the slots of the `Limited` inside it.

    The `Limited` is given `breaker.check` as its gate, so that those who stand in line turn back
    when the endpoint goes away. `ChatResult.attempts` counts answers that blame the request: the
    final one and every ServerFault before it. A request whose calls go on breaking while others
    are served is to blame, too: it would be asked, and perhaps paid, until the end of the run.
    """

    def __init__(
        self,
        inner: ChatClient,
        *,
        breaker: Breaker,
        max_attempts: int = 5,
        rng: random.Random | None = None,
    ) -> None:
        self.max_attempts = max_attempts
        self.breaker = breaker
        self._inner = inner
        self._rng = rng or random.Random()

    async def complete(self, request: ChatRequest) -> ChatResult:
        """One answer, however long it takes.

        Raises ServerFault after `max_attempts`, Rejected and ParseError at once, Denied or
        RunStopped when the run cannot go on, and Elsewhere where the breaker turns it away.
        Cancelling leaves nothing behind.
        """
        attempts = 0
        tries = 0
        broken = 0
        successes: int | None = None
        while True:
            await self.breaker.admit(request)
            tries += 1
            try:
                result = await self._inner.complete(request)
                self.breaker.served()
                return replace(result, attempts=attempts + 1) if attempts else result
            except Held:
                tries -= 1
                continue
            except RateLimited as error:
                if self.breaker.limited(error, request):
                    continue
                delay_s = self._delay_s(tries, error.retry_after_s)
            except Unavailable as error:
                if successes is None:
                    successes = self.breaker.successes
                broken += self.breaker.successes > successes
                if broken >= _ALONE:
                    self.breaker.answered()
                    message = f"{error}; {broken} times, while other requests were served"
                    raise ServerFault(message, status=error.status) from error
                if self.breaker.unavailable(error, request):
                    continue
                delay_s = self._delay_s(tries, error.retry_after_s)
            except ServerFault:
                self.breaker.answered()
                attempts += 1
                if attempts >= self.max_attempts:
                    raise
                delay_s = self._delay_s(attempts, None)
            except Denied as error:
                self.breaker.deny(error)
                raise
            except (Rejected, ParseError) as error:
                # Without a status it was refused at our own door: the endpoint was not asked.
                if isinstance(error, ParseError) or error.status is not None:
                    self.breaker.served()
                raise
            finally:
                self.breaker.leave(request)
            await self.breaker.back_off(delay_s)

    def _delay_s(self, tries: int, retry_after_s: float | None) -> float:
        """Exponential with full jitter; the server's wish is a floor."""
        cap_s = min(BACK_OFF_CAP_S, 2.0 ** min(tries - 1, 10))
        return max(self._rng.uniform(0, cap_s), retry_after_s or 0.0)


def _now() -> float:
    return asyncio.get_running_loop().time()
