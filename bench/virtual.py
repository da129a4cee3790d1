"""The engine in virtual time: an endpoint within the process, and a clock that jumps.

Nothing is waited for and no code takes time, so what is measured is the schedule alone, on however
busy a machine. A call's latency is drawn by its key and by how often that key was sent: two runs
that send the same calls in another order wait equally long for each of them.
"""

import asyncio
import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio.to_thread
from chat_server import BODY, BYTES_PER_TOKEN, COMPLETION_TOKENS, STEP, Words

import targen_async.chains
from targen_async.chat import Recorder
from targen_async.chat.wire import decode_completion, encode_request
from targen_async.journal import HEDGE
from targen_async.records import ChatRequest, ChatResult

# The clock is the one that the tests of the limits run by.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.chat import virtual_time

T = TypeVar("T")


class VirtualEndpoint:
    """Latency and answers as `chat_server.py` has them."""

    def __init__(self, median_ms: float, sigma: float, *, random_seed: int) -> None:
        self.latencies: list[float] = []
        """As drawn, in seconds, whether or not the call was waited for."""
        self._sent: Counter[str] = Counter()
        self._median_s, self._sigma = median_ms / 1000, sigma
        self._random_seed = random_seed
        self._words = Words(10)

    def _latency_s(self, request: ChatRequest) -> float:
        key = request.key.removesuffix(HEDGE)
        self._sent[key] += 1
        luck = random.Random(f"{self._random_seed}:{key}:{self._sent[key]}")
        return self._median_s * math.exp(luck.gauss(0.0, self._sigma))

    async def answer(self, request: ChatRequest) -> bytes:
        """The completion, when it is due."""
        body = encode_request(request)
        latency_s = self._latency_s(request)
        self.latencies.append(latency_s)
        await asyncio.sleep(latency_s)
        found = STEP.search(body)
        content = self._words.answer(found[1] if found else b"instances", body)
        prompt = len(body) // BYTES_PER_TOKEN
        completion = max(COMPLETION_TOKENS, len(content) // BYTES_PER_TOKEN)
        return BODY % (content, prompt, completion, prompt + completion)


class _Chat:
    """Stands in for `HttpChat`."""

    def __init__(self, endpoint: VirtualEndpoint, recorder: Recorder, stream: bool) -> None:
        self.stream = stream
        self.dialect = targen_async.chains.OPENAI
        self._endpoint = endpoint
        self._recorder = recorder

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def complete(self, request: ChatRequest) -> ChatResult:
        ticket = self._recorder.intent(request)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        body = await self._endpoint.answer(request)
        offset = self._recorder.answer(ticket, body)
        took_s = loop.time() - started_s
        return decode_completion(
            body, request.key, offset, model=request.model, latency_s=took_s, url="virtual"
        )


def run(endpoint: VirtualEndpoint, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`main()` in virtual time, with `endpoint` behind every address.

    For a process of its own: what it puts in place of HTTP and of threads stays.
    """

    def chat(
        _url: str, _key: str | None, *, recorder: Recorder, stream: bool, **_: object
    ) -> _Chat:
        return _Chat(endpoint, recorder, stream)

    async def here(work: Callable[..., T], *arguments: object, **_: object) -> T:
        await asyncio.sleep(0)
        return work(*arguments)

    targen_async.chains.HttpChat = chat  # type: ignore[assignment,misc]
    anyio.to_thread.run_sync = here  # type: ignore[assignment]
    os.fdatasync = lambda _fd: None  # type: ignore[assignment]
    return virtual_time.run(main())
