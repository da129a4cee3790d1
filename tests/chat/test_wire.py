"""What is sent, and how every kind of answer and error is understood."""

import json
from contextlib import suppress
from email.utils import formatdate

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.chat.refusals import error_from, retry_after_s
from targen_async.chat.wire import OVERSIZED, Dialect, decode_completion, encode_request
from targen_async.errors import (
    ChatError,
    Denied,
    ParseError,
    RateLimited,
    Rejected,
    ServerFault,
    Unavailable,
)
from targen_async.records import ChatResult, Message, Usage
from tests.chat.helpers import KEY, completion, request

URL = "http://h/v1"


def decoded(value: object) -> ChatResult:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode_completion(body, "k", 7, model="asked")


def with_message(**message: object) -> dict[str, object]:
    return completion(choices=[{"message": message, "finish_reason": "stop"}])


# ---- requests


def test_plain_request_sends_only_what_is_set() -> None:
    assert orjson.loads(encode_request(request())) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Write a premise."}],
        "temperature": 0.5,
        "max_tokens": 64,
        "seed": 7,
    }


def test_optional_fields_and_schema() -> None:
    schema = {"type": "object"}
    asked = request(top_p=0.9, stop=("END",), schema_name="copa-seeds", json_schema=schema)
    body = orjson.loads(encode_request(asked))
    assert (body["top_p"], body["stop"]) == (0.9, ["END"])
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "copa-seeds", "strict": True, "schema": schema},
    }


def test_dialects() -> None:
    asked = request(json_schema={"type": "object"})
    odd = Dialect(
        schema="json_object",
        max_tokens_field="max_completion_tokens",
        omit=frozenset({"seed", "temperature"}),
    )
    body = orjson.loads(encode_request(asked, odd))
    assert body["response_format"] == {"type": "json_object", "schema": {"type": "object"}}
    assert body["max_completion_tokens"] == 64
    assert not {"seed", "temperature", "max_tokens"} & set(body)
    assert "response_format" not in orjson.loads(encode_request(asked, Dialect(schema="plain")))


def test_a_system_message_may_go_into_the_users() -> None:
    system, user = Message(role="system", content="Be brief."), request().messages[0]
    asked = request(messages=(system, user))
    odd = Dialect(system="user")
    assert orjson.loads(encode_request(asked, odd))["messages"] == [
        {"role": "user", "content": "Be brief.\n\nWrite a premise."}
    ]
    assert [m["role"] for m in orjson.loads(encode_request(asked))["messages"]] == [
        "system",
        "user",
    ]
    assert len(orjson.loads(encode_request(request(), odd))["messages"]) == 1


def test_a_stream_is_asked_for_with_its_usage() -> None:
    body = orjson.loads(encode_request(request(), stream=True))
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    odd = Dialect(omit=frozenset({"stream_options"}))
    body = orjson.loads(encode_request(request(), odd, stream=True))
    assert body["stream"] is True
    assert "stream_options" not in body


# ---- answers


def test_ordinary_answer() -> None:
    assert decoded(completion()) == ChatResult(
        key="k",
        text="hello",
        finish_reason="stop",
        model="m@main",
        usage=Usage(prompt_tokens=11, completion_tokens=3),
        offset=7,
    )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ("many", None),
        ({"prompt_tokens": None, "completion_tokens": -3}, None),
        ({"prompt_tokens": True, "completion_tokens": 4}, Usage(completion_tokens=4)),
        ({"prompt_tokens": 5.0}, Usage(prompt_tokens=5)),
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, Usage(completion_tokens=1)),
    ],
)
def test_odd_usage(usage: object, expected: Usage | None) -> None:
    assert decoded(completion(usage=usage)).usage == expected


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 64}}, 64),
        ({"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 9}, 0),
        ({"prompt_tokens_details": None}, 0),
        ({"prompt_tokens_details": {"cached_tokens": None}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 1000}}, 100),
        ({"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36}, 64),
        ({"cache_read_input_tokens": 64}, 64),
        ({"cached_tokens": 64}, 64),
        ({"cached_tokens": "many"}, 0),
    ],
)
def test_prompt_tokens_that_a_cache_held(usage: dict[str, object], cached: int) -> None:
    found = decoded(completion(usage={"prompt_tokens": 100, "completion_tokens": 3, **usage})).usage
    expected = Usage(prompt_tokens=100, completion_tokens=3, cached_prompt_tokens=cached)
    assert found == expected


def test_thoughts_counted_beside_the_completion_are_paid_for_too() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 48}
    usage["completion_tokens_details"] = {"reasoning_tokens": 40}  # type: ignore[assignment]
    assert decoded(completion(usage=usage)).usage == Usage(prompt_tokens=5, completion_tokens=43)
    usage["total_tokens"] = 8
    assert decoded(completion(usage=usage)).usage == Usage(prompt_tokens=5, completion_tokens=3)


