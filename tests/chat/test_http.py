"""What HttpChat does beyond the contract that all clients keep (test_contract.py)."""

import asyncio

import pytest
from aiohttp import web

from targen_async.chat import http
from targen_async.chat.wire import OVERSIZED, decode_completion
from targen_async.errors import ServerFault, Unavailable
from tests.chat.helpers import KEY, Notes, answer_bytes, chat, raw_serving, request, serving


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
        async with serving(handler) as url, chat(url, notes) as client:
            with pytest.raises(ServerFault):
                await client.complete(request())
        assert notes.kinds == ["intent", "void"]
        assert sent < 30_000_000

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


def test_the_key_is_not_told_to_a_proxy() -> None:
    """aiohttp tells a proxy all headers of its session, and makes a pass of the key."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with raw_serving(talk) as way:
            proxy = way.removesuffix("/v1")
            headers = {"X-Pass": "s3cret-of-the-user"}
            async with chat(
                "https://models.example.org/v1", proxy=proxy, headers=headers
            ) as client:
                with pytest.raises(Unavailable, match="proxy"):
                    await client.complete(request())

    asyncio.run(main())
    assert heads[0].startswith(b"CONNECT models.example.org:443")
    assert KEY.encode() not in heads[0]
    assert b"s3cret-of-the-user" not in heads[0]


def answered() -> bytes:
    body = answer_bytes()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_a_silent_call_ends_in_time_though_an_earlier_one_still_trickles() -> None:
    calls = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        await reader.readuntil(b"\r\n\r\n")
        if calls > 1:
            await asyncio.sleep(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async def main() -> None:
        async with raw_serving(talk) as url, chat(url, read_timeout_s=0.3) as client:
            first = asyncio.create_task(client.complete(request()))
            await asyncio.sleep(0.5)
            assert not first.done(), "it is heard of"
            with pytest.raises(Unavailable, match="in time"):
                await client.complete(request())
            assert not first.done()
            first.cancel()

    asyncio.run(asyncio.wait_for(main(), 3))


def test_more_callers_than_connections_get_their_turn() -> None:
    out = most = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal out, most
        while await reader.readuntil(b"\r\n\r\n"):
            await reader.read(1 << 16)
            out += 1
            most = max(most, out)
            await asyncio.sleep(0.01)
            out -= 1
            writer.write(answered())

    async def main() -> None:
        async with raw_serving(talk) as url, chat(url, max_in_flight=2) as client:
            await asyncio.gather(*(client.complete(request()) for _ in range(10)))

    asyncio.run(asyncio.wait_for(main(), 3))
    assert most == 2


@pytest.mark.parametrize(("pause_s", "opened"), [(0.0, 1), (0.2, 3)])
def test_a_connection_is_used_again_unless_it_was_idle_for_long(
    monkeypatch: pytest.MonkeyPatch, pause_s: float, opened: int
) -> None:
    monkeypatch.setattr(http, "IDLE_CONNECTION_S", 0.1)
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            await reader.read(1 << 16)
            writer.write(answered())

    async def main() -> None:
        async with raw_serving(talk) as url, chat(url) as client:
            for _ in range(3):
                await client.complete(request())
                await asyncio.sleep(pause_s)

    asyncio.run(main())
    assert connections == opened


def test_outside_its_context_it_says_so() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="outside"):
            await chat("http://h/v1").complete(request())

    asyncio.run(main())
