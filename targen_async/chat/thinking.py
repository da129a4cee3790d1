"""Room for what a model thinks before it answers, which counts against `max_tokens`."""

from msgspec.structs import replace

from targen_async.chat import ChatClient
from targen_async.chat.cost import Costs
from targen_async.chat.wire import cut_in_thought
from targen_async.errors import Starved
from targen_async.records import ChatRequest, ChatResult

LEAST_ROOM = 4096
MOST_CUT = 20
"""So many answers in a row to calls of one kind, cut before they said anything, stop the run."""


class Thinking:
    """Adds room to every call, and stops a run whose answers never get beyond the thoughts.

    Stands before the purse and the limiter, which so see what a call may really take. What the
    journal knows a question by was settled before: with another room nothing is asked again.
    """

    def __init__(self, inner: ChatClient, room: int) -> None:
        self._inner = inner
        self._room = room
        self._cut: dict[str, int] = {}

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Raises Starved with the mend where the room does not do."""
        roomy = request
        if self._room:
            roomy = replace(request, max_tokens=request.max_tokens + self._room)
        result = await self._inner.complete(roomy)
        kind = Costs.stage_of(request)
        self._cut[kind] = self._cut.get(kind, 0) + 1 if cut_in_thought(result) else 0
        if self._cut[kind] >= MOST_CUT:
            raise Starved(
                f"{MOST_CUT} answers in a row were cut at max_tokens with nothing in them: what "
                f"{request.model!r} thinks counts, and {roomy.max_tokens:,} tokens are too few; "
                "everything paid for is kept: start the same command again with --thinking-tokens "
                f"{max(LEAST_ROOM, 4 * self._room)}"
            )
        return result
