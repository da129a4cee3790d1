"""Streams of every make, put together to one completion; broken ones are never an answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.chat.stream import Incomplete, read_stream
from targen_async.chat.wire import decode_completion
from targen_async.errors import ChatError, ParseError, ServerFault
from targen_async.records import ChatResult, Usage

LIMIT = 1 << 20


async def pieces_of(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def read(*pieces: bytes, limit: int = LIMIT) -> tuple[bytes, bool]:
    return asyncio.run(read_stream(pieces_of(list(pieces)), limit))


def result(*pieces: bytes) -> ChatResult:
    body, whole = read(*pieces)
    assert whole
    return decode_completion(body, "k", model="asked")


def chunk(delta: Any, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (
        b"data: " + orjson.dumps({"id": "r", "model": "m", "choices": [choice], **more}) + b"\n\n"
    )


DONE = b"data: [DONE]\n\n"
END = chunk({}, "stop")


def test_the_parts_of_an_answer_come_together() -> None:
    said = result(
        chunk({"role": "assistant", "content": None}),
        chunk({"content": "a\u00e9"}, system_fingerprint="fp"),
        chunk({"content": "\U0001f600"}),
        END,
        DONE,
    )
    assert (said.text, said.finish_reason, said.model) == ("a\u00e9\U0001f600", "stop", "m")
    assert said.usage is None


def test_thoughts_are_kept_apart() -> None:
    body, _ = read(
        chunk({"reasoning_content": "hm "}),
        chunk({"reasoning_content": "hm"}),
        chunk({"reasoning": "so"}),
        chunk({"content": "yes"}),
        END,
    )
    message = orjson.loads(body)["choices"][0]["message"]
    assert message["reasoning_content"] == "hm hm"
    assert message["reasoning"] == "so"
    assert decode_completion(body, "k").text == "yes"
    assert result(chunk({"content": "<think>x</think>"}), chunk({"content": "y"}), END).text == "y"


def test_a_refusal_comes_as_one() -> None:
    said = result(chunk({"refusal": "I "}), chunk({"refusal": "won't"}), END, DONE)
    assert (said.text, said.refusal) == ("", "I won't")


def test_content_in_parts() -> None:
    said = result(
        chunk({"content": [{"type": "thinking", "text": "hm"}]}),
        chunk({"content": [{"type": "text", "text": "a"}, "b"]}),
        chunk({"content": [{"type": "refusal", "refusal": "no"}]}),
        END,
    )
    assert (said.text, said.refusal) == ("ab", "no")


COUNTS = {"prompt_tokens": 7, "completion_tokens": 2}


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk({"content": "x"}), chunk({}, "stop", usage=COUNTS)],
        [chunk({"content": "x"}, "stop"), b'data: {"choices":[],"usage":' + orjson.dumps(COUNTS)],
        [chunk({"content": "x"}, "stop", x_groq={"usage": COUNTS})],
        [chunk({"content": "x"}, "stop", usage={"prompt_tokens": 7, "completion_tokens": 1}),
         chunk({}, None, usage=COUNTS), chunk({}, None, usage=None)],
        [b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop","usage":'
         + orjson.dumps(COUNTS) + b"}]}\n\n"],
    ],
)  # fmt: skip
def test_usage_wherever_it_stands(pieces: list[bytes]) -> None:
    pieces[-1] += b"}\n\n" if pieces[-1].startswith(b'data: {"choices":[],') else b""
    said = result(*pieces, DONE)
    assert (said.text, said.usage) == ("x", Usage(prompt_tokens=7, completion_tokens=2))


@pytest.mark.parametrize(
    "stream",
    [
        b"data:" + chunk({"content": "x"}, "stop")[6:],
        b"\xef\xbb\xbf" + chunk({"content": "x"}, "stop"),
        b"\n\n" + chunk({"content": "x"}, "stop"),
        b"event: message\nid: 1\nretry: 10\n" + chunk({"content": "x"}, "stop"),
        chunk({"content": "x"}).replace(b"\n\n", b"\n") + END.replace(b"\n\n", b"\n"),
        chunk({"content": "x"}, "stop").replace(b"\n", b"\r\n"),
        chunk({"content": "x"}, "stop").replace(b"\n", b"\r"),
        chunk({"content": "x"}, "stop").rstrip(),
        chunk({"content": "x"}, "stop") + b"data: [DONE]",
        chunk({"content": "x"}, "stop") + b"data: [DONE] \n\n" + b"data: nonsense\n\n",
        b": OPENROUTER PROCESSING\n\n" + chunk({"content": "x"}, "stop") + b": more\n\n",
        b'data: {"type":"ping"}\n\ndata:\n\n' + chunk({"content": "x"}, "stop"),
        b'data: {"choices":\ndata: [{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":\r\ndata: [{"delta":{"content":"x"},"finish_reason":"stop"}]}\r\n\r\n',
        b'data: {"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}\n\n',
    ],
)
def test_forms_of_events(stream: bytes) -> None:
    for size in (1, 2, 3, 7, 1000):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert result(*pieces).text == "x", size


def test_characters_cut_in_two() -> None:
    """A server that counts in UTF-16 sends the halves of an emoji one after the other."""
    pieces = [b'data: {"choices":[{"delta":{"content":"a\\u%s"}}]}\n\n' % half
              for half in (b"d83d", b"de00")]  # fmt: skip
    pieces[1] = pieces[1].replace(b'"a', b'"')
    assert result(*pieces, END).text == "a\U0001f600"
    assert result(pieces[0], END).text == "a\ufffd"
    assert result(chunk({"content": "x"}).replace(b"x", b"\xff"), END).text == "\ufffd"


def test_another_choice_is_not_mixed_in() -> None:
    other = chunk({"content": "no"}, "length").replace(b'"index":0', b'"index":1')
    said = result(chunk({"content": "yes"}), other, END)
    assert (said.text, said.finish_reason) == ("yes", "stop")


def test_a_first_chunk_of_azure_names_nothing() -> None:
    first = b'data: {"choices":[],"model":"","id":"","prompt_filter_results":[]}\n\n'
    assert result(first, chunk({"content": "x"}, "stop")).model == "m"


def test_done_without_a_finish_reason_is_an_answer() -> None:
    said = result(chunk({"content": "x"}), DONE)
    assert (said.text, said.finish_reason) == ("x", "unknown")


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"\n\n"],
        [b": waiting\n\n"],
        [chunk({"content": "x"})],
        [chunk({"content": "x"}), b": still\n\n"],
        [b'data: {"choices":[]}\n\n'],
        [chunk({"content": "x"}), b'data: {"choices":[{"del'],
        [chunk({"content": "x"}, "stop"), b'data: {"usage":'],
    ],
)
def test_what_ends_before_the_answer_does_is_none(pieces: list[bytes]) -> None:
    with pytest.raises(Incomplete):
        read(*pieces)


@pytest.mark.parametrize(
    "broken", [b'data: {"choices":[{"del\n\n', b"data: oops\n\n", b"data: 7\n\n",
               b'data: {"choices":["x"]}\n\n', b'data: {"half'],
)  # fmt: skip
def test_an_event_that_is_no_json_makes_the_answer_malformed(broken: bytes) -> None:
    body, _ = read(chunk({"content": "x"}), broken, END, DONE)
    assert body.startswith(b"data: ")
    with pytest.raises(ParseError) as caught:
        decode_completion(body, "k")
    assert caught.value.kind == "malformed"


@pytest.mark.parametrize(
    "said",
    [
        b'data: {"error":{"message":"Boom","code":500}}\n\n',
        b'event: error\ndata: {"error":"Boom"}\n\n',
        b'data: {"error":{"message":"Boom"},"choices":[{"delta":{},"finish_reason":"error"}]}\n\n',
        b'data: {"choices":[{"error":{"message":"Boom"},"finish_reason":"error"}]}\n\n',
    ],
)
@pytest.mark.parametrize("after", [b"", DONE])
def test_an_error_is_the_answer(said: bytes, after: bytes) -> None:
    with pytest.raises(ServerFault, match="Boom"):
        result(chunk({"content": "x"}), said, after)


@pytest.mark.parametrize("body", [b'{"choices":[]}', b" [1]", b"<html>", b"data", b"database"])
def test_a_body_that_is_no_stream_stays_as_it_is(body: bytes) -> None:
    assert read(body) == (body, True)
    assert read(*(bytes([byte]) for byte in body)) == (body, True)


def test_what_is_too_long_is_cut() -> None:
    text = chunk({"content": "y" * 100})
    body, whole = read(*[text] * 50, END, limit=1000)
    assert (body, whole) == ((text * 50)[:1000], False)
    assert read(b"{" + b"x" * 2000, limit=1000) == (b"{" + b"x" * 999, False)
    # One event without end, and a stream of nothing but comments.
    assert read(b'data: "', *[b"x" * 1000] * 20, limit=1000)[1] is False
    assert read(*[b": wait\n\n" * 100] * 200, limit=1000)[1] is False


def test_a_long_line_in_small_pieces_takes_no_time() -> None:
    line = chunk({"content": "z" * 3_000_000}, "stop")
    pieces = [line[at : at + 500] for at in range(0, len(line), 500)]
    body, _ = asyncio.run(asyncio.wait_for(read_stream(pieces_of(pieces), 4 << 20), 5))
    assert len(decode_completion(body, "k").text) == 3_000_000


def test_nothing_is_waited_for_behind_done() -> None:
    async def open_end() -> AsyncIterator[bytes]:
        yield chunk({"content": "x"}, "stop") + DONE
        await asyncio.sleep(5)
        raise ConnectionResetError

    async def torn() -> AsyncIterator[bytes]:
        yield chunk({"content": "x"}, "stop") + DONE
        raise ConnectionResetError

    async def main() -> None:
        for chunks in (open_end(), torn()):
            body, whole = await read_stream(chunks, LIMIT)
            assert whole
            assert decode_completion(body, "k").text == "x"

    asyncio.run(asyncio.wait_for(main(), 2))


@given(
    st.lists(st.text(max_size=20), max_size=8), st.integers(1, 50), st.sampled_from(["\n", "\r\n"])
)
def test_how_the_bytes_were_cut_does_not_matter(texts: list[str], size: int, end: str) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    stream = b"".join(chunk({"content": text}) for text in texts) + END + DONE
    stream = stream.replace(b"\n", end.encode())
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    body, _ = read(*pieces)
    assert body == read(stream)[0]
    assert (orjson.loads(body)["choices"][0]["message"]["content"] or "") == "".join(texts)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_assembly(data: bytes) -> None:
    for start in (b"data: ", b'data: {"choices":[{"delta":', b""):
        with suppress(Incomplete, ParseError, ChatError):
            decode_completion(read(start + data, DONE)[0], "k")
