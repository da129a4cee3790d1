"""An answer sent piece by piece (server-sent events), put together to the one that was not. No I/O.

What is journalled is the whole: one completion in OpenAI's form, so that a replay need not know
how an answer came.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson

from targen_async.chat.wire import text_of_part

_MAX_RAW_BYTES = 65_536
_WIRE_PER_TEXT = 64
"""Bytes sent for a byte of text, at most: an event of some 200 bytes may carry a few letters."""
_LINE_PER_TEXT = 8
"""The same within one event, where every letter may be an escape of six."""
_START_BYTES = 64
_LONGEST_NAME = len(b"retry:")
_BLANK = b"\xef\xbb\xbf \t\r\n"
_STREAM = re.compile(rb"(?:data|event|id|retry)?:")
_GRACE_S = 0.25
"""How long the connection may take to end after `[DONE]`, so that it can be used again."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Incomplete(Exception):
    """The stream ended before the answer did. `empty`: it held nothing and ended as HTTP wants it.

    Some servers answer so what they refuse a moment after they said 200.
    """

    def __init__(self, message: str, *, empty: bool = False) -> None:
        super().__init__(message)
        self.empty = empty


async def read_stream(chunks: AsyncIterator[bytes], limit: int) -> tuple[bytes, bool]:
    """The body that a stream amounts to, and whether that is all of it.

    At most `limit` bytes of text are put together; what is longer is not read to its end, and its
    start comes back as it was sent. A body that is no stream comes back as it is, and so does the
    start of one that cannot be read. Raises Incomplete, and what reading `chunks` raises.
    """
    assembly = Assembly(limit)
    async for chunk in chunks:
        assembly.feed(chunk)
        if assembly.oversized:
            return assembly.raw[:limit], False
        if assembly.done:
            await _run_out(chunks)
            break
    return assembly.body(), True


async def _run_out(chunks: AsyncIterator[bytes]) -> None:
    """Read what little may follow: a connection that is not at its end is closed."""
    # The answer is whole, whatever becomes of the line.
    with suppress(Exception):
        async with asyncio.timeout(_GRACE_S):
            async for _ in chunks:
                pass


class Assembly:
    """Takes a stream's bytes as they come, and knows when the answer is whole.

    Whole is what said something and then `[DONE]`, or gave a finish reason and then ended as HTTP
    wants it. A `[DONE]` behind nothing is said of calls that were broken off for others. An event
    that holds an error is the answer, as it would be under status 200.
    """

    def __init__(self, limit: int) -> None:
        self.done = False
        self._limit = limit
        self._size = 0
        self._text_size = 0
        self._raw = bytearray()
        self._rest = bytearray()
        self._after_cr = False
        self._streams: bool | None = None
        self._event: list[bytes] = []
        self._error: bytes | None = None
        self._broken = False
        self._head: dict[str, Any] = {}
        self._usage: Any = None
        self._finish: str | None = None
        self._texts: dict[str, list[str]] = {}

    @property
    def raw(self) -> bytes:
        """As it came: all of a body that is no stream, the start of one that is."""
        return bytes(self._raw)

    @property
    def oversized(self) -> bool:
        if not self._streams:
            return self._size > self._limit
        return (
            self._text_size > self._limit
            or self._size > self._limit * _WIRE_PER_TEXT
            or len(self._rest) > self._limit * _LINE_PER_TEXT
        )

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if not self._streams or len(self._raw) < _MAX_RAW_BYTES:
            self._raw += chunk
        if self._streams is None:
            start = bytes(self._raw[:_START_BYTES]).lstrip(_BLANK)
            if _STREAM.match(start):
                self._streams, chunk = True, self.raw
            elif len(start) >= _LONGEST_NAME or len(self._raw) >= _START_BYTES:
                self._streams = False
        if self._streams:
            self._split(chunk)

    def _split(self, chunk: bytes) -> None:
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        if b"\n" not in chunk and b"\r" not in chunk:
            self._rest += chunk
            return
        *lines, rest = _LINE_END.split(bytes(self._rest) + chunk)
        self._rest = bytearray(rest)
        for line in lines:
            self._line(line)

    def body(self) -> bytes:
        """The answer, at the stream's end. Raises Incomplete."""
        if not self._raw.strip():
            raise Incomplete("the stream held nothing", empty=True)
        if not self._streams:
            return self.raw
        if self._rest:
            self._line(bytes(self._rest))
            self._rest.clear()
        if self._error is not None:
            return self._error
        if self._broken:
            return self.raw
        ended = self._finish is not None or (self.done and self._texts)
        if self._event or not ended:
            raise Incomplete("the stream ended before the answer did")
        return self._completion()

    # ---- inside

    def _line(self, line: bytes) -> None:
        line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            # An event that is over and was not JSON.
            self._broken = self._broken or bool(self._event)
            self._event.clear()
            return
        if self.done or not line.startswith(b"data:"):
            return  # A comment that keeps the line open, an id, an event's name.
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        if not data:
            return
        # Each line on its own first: some servers leave out the empty line between events.
        self._event.append(data)
        raw = b"\n".join(self._event)
        try:
            event = _load(raw)
        except (ValueError, RecursionError):
            return
        self._event.clear()
        if isinstance(event, dict):
            self._take(event, raw)
        else:
            self._broken = True

    def _take(self, event: dict[str, Any], raw: bytes) -> None:
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            self._broken = True
            return
        if event.get("error") or choice.get("error"):
            self._error = self._error or raw
            return
        if choice.get("index"):
            return  # Another answer, which was not asked for.
        for name in ("id", "created", "model", "system_fingerprint"):
            if event.get(name):
                self._head.setdefault(name, event[name])
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._add(delta)
        elif isinstance(choice.get("message"), dict) and not self._texts:
            self._add(choice["message"])
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self._finish = reason
        for holder in (event, choice, delta, event.get("x_groq")):
            if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
                self._usage = holder["usage"]
                break

    def _add(self, delta: dict[str, Any]) -> None:
        for name in ("content", "refusal", "reasoning_content", "reasoning"):
            piece = delta.get(name)
            if isinstance(piece, list):
                parts = [text_of_part(part) for part in piece]
                piece = "".join(text for text, _ in parts)
                for _, no in parts:
                    self._keep("refusal", no)
            if isinstance(piece, str):
                self._keep(name, piece)

    def _keep(self, name: str, piece: str) -> None:
        if piece:
            self._texts.setdefault(name, []).append(piece)
            self._text_size += len(piece.encode("utf-8", "replace"))

    def _completion(self) -> bytes:
        texts = {name: _paired("".join(pieces)) for name, pieces in self._texts.items()}
        message = {"role": "assistant", "content": texts.pop("content", None), **texts}
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        whole = {**self._head, "object": "chat.completion", "choices": [choice]}
        if self._usage is not None:
            whole["usage"] = self._usage
        return orjson.dumps(whole)


def _load(data: bytes) -> Any:  # noqa: ANN401
    """JSON that may hold half a character: a server that counts in UTF-16 cuts between halves."""
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(data.decode("utf-8", "replace"))


def _paired(text: str) -> str:
    """The halves joined; one that is alone becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
