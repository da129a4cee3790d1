"""POSTs to one address over aiohttp's connections, without what its session does for each of them.

aiohttp opens, pools and closes the connections (proxies, TLS and timeouts of connecting with them)
and its parser reads the answers. Its session would make the same request anew for every call: the
URL, the headers, the cookies, a task that writes the body and a timer. Here the head is made once
and goes out with the body in one write: a call costs a third (decision 0013).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

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

    `connect_s` bounds the opening of a connection, `silence_s` the time in which nothing is heard
    once the request is out, `total_s` the whole of it (seconds).
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
    ) -> None:
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        self._total_s = total_s
        self._connecting = aiohttp.ClientTimeout(connect=min(connect_s, total_s))
        if connector.force_close:
            headers = {**headers, "Connection": "close"}
        self._request = aiohttp.ClientRequest(
            "POST", url, headers=headers, loop=self._loop, proxy=URL(proxy) if proxy else None
        )
        self._head: bytes | None = None
        # In the order of their coming, so that only the first can be due.
        self._out: dict[ResponseHandler, _Call] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Calls that are out break."""
        if self._timer is not None:
            self._timer.cancel()
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
            protocol.set_response_params(read_until_eof=True, read_timeout=self._silence_s)
            call = self._out[protocol] = _Call(began_s + self._total_s)
            if self._timer is None:
                self._timer = self._loop.call_at(call.until_s, self._look)
            protocol.transport.write(self._head_of(len(body)) + body)
            protocol.start_timeout()
            status, headers, call.content = await self._answer(protocol)
            got, whole = await read(status, call.content)
        finally:
            self._out.pop(protocol, None)
            if whole:
                connection.release()
            else:
                connection.close()
        return Posted(status, headers, got, whole)

    async def _connect(self) -> aiohttp.connector.Connection:
        """A connection on which nothing came while nobody asked: it would be taken for the answer
        to the next question."""
        try:
            while True:
                connection = await self._connector.connect(
                    self._request, traces=[], timeout=self._connecting
                )
                if connection.protocol is None or not connection.protocol.should_close:
                    return connection
                connection.close()
        except TimeoutError as error:
            url = self._request.url
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}") from error

    async def _answer(
        self, protocol: ResponseHandler
    ) -> tuple[int, Mapping[str, str], aiohttp.StreamReader]:
        """Status, headers and body of the answer, past what only says that one will come."""
        try:
            while True:
                message, content = await protocol.read()
                if message.code >= 200 or message.code == 101:
                    return message.code, message.headers, content
        except HttpProcessingError as error:
            raise aiohttp.ClientResponseError(
                self._request.request_info,
                (),
                status=error.code,
                message=error.message,
                headers=error.headers,
            ) from error

    def _head_of(self, length: int) -> bytes:
        """Status line and headers. Those of a request through a proxy are not ours alone."""
        if self._head is None or self._request.proxy:
            request = self._request
            plain_proxy = request.proxy and not request.is_ssl()
            target = str(request.url) if plain_proxy else request.url.raw_path_qs
            lines = [f"POST {target} HTTP/1.1"]
            lines += [f"{name}: {text}" for name, text in request.headers.items()]
            lines = [line for line in lines if not line.lower().startswith("content-length:")]
            self._head = "\r\n".join([*lines, "Content-Length: "]).encode()
        return b"%b%d\r\n\r\n" % (self._head, length)

    def _look(self) -> None:
        """Break the calls that have taken too long, and look again when the next one might."""
        self._timer = None
        now_s = self._loop.time()
        for protocol, call in list(self._out.items()):
            if call.until_s > now_s:
                self._timer = self._loop.call_at(call.until_s, self._look)
                return
            error = aiohttp.ServerTimeoutError("the whole call took too long")
            protocol.set_exception(error)
            if call.content is not None:
                call.content.set_exception(error)


class _Call:
    """A call that is out: until when, and the body that is being read."""

    __slots__ = ("content", "until_s")

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.content: aiohttp.StreamReader | None = None
