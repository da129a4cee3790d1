"""The ledger: calls, tokens and cost of a run, summed over its starts from the journal."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import orjson
from msgspec import Struct

from targen_async.chat import Recorder
from targen_async.chat.wire import decode_usage
from targen_async.config import Prices
from targen_async.errors import ChatError, ParseError
from targen_async.journal import HEDGE, Intent, Journal
from targen_async.records import ChatRequest, Usage, add_usage

Role = Literal["generator", "judge", "fallback"]
"""What an endpoint is asked for: each has its own price."""
ROLES: tuple[Role, ...] = get_args(Role)
CALL_OVERHEAD_TOKENS = 256
"""More than any chat template in use adds to a prompt of its own accord."""
MESSAGE_OVERHEAD_TOKENS = 16
"""More than any chat template in use spends on marking one message."""


class Totals(Struct, frozen=True, kw_only=True):
    """`served` answers arrived; `in_doubt` calls were sent and never answered, at worst case."""

    served: int = 0
    refused: int = 0
    """Attempts the endpoint refused cleanly (429, 5xx): nothing was served for them."""
    in_doubt: int = 0
    usage: Usage = Usage()
    without_usage: int = 0
    """Answers for which the endpoint reported no usage."""
    without_usage_worst: Usage = Usage()
    """Upper bound of what they may have cost."""
    in_doubt_worst: Usage = Usage()
    """Upper bound of what the calls in doubt may have cost: prompt bytes and max_tokens."""
    hedged: int = 0
    """Calls that were sent a second time as they stalled; one of the two stays in doubt."""
    hedged_worst: Usage = Usage()
    """Upper bound of what that may have cost."""

    @property
    def charged(self) -> Usage:
        """What a budget has to answer for: what was reported, and the worst case of the rest."""
        return add_usage(add_usage(self.usage, self.without_usage_worst), self.in_doubt_worst)


class Beyond(Struct, frozen=True, kw_only=True):
    """An answer that used more than can be: the endpoint counts otherwise than it should."""

    used: Usage
    worst: Usage


class _Tally:
    """A sum that every call moves: a new `Usage` each time would cost more than the adding."""

    __slots__ = ("_cached", "_completion", "_prompt")

    def __init__(self) -> None:
        self._prompt = self._completion = self._cached = 0

    def add(self, usage: Usage) -> None:
        self._prompt += usage.prompt_tokens
        self._completion += usage.completion_tokens
        self._cached += usage.cached_prompt_tokens

    def take(self, usage: Usage) -> None:
        self._prompt -= usage.prompt_tokens
        self._completion -= usage.completion_tokens
        self._cached -= usage.cached_prompt_tokens

    def sum(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            cached_prompt_tokens=self._cached,
        )


class _Account:
    """The sums of one role. `open` and `unknown` are worst cases of calls in doubt and of answers
    without usage."""

    def __init__(self) -> None:
        self.served = 0
        self.refused = 0
        self.usage = _Tally()
        self.without_usage = 0
        self.unknown = Usage()
        self.in_doubt = 0
        self.open = _Tally()
        self.hedged = 0
        self.hedged_worst = Usage()

    def totals(self) -> Totals:
        return Totals(
            served=self.served,
            refused=self.refused,
            in_doubt=self.in_doubt,
            usage=self.usage.sum(),
            without_usage=self.without_usage,
            without_usage_worst=self.unknown,
            in_doubt_worst=self.open.sum(),
            hedged=self.hedged,
            hedged_worst=self.hedged_worst,
        )


class Ledger:
    """Counts every intent, answer and void; itself the recorder that the generator reports to.

    Other endpoints report to `of(role)`. The usage of an answer is read as it is recorded, by the
    same function after a start as in the run: both come to the same sums.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._accounts: dict[Role, _Account] = {role: _Account() for role in ROLES}
        self._open: dict[int, tuple[Role, Usage]] = {}
        self.dead = 0
        """Calls that failed for good."""
        self.beyond: Beyond | None = None
        """The first answer that used more than its worst case."""

    # ---- the recorder of a ChatClient

    def intent(self, request: ChatRequest) -> int:
        return self.begin(request, "generator")

    def answer(self, ticket: int, body: bytes) -> int:
        offset = self._journal.answer(ticket, body)
        self.answered(ticket, body)
        return offset

    def void(self, ticket: int, reason: str) -> None:
        self._journal.void(ticket, reason)
        self.voided(ticket)

    def of(self, role: Role) -> Recorder:
        """The recorder of the endpoint that plays `role`."""
        return self if role == "generator" else _Recorder(self, role)

    def begin(self, request: ChatRequest, role: Role) -> int:
        """`request` is about to be sent to the endpoint that plays `role`."""
        worst = worst_of(request)
        key = request.key if role == "generator" else f"{request.key}@{role}"
        intent = Intent(request.memo, worst.prompt_tokens, worst.completion_tokens, key)
        ticket = self._journal.intent(intent)
        self._opened(ticket, role, worst, hedged=HEDGE in key)
        return ticket

    # ---- also fed by the scan of the journal at a start

    def opened(self, ticket: int, intent: Intent) -> None:
        role = role_of(intent.key)
        worst = Usage(prompt_tokens=intent.prompt_bytes, completion_tokens=intent.max_tokens)
        self._opened(ticket, role, worst, hedged=HEDGE in intent.key)

    def _opened(self, ticket: int, role: Role, worst: Usage, *, hedged: bool) -> None:
        self._open[ticket] = (role, worst)
        account = self._accounts[role]
        account.in_doubt += 1
        account.open.add(worst)
        if hedged:
            account.hedged += 1
            account.hedged_worst = add_usage(account.hedged_worst, worst)

    def answered(self, ticket: int, body: bytes) -> None:
        """`body` is the answer as recorded; without a usage in it the worst case is charged."""
        closed = self._close(ticket)
        if closed is None:
            return
        role, worst = closed
        account = self._accounts[role]
        account.served += 1
        usage = usage_in(body)
        if usage is None:
            account.without_usage += 1
            account.unknown = add_usage(account.unknown, worst)
            return
        account.usage.add(usage)
        more = usage.prompt_tokens > worst.prompt_tokens
        if (more or usage.completion_tokens > worst.completion_tokens) and self.beyond is None:
            self.beyond = Beyond(used=usage, worst=worst)

    def voided(self, ticket: int) -> None:
        closed = self._close(ticket)
        if closed is not None:
            self._accounts[closed[0]].refused += 1

    def _close(self, ticket: int) -> tuple[Role, Usage] | None:
        closed = self._open.pop(ticket, None)
        if closed is not None:
            account = self._accounts[closed[0]]
            account.in_doubt -= 1
            account.open.take(closed[1])
        return closed

    # ---- what it comes to

    @property
    def untouched(self) -> bool:
        """Has the endpoint served nothing, for certain?"""
        return not self._open and not any(one.served for one in self._accounts.values())

    def by_role(self) -> dict[Role, Totals]:
        """The sums of every role that was asked anything."""
        told = {role: account.totals() for role, account in self._accounts.items()}
        return {role: one for role, one in told.items() if one != Totals()}

    def totals(self) -> Totals:
        """The sums over all roles."""
        each = [account.totals() for account in self._accounts.values()]
        return Totals(
            served=sum(one.served for one in each),
            refused=sum(one.refused for one in each),
            in_doubt=sum(one.in_doubt for one in each),
            usage=_sum([one.usage for one in each]),
            without_usage=sum(one.without_usage for one in each),
            without_usage_worst=_sum([one.without_usage_worst for one in each]),
            in_doubt_worst=_sum([one.in_doubt_worst for one in each]),
            hedged=sum(one.hedged for one in each),
            hedged_worst=_sum([one.hedged_worst for one in each]),
        )


