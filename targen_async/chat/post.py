"""POSTs to one address over aiohttp's connections, without what its session does for each of them.

aiohttp opens, pools and closes the connections (proxies, TLS and timeouts of connecting with them)
and its parser reads the answers. Its session would make the same request anew for every call: the
URL, the headers, the cookies, a task that writes the body and a timer. Here the head is made once
and goes out with the body in one write: a call costs a third (decision 0013).
"""

import asyncio
import functools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

_END_OF_HEAD = b"\r\n\r\n"
Read = Callable[[int, aiohttp.StreamReader], Awaitable[tuple[bytes, bool]]]
"""Reads a body, given the status: the bytes that are wanted, and whether that is all of it."""


class Posted(NamedTuple):
    """An answer, read as far as it is wanted. `whole`: to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


class Line:
    """One address, and the connections to it. Made within an event loop; close it in the end.

    `connect_s` bounds the opening of a connection, `silence_s` the time until the head of the
    answer is there, and then the time in which nothing is heard, `total_s` the whole of it
    (seconds). A connection is used again unless it was idle for `idle_s`.
    """

    def __init__(
        self,
        url: URL,
        headers: Mapping[str, str],
        connector: aiohttp.TCPConnector,
        *,
        proxy: str | None,
        connect_s: float,
        silence_s: float,
        total_s: float,
        idle_s: float,
    ) -> None:
        self._connector = connector
        self._idle_s = 0.0 if proxy or connector.force_close else idle_s
        # The one that is idle longest comes first. They are not given back to the connector, which
        # takes as long to find one as it takes to send a request, but when somebody waits there.
        self._idle: deque[tuple[aiohttp.connector.Connection, float]] = deque()
        self._waiting = 0
        self._loop = asyncio.get_running_loop()
        connector._factory = functools.partial(_Answers, loop=self._loop)  # type: ignore[assignment]
        self._silence_s = silence_s
        self._total_s = total_s
        self._connecting = aiohttp.ClientTimeout(connect=min(connect_s, total_s))
        if connector.force_close:
            headers = {**headers, "Connection": "close"}
        self._request = aiohttp.ClientRequest(
            "POST", url, headers=headers, loop=self._loop, proxy=URL(proxy) if proxy else None
        )
        self._head: bytes | None = None
        self._out: dict[ResponseHandler, _Call] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = math.inf

    async def close(self) -> None:
        """Calls that are out break."""
        if self._timer is not None:
            self._timer.cancel()
        for connection, _ in self._idle:
            connection.close()
        await self._connector.close()

    async def post(self, body: bytes, read: Read) -> Posted:
        """Send once and read the answer; redirects and errors are answers as well.

        Raises aiohttp.ClientError or OSError. The connection is closed unless the answer was read
        to its end.
        """
        began_s = self._loop.time()
        connection = await self._connect()
        protocol, whole = connection.protocol, False
        assert protocol is not None
        try:
            if protocol.transport is None:
                raise aiohttp.ServerDisconnectedError
            protocol.set_response_params(read_until_eof=True)
            call = self._out[protocol] = _Call(began_s + self._total_s)
            protocol.transport.write(self._head_of(len(body)) + body)
            status, headers, content = await self._answer(protocol, call)
            if not content.is_eof():
                protocol.read_timeout = self._silence_s
                protocol.start_timeout()
            call.content = content
            got, whole = await read(status, content)
        finally:
            self._out.pop(protocol, None)
            if not whole:
                connection.close()
            elif self._waiting or protocol.should_close or not self._idle_s:
                connection.release()
            else:
                self._idle.append((connection, self._loop.time()))
        return Posted(status, headers, got, whole)

    async def _connect(self) -> aiohttp.connector.Connection:
        """A connection on which nothing came while nobody asked: it would be taken for the answer
        to the next question."""
        while self._idle:
            connection, since_s = self._idle.popleft()
            fresh = self._loop.time() - since_s <= self._idle_s
            if fresh and not connection.closed and not _spoiled(connection):
                return connection
            connection.close()
        self._waiting += 1
        try:
            while True:
                connection = await self._connector.connect(
                    self._request, traces=[], timeout=self._connecting
                )
                if not _spoiled(connection):
                    return connection
                connection.close()
        except TimeoutError as error:
            url = self._request.url
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}") from error
        finally:
            self._waiting -= 1

    async def _answer(
        self, protocol: ResponseHandler, call: "_Call"
    ) -> tuple[int, Mapping[str, str], aiohttp.StreamReader]:
        """Status, headers and body of the answer, past what only says that one will come."""
        try:
            while True:
                call.silent_s = self._loop.time() + self._silence_s
                self._look_at(min(call.silent_s, call.until_s))
                message, content = await protocol.read()
                if message.code >= 200 or message.code == 101:
                    call.silent_s = math.inf
                    return message.code, message.headers, content
        except HttpProcessingError as error:
            raise aiohttp.ClientPayloadError(error.message) from error

    def _head_of(self, length: int) -> bytes:
        """Request line and headers. Those of a request through a proxy are not ours alone."""
        if self._head is None or self._request.proxy:
            request = self._request
            plain_proxy = request.proxy and not request.is_ssl()
            target = str(request.url) if plain_proxy else request.url.raw_path_qs
            lines = [f"POST {target} HTTP/1.1"]
            lines += [f"{name}: {text}" for name, text in request.headers.items()]
            lines = [line for line in lines if not line.lower().startswith("content-length:")]
            self._head = "\r\n".join([*lines, "Content-Length: "]).encode()
        return b"%b%d\r\n\r\n" % (self._head, length)

    def _look_at(self, when_s: float) -> None:
        """See to it that calls are looked at by then."""
        if when_s < self._look_s:
            if self._timer is not None:
                self._timer.cancel()
            self._look_s = when_s
            self._timer = self._loop.call_at(when_s, self._look)

    def _look(self) -> None:
        """Break the calls that have taken too long, and look again when the next one might."""
        self._timer, self._look_s = None, math.inf
        now_s, next_s = self._loop.time(), math.inf
        for protocol, call in self._out.items():
            error = aiohttp.ServerTimeoutError("the whole call took too long")
            if call.until_s > now_s:
                if call.silent_s > now_s:
                    next_s = min(next_s, call.until_s, call.silent_s)
                    continue
                if protocol.should_close:
                    # The head came in this turn of the loop, and is about to be read.
                    next_s = min(next_s, call.until_s)
                    continue
                error = aiohttp.SocketTimeoutError("Timeout on reading data from socket")
            protocol.set_exception(error)
            if call.content is not None:
                call.content.set_exception(error)
        self._look_at(next_s)


def _spoiled(connection: aiohttp.connector.Connection) -> bool:
    return connection.protocol is not None and connection.protocol.should_close


class _Answers(ResponseHandler):
    """Gives the parser the head of an answer by itself.

    Of a piece in which anything is wrong the parser forgets all that it found. So a whole answer
    with a few bytes too many behind it, which is paid for, would be lost where both came together:
    now its head is out, and its body has ended, before the rest is looked at. The connection is
    closed for what was wrong, as ever.
    """

    _head_is_due = False

    def set_response_params(self, **options: Any) -> None:  # noqa: ANN401
        super().set_response_params(**options)
        self._head_is_due = True

    def data_received(self, data: bytes) -> None:
        if self._head_is_due and (found := data.find(_END_OF_HEAD)) >= 0:
            self._head_is_due = False
            end = found + len(_END_OF_HEAD)
            super().data_received(data[:end])
            if end == len(data) or self.exception() is not None:
                return
            data = data[end:]
        super().data_received(data)


class _Call:
    """A call that is out, and the body that is being read."""

    __slots__ = ("content", "silent_s", "until_s")

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        """When it has taken too long."""
        self.silent_s = math.inf
        """When the head of its answer has."""
        self.content: aiohttp.StreamReader | None = None