def test_what_was_thought_is_no_text() -> None:
    result = decoded(with_message(content="yes", reasoning_content="hm", reasoning="hm"))
    assert (result.text, result.refusal) == ("yes", None)
    assert decoded(with_message(content=None, reasoning_content="hm")).text == ""


def test_missing_usage_model_and_finish_reason() -> None:
    result = decoded({"choices": [{"message": {"content": "x"}, "finish_reason": None}]})
    assert (result.usage, result.model, result.finish_reason) == (None, "asked", "unknown")


def test_refusal_with_null_content() -> None:
    result = decoded(with_message(content=None, refusal="I will not."))
    assert (result.text, result.refusal) == ("", "I will not.")


def test_content_in_parts() -> None:
    parts = [
        {"type": "thinking", "text": "hm"},
        {"type": "text", "text": "a"},
        "b",
        {"type": "image_url"},
        None,
        {"type": "refusal", "refusal": "no"},
    ]
    result = decoded(with_message(content=parts))
    assert (result.text, result.refusal) == ("ab", "no")


def test_lone_surrogates_become_replacement_characters() -> None:
    body = rb'{"choices":[{"message":{"content":"a\ud800b \ud83d\ude00"},"finish_reason":"stop"}]}'
    text = decoded(body).text
    assert text == "a\ufffdb \U0001f600"
    text.encode()


def test_nan_duplicate_keys_bom_and_broken_utf8() -> None:
    body = b'\xef\xbb\xbf{"x":NaN,"choices":[],"choices":[{"message":{"content":"\xff!"}}]}'
    assert decoded(body).text == "\ufffd!"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>hm</think>\n\nyes", "yes"),
        ("  <think>a\nb</think>yes </think>", "yes </think>"),
        ("<think>never ends", "<think>never ends"),
        ("no <think>x</think>", "no <think>x</think>"),
        # The opening mark stood in the prompt.
        ("hm, so\n</think>\n\nyes", "yes"),
        ("\n</think>\n\nyes", "yes"),
        ("<think>a</think>\n<think>b</think> yes", "yes"),
        ("<thinking>a</thinking>yes", "yes"),
        ("<reasoning>a</reasoning>yes", "yes"),
        ("[THINK]a[/THINK]yes", "yes"),
        ("<think>a</think>", ""),
        ('{"a": "</think>"}', '{"a": "</think>"}'),
        ('```json\n{"a": "</think>"}\n```', '```json\n{"a": "</think>"}\n```'),
        ("<b>x</b>", "<b>x</b>"),
        (" plain ", " plain "),
    ],
)
def test_thoughts_at_the_start_are_cut(text: str, kept: str) -> None:
    assert decoded(completion(text)).text == kept


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>hi</html>",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"choices":[]}',
        b'{"choices":null}',
        b'{"choices":["x"]}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":null}]}',
        b'{"choices":[{"message":{"content":{"a":1}}}]}',
        b'{"choices":[{"message":{"conte',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"choices":' + b"1" * 5000 + b"}",
    ],
)
def test_no_completion_is_malformed(body: bytes) -> None:
    with pytest.raises(ParseError) as caught:
        decoded(body)
    assert caught.value.kind == "malformed"


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(body: bytes) -> None:
    for start in (b"", b'{"choices":[{"message":{"content":', b'{"error":'):
        with suppress(ParseError, ChatError):
            decoded(start + body)
        error_from(500, {"retry-after": body.decode("latin-1")}, start + body, URL)


