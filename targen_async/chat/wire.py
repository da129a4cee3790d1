"""OpenAI's chat completions as bytes: requests out, answers and errors in. No I/O.

The replay of the journal decodes stored answers with the same functions as a live call.
"""

import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, Literal

import orjson
from msgspec import Struct

from targen_async.errors import (
    ChatError,
    Denied,
    ParseError,
    RateLimited,
    Rejected,
    ServerFault,
    Unavailable,
)
from targen_async.records import ChatRequest, ChatResult, Usage

OVERSIZED: Final = b"targen-oversized\n"
"""Put before the stored start of an answer that was longer than we read. No JSON starts so."""
_OVERSIZED_TEXT_BYTES = 16_384
_MAX_SERVER_TEXT = 300
_MAX_MARKUP = 2048
_UNAVAILABLE = frozenset({408, 502, 503, 504, 521, 522, 523, 524, 529})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,200}?\b(?:does not exist|doesn't exist|(?:was |is )?not found)", re.I | re.S
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.I | re.S)
_TAG = re.compile(r"<(?:script|style).*?</(?:script|style)>|<[^>]*>", re.I | re.S)


class Dialect(Struct, frozen=True, kw_only=True):
    """Which of the forms in use an endpoint understands."""

    schema: Literal["json_schema", "json_object", "plain"] = "json_schema"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    omit: frozenset[str] = frozenset()
    """Fields the endpoint refuses: `temperature`, `seed`, `top_p` or `stop`."""


OPENAI = Dialect()


def encode_request(request: ChatRequest, dialect: Dialect = OPENAI) -> bytes:
    """The body of the POST. `key` and `memo` stay here."""
    body: dict[str, object] = {
        "model": request.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": request.temperature,
        dialect.max_tokens_field: request.max_tokens,
        "seed": request.seed,
    }
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop"] = request.stop
    if request.json_schema is not None and dialect.schema == "json_schema":
        name = request.schema_name or "answer"
        schema = {"name": name, "strict": True, "schema": request.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.json_schema is not None and dialect.schema == "json_object":
        body["response_format"] = {"type": "json_object", "schema": request.json_schema}
    for name in dialect.omit:
        body.pop(name, None)
    return orjson.dumps(body)


def decode_completion(
    body: bytes,
    key: str,
    offset: int = -1,
    *,
    model: str = "",
    latency_s: float = 0.0,
    url: str = "the endpoint",
    secret: str | None = None,
) -> ChatResult:
    """Read the body of a 200.

    `model` stands in where the body names none; a missing finish reason is `unknown`. Raises
    ParseError (`malformed`) when the body is no chat completion, and the ChatError that an error
    object sent with a 200 stands for.
    """
    if body.startswith(OVERSIZED):
        start = body[len(OVERSIZED) :][:_OVERSIZED_TEXT_BYTES].decode("utf-8", "replace")
        return ChatResult(
            key=key,
            text=start,
            finish_reason="oversized",
            model=model,
            usage=None,
            offset=offset,
            latency_s=latency_s,
        )
    choice, data = _first_choice(body, url, secret)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ParseError("the answer's first choice holds no message")
    text, refusal = _text_of(message)
    reason = choice.get("finish_reason")
    served = data.get("model")
    return ChatResult(
        key=key,
        text=_without_thoughts(text),
        finish_reason=reason if isinstance(reason, str) and reason else "unknown",
        model=served if isinstance(served, str) and served else model,
        usage=_usage_of(data.get("usage")),
        refusal=refusal,
        offset=offset,
        latency_s=latency_s,
    )


def _first_choice(
    body: bytes, url: str, secret: str | None
) -> tuple[dict[str, object], dict[str, object]]:
    try:
        data = _load(body)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"the answer is not JSON: {_clean(str(error), secret)}") from error
    if not isinstance(data, dict):
        raise ParseError("the answer is JSON, but not an object")
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    fault = choice if isinstance(choice, dict) and choice.get("error") else data
    if fault.get("error"):
        raise _error_in_answer(fault, url, secret)
    if not isinstance(choice, dict):
        raise ParseError("the answer is JSON, but holds no choices")
    return choice, data


def _load(body: bytes) -> object:
    """JSON as servers write it. Raises ValueError or RecursionError."""
    try:
        value: object = orjson.loads(body)
    except ValueError:
        # orjson refuses NaN, lone surrogates and broken UTF-8; the standard library does not.
        value = _without_surrogates(json.loads(body.decode("utf-8-sig", "replace")))
    return value


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {
            _without_surrogates(name): _without_surrogates(item) for name, item in value.items()
        }
    return value


def _text_of(message: dict[str, object]) -> tuple[str, str | None]:
    """Text and refusal of a message, whose content may be null or a list of parts."""
    content = message.get("content")
    refusal = message.get("refusal")
    refused = refusal if isinstance(refusal, str) and refusal else None
    if content is None:
        return "", refused
    if isinstance(content, str):
        return content, refused
    if not isinstance(content, list):
        raise ParseError("the answer's content is neither text nor a list of parts")
    texts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            text, no = part.get("text"), part.get("refusal")
            if isinstance(text, str) and part.get("type") not in ("thinking", "reasoning"):
                texts.append(text)
            if isinstance(no, str) and no:
                refused = refused or no
    return "".join(texts), refused


