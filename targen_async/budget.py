"""Caps that bind: no call is made whose worst case could pass them, over all starts of a run."""

from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar

import anyio

from targen_async.chat import ChatClient, Recorder
from targen_async.config import Budget, Prices
from targen_async.errors import RunStopped
from targen_async.ledger import Ledger, Role, at_most_usd, spent_usd, worst_of, worst_usd_of
from targen_async.records import ChatRequest, ChatResult, Usage
from targen_async.stats import CostView


class NoRoom(Exception):
    """Since the look a call took more than its worst case: nothing was sent."""


class _Stake:
    """The worst case of a call that has its room and is not sent yet."""

    __slots__ = ("tokens", "usd")

    def __init__(self, tokens: int, usd: float) -> None:
        self.tokens = tokens
        self.usd = usd


_STAKE: ContextVar[_Stake | None] = ContextVar("stake", default=None)
"""Of the call that this task makes: between the purse and the recorder stands the limiter."""


class Purse:
    """What may still be spent. One for all endpoints of a run, each at its own price.

    The ledger says what is charged: usage as reported, the worst case of what is in doubt or came
    without usage, nothing for what was refused cleanly. A call that does not fit waits for those
    under way, as most take less than their worst case; only when none is left the run is stopped.
    First come, first served: a small call never passes a large one that waits. Room is kept for a
    call from here on, though it may have to stand in line elsewhere before it is sent.
    """

    def __init__(
        self,
        budget: Budget,
        ledger: Ledger,
        prices: Mapping[Role, Prices],
        *,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.budget = budget
        self._ledger = ledger
        self._prices = prices
        self._say = say
        self._under_way = 0
        self._kept: set[_Stake] = set()
        self._door = anyio.Lock(fast_acquire=True)
        self._changed = anyio.Event()
        self._over: str | None = None
        self._told = False
        self.waiting = False
        """Does a call wait for room?"""

    @property
    def binds(self) -> bool:
        """Is there any cap?"""
        return self.budget != Budget()

    @property
    def held(self) -> str:
        """Why calls wait, for `Stats.held`; empty where they do not, or where others that have
        their room wait for something else."""
        held = self.waiting and not self._kept
        return "budget: waiting for calls under way" if held else ""

    def recorder(self, role: Role) -> Recorder:
        """What the endpoint that plays `role` reports to; its `intent` raises NoRoom."""
        return _Guarded(self, self._ledger, role) if self.binds else self._ledger.of(role)

    async def enter(self, worst: Usage, role: Role) -> "_Stake":
        """Wait until `worst` fits. Raises RunStopped when it never will; else `leave` follows."""
        async with self._door:
            try:
                while self._over is None and (cap := self._cap_passed_by(worst, role, self._kept)):
                    if not self._under_way:
                        self._over = self._sentence(cap, worst, role)
                        break
                    self.waiting = True
                    await self._changed.wait()
            finally:
                self.waiting = False
            if self._over is not None:
                raise RunStopped(self._over)
            self._under_way += 1
            stake = _Stake(
                tokens=worst.prompt_tokens + worst.completion_tokens,
                usd=worst_usd_of(worst, self._prices[role]) if role in self._prices else 0.0,
            )
            if self.binds:
                self._kept.add(stake)
            return stake

    def leave(self, stake: "_Stake") -> None:
        """A call is back, whatever became of it."""
        self._under_way -= 1
        self._kept.discard(stake)
        self._changed.set()
        self._changed = anyio.Event()
        beyond = self._ledger.beyond
        if beyond is not None and not self._told:
            self._told = True
            used, worst = beyond.used, beyond.worst
            self._say(
                f"the endpoint reports {used.prompt_tokens} prompt and {used.completion_tokens} "
                f"completion tokens for a call that can take at most {worst.prompt_tokens} and "
                f"{worst.completion_tokens}: the budget counts what it reports, and may be passed "
                "by as much"
            )

    def free(self, role: Role) -> bool:
        """Is nothing known of a bill: neither a price nor a cap?"""
        return not self.binds and role not in self._prices

    def fits(self, worst: Usage, role: Role) -> bool:
        """Would a call of this worst case enter at once?"""
        if self.waiting or self._door.locked():
            return False
        return self._cap_passed_by(worst, role, self._kept) is None

    def check(self, worst: Usage, role: Role) -> None:
        """A call is about to be sent, and the ledger counts it from now on. Raises NoRoom where it
        would pass a cap after all."""
        if (stake := _STAKE.get()) is not None:
            self._kept.discard(stake)
        if self._cap_passed_by(worst, role, ()):
            raise NoRoom

    @property
    def left(self) -> str:
        """What is left of the caps, in words; empty where there are none."""
        parts: list[str] = []
        if self.budget.max_usd is not None:
            usd = max(0.0, self.budget.max_usd - self._charged_usd())
            parts.append(f"{_usd(usd)} of {_usd(self.budget.max_usd)}")
        if self.budget.max_tokens is not None:
            tokens = max(0, self.budget.max_tokens - self._charged_tokens())
            parts.append(f"{tokens:,} of {self.budget.max_tokens:,} tokens")
        if self.budget.max_requests is not None:
            requests = max(0, self.budget.max_requests - self._charged_requests())
            parts.append(f"{requests:,} of {self.budget.max_requests:,} requests")
        return f"{', '.join(parts)} left" if parts else ""

    # ---- inside

    def _cap_passed_by(self, worst: Usage, role: Role, kept: Collection["_Stake"]) -> str | None:
        """The first cap that a call of this worst case could pass, as the flag that sets it.

        `kept`: what is set aside for calls that are not sent yet.
        """
        budget = self.budget
        if (
            budget.max_requests is not None
            and self._charged_requests() + len(kept) >= budget.max_requests
        ):
            return "--max-requests"
        if budget.max_tokens is not None:
            tokens = worst.prompt_tokens + worst.completion_tokens
            tokens += sum(stake.tokens for stake in kept)
            if self._charged_tokens() + tokens > budget.max_tokens:
                return "--max-tokens"
        if budget.max_usd is not None:
            usd = worst_usd_of(worst, self._prices[role]) + sum(stake.usd for stake in kept)
            if self._charged_usd() + usd > budget.max_usd:
                return "--max-usd"
        return None

    def _charged_requests(self) -> int:
        """Served, or perhaps served."""
        return sum(one.served + one.in_doubt for one in self._ledger.by_role().values())

    def _charged_tokens(self) -> int:
        charged = [one.charged for one in self._ledger.by_role().values()]
        return sum(one.prompt_tokens + one.completion_tokens for one in charged)

    def _charged_usd(self) -> float:
        asked = self._ledger.by_role()
        # A role that is no longer played may have no price: its calls cost what the generator's
        # do, as nothing better is known.
        prices = {role: self._prices.get(role) or self._prices["generator"] for role in asked}
        return at_most_usd(asked, prices) or 0.0

    def _sentence(self, flag: str, worst: Usage, role: Role) -> str:
        """Why the run stops, and the mend."""
        totals = self._ledger.totals()
        lost = totals.in_doubt
        in_doubt = f" ({lost} call{'s' * (lost > 1)} in doubt at worst case)" if lost else ""
        if flag == "--max-requests":
            cap, spent, next_ = f"{self.budget.max_requests:,} requests", "", "another"
        elif flag == "--max-tokens":
            tokens = worst.prompt_tokens + worst.completion_tokens
            cap, spent = f"{self.budget.max_tokens:,} tokens", f"{self._charged_tokens():,}"
            next_ = f"up to {tokens:,}"
        else:
            cap, spent = _usd(self.budget.max_usd or 0), _usd(self._charged_usd())
            next_ = f"up to {_usd(worst_usd_of(worst, self._prices[role]))}"
        if flag == "--max-requests":
            return (
                f"the budget of {cap} is used up{in_doubt}; everything "
                f"paid for is kept: raise {flag} and start the same command again"
            )
        if self._ledger.untouched:
            return (
                f"the budget of {cap} is too small for a single call, which may take {next_}: "
                f"raise {flag}"
            )
        return (
            f"the budget of {cap} is used up: {spent} spent{in_doubt}, "
            f"and the next call may take {next_}; everything paid for is kept: raise {flag} and "
            "start the same command again"
        )


class Budgeted:
    """Asks the purse before each attempt. The client that sends must report to
    `purse.recorder(role)`.

    Stands before `Limited`: a call that waits for room holds no slot, and is not taken for one that
    the endpoint is slow with.
    """

    def __init__(self, inner: ChatClient, purse: Purse, role: Role) -> None:
        self._inner = inner
        self._purse = purse
        self._role = role

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Wait for room, then ask. Raises RunStopped when the budget is used up."""
        worst = worst_of(request)
        while True:
            stake = await self._purse.enter(worst, self._role)
            before = _STAKE.set(stake)
            try:
                return await self._inner.complete(request)
            except NoRoom:
                continue
            finally:
                _STAKE.reset(before)
                self._purse.leave(stake)


class _Guarded:
    """A recorder that lets no intent pass that does not fit: the last look before the send."""

    def __init__(self, purse: Purse, ledger: Ledger, role: Role) -> None:
        self._purse = purse
        self._ledger = ledger
        self._role = role

    def intent(self, request: ChatRequest) -> int:
        self._purse.check(worst_of(request), self._role)
        return self._ledger.begin(request, self._role)

    def answer(self, ticket: int, body: bytes) -> int:
        return self._ledger.answer(ticket, body)

    def void(self, ticket: int, reason: str) -> None:
        self._ledger.void(ticket, reason)


def cost_view(
    ledger: Ledger, prices: Mapping[Role, Prices], purse: Purse, *, delivered: int, n: int
) -> CostView:
    """Money and tokens so far, for `Stats.cost`."""
    asked, totals = ledger.by_role(), ledger.totals()
    usd = None
    if not totals.without_usage:
        usd = spent_usd({role: one.usage for role, one in asked.items()}, prices)
    total = totals.usage
    return CostView(
        prompt_tokens=total.prompt_tokens,
        cached_prompt_tokens=total.cached_prompt_tokens,
        completion_tokens=total.completion_tokens,
        usd=usd,
        usd_at_most=at_most_usd(asked, prices),
        usd_projected=usd * n / delivered if usd is not None and delivered else None,
        budget=purse.left,
    )


def _usd(amount: float) -> str:
    """Cents, and four digits where that is too coarse."""
    return f"${amount:,.2f}" if amount >= 10 or amount == round(amount, 2) else f"${amount:.4g}"
