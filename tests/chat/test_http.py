"""HttpChat against real servers on loopback, good ones and bad ones."""

import asyncio
import gzip
import socket
from typing import Any

import orjson
import pytest
from aiohttp import web

from targen_async.chat.http import HttpChat
from targen_async.chat.wire import OVERSIZED, decode_completion
from targen_async.errors import (
    ChatError,
    Denied,
    ParseError,
    RateLimited,
    Rejected,
    ServerFault,
    Unavailable,
    UserError,
)
from tests.chat.helpers import (
    KEY,
    Notes,
    answer_bytes,
    chat,
    constant,
    raw_serving,
    request,
    serving,
)


async def fails(url: str, notes: Notes, **changes: Any) -> Exception:
    async with chat(url, notes, **changes) as client:
        with pytest.raises((ChatError, ParseError)) as caught:
            await client.complete(request())
    assert KEY not in str(caught.value)
    return caught.value


def test_one_call() -> None:
    seen: dict[str, Any] = {}

    async def handler(asked: web.Request) -> web.Response:
        seen.update(path=asked.path, headers=asked.headers, body=await asked.json())
        return web.Response(body=answer_bytes(), content_type="application/json")

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url, chat(url + "/", notes) as client:
            result = await client.complete(request())
        assert (result.key, result.text, result.offset) == ("copa/000001/0", "hello", 4000)
        assert 0 < result.latency_s < 5
        assert seen["path"] == "/v1/chat/completions"
        assert seen["headers"]["Authorization"] == f"Bearer {KEY}"
        assert seen["headers"]["Content-Type"] == "application/json"
        assert "key" not in seen["body"]
        assert notes.events == [("intent", "copa/000001/0"), ("answer", answer_bytes())]

    asyncio.run(main())


def test_intent_is_written_before_the_request_arrives() -> None:
    notes = Notes()

    async def handler(_: web.Request) -> web.Response:
        assert notes.kinds == ["intent"]
        return web.Response(body=answer_bytes())

    async def main() -> None:
        async with serving(handler) as url, chat(url, notes) as client:
            await client.complete(request())

    asyncio.run(main())


@pytest.mark.parametrize(
    "body", [b"<html>sorry</html>", b'{"choices":[]}', b"[" * 100_000, b'{"error":"x"}']
)
def test_answer_is_written_before_it_is_parsed(body: bytes) -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(constant(body)) as url:
            await fails(url, notes)
        assert notes.events[1:] == [("answer", body)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected),
        (401, Denied),
        (429, RateLimited),
        (500, ServerFault),
        (503, Unavailable),
    ],
)
def test_clean_error_voids_the_intent(status: int, kind: type[ChatError]) -> None:
    async def main() -> None:
        notes = Notes()
        body = f"no: {KEY}".encode()
        async with serving(constant(body, status, Retry_After="3")) as url:
            error = await fails(url, notes)
        assert type(error) is kind
        if isinstance(error, RateLimited | Unavailable):
            assert error.retry_after_s == 3
        assert notes.events[1:] == [("void", f"HTTP {status}")]

    asyncio.run(main())


def test_refused_connection_voids_the_intent() -> None:
    async def main() -> None:
        with socket.socket() as idle:
            idle.bind(("127.0.0.1", 0))
            notes = Notes()
            error = await fails(f"http://127.0.0.1:{idle.getsockname()[1]}/v1", notes)
        assert isinstance(error, Unavailable)
        assert error.__cause__ is not None
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