def _without_thoughts(text: str) -> str:
    """Cut `<think>…</think>` at the start. One that never ends stays: it is all there is."""
    start = text.lstrip()
    if not start.startswith("<think>"):
        return text
    _, end, rest = start.partition("</think>")
    return rest.lstrip() if end else text


def _usage_of(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt = _count(value.get("prompt_tokens"))
    completion = _count(value.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    return Usage(prompt_tokens=prompt or 0, completion_tokens=completion or 0)


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 2**53 else None


# ---- errors


def error_from(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    url: str,
    *,
    secret: str | None = None,
    now_s: float = 0.0,
) -> ChatError:
    """The error that an answer with another status than 200 stands for.

    `headers` has lower-case names or ignores case; `now_s` is the wall clock, which a Retry-After
    date is read against. The message is one sentence and never holds `secret`.
    """
    if 300 <= status < 400:
        place = _clean(headers.get("location", "another address"), secret)
        return Denied(
            f"{url} redirects to {place} (HTTP {status}): redirects are not followed, so that the "
            "key goes nowhere else; set the base URL to the final address",
            status=status,
        )
    try:
        text, codes = _read_error(_load(body))
    except (ValueError, RecursionError):
        text, codes = _from_markup(body.decode("utf-8", "replace")), frozenset()
    return _classify(status, codes, _clean(text, secret), url, retry_after_s(headers, now_s))


def _error_in_answer(data: dict[str, object], url: str, secret: str | None) -> ChatError:
    """An error sent with a 200: its own code, where it is a status, decides."""
    text, codes = _read_error(data)
    status = next((int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)), 0)
    if not status:
        if any("rate_limit" in code for code in codes):
            status = 429
        elif any("overloaded" in code for code in codes):
            status = 503
        elif "invalid_request_error" in codes:
            status = 400
        elif "authentication_error" in codes or "invalid_api_key" in codes:
            status = 401
        else:
            status = 500
    return _classify(status, codes, _clean(text, secret), url, None)


def _classify(
    status: int, codes: frozenset[str], text: str, url: str, wait_s: float | None
) -> ChatError:
    said = f"(HTTP {status}): {text}" if text else f"(HTTP {status})"
    if status == 402 or codes & _NO_CREDIT:
        message = f"the account at {url} has no credit left {said}"
        return Denied(message, status=status, user_fault=False)
    if status in (401, 403):
        return Denied(f"{url} refused the API key {said}", status=status)
    if status == 404 or (
        status < 500 and ("model_not_found" in codes or (status == 400 and _NO_MODEL.search(text)))
    ):
        return Denied(f"{url} does not know this address or model {said}", status=status)
    if status == 429:
        return RateLimited(
            f"{url} asks for fewer calls {said}", status=status, retry_after_s=wait_s
        )
    if status in _UNAVAILABLE:
        return Unavailable(f"{url} is not available {said}", status=status, retry_after_s=wait_s)
    if 400 <= status < 500:
        return Rejected(f"{url} refused this request {said}", status=status)
    return ServerFault(f"{url} failed {said}", status=status)


def _read_error(data: object) -> tuple[str, frozenset[str]]:
    """Text and codes of an error body: `error` may be an object, a string or missing."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return (data if isinstance(data, str) else ""), frozenset()
    inner = data.get("error")
    found = inner if isinstance(inner, dict) else data
    codes = {
        str(found[name]).lower()
        for name in ("code", "type", "status")
        if isinstance(found.get(name), str | int)
    }
    for text in (found.get("message"), inner, data.get("detail"), data.get("message")):
        if isinstance(text, str) and text.strip():
            return text, frozenset(codes)
        if isinstance(text, list) and text:
            return json.dumps(text), frozenset(codes)
    return json.dumps(found), frozenset(codes)


def _from_markup(text: str) -> str:
    """A page's title, or its words; plain text as it is."""
    # The patterns take quadratic time on pages made to be slow, so only the start is looked at.
    text = text[:_MAX_MARKUP]
    if not text.lstrip().startswith("<"):
        return text
    title = _TITLE.search(text)
    return title.group(1) if title else _TAG.sub(" ", text)


def _clean(text: str, secret: str | None) -> str:
    """At most 300 printable characters on one line, without the API key."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    if secret:
        plain = plain.replace(secret, "***")
    line = " ".join(plain.split())
    return line if len(line) <= _MAX_SERVER_TEXT else line[: _MAX_SERVER_TEXT - 1] + "…"


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds the server asks us to wait; None where it says nothing that can be understood."""
    for name, unit_s in (
        ("retry-after-ms", 0.001),
        ("retry-after", 1.0),
        ("llm_provider-retry-after", 1.0),
    ):
        value = headers.get(name)
        if value is None:
            continue
        try:
            wait_s = float(value) * unit_s
        except ValueError:
            wait_s = _seconds_until(value, now_s)
        if math.isfinite(wait_s) and wait_s >= 0:
            return wait_s
    return None


def _seconds_until(http_date: str, now_s: float) -> float:
    try:
        return parsedate_to_datetime(http_date).timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return math.nan
