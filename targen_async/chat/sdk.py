"""Chat through the openai package's client, for Azure and other ways to sign in.

The package only carries bytes: requests are ours, answers are recorded before anything reads them,
its retries are off. It is imported when a SdkChat is made, and nowhere else.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from targen_async.chat import Recorder
from targen_async.chat.refusals import clean
from targen_async.chat.reply import (
    IDLE_CONNECTION_S,
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    Place,
    Reply,
    broken,
    cut_short,
    place_of,
    settle,
)
from targen_async.chat.stream import Incomplete, read_stream
from targen_async.chat.wire import OPENAI, Dialect, request_fields
from targen_async.errors import Denied, Unavailable, UserError
from targen_async.records import ChatRequest, ChatResult

AD_TOKEN = "AZURE_OPENAI_AD_TOKEN"
"""Environment variable of a token of Microsoft Entra, which goes before the key."""
_SDK_KEY = "AZURE_OPENAI_API_KEY"
"""Where the package looks itself when it is given no key."""
_TRANSPORTS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "h11"})
"""The package's errors come from one of these, depending on its version."""
_NEVER_OPENED = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)


class SdkChat:
    """An endpoint reached by `AsyncOpenAI`, or by `AsyncAzureOpenAI` with `azure_api_version`.

    Otherwise as HttpChat, to which it is equal by tests/chat/test_contract.py; it costs some
    twenty times the processor time a call. Azure: `base_url` is the resource's address, as
    https://NAME.openai.azure.com, and the model is the deployment's name; an address that ends in
    /v1 is spoken to without a version.

    Raises UserError when the package is missing, or nothing is there to sign in with.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        recorder: Recorder | None,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float,
        max_in_flight: int,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        dialect: Dialect = OPENAI,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        secrets: Iterable[str] = (),
        stream: bool = False,
        azure_api_version: str | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "the client `sdk` wants the openai package: pip install 'targen-async[sdk]'"
            ) from error
        self.dialect = dialect
        self.stream = stream
        base_url = base_url.rstrip("/")
        azure = bool(azure_api_version) and not base_url.endswith("/v1")
        token = os.environ.get(AD_TOKEN) if azure else None
        secrets = {*secrets, token or "", os.environ.get(_SDK_KEY, "") if azure else ""}
        self._place = place_of(base_url, api_key, headers, proxy, secrets=secrets)
        self._recorder = recorder
        self._total_timeout_s = total_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._client: Any
        self._status_error = openai.APIStatusError
        self._sdk_error = openai.OpenAIError
        timeout = openai.Timeout(read_timeout_s, connect=connect_timeout_s, pool=connect_timeout_s)
        options: dict[str, Any] = {
            "max_retries": 0,
            "timeout": timeout,
            "default_headers": _named(self._place.headers),
            "http_client": _transport(openai, self._place, max_in_flight, timeout),
        }
        self._no_key: dict[str, Any] = {}
        if azure:
            with _sound(self._place, base_url):
                self._client = _azure(openai, self._place, azure_api_version, token, options)
            return
        if self._place.key is None and "authorization" not in map(str.lower, self._place.headers):
            # The package will not start without a key; for none the header is left out.
            self._no_key["Authorization"] = openai.Omit()
        with _sound(self._place, base_url):
            self._client = openai.AsyncOpenAI(
                base_url=base_url, api_key=self._place.key or "none", **options
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Send once. Raises a ChatError, or ParseError when a 200 is no completion."""
        fields = request_fields(request, self.dialect, stream=self.stream)
        loop = asyncio.get_running_loop()
        ticket = self._recorder.intent(request) if self._recorder else -1
        started_s = loop.time()
        with self._translated(ticket):
            async with asyncio.timeout(self._total_timeout_s):
                status, headers, body, whole = await self._send(fields)
        reply = Reply(
            status=status,
            headers=headers,
            body=body,
            whole=whole,
            latency_s=loop.time() - started_s,
        )
        return settle(reply, request, self._place, self._recorder, ticket)

    async def _send(self, fields: dict[str, object]) -> tuple[int, Mapping[str, str], bytes, bool]:
        """Status, headers, the body as far as it is wanted, and whether that is all of it."""
        create = self._client.chat.completions.with_streaming_response.create
        try:
            async with create(**fields, extra_headers=self._no_key) as response:
                body, whole = await self._read(response.iter_bytes())
                return response.status_code, response.headers, body, whole
        except self._status_error as error:
            refusal = error.response
            return refusal.status_code, refusal.headers, refusal.content[:MAX_ERROR_BYTES], True

    async def _read(self, chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
        if self.stream:
            return await read_stream(chunks, self._max_answer_bytes)
        parts: list[bytes] = []
        size = 0
        async for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > self._max_answer_bytes:
                return b"".join(parts)[: self._max_answer_bytes], False
        return b"".join(parts), True

    @contextmanager
    def _translated(self, ticket: int) -> Iterator[None]:
        """The package's errors in our words; a call that was never sent is voided."""
        try:
            yield
        except Incomplete as error:
            raise cut_short(error, self._place) from error
        except TimeoutError as error:
            raise broken(error, self._place, opened=True) from error
        except Exception as error:
            cause = error
            if isinstance(error, self._sdk_error) and isinstance(error.__cause__, Exception):
                cause = error.__cause__
            if not (cause is not error or _is_transport(cause)):
                raise
            never = type(cause).__name__ in _NEVER_OPENED
            if self._recorder and never:
                self._recorder.void(ticket, "the connection could not be opened")
            if type(cause).__name__ == "ProxyError":
                what = clean(str(cause), self._place.secrets)
                said = f"the proxy on the way to {self._place.name} refused it: {what}"
                if str(cause)[:3] in ("401", "403", "407"):
                    raise Denied(f"{said}; check `proxy` and its credentials") from error
                raise Unavailable(said) from error
            raise broken(cause, self._place, opened=not never) from error


@contextmanager
def _sound(place: Place, address: str) -> Iterator[None]:
    """The package is stricter about the names of hosts than others are."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "InvalidURL":
            raise
        what = clean(str(error), place.secrets)
        raise UserError(f"the client `sdk` cannot ask {address}: {what}") from error


def _transport(
    openai: Any,  # noqa: ANN401
    place: Place,
    max_in_flight: int,
    timeout: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    # As many connections as calls, dropped when idle before the server may drop them.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=max_in_flight,
        max_keepalive_connections=max_in_flight,
        keepalive_expiry=IDLE_CONNECTION_S,
    )
    with _sound(place, "by way of `proxy`"):
        return openai.DefaultAsyncHttpxClient(
            limits=limits,
            timeout=timeout,
            proxy=place.proxy,
            verify=_trusted(),
            follow_redirects=False,
            trust_env=False,
        )


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers under names that older versions of the package know their own ones by."""
    return {
        "Authorization" if name.lower() == "authorization" else name: value
        for name, value in headers.items()
    }


def _trusted() -> ssl.SSLContext | bool:
    """Of the environment only what is said about certificates is looked at, as with aiohttp."""
    return ssl.create_default_context() if os.environ.get("SSL_CERT_FILE") else True


def _azure(
    openai: Any,  # noqa: ANN401
    place: Place,
    api_version: str | None,
    token: str | None,
    options: dict[str, Any],
) -> Any:  # noqa: ANN401
    try:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=place.name.removesuffix("/openai"),
            api_version=api_version,
            # The package takes one of the two.
            api_key=None if token else place.key,
            azure_ad_token=token,
            **options,
        )
    except openai.OpenAIError as error:
        raise UserError(
            f"nothing to sign in with at {place.name}: put the key into the environment variable "
            f"that `api_key_env` names, or a token into {AD_TOKEN}"
        ) from error


def _is_transport(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _TRANSPORTS
