"""Answers that real servers gave, byte for byte but for ids, paths and length, and what we make of
them. docs/endpoints.md tells of the servers, docs/decisions/0005-a-real-server.md of the first two.

`transformers serve` 5.23.0 and the server of llama-cpp-python 0.3.36, with a random Llama; aimock
1.43.0, mock-llm 0.1.29 and the proxy of litellm 1.106.2.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from targen_async.chat.headers import rate_limits
from targen_async.chat.refusals import error_from
from targen_async.chat.stream import Incomplete, read_stream
from targen_async.chat.wire import decode_completion
from targen_async.errors import (
    ChatError,
    Denied,
    ParseError,
    RateLimited,
    Rejected,
    ServerFault,
    Unavailable,
)
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


def streamed(stream: bytes, size: int = 100) -> ChatResult:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(stream), size):
            yield stream[at : at + size]

    body, whole = asyncio.run(read_stream(pieces(), 1 << 20))
    assert whole
    return decoded(body)


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


# No [DONE]; the usage stands in the last delta, whatever `stream_options` say.
SERVE_STREAM = (
    b'data: {"id":"2318d734","choices":[{"delta":{"role":"assistant"},"index":0}],"created":0,'
    b'"model":"tiny@main","object":"chat.completion.chunk","system_fingerprint":""}\n\n'
    b'data: {"id":"2318d734","choices":[{"delta":{"content":"ough"},"index":0}],"created":0,'
    b'"model":"tiny@main","object":"chat.completion.chunk","system_fingerprint":""}\n\n'
    b'data: {"id":"2318d734","choices":[{"delta":{"content":"ough"},"index":0}],"created":0,'
    b'"model":"tiny@main","object":"chat.completion.chunk","system_fingerprint":""}\n\n'
    b'data: {"id":"2318d734","choices":[{"delta":{},"index":0,"finish_reason":"length"}],'
    b'"created":0,"model":"tiny@main","object":"chat.completion.chunk","system_fingerprint":"",'
    b'"usage":{"completion_tokens":2,"prompt_tokens":17,"total_tokens":19}}\n\n'
)


def test_serve_streams_without_done() -> None:
    result = streamed(SERVE_STREAM)
    assert (result.text, result.finish_reason) == ("oughough", "length")
    assert result.usage == Usage(prompt_tokens=17, completion_tokens=2)


def test_a_stream_of_serve_that_was_cut_is_no_answer() -> None:
    for size in range(0, len(SERVE_STREAM) - 2, 7):
        with pytest.raises(Incomplete):
            streamed(SERVE_STREAM[:size])


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


# Usage is nowhere, though `stream_options` asked for it.
LLAMA_STREAM = (
    b'data: {"id": "chatcmpl-26375637", "model": "tiny", "created": 0, "object": '
    b'"chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant"}, '
    b'"logprobs": null, "finish_reason": null}]}\n\n'
    b'data: {"id": "chatcmpl-26375637", "model": "tiny", "created": 0, "object": '
    b'"chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": " whEY"}, '
    b'"logprobs": null, "finish_reason": null}]}\n\n'
    b'data: {"id": "chatcmpl-26375637", "model": "tiny", "created": 0, "object": '
    b'"chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "logprobs": null, '
    b'"finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
)


def test_llama_streams_without_usage() -> None:
    result = streamed(LLAMA_STREAM)
    assert (result.text, result.finish_reason, result.usage) == (" whEY", "length", None)


def test_llama_streams_nothing_for_a_prompt_that_is_too_long() -> None:
    # 200, text/event-stream, chunked, and an end as it should be: what it ran into is in its log.
    with pytest.raises(Incomplete) as caught:
        streamed(b"")
    assert caught.value.empty


# A call that came in while this one was under way: `interrupt_requests`, which is on by default,
# breaks off every stream but the newest. [DONE] all the same, and an end as HTTP wants it.
LLAMA_INTERRUPTED = (
    b'data: {"id": "chatcmpl-76efc0e6", "model": "tiny", "created": 0, "object": '
    b'"chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant"}, '
    b'"logprobs": null, "finish_reason": null}]}\n\ndata: [DONE]\n\n'
)
# max_tokens was 1,024.
LLAMA_ONE_TOO_MANY = (
    b'{"id":"chatcmpl-5e64bbd7","object":"chat.completion","created":0,"model":"tiny","choices":'
    b'[{"index":0,"message":{"content":"{\\"contexts\\": [\\". asyncio serC","role":"assistant"},'
    b'"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":403,'
    b'"completion_tokens":1025,"total_tokens":1428}}'
)


def test_llama_says_done_where_it_broke_off() -> None:
    # Taken for an empty answer, it would use up the question's three tries.
    with pytest.raises(Incomplete) as caught:
        streamed(LLAMA_INTERRUPTED)
    assert not caught.value.empty


def test_llama_may_write_one_token_more_than_it_was_allowed() -> None:
    result = decoded(LLAMA_ONE_TOO_MANY)
    assert result.finish_reason == "length"
    assert result.usage == Usage(prompt_tokens=403, completion_tokens=1025)


def test_llama_refuses_a_wrong_key_where_it_was_given_one() -> None:
    error = refused(401, JSON, b'{"detail":"Invalid API key"}')
    assert isinstance(error, Denied)
    assert str(error) == f"{URL} refused the API key (HTTP 401): Invalid API key"


# ---- aimock

# It counts in UTF-16 and cuts an emoji in two.
AIMOCK_STREAM = (
    b'data: {"id":"chatcmpl-FMYLP","object":"chat.completion.chunk","created":0,"model":"gpt-4o",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-FMYLP","object":"chat.completion.chunk","created":0,"model":"gpt-4o",'
    b'"choices":[{"index":0,"delta":{"content":"{\\"words\\": [\\"Hello \\ud83d"},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-FMYLP","object":"chat.completion.chunk","created":0,"model":"gpt-4o",'
    b'"choices":[{"index":0,"delta":{"content":"\\ude00 caf\xc3\xa9\\"]}"},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-FMYLP","object":"chat.completion.chunk","created":0,"model":"gpt-4o",'
    b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-FMYLP","object":"chat.completion.chunk","created":0,"model":"gpt-4o",'
    b'"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":15,"total_tokens":18}}\n\n'
    b"data: [DONE]\n\n"
)
AIMOCK_THOUGHT = (
    b'{"id":"chatcmpl-3OkxGe6i","object":"chat.completion","created":0,"model":"gpt-4o","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"{\\"words\\": [\\"x\\"]}",'
    b'"refusal":null,"reasoning_content":"hm hm"},"logprobs":null,"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":2,"completion_tokens":4,"total_tokens":6}}'
)


def test_aimock_cuts_characters_in_two() -> None:
    for size in (1, 7, 100, 10_000):
        result = streamed(AIMOCK_STREAM, size)
        assert read(answer_text(result), WORDS).words == ["Hello \U0001f600 caf\u00e9"]
        assert result.usage == Usage(prompt_tokens=3, completion_tokens=15)


def test_aimock_thinks_beside_the_answer() -> None:
    assert decoded(AIMOCK_THOUGHT).text == '{"words": ["x"]}'


def test_aimock_gives_nonsense_as_json() -> None:
    with pytest.raises(ParseError) as caught:
        decoded(b"{malformed json: <<<chaos>>>")
    assert caught.value.kind == "malformed"


def test_aimock_limits_with_every_header() -> None:
    headers = {
        "retry-after": "1",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    body = b'{"error":{"message":"Chaos: rate limit exceeded","type":"rate_limit_error"}}'
    error = error_from(429, headers, body, URL)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 1
    assert error.rate_limits == rate_limits(headers, 0.0)
    assert error.rate_limits is not None
    assert error.rate_limits.tokens_reset_s == 360


# ---- mock-llm

MOCK_ECHO = (
    b'{"id":"chatcmpl-1795444178425","object":"chat.completion","model":"gpt-4o","choices":'
    b'[{"message":{"role":"assistant","content":"Greet me."},"finish_reason":"stop"}]}'
)


def test_mock_llm_counts_nothing() -> None:
    result = decoded(MOCK_ECHO)
    assert (result.text, result.usage) == ("Greet me.", None)


def test_mock_llm_fails_over_a_quotation_mark_in_the_prompt() -> None:
    body = (
        b'{"error":"SyntaxError","message":"Expected \',\' or \'}\' after property value in JSON '
        b'at position 166","status":500}'
    )
    error = refused(500, JSON, body)
    assert type(error) is ServerFault


def test_mock_llm_has_no_page_without_v1() -> None:
    body = b'{"error":"Not Found","message":"Cannot POST /chat/completions","status":404}'
    assert isinstance(refused(404, JSON, body), Denied)


# ---- litellm's proxy

LITELLM_REFUSAL = (
    b'{"id":"chatcmpl-3","created":0,"model":"sim","object":"chat.completion","choices":'
    b'[{"finish_reason":"stop","index":0,"message":{"role":"assistant","provider_specific_fields":'
    b'{"refusal":"I am unable to produce that."},"content":null},"provider_specific_fields":{}}],'
    b'"usage":{"completion_tokens":14,"prompt_tokens":315,"total_tokens":329,'
    b'"prompt_tokens_details":{"cached_tokens":128}}}'
)
# Usage in an event that has a choice, behind the one with the finish reason.
LITELLM_STREAM = (
    b'data: {"id":"chatcmpl-3403","object":"chat.completion.chunk","created":0,"model":"mock",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"}}]}\n\n'
    b'data: {"id":"chatcmpl-3403","object":"chat.completion.chunk","created":0,"model":"mock",'
    b'"choices":[{"index":0,"delta":{"content":"lo."}}]}\n\n'
    b'data: {"id":"chatcmpl-3403","object":"chat.completion.chunk","created":0,"model":"mock",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-3403","created":0,"model":"mock","object":"chat.completion.chunk",'
    b'"choices":[{"index":0,"delta":{}}],"usage":{"completion_tokens":6,"prompt_tokens":11,'
    b'"total_tokens":17,"completion_tokens_details":{"reasoning_tokens":0,"text_tokens":6}}}\n\n'
    b"data: [DONE]\n\n"
)


def litellm(status: int, message: str, kind: str) -> ChatError:
    """Its errors end alike, and `code` is the status as text."""
    more = "LiteLLM: model group 'm' failed with the error above. No fallback was attempted."
    error = f'"message":"{message}\\n\\n{more}","type":{kind},"param":null,"code":"{status}"'
    return refused(status, JSON, f'{{"error":{{{error}}}}}'.encode())


def test_litellm_keeps_refusals_in_a_table_of_its_own() -> None:
    result = decoded(LITELLM_REFUSAL)
    assert (result.text, result.refusal) == ("", "I am unable to produce that.")
    expected = Usage(prompt_tokens=315, completion_tokens=14, cached_prompt_tokens=128)
    assert result.usage == expected


def test_litellm_streams_usage_behind_the_end() -> None:
    result = streamed(LITELLM_STREAM)
    assert (result.text, result.finish_reason, result.model) == ("Hello.", "stop", "mock")
    assert result.usage == Usage(prompt_tokens=11, completion_tokens=6)


def test_litellm_says_500_when_the_server_behind_it_is_away() -> None:
    # Were it a fault of the request, a row would be lost to each outage.
    for said, kind in (
        (
            "litellm.InternalServerError: InternalServerError: OpenAIException - Connection error.",
            '"internal_server_error"',
        ),
        (
            "litellm.APIConnectionError: OllamaException - Cannot connect to host REDACTED:9 "
            "[Connect call failed ('REDACTED', 9)]",
            '"internal_server_error"',
        ),
        (
            "litellm.APIConnectionError: APIConnectionError: OpenAIException - Response payload is "
            "not completed: <TransferEncodingError: 400>",
            "null",
        ),
    ):
        assert type(litellm(500, said, kind)) is Unavailable
    assert type(litellm(500, "litellm.InternalServerError: boom", "null")) is ServerFault


def test_litellm_does_not_know_a_model() -> None:
    said = "/chat/completions: Invalid model name passed in model=nobody/nothing."
    assert isinstance(litellm(400, said, '"invalid_request_error"'), Denied)


def test_litellm_without_a_database_tells_nothing_of_a_wrong_key() -> None:
    body = (
        b'{"error":{"message":"No connected db.","type":"no_db_connection","param":null,'
        b'"code":"400"}}'
    )
    error = refused(400, JSON, body)
    assert isinstance(error, Denied)
    assert "refused the API key" in str(error)


def test_litellm_names_the_field_that_a_provider_lacks() -> None:
    said = (
        "litellm.UnsupportedParamsError: anthropic does not support parameters: ['seed'], for "
        "model=claude-3-haiku-20240307. To drop these, set `litellm.drop_params=True` or for proxy:"
    )
    error = litellm(400, said, '"invalid_request_error"')
    assert type(error) is Rejected
    assert "['seed']" in str(error)


def test_litellm_limits_without_a_word_of_when() -> None:
    error = litellm(429, "litellm.RateLimitError: a mock error", '"throttling_error"')
    assert isinstance(error, RateLimited)
    assert error.retry_after_s is None
