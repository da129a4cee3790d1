"""What either client makes of answers that come in odd, broken or doubled bytes.

After each of them a second call is made on the same client: whatever was left on the connection,
it must get its own answer. Statuses, timeouts, gzip bombs and proxies are in test_contract.py.
"""

import asyncio
import gzip
import os
import re
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from targen_async.chat.http import HttpChat
from targen_async.chat.sdk import SdkChat
from targen_async.errors import ChatError, ParseError, RateLimited, Unavailable
from targen_async.records import ChatResult
from tests.chat.helpers import KEY, Notes, request
from tests.chat.tls import server_context
from tests.traps.wire_server import MANNERS, Talk, endpoint

ROOT = Path(__file__).resolve().parents[2]
Client = Callable[[str, Notes], Any]
RIGHT = "I am a simulated model"
WORDS_OF_A_MODEL = re.compile(r"simulated|know nothing|chatcmpl|usage|tokens")
PAID, DOUBT = ["intent", "answer"], ["intent"]

WHOLE = [
    "good",
    "chunked",
    "gzipped",
    "gzipped_in_chunks_with_trailers",
    "without_length",
    "byte_by_byte",
    "hints_first",
    "reset_after",
    "closed_after",
    "half_closed_after",
    "timed_out_when_idle",
    "length_too_short",
    "said_twice",
    "stray_afterwards",
    "doubled_keys",
    "not_a_number",
    "no_usage",
    "usage_not_a_number",
    "another_model",
]
"""As good as any answer."""
BROKEN = [
    "reset_before",
    "reset_inside",
    "closed_inside",
    "chunks_without_end",
    "length_too_long",
    "length_in_words",
    "length_below_zero",
    "two_lengths",
    "words_in_place_of_a_chunk",
    "words_in_place_of_an_answer",
    "words_in_place_of_a_header",
    "gzip_that_is_none",
    "endless_head",
    "trickled",
    "silent",
]
"""It may have been served, so it stays in doubt, and the request is not to blame."""
USELESS = [
    "html",
    "nothing",
    "no_content",
    "cut_without_length",
    "length_inside",
    "gzip_that_is_cut",
]
"""Paid for: on disk as it came, and malformed."""
ERRORS: dict[str, type[ChatError]] = {
    "error_object": Unavailable,
    "rate_limit_object": RateLimited,
}
"""An error with a 200: on disk, and what it says it is."""
WORDS = {
    "empty_text": ("", "stop"),
    "null_text": ("", "stop"),
    "apology": ("Error: upstream request failed", "stop"),
    "error_text_in_json": ('{"error":', "stop"),
    "huge": ('{"id":', "oversized"),
}
"""A completion for the client; that its text is of no use is seen when it is read."""
EITHER = ("length_and_chunks",)
"""The bytes contradict themselves, and clients may differ: right, malformed, or in doubt."""
BEHIND = "httpcore keeps what stands behind an answer and reads it as the next"
BEYOND_US = {(name, "sdk"): BEHIND for name in ("said_twice", "length_too_short", "length_inside")}
"""The first answer is kept all the same."""


