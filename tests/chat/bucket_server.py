"""An endpoint with limits for virtual time: the simulator's own buckets, without its HTTP."""

import asyncio
import random
from typing import Any

from targen_async.chat.headers import rate_limits
from targen_async.chat.refusals import retry_after_s
from targen_async.errors import RateLimited
from targen_async.records import ChatRequest, ChatResult, Message, Usage
from targen_async.simulator.settings import SimulatorSettings
from targen_async.simulator.transport import Limits
from tests.chat.helpers import request
from tests.chat.virtual_time import now

BYTES_PER_TOKEN = 4


class BucketServer:
    """Counts on arrival and on answering, as the simulator does; the way there takes a while.

    `tells_arrival`: an answer says how much was left when its request came, as gateways do.
    """

    def __init__(
        self,
        *,
        latency_s: float = 0.2,
        way_s: float = 0.01,
        answer: int = 50,
        tells_arrival: bool = False,
        **settings: Any,
    ) -> None:
        self.tells_arrival = tells_arrival
        self.limits = Limits(SimulatorSettings(**settings))
        self.latency_s = latency_s
        self.way_s = way_s
        self.answer = answer
        self.served: list[tuple[float, str]] = []
        self.refused: list[float] = []
        self.tokens = 0
        self._luck = random.Random(1)

    async def complete(self, request: ChatRequest) -> ChatResult:
        await self._way()
        prompt = len(request.messages[0].content) // BYTES_PER_TOKEN
        wait_s = self.limits.admit(now(), prompt)
        if wait_s > 0:
            self.refused.append(now())
            headers = self.limits.retry_headers(wait_s)
            await self._way()
            raise RateLimited(
                "slow",
                status=429,
                retry_after_s=retry_after_s(headers, 0.0),
                rate_limits=rate_limits(headers, 0.0),
            )
        self.served.append((now(), request.key))
        self.tokens += prompt + self.answer
        at_arrival = self.limits.headers(now())
        await asyncio.sleep(self.latency_s * self._luck.uniform(0.7, 1.3))
        self.limits.spend(self.answer)
        told = at_arrival if self.tells_arrival else self.limits.headers(now())
        said = rate_limits(told, 0.0)
        await self._way()
        usage = Usage(prompt_tokens=prompt, completion_tokens=self.answer)
        return ChatResult(
            key=request.key, text="", finish_reason="stop", model="m", usage=usage, rate_limits=said
        )

    async def _way(self) -> None:
        await asyncio.sleep(self.way_s * self._luck.uniform(0.5, 1.5))

    def within(self, start: float, stop: float) -> int:
        return sum(start <= when < stop for when, _ in self.served)

    def refusals(self, start: float, stop: float) -> int:
        return sum(start <= when < stop for when in self.refused)


def sized(key: str, tokens: int, **changes: Any) -> ChatRequest:
    """A request whose prompt is so long."""
    text = "x" * (tokens * BYTES_PER_TOKEN)
    return request(key, messages=(Message(role="user", content=text),), **changes)
