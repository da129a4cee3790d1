"""An endpoint on loopback that knows the right answers and says them in bytes of its own making.

Each manner below is one way in which a real server, a proxy or a network spoils an answer.
"""

import asyncio
import gzip
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from targen_async.records import ChatRequest
from targen_async.simulator import SimulatorSettings, answer, wire

PROBE = "-probe"
_PATIENCE_S = 30.0
_NO_LINGER = struct.pack("ii", 1, 0)


class Talk(NamedTuple):
    """One request, the body that would be right for it, and the way back."""

    number: int
    request: ChatRequest
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def changed(self, **fields: Any) -> bytes:
        """The right body with other fields at its top; None takes one away."""
        whole = json.loads(self.body) | fields
        return json.dumps({name: value for name, value in whole.items() if value != []}).encode()

    def saying(self, text: str | None, reason: str = "stop") -> bytes:
        """The right body with another text."""
        choice = {"index": 0, "message": {"content": text}, "finish_reason": reason}
        return self.changed(choices=[choice])

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def arrived(self) -> None:
        """What was sent is out, and a moment has passed in which it is read."""
        await self.writer.drain()
        await asyncio.sleep(0.02)

    def reset(self) -> None:
        """Close so that the other side finds a reset and no end."""
        handle = self.writer.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.writer.transport.abort()

    async def until_gone(self) -> None:
        """Until the other side closes."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), _PATIENCE_S)


Manner = Callable[[Talk], Awaitable[bool]]
"""Sends an answer; whether the connection stays open for the next request."""
MANNERS: dict[str, Manner] = {}


def manner(function: Manner) -> Manner:
    MANNERS[function.__name__] = function  # type: ignore[attr-defined]
    return function


def ok(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    """A 200 with a length."""
    size = len(body) if length is None else length
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % size, b"", body])


def head(*headers: bytes) -> bytes:
    """A 200's head alone."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", *headers]
    return b"\r\n".join([*lines, b"", b""])


def chunks(body: bytes, size: int = 7) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


# ---- unusual, and right


@manner
async def good(talk: Talk) -> bool:
    talk.send(ok(talk.body))
    return True


@manner
async def chunked(talk: Talk) -> bool:
    talk.send(head(b"Transfer-Encoding: chunked") + chunks(talk.body) + b"0\r\n\r\n")
    return True


@manner
async def gzipped(talk: Talk) -> bool:
    talk.send(ok(gzip.compress(talk.body), b"Content-Encoding: gzip"))
    return True


