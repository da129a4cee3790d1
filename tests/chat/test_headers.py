"""Rate limit headers as servers write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.chat.headers import rate_limits
from targen_async.records import RateLimits

NOW_S = 1_790_000_000.0


def test_openais_six_headers() -> None:
    said = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-reset-tokens": "6m0s",
        "content-type": "application/json",
    }
    assert rate_limits(said, NOW_S) == RateLimits(
        requests_limit=60,
        requests_remaining=59,
        requests_reset_s=1,
        tokens_limit=150_000,
        tokens_remaining=149_984,
        tokens_reset_s=360,
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1h2m", 3720),
        ("2m59.56s", 179.56),
        ("1d", 86400),
        ("7.66s", 7.66),
        ("12", 12),
        ("0.5", 0.5),
        ("0", 0),
        (str(int(NOW_S) + 30), 30),
        (str((int(NOW_S) + 30) * 1000), 30),
        (str(int(NOW_S) - 30), 0),
        ("2026-09-21T14:13:50Z", 30),
        ("2026-09-21T14:13:50+00:00", 30),
        ("Mon, 21 Sep 2026 14:13:50 GMT", 30),
        ("soon", None),
        ("", None),
        ("-3", None),
        ("nan", None),
        ("1s of fun", None),
        ("9" * 90 + "s", 1e90),
        ("1e400", None),
    ],
)
def test_resets(text: str, seconds: float | None) -> None:
    said = rate_limits({"X-RateLimit-Reset-Tokens": text}, NOW_S)
    if seconds is None:
        assert said is None
    else:
        assert said is not None
        assert said.tokens_reset_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    "said",
    [
        {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "7", "RateLimit-Reset": "9"},
        {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "9"},
        {"RateLimit": "limit=100, remaining=7, reset=9"},
        {
            "anthropic-ratelimit-requests-limit": "100",
            "anthropic-ratelimit-requests-remaining": "7",
            "anthropic-ratelimit-requests-reset": "2026-09-21T14:13:29Z",
        },
        {
            "llm_provider-x-ratelimit-limit-requests": "100",
            "llm_provider-x-ratelimit-remaining-requests": "7",
            "llm_provider-x-ratelimit-reset-requests": "9s",
        },
    ],
)
def test_other_names_for_the_same(said: dict[str, str]) -> None:
    assert rate_limits(said, NOW_S) == RateLimits(
        requests_limit=100, requests_remaining=7, requests_reset_s=9
    )


def test_the_newest_draft_of_the_ietf() -> None:
    said = rate_limits({"RateLimit": '"default";r=50;t=30'}, NOW_S)
    assert said == RateLimits(requests_remaining=50, requests_reset_s=30)


@pytest.mark.parametrize("turned", [False, True])
def test_the_exact_name_wins_over_the_short_one(turned: bool) -> None:
    said = [("x-ratelimit-limit-requests", "60"), ("x-ratelimit-limit", "1000")]
    assert rate_limits(dict(reversed(said) if turned else said), NOW_S) == RateLimits(
        requests_limit=60
    )


def test_nothing_said() -> None:
    assert rate_limits({"Content-Type": "text/html"}, NOW_S) is None


NAMES = st.sampled_from(
    [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "X-RateLimit-Reset",
        "RateLimit",
        "anthropic-ratelimit-tokens-reset",
    ]
)
VALUES = st.one_of(
    st.text(max_size=120),
    st.text("0123456789.,dhmsuµn=;rt-+eTZ: ", max_size=40),
    st.floats().map(str),
    st.datetimes().map(str),
    st.integers().map(str),
    st.integers(-(10**9), 10**9).map(lambda year: f"Mon, 21 Sep {year} 14:13:50 GMT"),
)


@given(st.dictionaries(NAMES, VALUES), st.floats(allow_nan=False, allow_infinity=False))
def test_garbage_is_ignored_and_never_raises(said: dict[str, str], now_s: float) -> None:
    found = rate_limits(said, now_s)
    for name in RateLimits.__struct_fields__ if found else ():
        value = getattr(found, name)
        assert value is None or 0 <= value < float("inf")
