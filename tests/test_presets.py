"""Kinds of servers, and secrets out of the environment: every mistake is one sentence."""

import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import targen_async
from targen_async.chat.wire import Dialect
from targen_async.errors import UserError
from targen_async.presets import headers_from, preset, presets, proxy_from

NAMES = ["azure", "llama-cpp", "ollama", "openai", "openrouter", "together", "vllm"]
SECRET = "s3cret-of-the-user"


def test_the_presets_are_data_with_source_and_date() -> None:
    path = Path(targen_async.__file__).with_name("presets.toml")
    raw = tomllib.loads(path.read_text("utf-8"))
    assert sorted(raw) == sorted(presets()) == NAMES
    for name in NAMES:
        found = preset(name)
        assert found.name == name
        assert re.fullmatch(r"[A-Z][A-Z_]*", found.api_key_env)
        assert urlsplit(found.source).scheme == "https"
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", found.date)
        assert found.notes.endswith(".")
        if found.base_url is not None:
            url = urlsplit(found.base_url)
            assert url.scheme in ("http", "https")
            assert not (url.query or url.fragment or url.username)
            local = url.hostname == "127.0.0.1"
            assert local or url.scheme == "https"


def test_no_two_presets_share_a_key() -> None:
    names = [preset(name).api_key_env for name in NAMES]
    assert len(set(names)) == len(names)


def test_where_the_probe_begins() -> None:
    assert preset("vllm").dialect == Dialect()
    assert preset("llama-cpp").dialect == Dialect(schema="json_object")
    assert preset("openai").dialect == Dialect(max_tokens_field="max_completion_tokens")


def test_azure_wants_an_address_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_VERSION", raising=False)
    azure = preset("azure")
    assert (azure.base_url, azure.client, azure.api_version) == (None, "sdk", "2024-10-21")
    monkeypatch.setenv("OPENAI_API_VERSION", "2026-01-01")
    assert preset("azure").api_version == "2026-01-01"
    assert preset("openai").api_version is None


def test_an_unknown_preset_is_one_sentence_with_the_list() -> None:
    with pytest.raises(UserError) as caught:
        preset("gpt")
    assert str(caught.value) == f"no preset 'gpt': there are {', '.join(NAMES)}"


def test_headers_take_their_secrets_from_the_environment() -> None:
    environ = {"PASS": SECRET, "TEAM": "red"}
    given = {"Authorization": "$PASS", "X-Team": "${TEAM}", "X-Title": "targen"}
    assert headers_from(given, environ) == {
        "Authorization": SECRET,
        "X-Team": "red",
        "X-Title": "targen",
    }
    assert headers_from({}, environ) == {}


@pytest.mark.parametrize("environ", [{}, {"PASS": ""}])
def test_a_variable_that_is_not_set_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        headers_from({"X-Pass": "$PASS"}, environ)
    assert str(caught.value) == (
        "the header 'X-Pass' wants the environment variable PASS, which is not set"
    )
    with pytest.raises(UserError, match="`proxy` wants the environment variable PASS, which"):
        proxy_from("$PASS", environ)


@pytest.mark.parametrize(
    "name",
    ["Authorization", "api-key", "X-API-Key", "x-auth-token", "Cookie", "Proxy-Authorization"],
)
def test_a_secret_in_the_configuration_is_refused_without_repeating_it(name: str) -> None:
    with pytest.raises(UserError) as caught:
        headers_from({name: SECRET}, {})
    assert name in str(caught.value)
    assert "$NAME" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["", "X Pass", "X:Pass", "X\r\nPass", "ü"])
def test_what_is_no_name_of_a_header_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no name of an HTTP header"):
        headers_from({name: "x"}, {})


def test_proxies() -> None:
    assert proxy_from(None, {}) is None
    assert proxy_from("http://proxy:3128", {}) == "http://proxy:3128"
    assert proxy_from("$P", {"P": f"http://me:{SECRET}@proxy:3128/"}).endswith("@proxy:3128/")  # type: ignore[union-attr]
    with pytest.raises(UserError, match="carries credentials") as caught:
        proxy_from(f"http://me:{SECRET}@proxy:3128", {})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "proxy",
    ["proxy:3128", "socks5://proxy:1080", "https://proxy", "http://", "http://p/x", "http://p:0",
     "http://p:x", "http://[", "http://p?q"],
)  # fmt: skip
def test_what_is_no_proxy_is_refused_without_repeating_it(proxy: str) -> None:
    for text, environ in ((proxy, {}), ("$P", {"P": proxy})):
        with pytest.raises(UserError, match="must be like http://host:port"):
            proxy_from(text, environ)
