"""What HttpChat does beyond the contract that all clients keep (test_contract.py)."""

import asyncio

import pytest
from aiohttp import web

from targen_async.chat.wire import OVERSIZED, decode_completion
from targen_async.errors import ServerFault, Unavailable
from tests.chat.helpers import KEY, Notes, chat, raw_serving, request, serving


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


def test_outside_its_context_it_says_so() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="outside"):
            await chat("http://h/v1").complete(request())

    asyncio.run(main())
