"""Chat over HTTP with aiohttp: one POST a call, no retries, no waiting in line."""

import asyncio
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from targen_async.chat import Recorder
from targen_async.chat.wire import (
    OPENAI,
    OVERSIZED,
    Dialect,
    decode_completion,
    encode_request,
    error_from,
)
from targen_async.errors import ChatError, Denied, Unavailable, UserError
from targen_async.records import ChatRequest, ChatResult

_MAX_ERROR_BYTES = 65_536
# Shorter than the 5 s after which uvicorn and Node close an idle connection: a POST that meets a
# closing connection is in doubt and must be paid for at worst case.
_IDLE_CONNECTION_S = 4.0
_NEVER_OPENED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class HttpChat:
    """An OpenAI-compatible endpoint. Use it as an async context manager.

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
        max_answer_bytes: int = 4 << 20,
        dialect: Dialect = OPENAI,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.dialect = dialect
        self._url = URL(base_url.rstrip("/") + "/chat/completions")
        self._name = base_url
        self._key = (api_key or "").strip() or None
        if self._key and not (self._key.isascii() and self._key.isprintable()):
            raise UserError("the API key holds characters that cannot be sent in an HTTP header")
        self._recorder = recorder
        self._max_in_flight = max_in_flight
        self._max_answer_bytes = max_answer_bytes
        self._timeout = aiohttp.ClientTimeout(
            total=total_timeout_s, connect=connect_timeout_s, sock_read=read_timeout_s
        )
        self._headers = {**(headers or {}), "Content-Type": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._session: aiohttp.ClientSession | None = None
        self._wary: aiohttp.ClientSession | None = None
        self._wary_until_s = -math.inf

    async def __aenter__(self) -> Self:
        limit = self._max_in_flight
        self._session = self._open(
            aiohttp.TCPConnector(limit=limit, keepalive_timeout=_IDLE_CONNECTION_S)
        )
        self._wary = self._open(aiohttp.TCPConnector(limit=limit, force_close=True))
        return self

    def _open(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
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
        data = encode_request(request, self.dialect)
        loop = asyncio.get_running_loop()
        ticket = self._recorder.intent(request) if self._recorder else -1
        started_s = loop.time()
        try:
            wary = started_s < self._wary_until_s
            session = self._wary if wary else self._session
            async with session.post(self._url, data=data, allow_redirects=False) as response:
                status, headers = response.status, response.headers
                served = 200 <= status < 300
                limit = self._max_answer_bytes if served else _MAX_ERROR_BYTES
                body, whole = await _read(response, limit)
        except (aiohttp.ClientError, OSError) as error:
            # OSError includes TimeoutError.
            if self._recorder and isinstance(error, _NEVER_OPENED):
                self._recorder.void(ticket, "the connection could not be opened")
            raise self._translated(error) from error
        latency_s = loop.time() - started_s
        if status == 500 and headers.get("Content-Type", "")[:16] != "application/json":
            # uvicorn closes the connection behind an unhandled error (a 500 in plain text) without
            # saying so, and aiohttp has it back in its pool by now. No pooled connection is used
            # until all that were idle have been dropped.
            self._wary_until_s = loop.time() + _IDLE_CONNECTION_S + 1
        if not served:
            if self._recorder:
                self._recorder.void(ticket, f"HTTP {status}")
            raise error_from(status, headers, body, self._name, secret=self._key, now_s=time.time())
        if not whole:
            body = OVERSIZED + body
        offset = self._recorder.answer(ticket, body) if self._recorder else -1
        return decode_completion(
            body,
            request.key,
            offset,
            model=request.model,
            latency_s=latency_s,
            url=self._name,
            secret=self._key,
        )

    def _translated(self, error: Exception) -> ChatError:
        """aiohttp's errors in our words."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if self._key:
            reason = reason.replace(self._key, "***")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return Denied(f"{self._name} has a TLS certificate that cannot be trusted: {reason}")
        if isinstance(error, _NEVER_OPENED):
            return Unavailable(f"{self._name} cannot be reached: {reason}")
        if isinstance(error, TimeoutError):
            return Unavailable(f"{self._name} did not answer in time: {reason}")
        return Unavailable(f"{self._name} broke the connection: {reason}")


async def _read(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """The body up to `limit` bytes, and whether that is all of it.

    A connection with more to come is closed, never returned to the pool.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            response.close()
            return b"".join(chunks)[:limit], False
    return b"".join(chunks), True