class _Recorder:
    """What the endpoint of another role than the generator's reports to."""

    def __init__(self, ledger: Ledger, role: Role) -> None:
        self._ledger = ledger
        self._role = role

    def intent(self, request: ChatRequest) -> int:
        return self._ledger.begin(request, self._role)

    def answer(self, ticket: int, body: bytes) -> int:
        return self._ledger.answer(ticket, body)

    def void(self, ticket: int, reason: str) -> None:
        self._ledger.void(ticket, reason)


def role_of(key: str) -> Role:
    """Whom a journalled intent was sent to, by its key."""
    if "@" not in key:
        return "generator"
    named = key.rpartition("@")[2]
    return next((role for role in ROLES if role == named), "generator")


def worst_of(request: ChatRequest) -> Usage:
    """What `request` may cost at most: no tokenizer makes more tokens of a text than it has bytes.

    A schema counts as well: many servers put it into the prompt.
    """
    prompt = CALL_OVERHEAD_TOKENS
    for message in request.messages:
        text = message.content
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        prompt += size + MESSAGE_OVERHEAD_TOKENS
    if request.json_schema is not None:
        prompt += _encoded_size(request.json_schema) + len(request.schema_name or "")
    return Usage(prompt_tokens=prompt, completion_tokens=request.max_tokens)


