"""Secrets are taken out of what servers say, and nothing else is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.chat.mask import (
    forms,
    header_secrets,
    hide,
    longest_first,
    mask,
    proxy_secrets,
)
from tests.chat.helpers import answer_bytes

SECRETS = st.text('abYZ09-_./+="\\<&', min_size=4, max_size=20)


def masked(body: bytes, *secrets: str) -> bytes:
    return mask(body, forms(secrets))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("tok12", {"tok12"}),
        ("red", {"red"}),
        ("Bearer tok12", {"Bearer tok12", "tok12"}),
        ("session=abc12; Path=/x", {"session=abc12; Path=/x", "session=abc12", "abc12", "Path=/x"}),
        ("", set()),
    ],
)
def test_what_may_be_repeated_of_a_header(value: str, expected: set[str]) -> None:
    assert header_secrets(value) == expected


def test_what_may_be_repeated_of_a_proxys_address() -> None:
    assert proxy_secrets("http://me:pw12@h:1") == {"me:pw12", "pw12", "bWU6cHcxMg=="}
    assert proxy_secrets("http://tok12@h") == {"tok12", "tok12:", "dG9rMTI6"}
    for plain in (None, "", "http://h:1", "http://@h"):
        assert not proxy_secrets(plain) - {"Og=="}


def test_a_short_secret_is_hidden_as_a_word_and_a_long_one_anywhere() -> None:
    secrets = longest_first(["7x", "tok12", "tok12-more", ""])
    assert secrets == ("tok12-more", "tok12", "7x")
    said = hide("7x, x7x and 'tok12-more' or atok12", secrets)
    assert said == "***, x7x and '***' or a***"


@given(SECRETS, st.text(max_size=50), st.booleans())
def test_a_secret_in_an_answer_is_found_however_json_writes_it(
    secret: str, text: str, slashes: bool
) -> None:
    if not any(map(str.isalpha, secret)) or secret.isalpha():
        return
    body = answer_bytes(f"{text} {secret} {text}")
    body = body.replace(b"/", b"\\/") if slashes else body
    content = json.loads(masked(body, secret))["choices"][0]["message"]["content"]
    assert secret not in content or secret in text


@pytest.mark.parametrize("escape", ["\\u002b", "\\u002B"])
def test_needless_escapes_are_seen_through(escape: str) -> None:
    body = b'{"x":"ab' + escape.encode() + b'12=="}'
    assert masked(body, "ab+12==") == b'{"x":"***"}'


@pytest.mark.parametrize("secret", ["EMPTY", "none", "null", "role", "11", "2026", "1.25", "x", ""])
def test_a_word_or_a_number_is_left_in_answers(secret: str) -> None:
    """It is given where no key is wanted; without it answers could not be read."""
    body = answer_bytes(f"The room was EMPTY, none in 2026, null, role, x: {secret}")
    assert masked(body, secret) is body


def test_a_long_word_is_no_word() -> None:
    assert masked(b'"my correcthorsebattery"', "correcthorsebattery") == b'"my ***"'


def test_an_answer_without_secrets_is_the_same_object() -> None:
    body = answer_bytes("x" * 100_000)
    assert masked(body, "sk-secret-0123456789", "tok12") is body
