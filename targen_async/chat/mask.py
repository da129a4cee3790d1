"""Secrets out of what servers say: in sentences, and in answers before they are written down. Pure.

Servers and gateways repeat what they were sent, and models what they were told.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from urllib.parse import unquote

LEAST = 4
"""Characters of a secret that is looked for inside of words; a shorter one is a word of its own."""
_LONGEST_WORD = 11
_SCHEMES = frozenset({"apikey", "basic", "bearer", "digest", "token"})
_ESCAPED = re.compile(r"[\"&'+<>\\`]")


def header_secrets(value: str) -> set[str]:
    """A header's value, and what may be repeated of it: its words, and what is behind a `=`."""
    words = {word for word in re.split(r"[\s,;]+", value) if word.lower() not in _SCHEMES}
    words |= {word.partition("=")[2] for word in words}
    return {word for word in words if len(word) >= LEAST} | ({value.strip()} - {""})


def proxy_secrets(proxy: str | None) -> set[str]:
    """What a proxy's address holds of credentials, as it stands there and as it is sent."""
    if not proxy or "@" not in proxy:
        return set()
    both = proxy.partition("//")[2].rpartition("@")[0]
    user, _, password = both.partition(":")
    sent = f"{unquote(user)}:{unquote(password)}"
    found = {both, password or user, unquote(password or user), sent}
    return (found | {b64encode(sent.encode()).decode()}) - {"", ":"}


def longest_first(secrets: Iterable[str]) -> tuple[str, ...]:
    """The order to hide them in, as one may be a part of another."""
    return tuple(sorted(set(secrets) - {""}, key=lambda secret: (-len(secret), secret)))


def hide(text: str, secrets: Iterable[str], mark: str = "***") -> str:
    """The text without `secrets`, which come as `longest_first` has them."""
    for secret in secrets:
        if len(secret) >= LEAST:
            text = text.replace(secret, mark)
        elif secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", mark, text)
    return text


def forms(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """How secrets stand in the bytes of an answer, the longest first.

    One that looks like a word or a number (EMPTY, none, 2026) is not among them: it is what people
    give where no key is wanted, and would be torn out of the model's texts.
    """
    found: set[str] = set()
    for secret in secrets:
        letters = sum(map(str.isalpha, secret))
        if len(secret) < LEAST or (len(secret) <= _LONGEST_WORD and letters in (0, len(secret))):
            continue
        quoted = json.dumps(secret)[1:-1]
        found |= {secret, quoted, quoted.replace("/", "\\/")}
        # Some servers write more characters as escapes than they must.
        found.add(_ESCAPED.sub(lambda sign: f"\\u{ord(sign[0]):04x}", secret))
        found.add(_ESCAPED.sub(lambda sign: f"\\u{ord(sign[0]):04X}", secret))
    return tuple(form.encode() for form in longest_first(found))


def mask(body: bytes, secret_forms: tuple[bytes, ...], *, whole: bool = True) -> bytes:
    """The body of an answer, or the start of one, without what `forms` tells of."""
    for form in secret_forms:
        if form in body:
            body = body.replace(form, b"***")
        if not whole:
            sizes = range(len(form) - 1, LEAST - 1, -1)
            cut = next((size for size in sizes if body.endswith(form[:size])), 0)
            body = body[:-cut] + b"***" if cut else body
    return body
