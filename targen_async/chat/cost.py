"""What calls cost before they are made, and what was spent in the last minute. No I/O."""

from targen_async.records import ChatRequest, Usage

_TOKENS_PER_BYTE = 0.3
_MEMORY = 100
"""Observations after which a learnt mean forgets at the rate it learns."""
_SLOTS = 60


class _Mean:
    """A mean that follows: of all observations at first, of the last hundred or so later."""

    __slots__ = ("_count", "value")

    def __init__(self, start: float) -> None:
        self.value = start
        self._count = 0

    def learn(self, observed: float) -> None:
        if self._count < _MEMORY:
            self._count += 1
        self.value += (observed - self.value) / self._count


class Costs:
    """Estimates of tokens, learnt from usage: bytes of the prompt, and answers stage by stage.

    Before anything is known of a stage, its answers are taken to be as long as they may be.
    """

    def __init__(self) -> None:
        self._tokens_per_byte = _Mean(_TOKENS_PER_BYTE)
        self._answers: dict[str, _Mean] = {}

    def of(self, request: ChatRequest) -> tuple[float, float]:
        """Tokens of the prompt and of the answer that this call will probably take."""
        mean = self._answers.get(self.stage_of(request))
        answer = request.max_tokens if mean is None else min(mean.value, request.max_tokens)
        return _prompt_bytes(request) * self._tokens_per_byte.value, answer

    def learn(self, request: ChatRequest, usage: Usage) -> None:
        """What a call did take."""
        if usage.prompt_tokens:
            self._tokens_per_byte.learn(usage.prompt_tokens / max(_prompt_bytes(request), 1))
        stage = self.stage_of(request)
        mean = self._answers.get(stage)
        if mean is None:
            mean = self._answers[stage] = _Mean(0.0)
        mean.learn(usage.completion_tokens)

    @staticmethod
    def stage_of(request: ChatRequest) -> str:
        """Calls of one name are alike."""
        return request.schema_name or request.key.partition("/")[0]


def _prompt_bytes(request: ChatRequest) -> int:
    size = 0
    for message in request.messages:
        text = message.content
        size += len(text) if text.isascii() else len(text.encode())
    return size


class LastMinute:
    """A sum over the last sixty seconds, kept by the second. Nothing is extrapolated: a burst at
    the start is no rate."""

    def __init__(self) -> None:
        self._slots = [0.0] * _SLOTS
        self._second = 0

    def add(self, now_s: float, amount: float) -> None:
        """`amount` was spent now."""
        second = int(now_s)
        if second != self._second:
            self._turn(second)
        self._slots[second % _SLOTS] += amount

    def per_minute(self, now_s: float) -> float:
        """What was spent in the minute before now; of a shorter time, in that time."""
        self._turn(int(now_s))
        return sum(self._slots)

    def _turn(self, second: int) -> None:
        for each in range(max(self._second, second - _SLOTS) + 1, second + 1):
            self._slots[each % _SLOTS] = 0.0
        self._second = second
