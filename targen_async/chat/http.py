"""Chat over HTTP with aiohttp: one POST a call, no retries, no waiting in line."""

import asyncio
import math
from collections.abc import Awaitable, Iterable, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from targen_async.chat import Recorder
from targen_async.chat.post import Line
from targen_async.chat.reply import (
    IDLE_CONNECTION_S,
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    Place,
    Reply,
    broken,
    cut_short,
    place_of,
    settle,
)
from targen_async.chat.stream import Incomplete, read_stream
from targen_async.chat.wire import OPENAI, Dialect, encode_request
from targen_async.errors import ChatError, Denied, Unavailable
from targen_async.records import ChatRequest, ChatResult

_NEVER_OPENED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
)


class HttpChat:
    """An OpenAI-compatible endpoint. Use it as an async context manager.

    `dialect` may be changed between calls. With `stream` an answer comes in pieces and is recorded
    as the completion they amount to; a stream that ends before the answer does is Unavailable and
    leaves its intent in doubt. `headers` go with each call, in place of those that are sent of
    themselves; `proxy` is an HTTP proxy's URL, which may hold credentials. The key, what is secret
    of the proxy and `secrets`, which are parts of `headers`, are masked in every message and in
    the answer itself, before it is recorded.

    An answer longer than `max_answer_bytes` is not read to its end: the connection is closed, what
    was read is recorded behind the mark `OVERSIZED`, and the result's finish reason is
    `oversized`. Cancelling a call closes its connection and leaves its intent in doubt.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        recorder: Recorder | None,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float,
        max_in_flight: int,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        dialect: Dialect = OPENAI,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        secrets: Iterable[str] = (),
        stream: bool = False,
    ) -> None:
        self.dialect = dialect
        self.stream = stream
        self._url = URL(base_url.rstrip("/") + "/chat/completions")
        self._place = place_of(base_url, api_key, headers, proxy, secrets=secrets)
        self._recorder = recorder
        self._max_in_flight = max_in_flight
        self._max_answer_bytes = max_answer_bytes
        self._timeouts = {
            "connect_s": connect_timeout_s,
            "silence_s": read_timeout_s,
            "total_s": total_timeout_s,
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line: Line | None = None
        self._wary: Line | None = None
        self._wary_until_s = -math.inf

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        limit = self._max_in_flight
        self._line = self._open(
            aiohttp.TCPConnector(limit=limit, keepalive_timeout=IDLE_CONNECTION_S)
        )
        self._wary = self._open(aiohttp.TCPConnector(limit=limit, force_close=True))
        return self

    def _open(self, connector: aiohttp.TCPConnector) -> Line:
        headers, proxy = _headers(self._place), self._place.proxy
        idle_s = IDLE_CONNECTION_S
        return Line(self._url, headers, connector, proxy=proxy, idle_s=idle_s, **self._timeouts)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for line in (self._line, self._wary):
            if line is not None:
                await line.close()
        self._line = self._wary = None

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Send once. Raises a ChatError, or ParseError when a 200 is no completion."""
        if self._line is None or self._wary is None or self._loop is None:
            raise RuntimeError("HttpChat is used outside its `async with`")
        data = encode_request(request, self.dialect, stream=self.stream)
        loop = self._loop
        ticket = self._recorder.intent(request) if self._recorder else -1
        started_s = loop.time()
        try:
            line = self._wary if started_s < self._wary_until_s else self._line
            status, headers, body, whole = await line.post(data, self._read)
        except Incomplete as error:
            raise cut_short(error, self._place) from error
        except (aiohttp.ClientError, OSError) as error:
            # OSError includes TimeoutError.
            never = isinstance(error, _NEVER_OPENED)
            if self._recorder and never:
                self._recorder.void(ticket, "the connection could not be opened")
            raise self._translated(error, opened=not never) from error
        reply = Reply(
            status=status,
            headers=headers,
            body=body,
            whole=whole,
            latency_s=loop.time() - started_s,
        )
        kind = reply.headers.get("Content-Type", "")
        if reply.status == 500 and not kind.startswith("application/json"):
            # uvicorn closes the connection behind an unhandled error (a 500 in plain text) without
            # saying so, and aiohttp has it back in its pool by now. No pooled connection is used
            # until all that were idle have been dropped.
            self._wary_until_s = loop.time() + IDLE_CONNECTION_S + 1
        return settle(reply, request, self._place, self._recorder, ticket)

    def _read(self, status: int, content: aiohttp.StreamReader) -> Awaitable[tuple[bytes, bool]]:
        """The body as far as it is wanted, and whether that is all of it."""
        if not 200 <= status < 300:
            return _read_whole(content, MAX_ERROR_BYTES)
        if self.stream:
            return read_stream(content.iter_any(), self._max_answer_bytes)
        return _read_whole(content, self._max_answer_bytes)

    def _translated(self, error: Exception, *, opened: bool) -> ChatError:
        """aiohttp's errors in our words."""
        if isinstance(error, aiohttp.ClientHttpProxyError):
            message = f"the proxy on the way to {self._place.name} refused it (HTTP {error.status})"
            if error.status in (401, 403, 407):
                return Denied(f"{message}: check `proxy` and its credentials", status=error.status)
            return Unavailable(message, status=error.status)
        return broken(error, self._place, opened=opened)


def _headers(place: Place) -> dict[str, str]:
    """Headers of every call: the user's, over what is sent of itself."""
    sent = {"Content-Type": "application/json"}
    if place.key:
        sent["Authorization"] = f"Bearer {place.key}"
    given = {name.lower() for name in place.headers}
    return {name: value for name, value in sent.items() if name.lower() not in given} | dict(
        place.headers
    )


async def _read_whole(content: aiohttp.StreamReader, limit: int) -> tuple[bytes, bool]:
    # It is all there as a rule, as head and body come together.
    body = content.read_nowait() if content.is_eof() else await content.readany()
    if content.at_eof() and len(body) <= limit:
        return body, True
    chunks = [body]
    size = len(body)
    while size <= limit:
        if not (chunk := await content.readany()):
            return b"".join(chunks), True
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)[:limit], False
