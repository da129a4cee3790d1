"""The ledger: calls, tokens and cost of a run, summed over its starts from the journal."""

from msgspec import Struct

from targen_async.config import Prices
from targen_async.journal import Intent, Journal
from targen_async.records import ChatRequest, Usage, add_usage


class Totals(Struct, frozen=True, kw_only=True):
    """`served` answers arrived; `in_doubt` calls were sent and never answered, at worst case."""

    served: int
    refused: int
    """Attempts the endpoint refused cleanly (429, 5xx): nothing was served for them."""
    in_doubt: int
    usage: Usage
    without_usage: int
    """Answers for which the endpoint reported no usage."""
    in_doubt_worst: Usage
    """Upper bound of what the calls in doubt may have cost: prompt bytes and max_tokens."""


class Ledger:
    """Counts every intent, answer and void; itself the recorder that the client reports to."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._served = 0
        self._refused = 0
        self._without_usage = 0
        self._usage = Usage()
        self.dead = 0
        """Calls that failed for good."""
        self._open: dict[int, tuple[int, int]] = {}

    # ---- the recorder of a ChatClient

    def intent(self, request: ChatRequest) -> int:
        prompt_bytes = sum(len(message.content.encode()) for message in request.messages)
        intent = Intent(request.memo, prompt_bytes, request.max_tokens, request.key)
        ticket = self._journal.intent(intent)
        self.opened(ticket, intent)
        return ticket

    def answer(self, ticket: int, body: bytes) -> int:
        offset = self._journal.answer(ticket, body)
        self.answered(ticket)
        return offset

    def void(self, ticket: int, reason: str) -> None:
        self._journal.void(ticket, reason)
        self.voided(ticket)

    # ---- also fed by the scan of the journal at a start

    def opened(self, ticket: int, intent: Intent) -> None:
        self._open[ticket] = (intent.prompt_bytes, intent.max_tokens)

    def answered(self, ticket: int) -> None:
        self._open.pop(ticket, None)
        self._served += 1

    def voided(self, ticket: int) -> None:
        self._open.pop(ticket, None)
        self._refused += 1

    def used(self, usage: Usage | None) -> None:
        if usage is None:
            self._without_usage += 1
        else:
            self._usage = add_usage(self._usage, usage)

    @property
    def untouched(self) -> bool:
        """Has the endpoint served nothing, for certain?"""
        return not self._served and not self._open

    def totals(self) -> Totals:
        return Totals(
            served=self._served,
            refused=self._refused,
            in_doubt=len(self._open),
            usage=self._usage,
            without_usage=self._without_usage,
            in_doubt_worst=Usage(
                prompt_tokens=sum(prompt for prompt, _ in self._open.values()),
                completion_tokens=sum(most for _, most in self._open.values()),
            ),
        )


def cost_usd(usage: Usage, prices: Prices) -> float | None:
    """US dollars, or None where no price is configured."""
    if not (prices.usd_per_million_prompt_tokens or prices.usd_per_million_completion_tokens):
        return None
    return (
        usage.prompt_tokens * prices.usd_per_million_prompt_tokens
        + usage.completion_tokens * prices.usd_per_million_completion_tokens
    ) / 1e6
