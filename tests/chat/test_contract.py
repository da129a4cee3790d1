"""What every client keeps, held against real servers on loopback: HttpChat and SdkChat alike."""

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import orjson
import pytest
from aiohttp import web

from targen_async.chat import ChatClient
from targen_async.chat.http import HttpChat
from targen_async.chat.reply import broken, place_of
from targen_async.chat.sdk import SdkChat
from targen_async.chat.wire import OVERSIZED, Dialect, decode_completion
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
from targen_async.records import Message, Usage
from tests.chat.helpers import (
    KEY,
    Handler,
    Notes,
    answer_bytes,
    completion,
    constant,
    raw_serving,
    request,
    serving,
)
from tests.chat.tls import server_context

Client = Callable[..., Any]
SECRET = "h3ader-s3cret-9876"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=[HttpChat, SdkChat], ids=["http", "sdk"])
def client(request: pytest.FixtureRequest) -> Client:
    """Makes a client of either kind."""

    def make(url: str, notes: Notes | None = None, key: str | None = KEY, **changes: Any) -> Any:
        options: dict[str, Any] = {
            "recorder": notes,
            "connect_timeout_s": 5.0,
            "read_timeout_s": 5.0,
            "total_timeout_s": 10.0,
            "max_in_flight": 8,
        }
        return request.param(url, key, **{**options, **changes})

    return make


async def fails(client: Client, url: str, notes: Notes, **changes: Any) -> Any:
    async with client(url, notes, **changes) as chat:
        with pytest.raises((ChatError, ParseError)) as caught:
            await chat.complete(request())
    assert KEY not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


# ---- answers


def test_one_call(client: Client) -> None:
    seen: dict[str, Any] = {}

    async def handler(asked: web.Request) -> web.Response:
        seen.update(path=asked.path, headers=asked.headers, body=await asked.json())
        return web.Response(body=answer_bytes(), content_type="application/json")

    async def main() -> None:
        notes = Notes()
        schema = {"type": "object", "properties": {}}
        asked = request(schema_name="copa-seeds", json_schema=schema, top_p=0.5, stop=("END",))
        async with serving(handler) as url, client(url + "/", notes) as chat:
            result = await chat.complete(asked)
        assert (result.key, result.text, result.offset) == ("copa/000001/0", "hello", 4000)
        assert (result.model, result.usage.prompt_tokens) == ("m@main", 11)
        assert 0 < result.latency_s < 5
        assert result.rate_limits is None
        assert seen["path"] == "/v1/chat/completions"
        assert seen["headers"].getall("Authorization") == [f"Bearer {KEY}"]
        assert seen["headers"].getall("Content-Type") == ["application/json"]
        assert seen["body"] == {
            "model": "m",
            "messages": [{"role": "user", "content": "Write a premise."}],
            "temperature": 0.5,
            "max_tokens": 64,
            "seed": 7,
            "top_p": 0.5,
            "stop": ["END"],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "copa-seeds", "strict": True, "schema": schema},
            },
        }
        assert notes.events == [("intent", "copa/000001/0"), ("answer", answer_bytes())]

    asyncio.run(main())


def test_the_dialect_is_spoken_and_may_change(client: Client) -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(asked: web.Request) -> web.Response:
        bodies.append(await asked.json())
        return web.Response(body=answer_bytes(), content_type="application/json")

    async def main() -> None:
        async with serving(handler) as url, client(url, None) as chat:
            asked = request(json_schema={"type": "object"})
            chat.dialect = Dialect(
                schema="json_object",
                max_tokens_field="max_completion_tokens",
                omit=frozenset({"temperature", "seed"}),
            )
            await chat.complete(asked)
            chat.dialect = Dialect(schema="plain")
            await chat.complete(asked)

    asyncio.run(main())
    first, second = bodies
    assert first["response_format"] == {"type": "json_object", "schema": {"type": "object"}}
    assert first["max_completion_tokens"] == 64
    assert not {"temperature", "seed", "max_tokens"} & set(first)
    assert "response_format" not in second
    assert {"temperature", "seed", "max_tokens"} <= set(second)


def test_intent_is_written_before_the_request_arrives(client: Client) -> None:
    notes = Notes()

    async def handler(_: web.Request) -> web.Response:
        assert notes.kinds == ["intent"]
        return web.Response(body=answer_bytes())

    async def main() -> None:
        async with serving(handler) as url, client(url, notes) as chat:
            await chat.complete(request())

    asyncio.run(main())


