"""The seam to a chat model: one method, and what is written down around it.

`Retrying(Limited(HttpChat(...)))` is the whole client: http speaks, limit paces, retry insists.
"""

from typing import Protocol

from targen_async.records import ChatRequest, ChatResult


class ChatClient(Protocol):
    """Anything that answers a request; behaviour is added by wrapping one in another."""

    async def complete(self, request: ChatRequest) -> ChatResult:
        """One answer. Raises a ChatError, or ParseError when the answer is no completion."""
        ...


class Recorder(Protocol):
    """Writes down what was asked and what came back. The journal is one.

    Each send is an intent followed by at most one answer or void. When the connection breaks after
    the request was sent neither follows: the server may have served it, so it stays in doubt.
    """

    def intent(self, request: ChatRequest) -> int:
        """`request` is about to be sent. Returns the ticket that names this send."""
        ...

    def answer(self, ticket: int, body: bytes) -> int:
        """The raw body of an answer, before any parser sees it. Returns where it is kept."""
        ...

    def void(self, ticket: int, reason: str) -> None:
        """Nothing was served: a clean error status, or the connection never opened."""
        ...
