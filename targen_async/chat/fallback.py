"""Another model in the place of one that refuses, is away or may not be asked."""

from collections.abc import Callable

from msgspec.structs import replace

from targen_async.chat import ChatClient
from targen_async.chat.retry import Elsewhere
from targen_async.errors import Denied, Rejected, RunStopped, ServerFault
from targen_async.records import ChatRequest, ChatResult


class Fallback:
    """The model that steps in, asked by its own name."""

    def __init__(self, inner: ChatClient, model: str) -> None:
        self._inner = inner
        self._model = model

    async def complete(self, request: ChatRequest) -> ChatResult:
        return await self._inner.complete(replace(request, model=self._model))


class WithFallback:
    """Asks another model where the first refuses for good, is away or may not be asked any more.

    `tell` is told why, once for each of the last two. The first's breaker must turn callers away.
    """

    def __init__(
        self, first: ChatClient, second: ChatClient, tell: Callable[[str], None] = lambda _why: None
    ) -> None:
        self._first = first
        self._second = second
        self._tell = tell
        self._told: set[type[Exception]] = set()

    async def complete(self, request: ChatRequest) -> ChatResult:
        try:
            return await self._first.complete(request)
        except (Elsewhere, Denied) as error:
            if type(error) not in self._told:
                self._told.add(type(error))
                self._tell(str(error))
        except ServerFault:
            pass
        except Rejected as error:
            if error.status is None:
                raise  # At our own door: a limit that can be raised says nothing of the request.
        return await self._second.complete(request)


class Spared:
    """For the probe of an endpoint that need not be there: what would end the run is raised as
    Elsewhere, with its cause. A budget that is used up ends the run all the same, and so does a
    mistake of the user's unless `mistakes`: it is sooner mended than worked around."""

    def __init__(self, inner: ChatClient, *, mistakes: bool) -> None:
        self._inner = inner
        self._mistakes = mistakes

    async def complete(self, request: ChatRequest) -> ChatResult:
        try:
            return await self._inner.complete(request)
        except Denied as error:
            if error.user_fault and not self._mistakes:
                raise
            raise Elsewhere from error
        except RunStopped as error:
            if error.__cause__ is None:
                raise  # No call failed: it is the budget's.
            raise Elsewhere from error
