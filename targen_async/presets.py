"""Kinds of servers, as data (presets.toml), and secrets taken from the environment."""

import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from targen_async.chat.mask import header_secrets, proxy_secrets
from targen_async.chat.wire import OPENAI, Dialect
from targen_async.config import can_be_host
from targen_async.errors import UserError

API_VERSION = "OPENAI_API_VERSION"
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_REFERENCE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_SECRET_NAME = re.compile(
    r"key|token|secret|cookie|credential|bearer|jwt|pwd|pass(?:[^a-z]*)(?:word|wd|phrase)"
    # Not an author and not an authority.
    r"|auth(?!or(?!i[sz]))",
    re.I,
)


class Preset(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a kind of server; presets.toml tells what each field means."""

    name: str = ""
    base_url: str | None = None
    api_key_env: str
    client: Literal["http", "sdk"] = "http"
    api_version: str | None = None
    dialect: Dialect = OPENAI
    notes: str
    source: str
    date: str


@cache
def presets() -> Mapping[str, Preset]:
    """Every preset by its name."""
    text = files("targen_async").joinpath("presets.toml").read_text("utf-8")
    found = msgspec.convert(tomllib.loads(text), dict[str, Preset])
    return {name: replace(one, name=name) for name, one in found.items()}


def preset(name: str) -> Preset:
    """The preset of this name, Azure's version as OPENAI_API_VERSION has it. Raises UserError."""
    found = presets().get(name)
    if found is None:
        raise UserError(f"no preset {name!r}: there are {', '.join(sorted(presets()))}")
    if found.api_version is not None and os.environ.get(API_VERSION):
        return replace(found, api_version=os.environ[API_VERSION])
    return found


def headers_from(
    headers: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The headers with `$NAME` replaced by what the environment holds. Raises UserError.

    No message holds a value.
    """
    check_headers(headers)
    return {name: _from(value, f"the header {name!r}", environ) for name, value in headers.items()}


def check_headers(headers: Mapping[str, str]) -> None:
    """What carries a secret must come from the environment, as the configuration is written down:
    used or not. Raises UserError."""
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise UserError(f"{name!r} is no name of an HTTP header")
        if _REFERENCE.fullmatch(value):
            continue
        if _SECRET_NAME.search(name):
            raise UserError(
                f"the header {name!r} carries a secret, and the configuration is written down: put "
                "the value into an environment variable and give its name, like $NAME"
            )
        if value.startswith("$"):
            # Perhaps a secret that was pasted, so it is not repeated.
            raise UserError(
                f"the header {name!r} begins with `$`, and what follows is no name of an "
                "environment variable"
            )


def secrets_of(
    headers: Mapping[str, str], proxy: str | None, environ: Mapping[str, str] = os.environ
) -> set[str]:
    """What `$NAME` stands for in them, and the words of it: never to be shown or kept."""
    found = proxy_secrets(_held(proxy or "", environ))
    for value in headers.values():
        found |= header_secrets(_held(value, environ))
    return found


def proxy_from(proxy: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The proxy's URL, itself or what `$NAME` stands for. Raises UserError.

    Only one from the environment may hold credentials. No message holds the URL.
    """
    if proxy is None:
        return None
    text = _from(proxy, "`proxy`", environ).strip()
    try:
        url = urlsplit(text)
        sound = url.scheme == "http" and bool(url.hostname) and url.port != 0
    except ValueError:
        sound = False
    if not sound or url.path not in ("", "/") or url.query or url.fragment:
        raise UserError("`proxy` must be like http://host:port (or $NAME, which holds such a URL)")
    if not can_be_host(url.hostname or ""):
        raise UserError("the host in `proxy` has a name that no host can have")
    if "@" in url.netloc and not _REFERENCE.fullmatch(proxy):
        raise UserError(
            "`proxy` carries credentials, and the configuration is written down: put the URL into "
            "an environment variable and give its name, like $HTTPS_PROXY"
        )
    return text


def _from(value: str, place: str, environ: Mapping[str, str]) -> str:
    reference = _REFERENCE.fullmatch(value)
    if reference is None:
        return value
    found = _held(value, environ)
    if not found:
        name = reference[1] or reference[2]
        raise UserError(f"{place} wants the environment variable {name}, which is not set")
    return found


def _held(value: str, environ: Mapping[str, str]) -> str:
    """What the environment holds for `$NAME`; nothing for what is no reference."""
    reference = _REFERENCE.fullmatch(value)
    return environ.get(reference[1] or reference[2], "") if reference else ""
