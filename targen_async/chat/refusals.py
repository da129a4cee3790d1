"""What an endpoint says when it does not serve: bodies and headers in, errors of ours out. No I/O.

Every client translates with these, so that an endpoint's refusal reads the same whoever asked it.
"""

import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from targen_async.chat.headers import rate_limits
from targen_async.chat.mask import hide
from targen_async.errors import (
    ChatError,
    Denied,
    RateLimited,
    Rejected,
    ServerFault,
    Unavailable,
)

_MAX_SERVER_TEXT = 300
_MAX_MARKUP = 2048
_MAX_PLACE = 60
_UNAVAILABLE = frozenset({408, 502, 503, 504, 521, 522, 523, 524, 529})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_NO_KEY = frozenset({"no_db_connection"})
"""litellm's proxy, without a database, of a key that it does not know: with status 400."""
_FILTERED = frozenset({"content_filter", "content_policy_violation"})
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,200}?\b(?:does not exist|doesn't exist|(?:was |is )?not found)"
    r"|\binvalid model name\b",
    re.I | re.S,
)
_NO_UPSTREAM = re.compile(
    r"APIConnectionError|\bconnection error\b|\bcannot connect to host\b|litellm\.Timeout", re.I
)
"""Of a gateway whose server behind it is away: it says 500 for that."""
_TOO_LONG = re.compile(r"maximum context length|context (?:length|window|size)", re.I)
_TOO_LARGE = re.compile(r"\brequest too large\b", re.I)
_NO_ALLOWANCE = re.compile(
    r"(?<!remaining )\blimit:? ?0(?![0-9]|[.,][0-9])(?!\s+(?:\w+\s+)?(?:remaining|left))", re.I
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.I | re.S)
_TAG = re.compile(r"<(?:script|style).*?</(?:script|style)>|<[^>]*>", re.I | re.S)


def error_from(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    url: str,
    *,
    secrets: tuple[str, ...] = (),
    now_s: float = 0.0,
) -> ChatError:
    """The error that an answer with another status than 200 stands for.

    `headers` has lower-case names or ignores case; `now_s` is the wall clock, which a Retry-After
    date is read against. The message is one sentence and never holds one of `secrets`.
    """
    if 300 <= status < 400:
        place = clean(headers.get("location", "another address"), secrets)
        return Denied(
            f"{url} redirects to {place} (HTTP {status}): redirects are not followed, so that the "
            "key goes nowhere else; set the base URL to the final address",
            status=status,
        )
    try:
        text, codes = _read_error(load_json(body))
    except (ValueError, RecursionError):
        text, codes = _from_markup(body.decode("utf-8", "replace")), frozenset()
    error = _classify(status, codes, clean(text, secrets), url, retry_after_s(headers, now_s))
    if isinstance(error, RateLimited):
        error.rate_limits = limits = rate_limits(headers, now_s)
        if limits is not None and 0 in (limits.requests_limit, limits.tokens_limit):
            return _no_allowance(status, clean(text, secrets), url)
    return error


def error_in_answer(
    data: Mapping[str, object], url: str, secrets: tuple[str, ...] = ()
) -> ChatError:
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
    return _classify(status, codes, clean(text, secrets), url, None)


def _classify(
    status: int, codes: frozenset[str], text: str, url: str, wait_s: float | None
) -> ChatError:
    said = _said(status, text)
    if status == 402 or codes & _NO_CREDIT:
        message = f"the account at {url} has no credit left {said}"
        return Denied(message, status=status, user_fault=False)
    if status == 403:
        message = f"the API key may not use this model or this place at {url} {said}"
        return Denied(message, status=status)
    if status == 401 or codes & _NO_KEY:
        return Denied(f"{url} refused the API key {said}", status=status)
    if status == 407:
        message = f"the proxy on the way to {url} wants other credentials {said}"
        return Denied(message, status=status)
    if status == 404 or (
        status < 500 and ("model_not_found" in codes or (status == 400 and _NO_MODEL.search(text)))
    ):
        return Denied(f"{url} does not know this address or model {said}", status=status)
    if status == 429 and _NO_ALLOWANCE.search(text):
        return _no_allowance(status, text, url)
    if status == 429 and _TOO_LARGE.search(text):
        # Larger than a whole minute's tokens: no waiting helps.
        return Rejected(f"{url} will never take a request this large {said}", status=status)
    if status == 429:
        return RateLimited(
            f"{url} asks for fewer calls {said}", status=status, retry_after_s=wait_s
        )
    if status in _UNAVAILABLE or (status == 500 and _NO_UPSTREAM.search(text)):
        return Unavailable(f"{url} is not available {said}", status=status, retry_after_s=wait_s)
    if 400 <= status < 500:
        return Rejected(f"{_refused(codes, text, url)} {said}", status=status)
    return ServerFault(f"{url} failed {said}", status=status)


def _refused(codes: frozenset[str], text: str, url: str) -> str:
    """Who refused and, where it can be told, what for."""
    if "context_length_exceeded" in codes or _TOO_LONG.search(text):
        return f"the prompt and the answer do not fit into the model's context at {url}"
    if codes & _FILTERED:
        return f"the content filter at {url} refused this prompt"
    return f"{url} refused this request"


def _no_allowance(status: int, text: str, url: str) -> Denied:
    return Denied(
        f"the account at {url} may not ask this model at all: its limit is zero "
        f"{_said(status, text)}",
        status=status,
        user_fault=False,
    )


def _said(status: int, text: str) -> str:
    return f"(HTTP {status}): {text}" if text else f"(HTTP {status})"


# ---- reading


def load_json(body: bytes) -> object:
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


def _read_error(data: object) -> tuple[str, frozenset[str]]:
    """Text and codes of an error body: `error` may be an object, a string or missing."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, Mapping):
        return (data if isinstance(data, str) else ""), frozenset()
    inner = data.get("error")
    found = inner if isinstance(inner, Mapping) else data
    codes = {
        str(found[name]).lower()
        for name in ("code", "type", "status")
        if isinstance(found.get(name), str | int)
    }
    for text in (found.get("message"), inner, data.get("detail"), data.get("message")):
        if isinstance(text, str) and text.strip():
            return _with_field(text, found.get("param")), frozenset(codes)
        if isinstance(text, list) and text:
            return "; ".join(_complaint(item) for item in text), frozenset(codes)
    return json.dumps(found), frozenset(codes)


def _with_field(text: str, name: object) -> str:
    """The text, which sometimes leaves out what `param` says: the field that is not liked."""
    if isinstance(name, str) and name not in ("", "None") and name not in text:
        return f"{text} [{name}]"
    return text


def _complaint(item: object) -> str:
    """One of pydantic's complaints: where and what, without the input, which may be all we sent."""
    if isinstance(item, Mapping) and isinstance(item.get("msg"), str):
        place: Any = item.get("loc")
        parts = place if isinstance(place, list | tuple) else ()
        where = ".".join(str(part) for part in parts)[:_MAX_PLACE]
        return f"{where}: {item['msg']}" if where else str(item["msg"])
    return json.dumps(item)


def _from_markup(text: str) -> str:
    """A page's title, or its words; plain text as it is."""
    # The patterns take quadratic time on pages made to be slow, so only the start is looked at.
    text = text[:_MAX_MARKUP]
    if not text.lstrip().startswith("<"):
        return text
    title = _TITLE.search(text)
    return title.group(1) if title else _TAG.sub(" ", text)


def clean(text: str, secrets: tuple[str, ...] = ()) -> str:
    """At most 300 printable characters on one line, without keys."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(hide(plain, secrets).split())
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