_sizes: dict[int, tuple[Mapping[str, Any], int]] = {}
"""Of the few schemas a run has; a schema that is kept here keeps its id."""
_MOST_SIZES = 256


def _encoded_size(schema: Mapping[str, Any]) -> int:
    found = _sizes.get(id(schema))
    if found is None:
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        found = _sizes[id(schema)] = (schema, len(orjson.dumps(schema)))
    return found[1]


def usage_in(body: bytes) -> Usage | None:
    """The tokens that a recorded answer says it took; None where it does not say."""
    try:
        return decode_usage(body)
    except (ParseError, ChatError):
        return None


def usd_of(usage: Usage, prices: Prices) -> float:
    """US dollars for `usage`."""
    cached = min(usage.cached_prompt_tokens, usage.prompt_tokens)
    full, part = _prompt_prices(prices)
    return (
        (usage.prompt_tokens - cached) * full
        + cached * part
        + usage.completion_tokens * prices.usd_per_million_completion_tokens
    ) / 1e6


def worst_usd_of(usage: Usage, prices: Prices) -> float:
    """US dollars for `usage` where it is not known what the provider's cache held."""
    return (
        usage.prompt_tokens * max(_prompt_prices(prices))
        + usage.completion_tokens * prices.usd_per_million_completion_tokens
    ) / 1e6


def _prompt_prices(prices: Prices) -> tuple[float, float]:
    full, cached = (
        prices.usd_per_million_prompt_tokens,
        prices.usd_per_million_cached_prompt_tokens,
    )
    return full, full if cached is None else cached


def spent_usd(usage: Mapping[Role, Usage], prices: Mapping[Role, Prices]) -> float | None:
    """US dollars over all roles; None where one that was asked has no known price."""
    if not usage or any(role not in prices for role, one in usage.items() if one != Usage()):
        return None
    return sum(usd_of(one, prices[role]) for role, one in usage.items() if role in prices)


def at_most_usd(asked: Mapping[Role, Totals], prices: Mapping[Role, Prices]) -> float | None:
    """The most that all calls may have cost, as the caps count it: usage as reported, the worst
    case of answers without one and of calls in doubt. None where a price is not known."""
    charged = [role for role, one in asked.items() if one.charged != Usage()]
    if not asked or any(role not in prices for role in charged):
        return None
    usd = 0.0
    for role, one in asked.items():
        if role in prices:
            usd += usd_of(one.usage, prices[role])
            usd += worst_usd_of(one.without_usage_worst, prices[role])
            usd += worst_usd_of(one.in_doubt_worst, prices[role])
    return usd


def _sum(usages: list[Usage]) -> Usage:
    total = Usage()
    for usage in usages:
        total = add_usage(total, usage)
    return total