@pytest.mark.parametrize(
    "body", [b"<html>sorry</html>", b'{"choices":[]}', b"[" * 100_000, b'{"error":"x"}', b""]
)
def test_answer_is_written_before_it_is_parsed(client: Client, body: bytes) -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(constant(body)) as url:
            await fails(client, url, notes)
        assert notes.events[1:] == [("answer", body)]

    asyncio.run(main())


TEXTS = [
    "caf\u00e9 \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \U0001f600\u200d\U0001f525",
    "\u202egnirts\u2066 \x1b[31m \x7f \ufeff",
    'quotes " \\ / \n \r\n \t',
]


@pytest.mark.parametrize("text", TEXTS)
def test_unicode_both_ways(client: Client, text: str) -> None:
    async def echo(asked: web.Request) -> web.Response:
        said = (await asked.json())["messages"][0]["content"]
        return web.Response(body=orjson.dumps(completion(said)), content_type="application/json")

    async def main() -> None:
        async with serving(echo) as url, client(url, Notes()) as chat:
            asked = request(messages=(Message(role="user", content=text),))
            assert (await chat.complete(asked)).text == text

    asyncio.run(main())


def test_what_no_encoding_holds_becomes_a_replacement_character(client: Client) -> None:
    body = rb'{"choices":[{"message":{"content":"a\ud800b' + b'\xff"},"finish_reason":"stop"}]}'

    async def main() -> None:
        async with serving(constant(body)) as url, client(url, Notes()) as chat:
            assert (await chat.complete(request())).text == "a\ufffdb\ufffd"

    asyncio.run(main())


def test_gzip_and_chunks(client: Client) -> None:
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
            async with serving(handler) as url, client(url, notes) as chat:
                assert (await chat.complete(request())).text == "hello"
        assert notes.events[1] == notes.events[3] == ("answer", answer_bytes())

    asyncio.run(main())


def test_an_answer_of_10_mb(client: Client) -> None:
    async def main() -> None:
        body = answer_bytes("z" * 10_000_000)
        async with serving(constant(body)) as url:
            async with client(url, Notes(), max_answer_bytes=11_000_000) as chat:
                assert len((await chat.complete(request())).text) == 10_000_000
            notes = Notes()
            async with client(url, notes) as chat:
                result = await chat.complete(request())
        kept = notes.events[1][1]
        assert kept == OVERSIZED + body[: 4 << 20]
        assert (result.finish_reason, result.usage) == ("oversized", None)
        assert decode_completion(kept, result.key, result.offset, model="m").text == result.text

    asyncio.run(main())


def test_the_limit_counts_bytes_after_decompression(client: Client) -> None:
    async def main() -> None:
        bomb = gzip.compress(answer_bytes("z" * 20_000_000))
        notes = Notes()
        async with (
            serving(constant(bomb, Content_Encoding="gzip")) as url,
            client(url, notes, max_answer_bytes=100_000) as chat,
        ):
            assert (await chat.complete(request())).finish_reason == "oversized"
        assert len(notes.events[1][1]) < 101_000

    asyncio.run(main())


def test_what_the_headers_say_of_limits_comes_with_the_answer(client: Client) -> None:
    said = {"x_ratelimit_limit_requests": "600", "x_ratelimit_remaining_requests": "599"}

    async def main() -> None:
        async with serving(constant(answer_bytes(), **said)) as url, client(url) as chat:
            limits = (await chat.complete(request())).rate_limits
        assert (limits.requests_limit, limits.requests_remaining) == (600, 599)
        async with serving(constant(b"{}", 429, **said)) as url:
            error = await fails(client, url, Notes())
        assert error.rate_limits == limits

    asyncio.run(main())


