"""Chat over HTTP with aiohttp: one POST a call, no retries, no waiting in line."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from targen_async.chat import Recorder
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
        self._timeout = aiohttp.ClientTimeout(
            total=total_timeout_s, connect=connect_timeout_s, sock_read=read_timeout_s
        )
        # Not the session's: what it sends with each call, aiohttp tells a proxy as well.
        self._headers = _headers(self._place)
        self._session: aiohttp.ClientSession | None = None
        self._wary: aiohttp.ClientSession | None = None
        self._wary_until_s = -math.inf

    async def __aenter__(self) -> Self:
        limit = self._max_in_flight
        self._session = self._open(
            aiohttp.TCPConnector(limit=limit, keepalive_timeout=IDLE_CONNECTION_S)
        )
        self._wary = self._open(aiohttp.TCPConnector(limit=limit, force_close=True))
        return self

    def _open(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            proxy=self._place.proxy,
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for session in (self._session, self._wary):
            if session is not None:
                await session.close()
        self._session = self._wary = None

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Send once. Raises a ChatError, or ParseError when a 200 is no completion."""
        if self._session is None or self._wary is None:
            raise RuntimeError("HttpChat is used outside its `async with`")
        data = encode_request(request, self.dialect, stream=self.stream)
        loop = asyncio.get_running_loop()
        ticket = self._recorder.intent(request) if self._recorder else -1
        started_s = loop.time()
        try:
            wary = started_s < self._wary_until_s
            session = self._wary if wary else self._session
            async with session.post(
                self._url, data=data, headers=self._headers, allow_redirects=False
            ) as response:
                body, whole = await self._read(response)
        except Incomplete as error:
            raise cut_short(error, self._place) from error
        except (aiohttp.ClientError, OSError) as error:
            # OSError includes TimeoutError.
            never = isinstance(error, _NEVER_OPENED)
            if self._recorder and never:
                self._recorder.void(ticket, "the connection could not be opened")
            raise self._translated(error, opened=not never) from error
        reply = Reply(
            status=response.status,
            headers=response.headers,
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

    async def _read(self, response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
        """The body as far as it is wanted, and whether that is all of it.

        A connection with more to come is closed, never returned to the pool.
        """
        if not 200 <= response.status < 300:
            body, whole = await _read_whole(response, MAX_ERROR_BYTES)
        elif self.stream:
            body, whole = await read_stream(response.content.iter_any(), self._max_answer_bytes)
        else:
            body, whole = await _read_whole(response, self._max_answer_bytes)
        if not whole:
            response.close()
        return body, whole

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


async def _read_whole(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"".join(chunks)[:limit], False
    return b"".join(chunks), True