@manner
async def gzipped_in_chunks_with_trailers(talk: Talk) -> bool:
    start = head(b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Trailer: X-Sum")
    talk.send(start + chunks(gzip.compress(talk.body)) + b"0\r\nX-Sum: 1\r\n\r\n")
    return True


@manner
async def without_length(talk: Talk) -> bool:
    """As HTTP/1.0 does it: the end of the connection is the end of the body."""
    talk.send(head(b"Connection: close") + talk.body)
    return False


@manner
async def byte_by_byte(talk: Talk) -> bool:
    for byte in ok(talk.body):
        talk.send(bytes([byte]))
        await asyncio.sleep(0)
    return True


@manner
async def hints_first(talk: Talk) -> bool:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    talk.send(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + ok(talk.body))
    return True


@manner
async def reset_after(talk: Talk) -> bool:
    """The whole answer, then a reset instead of an end."""
    talk.send(ok(talk.body))
    await talk.arrived()
    talk.reset()
    return False


@manner
async def closed_after(talk: Talk) -> bool:
    """The connection ends behind an answer that had promised to keep it."""
    talk.send(ok(talk.body))
    return False


@manner
async def half_closed_after(talk: Talk) -> bool:
    """Only one direction ends: the server would still read, and never answer."""
    talk.send(ok(talk.body))
    talk.writer.write_eof()
    await talk.until_gone()
    return False


@manner
async def timed_out_when_idle(talk: Talk) -> bool:
    """Load balancers send a 408 that nobody asked for down an idle connection."""
    talk.send(ok(talk.body))
    await talk.arrived()
    talk.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    return False


@manner
async def length_too_short(talk: Talk) -> bool:
    """The length leaves out what follows the JSON, which is not the next call's answer."""
    talk.send(ok(talk.body) + b"    \r\n")
    await talk.arrived()
    return True


@manner
async def said_twice(talk: Talk) -> bool:
    """Two answers to one request: the second one is nobody's."""
    stray = talk.saying("stray")
    talk.send(ok(talk.body) + ok(stray))
    await talk.arrived()
    return True


@manner
async def stray_afterwards(talk: Talk) -> bool:
    """The second answer comes down the idle connection a moment later."""
    talk.send(ok(talk.body))
    await talk.arrived()
    talk.send(ok(talk.saying("stray")))
    await talk.arrived()
    return True


@manner
async def doubled_keys(talk: Talk) -> bool:
    talk.send(ok(b'{"choices": [], "model": "first", ' + talk.body.lstrip()[1:]))
    return True


@manner
async def not_a_number(talk: Talk) -> bool:
    rest = talk.body.lstrip()[1:]
    talk.send(ok(b'{"score": NaN, "least": -Infinity, ' + rest))
    return True


@manner
async def no_usage(talk: Talk) -> bool:
    talk.send(ok(talk.changed(usage=[])))
    return True


@manner
async def usage_not_a_number(talk: Talk) -> bool:
    usage = {"prompt_tokens": float("nan"), "completion_tokens": float("inf")}
    talk.send(ok(talk.changed(usage=usage)))
    return True


@manner
async def another_model(talk: Talk) -> bool:
    talk.send(ok(talk.changed(model="m-2026-11-01")))
    return True


# ---- broken on the way: it may have been served, and must be asked again


@manner
async def reset_before(talk: Talk) -> bool:
    talk.reset()
    return False


@manner
async def reset_inside(talk: Talk) -> bool:
    talk.send(ok(talk.body)[: -len(talk.body) // 2])
    await talk.arrived()
    talk.reset()
    return False


@manner
async def closed_inside(talk: Talk) -> bool:
    talk.send(ok(talk.body)[: -len(talk.body) // 2])
    return False


@manner
async def chunks_without_end(talk: Talk) -> bool:
    """All of the JSON is there, and what says so is not."""
    talk.send(head(b"Transfer-Encoding: chunked") + chunks(talk.body))
    return False


@manner
async def length_too_long(talk: Talk) -> bool:
    talk.send(ok(talk.body, length=len(talk.body) + 100))
    return False


@manner
async def length_in_words(talk: Talk) -> bool:
    talk.send(head(b"Content-Length: many") + talk.body)
    return False


@manner
async def length_below_zero(talk: Talk) -> bool:
    talk.send(head(b"Content-Length: -1") + talk.body)
    return False


@manner
async def two_lengths(talk: Talk) -> bool:
    size = len(talk.body)
    talk.send(head(b"Content-Length: %d" % size, b"Content-Length: %d" % (size + 9)) + talk.body)
    return False


@manner
async def length_and_chunks(talk: Talk) -> bool:
    """Where two say how long a body is, a proxy and we may each believe another one."""
    start = head(b"Content-Length: 4", b"Transfer-Encoding: chunked")
    talk.send(start + chunks(talk.body) + b"0\r\n\r\n")
    return False


@manner
async def words_in_place_of_a_chunk(talk: Talk) -> bool:
    """The chunk is longer than it says, so that the rest of it is read as the next one's size."""
    start = head(b"Transfer-Encoding: chunked") + b"%x\r\n" % (len(talk.body) // 2)
    talk.send(start + talk.body + b"\r\n0\r\n\r\n")
    return False


@manner
async def words_in_place_of_an_answer(talk: Talk) -> bool:
    """The text and nothing else: no status, no headers."""
    talk.send(json.loads(talk.body)["choices"][0]["message"]["content"].encode() + b"\r\n\r\n")
    return False


@manner
async def words_in_place_of_a_header(talk: Talk) -> bool:
    talk.send(b"HTTP/1.1 200 OK\r\n" + talk.body + b"\r\n\r\n")
    return False


@manner
async def gzip_that_is_none(talk: Talk) -> bool:
    talk.send(ok(talk.body, b"Content-Encoding: gzip"))
    return True


@manner
async def gzip_that_is_cut(talk: Talk) -> bool:
    talk.send(ok(gzip.compress(talk.body)[:-12], b"Content-Encoding: gzip"))
    return True


@manner
async def endless_head(talk: Talk) -> bool:
    talk.send(head(b"X-Padding: " + b"p" * 200_000) + talk.body)
    return False


@manner
async def trickled(talk: Talk) -> bool:
    """A slow loris: never silent for long, and never done."""
    talk.send(head(b"Content-Length: %d" % len(talk.body)))
    for byte in talk.body:
        if talk.writer.is_closing():
            break
        talk.send(bytes([byte]))
        await asyncio.sleep(0.1)
    return False


@manner
async def silent(talk: Talk) -> bool:
    await talk.until_gone()
    return False


# ---- paid for, whole, and of no use


@manner
async def html(talk: Talk) -> bool:
    page = b"<!doctype html><html><title>Sign in</title><body>Welcome to the Wi-Fi</body></html>"
    talk.send(ok(page).replace(b"application/json", b"text/html"))
    return True


@manner
async def nothing(talk: Talk) -> bool:
    talk.send(ok(b""))
    return True


@manner
async def no_content(talk: Talk) -> bool:
    talk.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    return True


@manner
async def cut_without_length(talk: Talk) -> bool:
    """Without a length a cut body looks whole; only its JSON tells."""
    talk.send(head(b"Connection: close") + talk.body[: len(talk.body) // 2])
    return False


@manner
async def length_inside(talk: Talk) -> bool:
    """The length ends in the middle of the JSON; the rest is not the next call's answer."""
    talk.send(ok(talk.body, length=len(talk.body) // 2))
    await talk.arrived()
    return True


@manner
async def huge(talk: Talk) -> bool:
    with suppress(ConnectionError):
        talk.send(ok(talk.saying("z" * 10_000_000)))
        await talk.writer.drain()
    return True


@manner
async def empty_text(talk: Talk) -> bool:
    talk.send(ok(talk.saying("")))
    return True


@manner
async def null_text(talk: Talk) -> bool:
    talk.send(ok(talk.saying(None)))
    return True


@manner
async def apology(talk: Talk) -> bool:
    """What some gateways write in a model's place."""
    talk.send(ok(talk.saying("Error: upstream request failed (429 Too Many Requests)")))
    return True


@manner
async def error_text_in_json(talk: Talk) -> bool:
    talk.send(ok(talk.saying('{"error": {"message": "Rate limit reached", "code": 429}}')))
    return True


# ---- errors that come with a 200


@manner
async def error_object(talk: Talk) -> bool:
    talk.send(ok(b'{"error": {"message": "upstream is gone", "code": 502}}'))
    return True


@manner
async def rate_limit_object(talk: Talk) -> bool:
    talk.send(ok(b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'))
    return True


class Endpoint:
    """What came in, and which manner each answer had."""

    def __init__(self, choose: Callable[[Talk], str]) -> None:
        self.url = ""
        self.port = 0
        self.asked: list[bytes] = []
        """Heads of requests."""
        self.used: Counter[str] = Counter()
        self.faults: list[Exception] = []
        self._choose = choose

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All requests of one connection."""
        try:
            stays = True
            while stays:
                start = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(start)
                length = next(
                    int(line.split(b":")[1])
                    for line in start.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                request = wire.read_request(await reader.readexactly(length)).request
                body = wire.completion(1, 0, answer(request, SimulatorSettings()))
                talk = Talk(len(self.asked), request, body, reader, writer)
                name = self._choose(talk)
                self.used[name] += 1
                stays = await MANNERS[name](talk)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # asyncio tells of a cancelled conversation as of an error.
        except Exception as error:
            self.faults.append(error)
        finally:
            writer.close()


@contextmanager
def endpoint(choose: Callable[[Talk], str] | str = "good") -> Iterator[Endpoint]:
    """Serve in a thread of its own; `choose` names the manner of each answer, or of all."""
    served = Endpoint((lambda _talk: choose) if isinstance(choose, str) else choose)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(served, started)))
    thread.start()
    loop, stop = started.result(10)
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    assert served.faults == []


async def _serve(
    served: Endpoint, started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]"
) -> None:
    stop = asyncio.Event()
    server = await asyncio.start_server(served.converse, "127.0.0.1", 0, limit=1 << 20)
    served.port = server.sockets[0].getsockname()[1]
    served.url = f"http://127.0.0.1:{served.port}/v1"
    started.set_result((asyncio.get_running_loop(), stop))
    await stop.wait()
    server.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.01)