# ---- refusals


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error":{"message":"no","param":"seed"}}', Rejected),
        (401, b'{"error":{"message":"bad key","code":"invalid_api_key"}}', Denied),
        (402, b"{}", Denied),
        (403, b"<html><title>Forbidden</title></html>", Denied),
        (404, b'{"detail":"Not Found"}', Denied),
        (407, b"", Denied),
        (408, b"", Unavailable),
        (409, b"", Rejected),
        (413, b"", Rejected),
        (422, b'{"detail":[{"loc":["body","seed"],"msg":"Extra inputs"}]}', Rejected),
        (429, b'{"error":"slow"}', RateLimited),
        (429, b'{"error":{"code":"insufficient_quota"}}', Denied),
        (500, b"Internal Server Error", ServerFault),
        (502, b"", Unavailable),
        (503, b"", Unavailable),
        (504, b"", Unavailable),
        (529, b'{"type":"error","error":{"type":"overloaded_error"}}', Unavailable),
    ],
)
def test_every_refusal_voids_its_intent_and_is_sent_once(
    client: Client, status: int, body: bytes, kind: type[ChatError]
) -> None:
    calls = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.Response(body=body + f" {KEY}".encode() * (not body), status=status)

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url:
            error = await fails(client, url, notes)
        assert type(error) is kind
        assert error.status == status
        assert notes.events[1:] == [("void", f"HTTP {status}")]
        assert calls == 1

    asyncio.run(main())


def test_a_refusal_that_repeats_the_key_is_told_without_it(client: Client) -> None:
    async def main() -> None:
        body = f"the key {KEY} and {SECRET} are wrong".encode()
        async with serving(constant(body, 401)) as url:
            error = await fails(client, url, Notes(), headers={"X-Pass": f"Basic {SECRET}"})
        assert "the key *** and *** are wrong" in str(error)

    asyncio.run(main())


@pytest.mark.parametrize("status", [200, 401])
def test_short_secrets_and_a_proxys_are_in_no_message(client: Client, status: int) -> None:
    sent = {"X-Gateway-Token": "tok12", "X-Team": "red"}
    body = b"tok12, reduced to red, by me:pw-1 or bWU6cHctMQ=="

    async def main() -> None:
        with proxy(b"HTTP/1.1 %d Echo\r\nContent-Length: %d\r\n\r\n%s" % (status, 49, body)) as (
            way,
            _,
        ):
            way = way.replace("//", "//me:pw-1@")
            options = {"headers": sent, "secrets": {"tok12", "red"}, "proxy": way}
            error = await fails(client, "http://models.example.org/v1", Notes(), **options)
        assert "***, reduced to ***, by *** or ***" in str(error)

    assert len(body) == 49
    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_repeats_secrets_is_recorded_and_returned_without_them(
    client: Client, stream: bool
) -> None:
    """A gateway for tests, or a model that was told its headers."""
    text = f"I got {KEY} and tok12, of targen"
    pieces = [event({"content": part}) for part in (text[:12], text[12:20], text[20:])]
    pieces = [*pieces, event({}, "stop"), b"data: [DONE]\n\n"]
    body = orjson.dumps(completion(text, model=f"m of {KEY}"))
    options = {"headers": {"X-Token": "tok12", "X-Title": "targen"}, "secrets": {"tok12"}}

    async def main() -> None:
        notes = Notes()
        async with (
            serving(streaming(pieces) if stream else constant(body)) as url,
            client(url, notes, stream=stream, **options) as chat,
        ):
            result = await chat.complete(request())
        assert result.text == "I got *** and ***, of targen"
        assert result.model == ("m@main" if stream else "m of ***")
        recorded = notes.events[1][1]
        assert KEY.encode() not in recorded
        assert b"tok12" not in recorded
        assert decode_completion(recorded, result.key).text == result.text

    asyncio.run(main())


@pytest.mark.parametrize("body", [b"%s\n<html>", b'{"error":"%s"}', b'{"choices":[],"x":"%s"}'])
def test_an_answer_that_cannot_be_read_is_recorded_without_secrets(
    client: Client, body: bytes
) -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(constant(body % KEY.encode())) as url:
            error = await fails(client, url, notes)
        assert notes.events[1:] == [("answer", body % b"***")]
        assert "***" in str(error)

    asyncio.run(main())


def test_the_start_of_an_answer_too_long_is_recorded_without_secrets(client: Client) -> None:
    async def main() -> None:
        notes = Notes()
        async with (
            serving(constant(f"{KEY} ".encode() * 100)) as url,
            client(url, notes, max_answer_bytes=1000) as chat,
        ):
            result = await chat.complete(request())
        assert set(notes.events[1][1].removeprefix(OVERSIZED)) == set(b"* ")
        assert set(result.text) == set("* ")

    asyncio.run(main())


