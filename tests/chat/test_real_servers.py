"""Answers that real servers gave, byte for byte but for ids, paths and length, and what we make of
them. docs/decisions/0005-a-real-server.md tells how they were had.

`transformers serve` 5.23.0 and the server of llama-cpp-python 0.3.36, with a random Llama.
"""

import pytest

from targen_async.chat.wire import decode_completion, error_from
from targen_async.errors import ChatError, Denied, ParseError, Rejected, ServerFault
from targen_async.parse import answer_text, list_form, read
from targen_async.records import ChatResult, Usage

URL = "http://127.0.0.1:8000/v1"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
WORDS = list_form("words")


def decoded(body: bytes) -> ChatResult:
    return decode_completion(body, "k", 7, model="tiny")


def refused(status: int, kind: str, body: bytes) -> ChatError:
    return error_from(status, {"content-type": kind}, body, URL)


# ---- transformers serve

SERVE_CUT = (
    b'{"id":"3084fb30","choices":[{"finish_reason":"length","index":0,"message":{"content":'
    b'"lolabelimitimitimitplacement","role":"assistant"}}],"created":0,"model":"tiny@main",'
    b'"object":"chat.completion","usage":{"completion_tokens":16,"prompt_tokens":18,'
    b'"total_tokens":34}}'
)
SERVE_STOPPED = (
    b'{"id":"654b69f5","choices":[{"finish_reason":"stop","index":0,"message":{"content":"lolabel",'
    b'"role":"assistant"}}],"created":0,"model":"tiny@main","object":"chat.completion",'
    b'"usage":{"completion_tokens":2,"prompt_tokens":18,"total_tokens":20}}'
)
# A prompt of 12,013 tokens for a model of 4,096: served, not refused. Half characters of its
# byte-level tokens come as U+FFFD.
SERVE_OVERLONG = (
    b'{"id":"33c5d5f1","choices":[{"finish_reason":"length","index":0,"message":{"content":'
    b'" luck\xef\xbf\xbd\xef\xbf\xbd luck","role":"assistant"}}],"created":0,"model":"tiny@main",'
    b'"object":"chat.completion","usage":{"completion_tokens":16,"prompt_tokens":12013,'
    b'"total_tokens":12029}}'
)


def test_serve_ignores_a_schema_and_names_the_model_its_own_way() -> None:
    # The same bytes came for a json_schema, for a json_object and for `"n": 3`.
    result = decoded(SERVE_CUT)
    assert result == ChatResult(
        key="k",
        text="lolabelimitimitimitplacement",
        finish_reason="length",
        model="tiny@main",
        usage=Usage(prompt_tokens=18, completion_tokens=16),
        offset=7,
    )
    with pytest.raises(ParseError) as caught:
        answer_text(result)
    assert caught.value.kind == "truncated"


def test_serve_prose_where_json_was_asked_for_is_malformed() -> None:
    result = decoded(SERVE_STOPPED)
    with pytest.raises(ParseError) as caught:
        read(answer_text(result), WORDS)
    assert caught.value.kind == "malformed"


def test_serve_answers_a_prompt_longer_than_its_model() -> None:
    result = decoded(SERVE_OVERLONG)
    assert result.text == " luck\ufffd\ufffd luck"
    assert result.usage == Usage(prompt_tokens=12013, completion_tokens=16)


def test_serve_says_nothing_of_what_it_does_not_like() -> None:
    # An unknown model, no messages, a text for the temperature, max_tokens of 0 and of -3.
    error = refused(500, TEXT, b"Internal Server Error")
    assert type(error) is ServerFault
    assert str(error) == f"{URL} failed (HTTP 500): Internal Server Error"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"detail":"Unexpected fields in the request: {\'wibble\'}"}',
            "Unexpected fields in the request: {'wibble'}",
        ),
        (
            b'{"detail":[{"type":"json_invalid","loc":["body",9],"msg":"JSON decode error",'
            b'"input":{},"ctx":{"error":"Expecting value"}}]}',
            "JSON decode error",
        ),
        (
            b'{"detail":[{"type":"missing","loc":["body"],"msg":"Field required","input":null}]}',
            "Field required",
        ),
    ],
)
def test_serve_refuses_a_body_with_a_detail(body: bytes, said: str) -> None:
    error = refused(422, JSON, body)
    assert type(error) is Rejected
    assert said in str(error)


# ---- both: FastAPI's own answers