def test_stored_oversized_answer_decodes_as_it_did_live() -> None:
    result = decoded(OVERSIZED + b'{"choices":[' + b"y" * 100_000)
    assert result.finish_reason == "oversized"
    assert result.text.startswith('{"choices":[yyy')
    assert result.usage is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "slow down", "code": 429}, RateLimited),
        ({"message": "slow", "type": "rate_limit_error"}, RateLimited),
        ({"message": "busy", "type": "overloaded_error"}, Unavailable),
        ({"message": "bad", "type": "invalid_request_error"}, Rejected),
        ({"message": "key", "code": "invalid_api_key"}, Denied),
        ({"message": "pay", "code": "insufficient_quota"}, Denied),
        ({"message": "upstream", "code": 502}, Unavailable),
        ("something", ServerFault),
    ],
)
def test_error_object_with_a_200(error: object, kind: type[ChatError]) -> None:
    with pytest.raises(kind):
        decoded({"error": error})
    with pytest.raises(kind):
        decoded({"choices": [{"error": error, "finish_reason": "error"}]})


# ---- errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, Denied),
        (307, Denied),
        (400, Rejected),
        (401, Denied),
        (402, Denied),
        (403, Denied),
        (404, Denied),
        (405, Rejected),
        (407, Denied),
        (408, Unavailable),
        (413, Rejected),
        (422, Rejected),
        (429, RateLimited),
        (500, ServerFault),
        (501, ServerFault),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (529, Unavailable),
        (599, ServerFault),
    ],
)
def test_status_decides(status: int, kind: type[ChatError]) -> None:
    error = error_from(status, {}, b"", URL)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"Boom","type":"x","code":null}}', "Boom"),
        (b'{"error":{"message":"Boom","code":500}}', "Boom"),
        (b'{"error":{"message":"Boom","code":"oops"}}', "Boom"),
        (b'{"error":"Boom"}', "Boom"),
        (b'{"detail":"Boom"}', "Boom"),
        (b'{"detail":[{"loc":["body"],"msg":"Boom"}]}', "Boom"),
        (b'{"object":"error","message":"Boom","code":40303}', "Boom"),
        (b'[{"error":{"message":"Boom","status":"INTERNAL"}}]', "Boom"),
        (b'"Boom"', "Boom"),
        (b"Boom", "Boom"),
        (b"<html><head><title>Boom</title></head><body>x</body></html>", "Boom"),
        (b"<h1>Boom</h1>", "Boom"),
        (b'{"error":{"reason":"Boom"}}', "Boom"),
        (b'{"error":{"message":"Boom\\ud800"}}', "Boom"),
        (b"[]", ""),
        (b"null", ""),
    ],
)
def test_every_error_shape_is_read(body: bytes, text: str) -> None:
    error = error_from(500, {}, body, URL)
    assert type(error) is ServerFault
    assert text in str(error)
    assert "<" not in str(error)


def test_no_credit_is_not_the_users_fault() -> None:
    body = b'{"error":{"message":"quota","code":"insufficient_quota"}}'
    for error in (error_from(429, {}, body, URL), error_from(402, {}, b"", URL)):
        assert isinstance(error, Denied)
        assert not error.user_fault


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"x","code":"model_not_found"}}',
        b'{"error":{"message":"The model `gpt-9` does not exist","code":null}}',
        b'{"message":"model qwen not found"}',
    ],
)
def test_unknown_model_is_denied_whatever_the_status(body: bytes) -> None:
    assert isinstance(error_from(400, {}, body, URL), Denied)