@pytest.fixture(params=["http", "sdk"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def client(kind: str, url: str, notes: Notes) -> Any:
    return {"http": HttpChat, "sdk": SdkChat}[kind](
        url,
        KEY,
        recorder=notes,
        connect_timeout_s=5.0,
        read_timeout_s=0.5,
        total_timeout_s=1.0,
        max_in_flight=2,
    )


async def complete(chat: Any, key: str) -> ChatResult | Exception:
    try:
        return await chat.complete(request(key))
    except (ChatError, ParseError) as error:
        assert KEY not in str(error)
        assert str(error).isprintable()
        # What broke on the way is told without what was on the way.
        assert isinstance(error, ParseError) or not WORDS_OF_A_MODEL.search(str(error)), error
        return error


def first_and_second(
    kind: str, name: str
) -> tuple[ChatResult | Exception, ChatResult | Exception, Notes]:
    """The first answer has the manner `name`, all others are good."""

    def choose(talk: Talk) -> str:
        return name if talk.number == 1 else "good"

    async def main() -> tuple[Any, Any, Notes]:
        notes = Notes()
        with endpoint(choose) as served:
            async with client(kind, served.url, notes) as chat:
                first = await complete(chat, "1")
                # Long enough for what comes behind an answer to arrive.
                await asyncio.sleep(0.06)
                second = await complete(chat, "2")
        return first, second, notes

    return asyncio.run(main())


def check_next(kind: str, name: str, second: ChatResult | Exception, notes: Notes) -> None:
    """The second call has its own answer, unless what follows the first is out of our hands."""
    if (name, kind) not in BEYOND_US:
        assert is_right(second), second
        assert notes.kinds == [*PAID, *PAID]
    elif name == "said_twice":
        # What cannot be told from an answer: the day that httpcore throws it away this fails.
        assert isinstance(second, ChatResult) and second.text == "stray"
    else:
        assert isinstance(second, Unavailable), second


def is_right(said: ChatResult | Exception) -> bool:
    return isinstance(said, ChatResult) and said.text.startswith(RIGHT)


def test_every_manner_has_an_outcome() -> None:
    told = [*WHOLE, *BROKEN, *USELESS, *ERRORS, *WORDS, *EITHER]
    assert sorted(told) == sorted(MANNERS)


@pytest.mark.parametrize("name", WHOLE)
def test_an_odd_answer_is_an_answer_and_so_is_the_next(kind: str, name: str) -> None:
    first, second, notes = first_and_second(kind, name)
    assert is_right(first), first
    assert notes.kinds[:2] == PAID
    check_next(kind, name, second, notes)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_in_doubt_and_the_client_goes_on(kind: str, name: str) -> None:
    first, second, notes = first_and_second(kind, name)
    assert isinstance(first, Unavailable), first
    assert is_right(second), second
    assert notes.kinds == [*DOUBT, *PAID]


@pytest.mark.parametrize("name", USELESS)
def test_a_paid_answer_of_no_use_is_on_disk_as_it_came(kind: str, name: str) -> None:
    first, second, notes = first_and_second(kind, name)
    assert isinstance(first, ParseError), first
    assert first.kind == "malformed"
    assert notes.kinds[:2] == PAID
    kept = notes.events[1][1]
    if name == "html":
        assert kept.startswith(b"<!doctype html>")
    else:
        assert first_and_second(kind, "good")[2].events[1][1].startswith(kept)
    check_next(kind, name, second, notes)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_with_a_200_is_on_disk_and_what_it_says_it_is(kind: str, name: str) -> None:
    first, second, notes = first_and_second(kind, name)
    assert type(first) is ERRORS[name]
    assert is_right(second), second
    assert notes.kinds == [*PAID, *PAID]
    assert notes.events[1][1].startswith(b'{"error"')


@pytest.mark.parametrize("name", WORDS)
def test_words_that_are_no_answer_are_on_disk_and_never_an_error_of_ours(
    kind: str, name: str
) -> None:
    first, second, notes = first_and_second(kind, name)
    text, reason = WORDS[name]
    assert isinstance(first, ChatResult), first
    assert first.text.startswith(text) and bool(first.text) == bool(text)
    assert first.finish_reason == reason
    assert is_right(second), second
    assert notes.kinds == [*PAID, *PAID]


@pytest.mark.parametrize("name", EITHER)
def test_a_length_that_lies_never_makes_a_wrong_answer(kind: str, name: str) -> None:
    """What is behind the length may spoil the next call too, but only as a broken connection."""
    for said in first_and_second(kind, name)[:2]:
        assert is_right(said) or isinstance(said, (ParseError, Unavailable)), said


def test_what_either_client_keeps_of_an_answer_is_the_same_bytes(kind: str) -> None:
    """Unpacked, whatever it was packed in: the journal is read without HTTP."""
    for name in ("good", "chunked", "gzipped", "gzipped_in_chunks_with_trailers", "reset_after"):
        *_, notes = first_and_second(kind, name)
        assert notes.events[1][1] == notes.events[3][1]
        assert gzip.compress(b"")[:2] != notes.events[1][1][:2]


def test_another_model_is_named_as_served(kind: str) -> None:
    first, second, _ = first_and_second(kind, "another_model")
    assert isinstance(first, ChatResult) and isinstance(second, ChatResult)
    assert (first.model, second.model) == ("m-2026-11-01", "targen-simulator")


# ---- who is at the other end

TLS_CALL = """
import asyncio, sys
from tests.chat.helpers import KEY, Notes, request
from tests.traps.test_wire import client
from targen_async.errors import ChatError
async def main():
    notes = Notes()
    async with client(sys.argv[1], sys.argv[2], notes) as chat:
        try:
            print("served", await chat.complete(request()))
        except ChatError as error:
            print(type(error).__name__, notes.kinds, error)
asyncio.run(main())
"""


EXPIRED = """\
-----BEGIN CERTIFICATE-----
MIIBZTCCAQugAwIBAgIBAjAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwHhcNMjAwMTAxMDAwMDAwWhcNMjEwMTAxMDAwMDAwWjAUMRIwEAYDVQQDDAls
b2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQS3FsJE4xLSnSaElqC
HKu5KQNj/RXI6mkdJo/fICXJX+oy//FxIljNyLLzujMtNV/esQPGkJT0mqHcbFoD
OHgxo04wTDAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwDwYDVR0TAQH/BAUw
AwEB/zAdBgNVHQ4EFgQU2C/TCRHNvisArvSX0xJ2M8bad58wCgYIKoZIzj0EAwID
SAAwRQIhANc+r7W8b7qV0yHDalRQBsdjitGEBzI2rXQZs8f0ql42AiBuV8hwpK4t
lwcQp2+p+FUpdhz3dG7B6qYk5praZjVjZA==
-----END CERTIFICATE-----
"""
EXPIRED_KEY = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIFwjTp8HUl3zun4hXmZAqZgIBznD/GIu4/BFmh5IkWX4oAoGCCqGSM49
AwEHoUQDQgAEEtxbCROMS0p0mhJaghyruSkDY/0VyOppHSaP3yAlyV/qMv/xcSJY
zciy87ozLTVf3rEDxpCU9Jqh3GxaAzh4MQ==
-----END EC PRIVATE KEY-----
"""
"""For localhost and 127.0.0.1, in the year 2020."""


def expired(folder: Path) -> ssl.SSLContext:
    """A server's context with the right name and the wrong time."""
    (folder / "certificate.pem").write_text(EXPIRED)
    (folder / "key.pem").write_text(EXPIRED_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize(
    ("make", "host", "said"),
    [
        (server_context, "127.0.0.2", "IP address mismatch"),
        (expired, "localhost", "certificate has expired"),
    ],
    ids=["for another name", "expired"],
)
def test_a_wrong_certificate_is_refused_before_the_key_is_sent(
    kind: str,
    make: Callable[[Path], ssl.SSLContext],
    host: str,
    said: str,
    tmp_path: Path,
) -> None:
    """Its authority is trusted here: only the name, or the time, is wrong."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65_536))
        writer.close()

    async def main() -> str:
        context = make(tmp_path)
        server = await asyncio.start_server(listen, host, 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", TLS_CALL, kind, f"https://{host}:{port}/v1"),
            cwd=ROOT,
            env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "certificate.pem")},
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await child.communicate()
        server.close()
        return told.decode()

    told = asyncio.run(main())
    assert told.startswith("Denied ['intent', 'void']"), told
    assert said in told
    assert heard == []
