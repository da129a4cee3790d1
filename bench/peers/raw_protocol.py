"""A raw asyncio protocol on uvloop, HTTP by hand: the floor of Python. Nobody would ship it."""

import asyncio
from collections.abc import Iterator
from typing import cast
from urllib.parse import urlsplit

import msgspec
import orjson
import uvloop
from bare_aiohttp import Completion
from workload import arguments, body, measure, tell


class Caller(asyncio.Protocol):
    """One connection, one call after another, until there are no more."""

    def __init__(self, head: bytes, numbers: Iterator[int], done: asyncio.Future[None]) -> None:
        self._head = head
        self._numbers = numbers
        self._decoder = msgspec.json.Decoder(Completion)
        self._buffer = b""
        self.done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        number = next(self._numbers, None)
        if number is None:
            self._transport.close()
            self.done.set_result(None)
            return
        data = orjson.dumps(body(number))
        self._transport.write(b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(data), data))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        at = data.find(b"Content-Length: ")
        if end < 0 or len(data) < end + 4 + int(data[at + 16 : data.find(b"\r", at)]):
            self._buffer = data
            return
        self._buffer = b""
        self._decoder.decode(data[end + 4 :])
        self._send()


async def run(url: str, calls: int, in_flight: int) -> None:
    parts = urlsplit(url)
    head = (
        f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        "Content-Type: application/json\r\nAuthorization: Bearer none\r\n"
    ).encode()
    loop = asyncio.get_running_loop()
    numbers = iter(range(calls))
    callers = [Caller(head, numbers, loop.create_future()) for _ in range(in_flight)]
    for caller in callers:
        await loop.create_connection(lambda one=caller: one, parts.hostname, parts.port)
    await asyncio.gather(*(caller.done for caller in callers))


if __name__ == "__main__":
    base, total, width = arguments()
    tell(measure(total, lambda calls: uvloop.run(run(base, calls, width))))