@pytest.mark.parametrize(
    ("status", "body", "kind", "start"),
    [
        (
            400,
            {"error": {"message": "too long", "code": "context_length_exceeded"}},
            Rejected,
            "the prompt and the answer do not fit into the model's context at",
        ),
        (
            400,
            {"message": "This model's maximum context length is 4096 tokens."},
            Rejected,
            "the prompt and the answer do not fit into the model's context at",
        ),
        (
            400,
            {"error": {"message": "filtered", "code": "content_filter", "param": "prompt"}},
            Rejected,
            "the content filter at",
        ),
        (
            429,
            {"error": {"message": "Request too large for m on tokens per min (TPM): Limit 9"}},
            Rejected,
            f"{URL} will never take a request this large",
        ),
        (
            429,
            {"error": {"message": "Quota exceeded for metric: x, limit: 0, model: m"}},
            Denied,
            f"the account at {URL} may not ask this model at all: its limit is zero",
        ),
        *(
            (429, {"error": {"message": text}}, RateLimited, f"{URL} asks for fewer calls")
            for text in ("limit: 0.5", "limit 06", "limit: 0 remaining", "remaining limit: 0")
        ),
        (407, {}, Denied, f"the proxy on the way to {URL} wants other credentials"),
    ],
)
def test_what_a_person_should_know_is_said_first(
    status: int, body: object, kind: type[ChatError], start: str
) -> None:
    error = error_from(status, {}, json.dumps(body).encode(), URL)
    assert type(error) is kind
    assert str(error).startswith(start)


def test_a_limit_of_zero_in_the_headers_stops_the_run() -> None:
    error = error_from(429, {"x-ratelimit-limit-tokens": "0"}, b"{}", URL)
    assert isinstance(error, Denied)
    assert not error.user_fault
    assert "its limit is zero" in str(error)


def test_the_field_that_is_not_liked_is_named() -> None:
    body = b'{"error":{"message":"Unsupported parameter.","param":"seed"}}'
    assert str(error_from(400, {}, body, URL)).endswith("Unsupported parameter. [seed]")
    body = b'{"error":{"message":"no seed","param":"seed"}}'
    assert str(error_from(400, {}, body, URL)).endswith("no seed")
    body = b'{"detail":[{"loc":["body","seed"],"msg":"Extra","input":{"a":"b"}},{"msg":"x"},"y"]}'
    assert str(error_from(422, {}, body, URL)).endswith('body.seed: Extra; x; "y"')


def test_messages_are_short_printable_and_without_the_key() -> None:
    body = f"bad\x1b[31m key {KEY}\r\n{'x' * 5000}".encode()
    for status in (302, 400, 401, 404, 429, 500, 503):
        error = error_from(status, {"location": f"http://e/?k={KEY}"}, body, URL, secrets=(KEY,))
        assert KEY not in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 500


@pytest.mark.timeout(2)
def test_pages_made_to_be_slow_are_not() -> None:
    for body in (b"<script" * 9000, b"<title>" * 9000, b"<" * 65536, b"model " * 10000):
        error_from(400, {}, b"<a>" + body, URL)


NOW_S = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": formatdate(NOW_S + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW_S - 90, usegmt=True)}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Fri, 99 Foo 2026"}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "1"}, 1.0),
        ({"llm_provider-retry-after": "7"}, 7.0),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, NOW_S) == expected


def test_retry_after_reaches_the_error() -> None:
    for status in (429, 503):
        error = error_from(status, {"retry-after": "4"}, b"", URL)
        assert isinstance(error, RateLimited | Unavailable)
        assert error.retry_after_s == 4


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<html>\n<title>Sign in</title>", "with JSON, but with: <html> <title>Sign in</title>"),
        (b"", "with JSON, but with: nothing"),
        (b"no s3cret-k3y " + b"x" * 200, "but with: no *** " + "x" * 73 + "\u2026"),
        (b'["hello"]', 'with JSON that is no object: ["hello"]'),
        (b'{"ok": true}', 'with JSON that holds no choices: {"ok": true}'),
    ],
)
def test_what_is_no_completion_is_shown_with_its_address(body: bytes, told: str) -> None:
    with pytest.raises(ParseError) as caught:
        decode_completion(body, "k", url="http://a/v1", secrets=("s3cret-k3y",))
    assert str(caught.value).startswith("http://a/v1 ")
    assert str(caught.value).endswith(told)