def test_a_key_that_is_a_word_does_not_spoil_answers(client: Client) -> None:
    """vLLM's users give EMPTY, others null or none."""

    async def main() -> None:
        for key in ("EMPTY", "null", "role", "none", "2026"):
            notes = Notes()
            body = orjson.dumps(completion(f"EMPTY in 2026: {key}", refusal=None))
            async with serving(constant(body)) as url, client(url, notes, key) as chat:
                assert (await chat.complete(request())).text == f"EMPTY in 2026: {key}"
            assert notes.events[1][1] == body
            async with serving(constant(f"the key {key} is wrong".encode(), 401)) as url:
                error = await fails(client, url, Notes(), key=key)
            assert "the key *** is wrong" in str(error)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"Retry-After": "3"}, 3),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "3600"}, 3600),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "soon"}, None),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 0.25),
        ({"llm_provider-retry-after": "7"}, 7),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(
    client: Client, status: int, said: dict[str, str], expected: float | None
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"{}", status=status, headers=said)

    async def main() -> None:
        async with serving(handler) as url:
            error = await fails(client, url, Notes())
        assert error.retry_after_s == expected

    asyncio.run(main())


def test_retry_after_as_a_date(client: Client) -> None:
    async def main() -> None:
        said = formatdate(time() + 90, usegmt=True)
        async with serving(constant(b"{}", 429, Retry_After=said)) as url:
            error = await fails(client, url, Notes())
        assert 85 < error.retry_after_s <= 90

    asyncio.run(main())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed_and_the_key_stays_here(client: Client, status: int) -> None:
    strangers: list[str] = []

    async def stranger(asked: web.Request) -> web.Response:
        strangers.append(asked.headers.get("Authorization", ""))
        return web.Response(body=answer_bytes())

    async def main() -> None:
        notes = Notes()
        async with serving(stranger) as elsewhere:
            async with serving(constant(b"", status, Location=elsewhere + "/x")) as url:
                error = await fails(client, url, notes)
            assert isinstance(error, Denied)
            assert elsewhere in str(error)
        assert strangers == []
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


def test_a_huge_error_page_is_told_in_short(client: Client) -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(constant(b"x" * 3_000_000, 500)) as url:
            error = await fails(client, url, notes)
        assert isinstance(error, ServerFault)
        assert len(str(error)) < 500
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


# ---- connections


def test_a_refused_connection_voids_the_intent(client: Client) -> None:
    async def main() -> None:
        with socket.socket() as idle:
            idle.bind(("127.0.0.1", 0))
            notes = Notes()
            port = idle.getsockname()[1]
            error = await fails(client, f"http://127.0.0.1:{port}/v1", notes)
        assert isinstance(error, Unavailable)
        assert str(error) == (
            f"http://127.0.0.1:{port}/v1 cannot be reached at 127.0.0.1 port {port}: connection "
            "refused; start the server there, or correct the base URL"
        )
        assert error.__cause__ is not None
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        OSError(
            "Multiple exceptions: [Errno 99] Cannot assign requested address, [Errno 111] Connect "
            "call failed ('127.0.0.1', 9)"
        ),
        ExceptionGroup(
            "all attempts failed", [OSError(99, "no such address"), ConnectionRefusedError(111, "")]
        ),
    ],
    ids=["aiohttp", "anyio"],
)
def test_of_several_addresses_the_one_that_refuses_is_told(error: Exception) -> None:
    """A name such as localhost has an address of each family, and one of them may not be there."""
    place = place_of("http://localhost:9/v1", None, None, None)
    told = str(broken(error, place, opened=False))
    assert "cannot be reached at localhost port 9: connection refused; " in told


def test_a_connection_that_never_opens_voids_the_intent(client: Client) -> None:
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
            url = f"http://127.0.0.1:{port}/v1"
            error = await fails(client, url, notes, connect_timeout_s=0.2)
            for member in crowd:
                member.close()
        assert isinstance(error, Unavailable)
        assert str(error) == (
            f"{url} cannot be reached at 127.0.0.1 port {port}: the connection timed out; check "
            "the base URL, and firewalls on the way"
        )
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


def test_a_name_that_nobody_knows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    notes = Notes()
    error = asyncio.run(fails(client, "http://models.example.invalid/v1", notes))
    assert isinstance(error, Unavailable)
    assert "its name is not known; check the base URL" in str(error)
    assert "cannot be reached at models.example.invalid port 80: " in str(error)
    assert notes.kinds == ["intent", "void"]


