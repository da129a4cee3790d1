"""Whether the model that answers goes on by the name that it had at the start."""

from collections.abc import Callable

from targen_async.chat import ChatClient
from targen_async.chat.refusals import clean
from targen_async.records import ChatRequest, ChatResult


class Named:
    """Tells once when an answer bears another name than the endpoint's first one, `name`.

    Behind an alias the model may be exchanged at any moment; what it writes is then of two. `whose`
    stands before the sentence where a run asks several endpoints.
    """

    def __init__(
        self, inner: ChatClient, name: str, tell: Callable[[str], None], *, whose: str = ""
    ) -> None:
        self._inner = inner
        self._name = name
        self._tell = tell
        self._whose = whose
        self._told = False

    async def complete(self, request: ChatRequest) -> ChatResult:
        result = await self._inner.complete(request)
        if result.model != self._name and not self._told:
            self._told = True
            self._tell(
                f"{self._whose}the model calls itself {clean(result.model)!r} now, and "
                f"{clean(self._name)!r} at the start: each row tells which of them wrote it "
                "(provenance.model)"
            )
        return result
