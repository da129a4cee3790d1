"""What SdkChat does beyond the contract: how it signs in, and what it says when it cannot."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from aiohttp import web

from targen_async.chat.sdk import SdkChat
from targen_async.errors import Denied, UserError
from tests.chat.helpers import KEY, Notes, answer_bytes, constant, request, serving

TOKEN = "t0ken-of-entra-123456"


def sdk(url: str, key: str | None = KEY, **changes: Any) -> SdkChat:
    options: dict[str, Any] = {
        "recorder": None,
        "connect_timeout_s": 5.0,
        "read_timeout_s": 5.0,
        "total_timeout_s": 10.0,
        "max_in_flight": 8,
    }
    return SdkChat(url, key, **{**options, **changes})


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def asked_by(base: str, **options: Any) -> web.Request:
    """The request that a client sends which is given the server's address with `base` behind it."""
    seen: list[web.Request] = []

    async def handler(asked: web.Request) -> web.Response:
        seen.append(asked.clone())
        return web.Response(body=answer_bytes(), content_type="application/json")

    async def main() -> None:
        async with serving(handler) as url, sdk(url.removesuffix("/v1") + base, **options) as chat:
            assert (await chat.complete(request(model="my-gpt"))).text == "hello"

    asyncio.run(main())
    return seen[0]


@pytest.mark.parametrize("base", ["", "/", "/openai", "/openai/"])
def test_azure_is_asked_by_deployment(base: str) -> None:
    asked = asked_by(base, azure_api_version="2024-10-21")
    assert asked.path_qs == ("/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21")
    assert asked.headers["api-key"] == KEY


def test_azure_with_an_address_of_version_1_is_as_openai() -> None:
    asked = asked_by("/openai/v1", azure_api_version="2024-10-21")
    assert asked.path_qs == "/openai/v1/chat/completions"
    assert asked.headers["Authorization"] == f"Bearer {KEY}"


def test_a_token_of_entra_goes_before_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    for key in (KEY, None):
        asked = asked_by("", key=key, azure_api_version="2024-10-21")
        assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
        assert "api-key" not in asked.headers


def test_the_token_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)

    async def main() -> None:
        body = f"expired: {TOKEN}".encode()
        async with (
            serving(constant(body, 401)) as url,
            sdk(url.removesuffix("/v1"), azure_api_version="1") as chat,
        ):
            with pytest.raises(Denied, match=r"expired: \*\*\*"):
                await chat.complete(request())

    asyncio.run(main())


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_a_host_that_the_package_does_not_take_is_one_sentence(version: str | None) -> None:
    with pytest.raises(UserError) as caught:
        sdk("http://a\N{FRACTION SLASH}b/v1", azure_api_version=version)
    assert str(caught.value).startswith(
        "the client `sdk` cannot ask http://a\N{FRACTION SLASH}b/v1: "
    )
    with pytest.raises(UserError, match="the client `sdk` cannot ask by way of `proxy`: "):
        sdk("http://h/v1", proxy="http://a\N{FRACTION SLASH}b:3128", azure_api_version=version)


def test_nothing_to_sign_in_with_at_azure_is_one_sentence() -> None:
    with pytest.raises(UserError) as caught:
        sdk("https://n.openai.azure.com", None, azure_api_version="2024-10-21")
    assert str(caught.value) == (
        "nothing to sign in with at https://n.openai.azure.com: put the key into the environment "
        "variable that `api_key_env` names, or a token into AZURE_OPENAI_AD_TOKEN"
    )


def test_a_missing_package_is_one_sentence_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError) as caught:
        sdk("http://h/v1")
    assert str(caught.value) == (
        "the client `sdk` wants the openai package: pip install 'targen-async[sdk]'"
    )


def test_the_package_is_imported_only_for_a_client() -> None:
    code = "import sys, targen_async.chat.sdk; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_packages_retries_are_off() -> None:
    calls = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.Response(status=500, headers={"x-should-retry": "true", "Retry-After": "0"})

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url, sdk(url, recorder=notes) as chat:
            with pytest.raises(Exception, match="HTTP 500"):
                await chat.complete(request())
        assert (calls, notes.kinds) == (1, ["intent", "void"])

    asyncio.run(main())
