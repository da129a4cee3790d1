"""The simulated model behind an OpenAI-compatible HTTP endpoint."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
import uvloop
from aiohttp import web

from targen_async.config import SIMULATED_MODEL
from targen_async.simulator import wire
from targen_async.simulator.answers import SimulatedAnswer, answer, prompt_tokens
from targen_async.simulator.cache import PrefixCache
from targen_async.simulator.settings import SimulatorSettings
from targen_async.simulator.transport import Limits, Outages, Transport

_JSON = "application/json"
_BODY_BYTES = 64 * 1024 * 1024


class Stats:
    """What the server did. `served` counts the 200s whose body was begun to be sent."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Sets every counter to zero; requests in flight stay counted as such."""
        self.max_in_flight = self.in_flight
        self.served = self.prompt_tokens = self.completion_tokens = 0
        self.cached_prompt_tokens = 0
        self.rejected_429 = self.errors_5xx = self.errors_4xx = 0
        self.resets = self.stalls = self.outage_hits = self.abandoned = 0
        self.by_stage: dict[str, int] = {}
        self.faults: dict[str, int] = {}

    def count(self, said: SimulatedAnswer, cached_tokens: int) -> None:
        """One more answer served, of whose prompt this many tokens were in the cache."""
        self.served += 1
        self.prompt_tokens += said.usage.prompt_tokens
        self.completion_tokens += said.usage.completion_tokens
        self.cached_prompt_tokens += cached_tokens
        self.by_stage[said.stage] = self.by_stage.get(said.stage, 0) + 1
        for name in said.faults:
            self.faults[name] = self.faults.get(name, 0) + 1


class Simulator:
    """The handlers of one endpoint and what they keep between requests."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.stats = Stats()
        self._transport = Transport(settings)
        self._outages = Outages(settings)
        self._limits = Limits(settings)
        self._cache = PrefixCache() if settings.prefix_cache else None
        self._number = 0

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/stats", self.show_stats)
        app.router.add_post("/stats/reset", self.reset_stats)
        return app

    async def show_stats(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(vars(self.stats)), content_type=_JSON)

    async def reset_stats(self, _: web.Request) -> web.Response:
        self.stats.reset()
        return web.Response(body=b"{}", content_type=_JSON)

    async def models(self, request: web.Request) -> web.Response:
        if not self._authorized(request):
            return self._unauthorized()
        names = self.settings.models or (SIMULATED_MODEL,)
        return web.Response(body=wire.model_list(names), content_type=_JSON)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        stats = self.stats
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
        try:
            return await self._chat(request)
        finally:
            stats.in_flight -= 1

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        now_s = asyncio.get_running_loop().time()
        raw = await request.read()
        if self._outages.now(now_s):
            return self._out_of_order(request)
        asked = self._checked(request, raw)
        if isinstance(asked, web.Response):
            self.stats.errors_4xx += 1
            return asked
        wait_s = self._limits.admit(now_s, prompt_tokens(asked.request))
        if wait_s > 0:
            return self._too_many(wait_s)
        plan = self._transport.plan()
        if plan.fate == "stall":
            self.stats.stalls += 1
        if plan.delay_s:
            await asyncio.sleep(plan.delay_s)
        if plan.fate == "error":
            self.stats.errors_5xx += 1
            return _failed(plan.status)
        if plan.fate == "reset_before":
            self.stats.resets += 1
            return _hang_up(request)
        return await self._answer(request, asked, cut=plan.fate == "reset_inside")

    def _checked(self, request: web.Request, raw: bytes) -> wire.Asked | web.Response:
        """The request, or the refusal of it."""
        if not self._authorized(request):
            return self._unauthorized()
        try:
            asked = wire.read_request(raw)
        except wire.BadRequest as error:
            return _error(400, str(error), "invalid_request_error")
        model = asked.request.model
        if self.settings.models and model not in self.settings.models:
            message = f"The model `{model}` does not exist or you do not have access to it."
            return _error(404, message, "invalid_request_error", "model_not_found")
        return asked

    async def _answer(
        self, request: web.Request, asked: wire.Asked, cut: bool
    ) -> web.StreamResponse:
        said = answer(asked.request, self.settings)
        if request.transport is None or request.transport.is_closing():
            # The client gave up waiting: nothing can be sent, so nothing is served.
            self.stats.abandoned += 1
            return _hang_up(request)
        self._number += 1
        self._limits.spend(said.usage.completion_tokens)
        cached = self._cache.cached_tokens(asked.request) if self._cache else 0
        self.stats.count(said, cached)
        headers = self._limits.headers(asyncio.get_running_loop().time())
        number, created = self._number, int(time.time())
        if asked.stream:
            sent = wire.pieces(number, created, said, cached, usage=asked.stream_usage)
            return await self._stream(request, sent, headers, cut)
        body = wire.completion(number, created, said, cached)
        if not cut:
            return web.Response(body=body, content_type=_JSON, headers=headers)
        response = web.StreamResponse(
            headers={"Content-Type": _JSON, "Content-Length": str(len(body))}
        )
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        return await self._cut(request, response)

    async def _stream(
        self, request: web.Request, pieces: list[bytes], headers: dict[str, str], cut: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces[: len(pieces) // 2] if cut else pieces:
            await response.write(piece)
        return await self._cut(request, response) if cut else response

    async def _cut(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        self.stats.resets += 1
        # The half must leave before the connection is closed, or it would be a reset before.
        await asyncio.sleep(0)
        if request.transport is not None:
            request.transport.close()
        return response

    def _authorized(self, request: web.Request) -> bool:
        key = self.settings.api_key
        return key is None or request.headers.get("Authorization") == f"Bearer {key}"

    def _unauthorized(self) -> web.Response:
        message = "Incorrect API key provided."
        return _error(401, message, "invalid_request_error", "invalid_api_key")

    def _too_many(self, wait_s: float) -> web.Response:
        self.stats.rejected_429 += 1
        message = f"Rate limit reached. Please try again in {wait_s:.3f}s."
        response = _error(429, message, "requests", "rate_limit_exceeded")
        response.headers.update(self._limits.retry_headers(wait_s))
        return response

    def _out_of_order(self, request: web.Request) -> web.StreamResponse:
        self.stats.outage_hits += 1
        if self._transport.closes():
            return _hang_up(request)
        return _failed(503)


def _error(status: int, message: str, kind: str, code: str | None = None) -> web.Response:
    body = wire.error(message, kind, code)
    return web.Response(status=status, body=body, content_type=_JSON)


def _failed(status: int) -> web.Response:
    messages = {500: "The server had an error.", 502: "Bad gateway.", 503: "Overloaded."}
    return _error(status, messages[status], "server_error")


def _hang_up(request: web.Request) -> web.Response:
    """Closes the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


async def serve(
    settings: SimulatorSettings,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[int], Awaitable[None] | None] | None = None,
) -> None:
    """Serves until cancelled. Once it listens, `on_ready` is called with the port.

    Port 0 takes a free one. Raises OSError if the address cannot be had.
    """
    runner = web.AppRunner(Simulator(settings).application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        if on_ready is not None:
            called = on_ready(runner.addresses[0][1])
            if called is not None:
                await called
        await asyncio.Event().wait()
    finally:
        # Half-open connections must not hold up the end.
        await asyncio.wait_for(runner.cleanup(), timeout=5)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine on uvloop."""
    uvloop.run(main)
