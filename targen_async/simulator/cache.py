"""A prefix cache as providers have it: which part of a prompt was read before."""

import time
from collections.abc import Callable, Iterator
from hashlib import blake2b

import orjson

from targen_async.records import ChatRequest

_BYTES_PER_TOKEN = 4
_MESSAGE_TOKENS = 4
_MOST_PREFIXES = 1_000_000


class PrefixCache:
    """Prefixes of prompts that one endpoint has read within the last `keep_s` seconds.

    As OpenAI tells of its own: a prompt hits from `least_tokens` on, in steps of `step_tokens`; the
    model and the schema stand before the messages, so that another schema is another prefix.
    Tokens are the simulator's: four bytes, and four tokens for each message.
    """

    def __init__(
        self,
        *,
        least_tokens: int = 1024,
        step_tokens: int = 128,
        keep_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._least = least_tokens
        self._step = step_tokens
        self._keep_s = keep_s
        self._clock = clock
        self._read_at: dict[bytes, float] = {}

    def cached_tokens(self, request: ChatRequest) -> int:
        """Prompt tokens of `request` that were read before; from now on all of it was."""
        now = self._clock()
        hit = 0
        for tokens, prefix in self._prefixes(request):
            before = self._read_at.pop(prefix, None)
            if before is not None and now - before <= self._keep_s:
                hit = tokens
            # At the end again: the dictionary is in the order of the last reading.
            self._read_at[prefix] = now
        self._forget(now)
        return hit

    def _prefixes(self, request: ChatRequest) -> Iterator[tuple[int, bytes]]:
        """The lengths at which a prompt may hit, in tokens, each with what tells the prefix."""
        text = b"".join(
            message.role.encode().ljust(_BYTES_PER_TOKEN * _MESSAGE_TOKENS)
            + message.content.encode("utf-8", "replace")
            for message in request.messages
        )
        head = orjson.dumps([request.model, request.json_schema], option=orjson.OPT_SORT_KEYS)
        digest = blake2b(head, digest_size=16)
        end = 0
        for tokens in range(self._least, len(text) // _BYTES_PER_TOKEN + 1, self._step):
            digest.update(text[end : tokens * _BYTES_PER_TOKEN])
            end = tokens * _BYTES_PER_TOKEN
            yield tokens, digest.digest()

    def _forget(self, now: float) -> None:
        """Drop what was read too long ago, and the oldest of too many."""
        while self._read_at:
            prefix, read_at = next(iter(self._read_at.items()))
            if now - read_at <= self._keep_s and len(self._read_at) <= _MOST_PREFIXES:
                return
            del self._read_at[prefix]