def test_a_connection_that_never_opens_voids_the_intent() -> None:
    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            crowd = [socket.socket() for _ in range(4)]
            for member in crowd:
                member.setblocking(False)
                member.connect_ex(("127.0.0.1", port))
            await asyncio.sleep(0.05)
            notes = Notes()
            error = await fails(f"http://127.0.0.1:{port}/v1", notes, connect_timeout_s=0.2)
            for member in crowd:
                member.close()
        assert isinstance(error, Unavailable)
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 20",
        b"nonsense\r\n\r\n",
        HEAD,
        HEAD + b'{"choices":',
        CHUNKED,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 50\r\n\r\nhalf",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_connection_leaves_the_intent_in_doubt(said: bytes, reset: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(10)
        writer.write(said)
        await writer.drain()
        if reset:
            linger = (1).to_bytes(4, "little") + bytes(4)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def main() -> None:
        notes = Notes()
        async with raw_serving(talk) as url:
            error = await fails(url, notes)
        assert isinstance(error, Unavailable)
        assert error.__cause__ is not None
        assert notes.kinds == ["intent"]

    asyncio.run(main())


def test_a_post_is_never_repeated_behind_our_back() -> None:
    """aiohttp repeats some methods on a connection that was kept alive and broke."""
    posts = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal posts
        for turn in range(2):
            await reader.readuntil(b"\r\n\r\n")
            await reader.read(1 << 16)
            posts += 1
            if turn == 0:
                body = answer_bytes()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def main() -> None:
        notes = Notes()
        async with raw_serving(talk) as url, chat(url, notes) as client:
            await client.complete(request())
            with pytest.raises(Unavailable):
                await client.complete(request())
        assert posts == 2
        assert notes.kinds == ["intent", "answer", "intent"]

    asyncio.run(main())


@pytest.mark.parametrize("said", [b"", HEAD])
def test_silence_ends_at_the_read_timeout(said: bytes) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await asyncio.sleep(5)

    async def main() -> None:
        notes = Notes()
        async with raw_serving(talk) as url:
            error = await fails(url, notes, read_timeout_s=0.2)
        assert isinstance(error, Unavailable)
        assert notes.kinds == ["intent"]

    asyncio.run(asyncio.wait_for(main(), 3))


def test_a_trickle_ends_at_the_total_timeout() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async def main() -> None:
        notes = Notes()
        async with raw_serving(talk) as url:
            error = await fails(url, notes, total_timeout_s=0.4)
        assert isinstance(error, Unavailable)
        assert notes.kinds == ["intent"]

    asyncio.run(asyncio.wait_for(main(), 3))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed_and_the_key_stays_here(status: int) -> None:
    strangers: list[str] = []

    async def stranger(asked: web.Request) -> web.Response:
        strangers.append(asked.headers.get("Authorization", ""))
        return web.Response(body=answer_bytes())

    async def main() -> None:
        notes = Notes()
        async with serving(stranger) as elsewhere:
            async with serving(constant(b"", status, Location=elsewhere + "/x")) as url:
                error = await fails(url, notes)
            assert isinstance(error, Denied)
            assert elsewhere in str(error)
        assert strangers == []
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


