"""Kinds of servers, and secrets out of the environment: every mistake is one sentence."""

import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import targen_async
from targen_async.chat.wire import Dialect
from targen_async.config import load
from targen_async.errors import UserError
from targen_async.presets import headers_from, preset, presets, proxy_from, secrets_of

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
    ["Authorization", "api-key", "X-API-Key", "x-auth-token", "Cookie", "Proxy-Authorization",
     "apikey", "X-ApiKey", "X-Auth", "Auth", "X-Auth-2", "Ocp-Apim-Subscription-Key", "X-Key-Id",
     "XToken", "X_TOKEN_1", "Client-Secret", "X-Secrets", "Pass-Word", "X-Password", "x.passwd",
     "Set-Cookie2", "X-Credential", "X-Amz-Credentials", "X-Goog-Iap-Jwt-Assertion"],
)  # fmt: skip
def test_a_secret_in_the_configuration_is_refused_without_repeating_it(name: str) -> None:
    with pytest.raises(UserError) as caught:
        headers_from({name: SECRET}, {})
    assert name in str(caught.value)
    assert "$NAME" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["Content-Type", "X-Request-Source", "HTTP-Referer", "X-Title", "OpenAI-Organization",
     "OpenAI-Project", "api-version", "User-Agent", "X-Author", "X-Authority", "X-Passage",
     "X-Team", "Accept", "X-Stainless-Lang"],
)  # fmt: skip
def test_what_carries_no_secret_may_stand_in_the_configuration(name: str) -> None:
    assert headers_from({name: "plain"}, {}) == {name: "plain"}


@pytest.mark.parametrize("value", ["$PASS", "${PASS}"])
def test_a_secret_may_be_named_either_way(value: str) -> None:
    assert headers_from({"apikey": value}, {"PASS": SECRET}) == {"apikey": SECRET}


@pytest.mark.parametrize(
    "value", ["$3cret!of-the-user", "$", "${PASS", "$PASS}", "Bearer $PASS", "$PA-SS", "$PASS "]
)
def test_what_only_looks_like_a_variable_is_refused_without_repeating_it(value: str) -> None:
    """A password may begin with a dollar sign."""
    environ = {"PASS": SECRET, "PASS ": SECRET}
    with pytest.raises(UserError, match="carries a secret") as caught:
        headers_from({"X-Auth": value}, environ)
    assert value.strip("$") == "" or value not in str(caught.value)
    if value.startswith("$"):
        with pytest.raises(UserError, match="what follows is no name of an environment") as caught:
            headers_from({"X-Team": value}, environ)
        assert value.strip("$") == "" or value not in str(caught.value)


def test_what_comes_from_the_environment_is_known_to_be_secret() -> None:
    environ = {"PASS": f"Bearer {SECRET}", "TEAM": "red", "P": "http://me:p%40ss@proxy:3128"}
    headers = {"Authorization": "${PASS}", "X-Team": "$TEAM", "X-Title": "a title", "X-No": "$NO"}
    assert secrets_of(headers, "$P", environ) == {
        f"Bearer {SECRET}",
        SECRET,
        "red",
        "me:p%40ss",
        "p%40ss",
        "p@ss",
        "me:p@ss",
        "bWU6cEBzcw==",
    }
    assert secrets_of({"X-Title": "a title"}, "http://proxy:3128", environ) == set()
    assert secrets_of({}, None, environ) == set()


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


NO_HOSTS = ["a..b", ".a", "..", "a" * 64, f"x.{'b' * 64}.com", ".".join(["c" * 60] * 5), "a b",
            "a%b", "*", "{host}", "ü" * 70]  # fmt: skip
HOSTS = ["models", "models.example.org", "models.example.org.", "a_b", "127.0.0.1", "[::1]",
         "[fe80::1%eth0]", "bücher.example", "xn--bcher-kva.example", "a" * 63]  # fmt: skip


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_host_that_cannot_be_is_one_sentence(host: str) -> None:
    for text, environ in ((f"http://{host}:80", {}), ("$P", {"P": f"http://{host}:80"})):
        with pytest.raises(UserError) as caught:
            proxy_from(text, environ)
        assert str(caught.value) == "the host in `proxy` has a name that no host can have"
    for place in ("delivery", "delivery.judge", "delivery.fallback"):
        with pytest.raises(UserError) as caught:
            load(None, {"data.task": "copa", f"{place}.base_url": f"https://{host}/v1"})
        assert str(caught.value) == (
            f"the command line: the host in `{place}.base_url` has a name that no host can have: "
            f"{host!r}"
        )


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_may_be_is_left_to_the_network(host: str) -> None:
    assert proxy_from(f"http://{host}:80", {}) == f"http://{host}:80"
    load(None, {"data.task": "copa", "delivery.base_url": f"http://{host}:8000/v1"})