def test_a_base_url_without_v1_stops_the_run() -> None:
    error = refused(404, JSON, b'{"detail":"Not Found"}')
    assert isinstance(error, Denied)
    assert error.user_fault
    assert str(error) == f"{URL} does not know this address or model (HTTP 404): Not Found"


def test_another_method_is_refused_without_stopping_the_run() -> None:
    assert type(refused(405, JSON, b'{"detail":"Method Not Allowed"}')) is Rejected


# ---- llama-cpp-python

LLAMA_UNKNOWN_MODEL = (
    b'{"id":"chatcmpl-e1844b7f","object":"chat.completion","created":0,"model":"nobody/nothing",'
    b'"choices":[{"index":0,"message":{"content":" whEYied axis","role":"assistant"},'
    b'"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":18,'
    b'"completion_tokens":16,"total_tokens":34}}'
)
# For {"type": "json_object", "schema": …}: the grammar holds until max_tokens cuts it.
LLAMA_CUT_JSON = (
    b'{"id":"chatcmpl-a254af95","object":"chat.completion","created":0,"model":"tiny","choices":'
    b'[{"index":0,"message":{"content":"{ \\"words\\": [\\"sourceurl\xcd\xb4oughper axisFappend",'
    b'"role":"assistant"},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":18,'
    b'"completion_tokens":16,"total_tokens":34}}'
)
# max_tokens of 0 or -3, or only a max_completion_tokens, which it does not know: up to the end of
# its context, with the control characters that a model of bytes can write.
LLAMA_TO_THE_END = (
    b'{"id":"chatcmpl-5a556eb6","object":"chat.completion","created":0,"model":"tiny","choices":'
    b'[{"index":0,"message":{"content":" Instanits\\u0017 endED ?\x7fped","role":"assistant"},'
    b'"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":18,'
    b'"completion_tokens":4078,"total_tokens":4096}}'
)
LLAMA_NO_JSON_SCHEMA = (
    b"{\"error\":{\"message\":\"1 validation error:\\n  {'type': 'literal_error', 'loc': "
    b"('body', 'response_format', 'type'), 'msg': \\\"Input should be 'text' or 'json_object'\\\", "
    b"'input': 'json_schema', 'ctx': {'expected': \\\"'text' or 'json_object'\\\"}}\\n\\n  File "
    b'\\"llama_cpp/server/app.py\\", line 376, in create_chat_completion\\n    POST '
    b'/v1/chat/completions","type":"internal_server_error","param":null,"code":null}}'
)
LLAMA_TOO_LONG = (
    b'{"error":{"message":"This model\'s maximum context length is 4096 tokens. However, you '
    b"requested 12029 tokens (12013 in the messages, 16 in the completion). Please reduce the "
    b'length of the messages or completion.","type":"invalid_request_error","param":"messages",'
    b'"code":"context_length_exceeded"}}'
)


def test_llama_accepts_any_model_and_echoes_its_name() -> None:
    result = decoded(LLAMA_UNKNOWN_MODEL)
    assert (result.model, result.finish_reason) == ("nobody/nothing", "length")


def test_llama_json_that_was_cut_is_truncated_not_malformed() -> None:
    result = decoded(LLAMA_CUT_JSON)
    assert result.text.startswith('{ "words": ["sourceurl\u0374')
    with pytest.raises(ParseError) as caught:
        answer_text(result)
    assert caught.value.kind == "truncated"


def test_llama_control_characters_are_kept() -> None:
    result = decoded(LLAMA_TO_THE_END)
    assert result.text == " Instanits\x17 endED ?\x7fped"
    assert result.usage == Usage(prompt_tokens=18, completion_tokens=4078)


def test_llama_does_not_know_json_schema() -> None:
    # A 500, so nothing tells it from a fault; the probe then asks in words.
    error = refused(500, JSON, LLAMA_NO_JSON_SCHEMA)
    assert type(error) is ServerFault
    assert str(error).startswith(f"{URL} failed (HTTP 500): 1 validation error: ")
    assert "Input should be 'text' or 'json_object'" in str(error)
    assert str(error).isprintable()


def test_llama_prompt_that_is_too_long_is_this_requests_fault() -> None:
    error = refused(400, JSON, LLAMA_TOO_LONG)
    assert type(error) is Rejected
    assert "maximum context length is 4096 tokens" in str(error)


def test_llama_bad_json_is_a_fault_without_words() -> None:
    assert type(refused(500, TEXT, b"Internal Server Error")) is ServerFault