def test_an_answer_too_long_is_cut_kept_and_its_connection_closed() -> None:
    sent = 0

    async def handler(asked: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(asked)
        await response.write(b'{"choices":[{"message":{"content":"')
        for _ in range(160):
            await response.write(b"y" * 65_536)
            sent += 65_536
        return response

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url, chat(url, notes, max_answer_bytes=100_000) as client:
            result = await client.complete(request())
        body = notes.events[1][1]
        assert body.startswith(OVERSIZED + b'{"choices":')
        assert len(body) == len(OVERSIZED) + 100_000
        assert (result.finish_reason, result.usage) == ("oversized", None)
        again = decode_completion(body, result.key, result.offset, model="m")
        assert again.text == result.text
        assert sent < 10_000_000

    asyncio.run(main())


def test_a_whole_answer_of_10_mb_fits_when_allowed() -> None:
    async def main() -> None:
        body = answer_bytes("z" * 10_000_000)
        async with (
            serving(constant(body)) as url,
            chat(url, Notes(), max_answer_bytes=11_000_000) as client,
        ):
            assert len((await client.complete(request())).text) == 10_000_000

    asyncio.run(main())


def test_the_limit_counts_bytes_after_decompression() -> None:
    async def main() -> None:
        bomb = gzip.compress(answer_bytes("z" * 20_000_000))
        notes = Notes()
        async with (
            serving(constant(bomb, Content_Encoding="gzip")) as url,
            chat(url, notes, max_answer_bytes=100_000) as client,
        ):
            assert (await client.complete(request())).finish_reason == "oversized"
        assert len(notes.events[1][1]) < 101_000

    asyncio.run(main())


def test_gzip_and_chunks() -> None:
    async def chunked(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(asked)
        for byte in answer_bytes():
            await response.write(bytes([byte]))
        return response

    async def main() -> None:
        notes = Notes()
        zipped = constant(gzip.compress(answer_bytes()), Content_Encoding="gzip")
        for handler in (zipped, chunked):
            async with serving(handler) as url, chat(url, notes) as client:
                assert (await client.complete(request())).text == "hello"
        assert notes.events[1] == notes.events[3] == ("answer", answer_bytes())

    asyncio.run(main())


def test_a_huge_error_page_is_not_read_to_its_end() -> None:
    sent = 0

    async def handler(asked: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(status=500)
        await response.prepare(asked)
        for _ in range(1000):
            await response.write(b"x" * 65_536)
            sent += 65_536
        return response

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url:
            error = await fails(url, notes)
        assert isinstance(error, ServerFault)
        assert len(str(error)) < 500
        assert notes.kinds == ["intent", "void"]
        assert sent < 30_000_000

    asyncio.run(main())


def test_cancelling_leaves_the_intent_in_doubt_and_the_client_usable() -> None:
    calls = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(5)
        return web.Response(body=answer_bytes())

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url, chat(url, notes, max_in_flight=1) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.complete(request()), 0.2)
            assert notes.kinds == ["intent"]
            assert (await client.complete(request())).text == "hello"

    asyncio.run(main())


def test_cookies_and_proxies_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    cookies: list[str] = []

    async def handler(asked: web.Request) -> web.Response:
        cookies.append(asked.headers.get("Cookie", ""))
        return web.Response(body=answer_bytes(), headers={"Set-Cookie": "a=b"})

    async def main() -> None:
        async with serving(handler) as url:
            # By name: cookies of bare addresses are refused anyway.
            client = chat(url.replace("127.0.0.1", "localhost"))
            async with client:
                for _ in range(2):
                    await client.complete(request())
        assert cookies == ["", ""]

    asyncio.run(main())


def test_a_key_that_is_no_header_is_refused_without_naming_it() -> None:
    options: dict[str, Any] = {
        "recorder": None,
        "connect_timeout_s": 1,
        "read_timeout_s": 1,
        "total_timeout_s": 1,
        "max_in_flight": 1,
    }
    for key in ("sk-a\r\nX-Evil: 1", "sk-ключ"):
        with pytest.raises(UserError) as caught:
            HttpChat("http://h/v1", key, **options)
        assert "sk-" not in str(caught.value)
    HttpChat("http://h/v1", "sk-fine\n", **options)


def test_no_key_sends_no_authorization() -> None:
    seen: list[bool] = []

    async def handler(asked: web.Request) -> web.Response:
        seen.append("Authorization" in asked.headers)
        return web.Response(body=orjson.dumps({"choices": [{"message": {"content": "x"}}]}))

    async def main() -> None:
        async with (
            serving(handler) as url,
            HttpChat(
                url,
                None,
                recorder=None,
                connect_timeout_s=5,
                read_timeout_s=5,
                total_timeout_s=5,
                max_in_flight=1,
            ) as client,
        ):
            result = await client.complete(request())
        assert (seen, result.offset, result.model) == ([False], -1, "m")

    asyncio.run(main())


def test_a_connection_is_not_used_again_behind_a_500() -> None:
    """uvicorn closes it a moment later without saying so; a call on it would be in doubt."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nOops")
        await writer.drain()
        await asyncio.sleep(0.05)

    async def main() -> None:
        notes = Notes()
        async with raw_serving(talk) as url, chat(url, notes) as client:
            for _ in range(3):
                with pytest.raises(ServerFault):
                    await client.complete(request())
        assert notes.kinds == ["intent", "void"] * 3

    asyncio.run(main())
