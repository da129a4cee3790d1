"""Caps that bind: no call is made whose worst case could pass them, over all starts of a run."""

from collections.abc import Callable, Mapping

import anyio

from targen_async.chat import ChatClient, Recorder
from targen_async.chat.limit import Gate
from targen_async.config import Budget, Prices
from targen_async.errors import RunStopped
from targen_async.ledger import Ledger, Role, spent_usd, usd_of, worst_of, worst_usd_of
from targen_async.records import ChatRequest, ChatResult, Usage
from targen_async.stats import CostView


class NoRoom(Exception):
    """Between the look and the send another call took the room: nothing was sent."""


class Purse:
    """What may still be spent. One for all endpoints of a run, each at its own price.

    The ledger says what is charged: usage as reported, the worst case of what is in doubt or came
    without usage, nothing for what was refused cleanly. A call that does not fit waits for those
    under way, as most take less than their worst case; only when none is left the run is stopped.
    First come, first served: a small call never passes a large one that waits.
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
        """Why calls wait, for `Stats.held`; empty where they do not."""
        return "budget: waiting for calls under way" if self.waiting else ""

    def recorder(self, role: Role) -> Recorder:
        """What the endpoint that plays `role` reports to; its `intent` raises NoRoom."""
        return _Guarded(self, self._ledger, role) if self.binds else self._ledger.of(role)

    async def enter(self, worst: Usage, role: Role) -> None:
        """Wait until `worst` fits. Raises RunStopped when it never will; else `leave` follows."""
        async with self._door:
            try:
                while self._over is None and (cap := self._cap_passed_by(worst, role)):
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

    def leave(self) -> None:
        """A call is back, whatever became of it."""
        self._under_way -= 1
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
        """Would `worst` fit now, with nobody waiting?"""
        return not self.waiting and self._cap_passed_by(worst, role) is None

    def check(self, worst: Usage, role: Role) -> None:
        """Raises NoRoom where `worst` would not fit now."""
        if self._cap_passed_by(worst, role):
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

    def _cap_passed_by(self, worst: Usage, role: Role) -> str | None:
        """The first cap that a call of this worst case could pass, as the flag that sets it."""
        budget = self.budget
        if budget.max_requests is not None and self._charged_requests() >= budget.max_requests:
            return "--max-requests"
        if budget.max_tokens is not None:
            tokens = worst.prompt_tokens + worst.completion_tokens
            if self._charged_tokens() + tokens > budget.max_tokens:
                return "--max-tokens"
        if budget.max_usd is not None:
            usd = worst_usd_of(worst, self._prices[role])
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
        usd = 0.0
        for role, one in self._ledger.by_role().items():
            # A role that is no longer played may have no price: its calls cost what the
            # generator's do, as nothing better is known.
            prices = self._prices.get(role) or self._prices["generator"]
            usd += usd_of(one.usage, prices)
            usd += worst_usd_of(one.without_usage_worst, prices)
            usd += worst_usd_of(one.in_doubt_worst, prices)
        return usd

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
    """Asks the purse before each attempt. Stands between `Limited` and the client that sends, which
    must report to `purse.recorder(role)`.

    `gate` is asked once more after waiting, as `Limited` does: the run may have ended meanwhile.
    """

    def __init__(
        self, inner: ChatClient, purse: Purse, role: Role, *, gate: Gate | None = None
    ) -> None:
        self._inner = inner
        self._purse = purse
        self._role = role
        self._gate = gate

    async def complete(self, request: ChatRequest) -> ChatResult:
        """Wait for room, then ask. Raises RunStopped when the budget is used up."""
        worst = worst_of(request)
        while True:
            await self._purse.enter(worst, self._role)
            try:
                if self._gate:
                    self._gate(request)
                return await self._inner.complete(request)
            except NoRoom:
                continue
            finally:
                self._purse.leave()


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
    usage = {role: one.usage for role, one in ledger.by_role().items()}
    usd = spent_usd(usage, prices)
    total = ledger.totals().usage
    return CostView(
        prompt_tokens=total.prompt_tokens,
        cached_prompt_tokens=total.cached_prompt_tokens,
        completion_tokens=total.completion_tokens,
        usd=usd,
        usd_projected=usd * n / delivered if usd is not None and delivered else None,
        budget=purse.left,
    )


def _usd(amount: float) -> str:
    """Cents, and four digits where that is too coarse."""
    return f"${amount:,.2f}" if amount >= 10 or amount == round(amount, 2) else f"${amount:.4g}"
