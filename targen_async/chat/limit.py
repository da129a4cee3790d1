"""Pacing: how many calls are out at once, and how many calls and tokens a minute."""

from collections.abc import Callable

import anyio
from aiolimiter import AsyncLimiter

from targen_async.chat import ChatClient
from targen_async.errors import Rejected
from targen_async.records import ChatRequest, ChatResult, Usage

Gate = Callable[[ChatRequest], None]
"""Raises to turn a caller back who has waited in line while the endpoint went away."""

_TOKENS_PER_BYTE = 0.3
_MEMORY = 100
"""Observations after which a learnt mean forgets at the rate it learns."""


class Limited:
    """Lets calls through one after another, in the order they came.

    One door serves calls, tokens and slots: whoever is first in line pays the rates, takes a slot
    and only then lets the next one step up. So a large request is never overtaken, and no paid
    call waits behind another, to burst out later. `gate` is asked before paying and again before
    sending.
    """

    def __init__(
        self,
        inner: ChatClient,
        *,
        gate: Gate | None,
        max_in_flight: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.waiting = 0
        self._inner = inner
        self._gate = gate
        self._door = anyio.Lock(fast_acquire=True)
        self._slots = anyio.Semaphore(max_in_flight, fast_acquire=True)
        self._calls = _call_limiter(requests_per_minute) if requests_per_minute else None
        self._tokens = _TokenPacer(tokens_per_minute) if tokens_per_minute else None

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Wait in line, then ask. Raises Rejected for a request larger than a minute's tokens."""
        cost = self._tokens.cost(request) if self._tokens else 0.0
        self.waiting += 1
        try:
            await self._enter(request, cost)
        finally:
            self.waiting -= 1
        self.in_flight += 1
        try:
            result = await self._inner.complete(request)
        finally:
            self.in_flight -= 1
            self._slots.release()
        if self._tokens and result.usage:
            self._tokens.learn(request, result.usage)
        return result

    async def _enter(self, request: ChatRequest, cost: float) -> None:
        """Returns holding a slot, or raises holding nothing."""
        async with self._door:
            if self._gate:
                self._gate(request)
            if self._calls:
                await self._calls.acquire()
            if self._tokens:
                await self._tokens.pay(cost)
            await self._slots.acquire()
            if self._gate:
                try:
                    self._gate(request)
                except BaseException:
                    self._slots.release()
                    raise


def _call_limiter(requests_per_minute: float) -> AsyncLimiter:
    """Windows of a second: aiolimiter's rate is its burst too, and servers rarely allow a
    minute's calls at once."""
    if requests_per_minute >= 60:
        return AsyncLimiter(requests_per_minute / 60, 1)
    return AsyncLimiter(1, 60 / requests_per_minute)


class _Mean:
    """A mean that follows: of all observations at first, of the last hundred or so later."""

    def __init__(self, start: float) -> None:
        self.value = start
        self._count = 0

    def learn(self, observed: float) -> None:
        self._count = min(self._count + 1, _MEMORY)
        self.value += (observed - self.value) / self._count


class _TokenPacer:
    """Tokens a minute. Not safe for two tasks at once: the door lets one in.

    A call is let through once the calls before it are paid for, and its own cost is worked off by
    the next. So a call may be larger than the second's burst, the first need not wait, and in any
    window no more passes than the rate, one second's burst and one call.
    """

    def __init__(self, tokens_per_minute: float) -> None:
        self._per_minute = tokens_per_minute
        self._per_second = tokens_per_minute / 60
        self._limiter = AsyncLimiter(self._per_second, 1)
        self._owed = 0.0
        self._tokens_per_byte = _Mean(_TOKENS_PER_BYTE)
        self._completions: dict[str, _Mean] = {}

    def cost(self, request: ChatRequest) -> float:
        """Tokens this call will probably take."""
        prompt = _prompt_bytes(request) * self._tokens_per_byte.value
        if prompt + request.max_tokens > self._per_minute:
            raise Rejected(
                f"a call of about {prompt:.0f} prompt tokens and up to {request.max_tokens} more "
                f"can never fit into {self._per_minute:.0f} tokens a minute: raise "
                "tokens_per_minute, or ask for shorter answers"
            )
        mean = self._completions.get(_stage_of(request))
        return prompt + (min(mean.value, request.max_tokens) if mean else request.max_tokens)

    async def pay(self, cost: float) -> None:
        while self._owed > 0:
            part = min(self._owed, self._per_second)
            await self._limiter.acquire(part)
            self._owed -= part
        self._owed = cost

    def learn(self, request: ChatRequest, usage: Usage) -> None:
        if usage.prompt_tokens:
            size = _prompt_bytes(request)
            self._tokens_per_byte.learn(usage.prompt_tokens / max(size, 1))
        mean = self._completions.setdefault(_stage_of(request), _Mean(0.0))
        mean.learn(usage.completion_tokens)


def _stage_of(request: ChatRequest) -> str:
    return request.schema_name or request.key.partition("/")[0]


def _prompt_bytes(request: ChatRequest) -> int:
    return sum(len(message.content.encode()) for message in request.messages)