def test_a_proxy_that_nobody_knows_is_the_one_to_blame(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for url in ("http://127.0.0.1:8571/v1", "https://models.example.org/v1"):
        notes = Notes()
        way = f"http://user:{SECRET}@no-proxy.invalid:3128"
        error = asyncio.run(fails(client, url, notes, proxy=way))
        assert isinstance(error, Unavailable)
        assert str(error) == (
            f"the proxy on the way to {url} cannot be reached at no-proxy.invalid port 3128: its "
            "name is not known; check `proxy`"
        )
        assert notes.kinds == ["intent", "void"]


@asynccontextmanager
async def tls_serving(handler: Handler, folder: Path) -> AsyncIterator[str]:
    """The server of `serving` behind a certificate that nobody trusts."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(folder))
        await site.start()
        yield f"https://localhost:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def test_a_certificate_that_nobody_trusts_stops_the_run(client: Client, tmp_path: Path) -> None:
    async def main() -> None:
        notes = Notes()
        async with tls_serving(constant(answer_bytes()), tmp_path) as url:
            error = await fails(client, url, notes)
        assert isinstance(error, Denied)
        assert "has a TLS certificate that cannot be trusted: self" in str(error)
        assert "SSL_CERT_FILE" in str(error)
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


def test_https_where_http_is_spoken_stops_the_run(client: Client) -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(constant(answer_bytes())) as url:
            error = await fails(client, url.replace("http:", "https:"), notes)
        assert isinstance(error, Denied)
        assert "does not speak TLS" in str(error)
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


TRUSTING = """
import asyncio, sys
from tests.chat.helpers import request
from targen_async.chat.http import HttpChat
from targen_async.chat.sdk import SdkChat
async def main():
    options = dict(recorder=None, connect_timeout_s=5, read_timeout_s=5, total_timeout_s=9,
                   max_in_flight=1, proxy=sys.argv[3] or None)
    async with {"http": HttpChat, "sdk": SdkChat}[sys.argv[1]](sys.argv[2], "k", **options) as chat:
        print((await chat.complete(request())).text)
asyncio.run(main())
"""


def trusting(name: str, url: str, folder: Path, proxy: str = "") -> str:
    """What a process says that trusts the certificate in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", TRUSTING, name, url, proxy],
        env={**os.environ, "SSL_CERT_FILE": str(folder / "certificate.pem")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["http", "sdk"])
def test_the_mend_of_an_untrusted_certificate_helps(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with tls_serving(constant(answer_bytes()), tmp_path) as url:
            assert await asyncio.to_thread(trusting, name, url, tmp_path) == "hello"

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
def test_a_broken_connection_leaves_the_intent_in_doubt(
    client: Client, said: bytes, reset: bool
) -> None:
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
            error = await fails(client, url, notes)
        assert isinstance(error, Unavailable)
        assert error.__cause__ is not None
        assert notes.kinds == ["intent"]

    asyncio.run(main())


def test_a_post_is_never_repeated_behind_our_back(client: Client) -> None:
    """aiohttp and the openai package repeat some calls when a connection breaks."""
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
        async with raw_serving(talk) as url, client(url, notes) as chat:
            await chat.complete(request())
            with pytest.raises(Unavailable):
                await chat.complete(request())
        assert posts == 2
        assert notes.kinds == ["intent", "answer", "intent"]

    asyncio.run(main())


@pytest.mark.parametrize("said", [b"", HEAD])
def test_silence_ends_at_the_read_timeout(client: Client, said: bytes) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await asyncio.sleep(5)

    async def main() -> None:
        notes = Notes()
        async with raw_serving(talk) as url:
            error = await fails(client, url, notes, read_timeout_s=0.2)
        assert isinstance(error, Unavailable)
        assert notes.kinds == ["intent"]

    asyncio.run(asyncio.wait_for(main(), 3))


def test_a_trickle_ends_at_the_total_timeout(client: Client) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async def main() -> None:
        notes = Notes()
        async with raw_serving(talk) as url:
            error = await fails(client, url, notes, total_timeout_s=0.4)
        assert isinstance(error, Unavailable)
        assert "did not answer in time" in str(error)
        assert notes.kinds == ["intent"]

    asyncio.run(asyncio.wait_for(main(), 3))


def test_cancelling_leaves_the_intent_in_doubt_and_the_client_usable(client: Client) -> None:
    calls = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(5)
        return web.Response(body=answer_bytes())

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url, client(url, notes, max_in_flight=1) as chat:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(chat.complete(request()), 0.2)
            assert notes.kinds == ["intent"]
            assert (await chat.complete(request())).text == "hello"

    asyncio.run(main())


def test_many_calls_at_once_keep_their_answers_apart(client: Client) -> None:
    async def echo(asked: web.Request) -> web.Response:
        said = (await asked.json())["messages"][0]["content"]
        await asyncio.sleep(0.001 * (len(said) % 7))
        return web.Response(body=orjson.dumps(completion(said)), content_type="application/json")

    async def ask(chat: ChatClient, number: int) -> None:
        text = "x" * number
        asked = request(str(number), messages=(Message(role="user", content=text),))
        result = await chat.complete(asked)
        assert (result.key, result.text) == (str(number), text)

    async def main() -> None:
        async with serving(echo) as url, client(url, Notes()) as chat:
            await asyncio.gather(*(ask(chat, number) for number in range(1, 60)))

    asyncio.run(main())


# ---- headers, keys, proxies


def test_headers_of_the_user_go_before_our_own(client: Client) -> None:
    seen: list[Any] = []

    async def handler(asked: web.Request) -> web.Response:
        seen.append(asked.headers.copy())
        return web.Response(body=answer_bytes())

    async def main() -> None:
        headers = {"authorization": "Basic abc", "X-Title": "targen"}
        async with serving(handler) as url, client(url, headers=headers) as chat:
            await chat.complete(request())
        assert seen[0].getall("Authorization") == ["Basic abc"]
        assert seen[0].getall("X-Title") == ["targen"]

    asyncio.run(main())


def test_no_key_sends_no_authorization(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    seen: list[bool] = []

    async def handler(asked: web.Request) -> web.Response:
        seen.append("Authorization" in asked.headers)
        return web.Response(body=orjson.dumps({"choices": [{"message": {"content": "x"}}]}))

    async def main() -> None:
        async with serving(handler) as url, client(url, key=None) as chat:
            result = await chat.complete(request())
        assert (seen, result.offset, result.model) == ([False], -1, "m")

    asyncio.run(main())


def test_what_no_header_can_carry_is_refused_without_repeating_it(client: Client) -> None:
    for key in ("sk-a\r\nX-Evil: 1", "sk-ключ"):
        with pytest.raises(UserError) as caught:
            client("http://h/v1", key=key)
        assert "sk-" not in str(caught.value)
        with pytest.raises(UserError, match="'X-Pass'") as caught:
            client("http://h/v1", headers={"X-Pass": key})
        assert "sk-" not in str(caught.value)


def test_cookies_and_proxies_of_the_environment_are_ignored(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    cookies: list[str] = []

    async def handler(asked: web.Request) -> web.Response:
        cookies.append(asked.headers.get("Cookie", ""))
        return web.Response(body=answer_bytes())

    async def main() -> None:
        async with serving(handler) as url, client(url.replace("127.0.0.1", "localhost")) as chat:
            for _ in range(2):
                await chat.complete(request())
        assert cookies == ["", ""]

    asyncio.run(main())


@contextmanager
def proxy(answer: bytes = b"") -> Iterator[tuple[str, list[bytes]]]:
    """A proxy in a thread of its own: its URL, and the heads of what it was asked.

    It opens the tunnel that is asked for, forwards a plain request, or gives `answer`.
    """
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def talk(near: socket.socket) -> None:
        with near:
            head = b""
            while b"\r\n\r\n" not in head:
                more = near.recv(65_536)
                if not more:
                    return
                head += more
            heads.append(head.split(b"\r\n\r\n")[0])
            if answer:
                near.sendall(answer)
                return
            method, target, _ = head.split(b" ", 2)
            place = target if method == b"CONNECT" else target.split(b"/")[2]
            host, _, port = place.decode().partition(":")
            with socket.create_connection((host, int(port))) as far:
                if method == b"CONNECT":
                    near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    far.sendall(head)
                back = threading.Thread(target=pump, args=(far, near), daemon=True)
                back.start()
                pump(near, far)
                back.join(5)

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(near,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
    finally:
        listener.close()


def test_a_proxy_for_http_is_asked_for_the_whole_address(client: Client) -> None:
    async def main() -> None:
        notes = Notes()
        with proxy() as (way, heads):
            way = way.replace("//", f"//user:{SECRET}@")
            async with (
                serving(constant(answer_bytes())) as url,
                client(url, notes, proxy=way) as chat,
            ):
                assert (await chat.complete(request())).text == "hello"
        assert heads[0].startswith(f"POST {url}/chat/completions HTTP/1.1".encode())
        assert b"proxy-authorization: basic " in heads[0].lower()
        assert notes.kinds == ["intent", "answer"]

    asyncio.run(main())


@pytest.mark.parametrize("name", ["http", "sdk"])
def test_a_proxy_for_https_is_asked_for_a_tunnel(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        with proxy() as (way, heads):
            async with tls_serving(constant(answer_bytes()), tmp_path) as url:
                assert await asyncio.to_thread(trusting, name, url, tmp_path, way) == "hello"
        assert heads[0].startswith(b"CONNECT localhost:")
        assert b"Bearer" not in heads[0]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "kind"), [(b"407 Sign In", Denied), (b"502 Bad Gateway", Unavailable)]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses(
    client: Client, scheme: str, status: bytes, kind: type[ChatError]
) -> None:
    said = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    async def main() -> None:
        notes = Notes()
        with proxy(said) as (way, _):
            way = way.replace("//", f"//user:{SECRET}@")
            error = await fails(client, f"{scheme}://models.example.org/v1", notes, proxy=way)
        assert type(error) is kind
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


def test_a_proxy_that_is_not_there(client: Client) -> None:
    async def main() -> None:
        with socket.socket() as idle:
            idle.bind(("127.0.0.1", 0))
            port = idle.getsockname()[1]
            way = f"http://user:{SECRET}@127.0.0.1:{port}"
            notes = Notes()
            error = await fails(client, "http://models.example.org/v1", notes, proxy=way)
        assert isinstance(error, Unavailable)
        assert str(error) == (
            "the proxy on the way to http://models.example.org/v1 cannot be reached at 127.0.0.1 "
            f"port {port}: connection refused; check `proxy`"
        )
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


# ---- streams


def event(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "r1", "model": "m@main", "object": "chat.completion.chunk", "choices": choices}
    return b"data: " + orjson.dumps({**chunk, **more}) + b"\n\n"


USAGE = {"prompt_tokens": 11, "completion_tokens": 3}
WORDS = [event({"role": "assistant", "content": ""}), event({"content": "hel"})]
STREAMS = {
    "usage in a chunk of its own": [
        *WORDS,
        event({"content": "lo"}),
        event({}, "stop"),
        event(None, usage=USAGE),
        b"data: [DONE]\n\n",
    ],
    "usage inside the last delta, no [DONE]": [
        *WORDS,
        event({"content": "lo"}),
        event({}, "stop", usage=USAGE),
    ],
    "comments between": [
        b": PROCESSING\n\n",
        *WORDS,
        b":\n\n",
        event({"content": "lo"}, "stop", usage=USAGE),
        b": still here\n\n",
        b"data: [DONE]\n\n",
    ],
}


def streaming(pieces: list[bytes], kind: str = "text/event-stream", cut: bool = False) -> Handler:
    async def handler(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(asked)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        if cut and asked.transport is not None:
            await asyncio.sleep(0.05)
            asked.transport.abort()
        return response

    return handler


@pytest.mark.parametrize("pieces", STREAMS.values(), ids=STREAMS)
def test_a_stream_is_recorded_as_the_answer_it_amounts_to(
    client: Client, pieces: list[bytes]
) -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(asked: web.Request) -> web.StreamResponse:
        bodies.append(await asked.json())
        return await streaming(pieces)(asked)

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url, client(url, notes, stream=True) as chat:
            for _ in range(2):
                result = await chat.complete(request())
        assert (result.text, result.finish_reason, result.model) == ("hello", "stop", "m@main")
        assert result.usage == Usage(prompt_tokens=11, completion_tokens=3)
        assert bodies[0]["stream"] is True
        assert bodies[0]["stream_options"] == {"include_usage": True}
        assert notes.kinds == ["intent", "answer"] * 2
        stored = orjson.loads(notes.events[1][1])
        assert stored["object"] == "chat.completion"
        assert decode_completion(notes.events[1][1], result.key).text == "hello"

    asyncio.run(main())


def test_stream_options_are_left_out_where_they_are_refused(client: Client) -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(asked: web.Request) -> web.StreamResponse:
        bodies.append(await asked.json())
        return await streaming([event({"content": "hello"}, "stop")])(asked)

    async def main() -> None:
        dialect = Dialect(omit=frozenset({"stream_options"}))
        async with serving(handler) as url, client(url, stream=True, dialect=dialect) as chat:
            result = await chat.complete(request())
        assert (result.text, result.usage) == ("hello", None)
        assert bodies[0]["stream"] is True
        assert "stream_options" not in bodies[0]

    asyncio.run(main())


def test_a_server_that_does_not_stream_is_understood(client: Client) -> None:
    async def main() -> None:
        notes = Notes()
        async with (
            serving(constant(answer_bytes())) as url,
            client(url, notes, stream=True) as chat,
        ):
            assert (await chat.complete(request())).text == "hello"
        assert notes.events[1] == ("answer", answer_bytes())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("pieces", "cut"),
    [
        (WORDS, False),
        (WORDS, True),
        ([*WORDS, event({"content": "lo"}, "stop")], True),
        ([*WORDS, b'data: {"id":"r1","choices":[{"del'], False),
        ([b": waiting\n\n"], False),
    ],
)
def test_a_stream_that_ends_early_is_in_doubt_and_no_success(
    client: Client, pieces: list[bytes], cut: bool
) -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(streaming(pieces, cut=cut)) as url:
            error = await fails(client, url, notes, stream=True)
        assert isinstance(error, Unavailable)
        assert "broke the connection" in str(error)
        assert notes.kinds == ["intent"]

    asyncio.run(main())


def test_an_empty_stream_may_be_its_requests_fault(client: Client) -> None:
    """llama-cpp-python answers so a prompt that is too long: without end, were it not counted."""

    async def main() -> None:
        notes = Notes()
        async with serving(streaming([])) as url:
            error = await fails(client, url, notes, stream=True)
        assert type(error) is ServerFault
        assert error.status == 200
        assert notes.kinds == ["intent"]

    asyncio.run(main())


def test_an_error_inside_a_stream_is_an_error_inside_an_answer(client: Client) -> None:
    said = b'data: {"error":{"message":"upstream is gone","code":502}}\n\n'

    async def main() -> None:
        notes = Notes()
        async with serving(streaming([*WORDS, said])) as url:
            error = await fails(client, url, notes, stream=True)
        assert isinstance(error, Unavailable)
        assert "upstream is gone" in str(error)
        assert notes.kinds == ["intent", "answer"]

    asyncio.run(main())


def test_a_connection_that_stays_open_behind_done_is_not_waited_for(client: Client) -> None:
    async def handler(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(asked)
        await response.write(b"".join(STREAMS["usage in a chunk of its own"]))
        await asyncio.sleep(4)
        return response

    async def main() -> None:
        async with serving(handler) as url, client(url, Notes(), stream=True) as chat:
            assert (await chat.complete(request())).text == "hello"

    asyncio.run(asyncio.wait_for(main(), 2))


def test_a_refusal_of_a_stream_is_a_refusal(client: Client) -> None:
    async def main() -> None:
        notes = Notes()
        body = b'{"error":{"message":"slow down"}}'
        async with serving(constant(body, 429, Retry_After="3")) as url:
            error = await fails(client, url, notes, stream=True)
        assert isinstance(error, RateLimited)
        assert error.retry_after_s == 3
        assert notes.kinds == ["intent", "void"]

    asyncio.run(main())


def test_a_stream_without_end_is_cut(client: Client) -> None:
    async def handler(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(asked)
        for _ in range(2_000):
            await response.write(event({"content": "y" * 500}))
        return response

    async def main() -> None:
        notes = Notes()
        async with (
            serving(handler) as url,
            client(url, notes, stream=True, max_answer_bytes=20_000) as chat,
        ):
            result = await chat.complete(request())
        assert (result.finish_reason, result.usage) == ("oversized", None)
        assert notes.events[1][1].startswith(OVERSIZED + b"data: ")
        assert len(notes.events[1][1]) <= 20_000 + len(OVERSIZED)

    asyncio.run(main())
