"""What becomes of a call once the bytes are in, or once the connection broke: for every client."""

import errno
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from targen_async.chat import Recorder
from targen_async.chat.headers import rate_limits
from targen_async.chat.mask import forms, longest_first, mask, proxy_secrets
from targen_async.chat.refusals import clean, error_from
from targen_async.chat.stream import Incomplete
from targen_async.chat.wire import OVERSIZED, decode_completion
from targen_async.errors import ChatError, Denied, ServerFault, Unavailable, UserError
from targen_async.records import ChatRequest, ChatResult

MAX_ANSWER_BYTES = 4 << 20
MAX_ERROR_BYTES = 65_536
# Shorter than the 5 s after which uvicorn and Node close an idle connection: a POST that meets a
# closing connection is in doubt and must be paid for at worst case.
IDLE_CONNECTION_S = 4.0
_LEAST_PLAIN = 8
_NUMBER = re.compile(r"\[Errno (\d+)\]")
_BYTES = re.compile(r":?\s*(?:\bbytearray\()?\bb\\?['\"].*", re.DOTALL)
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})


class Place(Struct, frozen=True, kw_only=True):
    """Where calls go, and what must never be shown of it."""

    name: str
    """The base URL."""
    key: str | None
    headers: Mapping[str, str]
    """Sent with each call, beside those that a client sends of itself."""
    proxy: str | None
    secrets: tuple[str, ...]
    """What no sentence may hold: key and credentials, and the longer words of all headers."""
    secret_forms: tuple[bytes, ...]
    """What no answer may hold: the same without the headers that stand in the configuration."""


class Reply(Struct, frozen=True, kw_only=True, gc=False):
    """An answer as it came. `whole`: the body is all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool
    latency_s: float

    @property
    def served(self) -> bool:
        return 200 <= self.status < 300


def place_of(
    base_url: str,
    api_key: str | None,
    headers: Mapping[str, str] | None,
    proxy: str | None,
    *,
    secrets: Iterable[str] = (),
) -> Place:
    """`secrets`: what is in `headers` and not in the configuration. Raises UserError for what no
    HTTP header can carry, without repeating it."""
    key = (api_key or "").strip() or None
    if key and not _sendable(key):
        raise UserError("the API key holds characters that cannot be sent in an HTTP header")
    for name, value in (headers or {}).items():
        if not _sendable(value):
            raise UserError(
                f"the value of the header {name!r} holds characters that cannot be sent"
            )
    plain = {word for value in (headers or {}).values() for word in value.split()}
    plain = {word for word in plain if len(word) >= _LEAST_PLAIN}
    hidden = {key or "", *secrets, *proxy_secrets(proxy)}
    return Place(
        name=base_url,
        key=key,
        headers=dict(headers or {}),
        proxy=proxy,
        secrets=longest_first(plain | hidden),
        secret_forms=forms(hidden),
    )


def _sendable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def settle(
    reply: Reply, request: ChatRequest, place: Place, recorder: Recorder | None, ticket: int
) -> ChatResult:
    """Write down what came, without secrets, then read it. Raises a ChatError, or ParseError."""
    now_s = time.time()
    came = mask(reply.body, place.secret_forms, whole=reply.whole)
    if not reply.served:
        if recorder:
            recorder.void(ticket, f"HTTP {reply.status}")
        raise error_from(
            reply.status,
            reply.headers,
            came,
            place.name,
            secrets=place.secrets,
            now_s=now_s,
        )
    body = came if reply.whole else OVERSIZED + came
    offset = recorder.answer(ticket, body) if recorder else -1
    result = decode_completion(
        body,
        request.key,
        offset,
        model=request.model,
        latency_s=reply.latency_s,
        url=place.name,
        secrets=place.secrets,
    )
    limits = rate_limits(reply.headers, now_s)
    return result if limits is None else replace(result, rate_limits=limits)


def broken(error: BaseException, place: Place, *, opened: bool) -> ChatError:
    """What a connection's failure means. `opened`: the request may have reached the server."""
    # Parsers of HTTP repeat the bytes that they could not read, and those may be the model's words.
    told = _BYTES.sub("", str(error))
    reason = clean(told, place.secrets)[:200] or type(error).__name__
    causes = tuple(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            # aiohttp has a class of its own that comes without the words.
            said = clean(getattr(cause, "verify_message", ""), place.secrets)
            if not said:
                continue
            return Denied(
                f"{place.name} has a TLS certificate that cannot be trusted: {said}; correct the "
                "address, or name the file of its authority in SSL_CERT_FILE"
            )
        if isinstance(cause, ssl.SSLError) and getattr(cause, "reason", "") in _NO_TLS:
            return Denied(f"{place.name} does not speak TLS: is it http:// and not https://?")
    if not opened or any(isinstance(cause, socket.gaierror) for cause in causes):
        return Unavailable(_unreached(place, causes, reason))
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return Unavailable(f"{place.name} did not answer in time: {reason}")
    return Unavailable(f"{place.name} broke the connection: {reason}")


def _unreached(place: Place, causes: tuple[BaseException, ...], reason: str) -> str:
    """Whom we could not connect to, what happened, and the mend."""
    # A fault of TLS has numbers of its own.
    systems = [cause for cause in causes if not isinstance(cause, ssl.SSLError)]
    numbers = {getattr(cause, "errno", None) for cause in systems}
    # Of a name with several addresses there may be one error of them all, in words.
    numbers |= {int(found) for cause in systems for found in _NUMBER.findall(str(cause))}
    what, mend = reason, "check the base URL and the network"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        what = "its name is not known"
    elif errno.ECONNREFUSED in numbers:
        what, mend = "connection refused", "start the server there, or correct the base URL"
    elif any(isinstance(cause, TimeoutError) for cause in causes):
        # Of a timeout of ours or of the system's.
        what, mend = "the connection timed out", "check the base URL, and firewalls on the way"
    elif known := next((number for number in numbers if number in errno.errorcode), None):
        what = os.strerror(known).lower()
    url, whom = urlsplit(place.proxy or place.name), place.name
    if place.proxy:
        whom, mend = f"the proxy on the way to {place.name}", "check `proxy`"
    port = url.port or (443 if url.scheme == "https" else 80)
    return f"{whom} cannot be reached at {url.hostname} port {port}: {what}; {mend}"


def cut_short(error: Incomplete, place: Place) -> ChatError:
    """What a stream means that is no answer. Either way its call is in doubt."""
    if error.empty:
        # Its request may be to blame, so attempts are counted.
        return ServerFault(f"{place.name} failed (HTTP 200): {error}", status=200)
    return Unavailable(f"{place.name} broke the connection: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            yield from error.exceptions
        error = error.__cause__ or error.__context__
