"""What an endpoint says of its limits in the headers beside an answer. No I/O."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from targen_async.records import RateLimits

_UNITS_S: Final = {
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_PART = r"(\d+(?:\.\d*)?)(d|h|ms|us|µs|ns|m|s)"
_DURATION = re.compile(f"(?:{_PART})+", re.ASCII)
_PARTS = re.compile(_PART, re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_FIELD = re.compile(r"\b(limit|remaining|reset|r|t)\s*=\s*(\d+)", re.ASCII)
_FIELDS: Final = {
    "limit": "requests_limit",
    "remaining": "requests_remaining",
    "reset": "requests_reset_s",
    "r": "requests_remaining",
    "t": "requests_reset_s",
}
_LONGEST = 100
"""Characters of a value that are looked at; a longer one is none of ours."""
_EPOCH_S = 1e9
"""A plain number as large as this is a date in seconds, 1000 times larger one in milliseconds."""


def _names() -> dict[str, str]:
    """Header name (lower case) to the field of RateLimits that it fills."""
    names: dict[str, str] = {}
    for kind in ("requests", "tokens"):
        for part in ("limit", "remaining", "reset"):
            field = f"{kind}_{part}_s" if part == "reset" else f"{kind}_{part}"
            # OpenAI, and with it Azure, Groq, vLLM's gateways; Cerebras names the span as well.
            names[f"x-ratelimit-{part}-{kind}"] = field
            names[f"x-ratelimit-{part}-{kind}-minute"] = field
            names[f"anthropic-ratelimit-{kind}-{part}"] = field
            if kind == "requests":
                # The IETF's draft, without and with the prefix of the time before it.
                names[f"ratelimit-{part}"] = field
                names[f"x-ratelimit-{part}"] = field
            else:
                names[f"x-tokenlimit-{part}"] = field
    # litellm hands on what it was told itself under this prefix.
    return names | {f"llm_provider-{name}": field for name, field in names.items()}


_NAMES: Final = _names()


def rate_limits(headers: Mapping[str, str], now_s: float) -> RateLimits | None:
    """The limits that `headers` name, or None where they name none. Never raises.

    `now_s`: the wall clock, in seconds since 1970, against which dates are read. What cannot be
    understood is left out. OpenAI's own names win over shorter ones.
    """
    found: dict[str, float] = {}
    plain: set[str] = set()
    for name, text in headers.items():
        lower = name.lower()
        if "limit" not in lower or len(text) > _LONGEST:
            continue
        if lower == "ratelimit":
            _read_fields(text, found)
            continue
        field = _NAMES.get(lower)
        if field is None or (field in found and field not in plain):
            continue
        value = _seconds(text, now_s) if field.endswith("_s") else _amount(text)
        if value is None:
            continue
        found[field] = value
        if lower.count("-") < 3:
            plain.add(field)
    return RateLimits(**found) if found else None


def _read_fields(text: str, found: dict[str, float]) -> None:
    """The IETF's one header: `limit=10, remaining=3, reset=7` or `"default";r=3;t=7`."""
    for name, value in _FIELD.findall(text):
        found.setdefault(_FIELDS[name], float(value))


def _amount(text: str) -> float | None:
    """A count; the first of a list such as `100, 100;w=60`."""
    match = _NUMBER.match(text.strip())
    if match is None:
        return None
    value = float(match.group())
    return value if math.isfinite(value) else None


def _seconds(text: str, now_s: float) -> float | None:
    """Seconds from now: a duration such as `6m0s`, plain seconds, or a date."""
    text = text.strip()
    if _DURATION.fullmatch(text):
        value = sum(float(number) * _UNITS_S[unit] for number, unit in _PARTS.findall(text))
    elif _NUMBER.fullmatch(text):
        value = float(text)
        if value >= _EPOCH_S * 1000:
            value /= 1000
        if value >= _EPOCH_S:
            value -= now_s
    else:
        value = _until(text, now_s)
    return max(value, 0.0) if math.isfinite(value) else None


def _until(text: str, now_s: float) -> float:
    """Seconds until a date as in RFC 3339 or in HTTP; not a number where it is neither."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            when = read(text)
            if when.tzinfo is None:
                when = when.replace(tzinfo=UTC)
            return when.timestamp() - now_s
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return math.nan
