"""Calls without a pause through the engine's own chain of clients, and a note of each."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from targen_async.chat.http import HttpChat
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Retrying
from targen_async.errors import ChatError
from targen_async.records import ChatRequest, ChatResult, Message

TIMEOUTS = {"connect_timeout_s": 10.0, "read_timeout_s": 60.0, "total_timeout_s": 120.0}
MORE_WORKERS = 100
"""Than may be in flight, so that there is always somebody in line."""


@dataclass
class Noted:
    """Times are since the start, in seconds."""

    served: list[tuple[float, float, int]] = field(default_factory=list)
    """(sent, answered, tokens)"""
    refused: list[float] = field(default_factory=list)
    """When what was answered with an error was sent."""
    most_in_flight: int = 0
    """As many as the limit would have let out at the end."""


class Noting:
    def __init__(self, inner: HttpChat, noted: Noted, start_s: float) -> None:
        self.inner = inner
        self.noted = noted
        self.start_s = start_s

    async def complete(self, request: ChatRequest) -> ChatResult:
        sent_s = time.monotonic() - self.start_s
        try:
            result = await self.inner.complete(request)
        except ChatError:
            self.noted.refused.append(sent_s)
            raise
        usage = result.usage
        tokens = usage.prompt_tokens + usage.completion_tokens if usage else 0
        self.noted.served.append((sent_s, time.monotonic() - self.start_s, tokens))
        return result


async def ask(
    url: str, seconds: float, text: Callable[[int], str], in_flight: int, **limits: object
) -> Noted:
    """Ask for `seconds`, with the prompt `text(number)` for each call."""
    noted, numbers = Noted(), count()
    breaker = Breaker(give_up_after_s=600)
    async with HttpChat(url, "key", recorder=None, max_in_flight=in_flight, **TIMEOUTS) as http:
        noting = Noting(http, noted, time.monotonic())
        limited = Limited(noting, gate=breaker.check, max_in_flight=in_flight, **limits)
        chat = Retrying(limited, breaker=breaker)
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(_worker(chat, numbers, text))
                for _ in range(in_flight + MORE_WORKERS)
            ]
            await asyncio.sleep(seconds)
            for each in workers:
                each.cancel()
        noted.most_in_flight = limited.max_in_flight
    return noted


async def _worker(chat: Retrying, numbers: Iterator[int], text: Callable[[int], str]) -> None:
    for number in numbers:
        await chat.complete(
            ChatRequest(
                key=f"bench/{number}",
                model="bench",
                messages=(Message(role="user", content=text(number)),),
                temperature=0.0,
                max_tokens=100,
                seed=number,
            )
        )
