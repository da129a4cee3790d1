"""The limits of one endpoint: paid before a call, settled after it. No I/O, no clock of its own."""

import asyncio
import math
from collections import deque

from targen_async.chat.cost import Costs, LastMinute
from targen_async.chat.lease import BEAT_S, Lease
from targen_async.chat.meter import Meter
from targen_async.errors import ChatError, RateLimited, Rejected
from targen_async.records import ChatRequest, ChatResult, RateLimits

_ON_THE_WAY_S = 0.25
"""Calls overtake each other on their way, connecting included, by no more than this."""
_NEWS_S = 0.05
"""Where one process tries for more, another is as likely to be refused: it is told so soon."""


class Place:
    """A place in line, and what the call will probably cost."""

    __slots__ = ("answer", "cost", "early_marks", "future", "marks", "out", "request", "sent_s")

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.cost = 0.0
        """Tokens of the whole call, estimated; 0.0 where nobody counts them."""
        self.answer = 0.0
        """Those of its answer."""
        self.sent_s = 0.0
        self.out = 0
        """Calls that were out when it was sent, with it; 0: far fewer than might have been."""
        self.marks = (0.0, 0.0)
        """What the meters had counted when it was sent."""
        self.early_marks = (0.0, 0.0)
        """The same for the first call that the endpoint may not have counted when this one came."""
        self.future: asyncio.Future[None] | None = None


class Quota:
    """Meters of requests and tokens, as declared, told in headers or shown by refusals."""

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, now_s: float
    ) -> None:
        self.requests: Meter | None = None
        self.tokens: Meter | None = None
        self.costs = Costs()
        self.short_of = ""
        """Which limit whoever was asked for last waits for: `requests`, `tokens` or none."""
        self.calls_seen = LastMinute()
        self.tokens_seen = LastMinute()
        self._most_tokens = tokens_per_minute
        if requests_per_minute is not None:
            self.requests = Meter("requests", now_s, per_s=requests_per_minute / 60, declared=True)
        if tokens_per_minute is not None:
            self.tokens = Meter("tokens", now_s, per_s=tokens_per_minute / 60, declared=True)
        self._heard = False
        self._was_refused = False
        self._news_s = -math.inf
        # Calls under way, tokens estimated for them, and those of their answers.
        self._out = 0
        self._paid = 0.0
        self._pending = 0.0
        self._begun_s = now_s
        self._sent = 0
        self._on_the_way: deque[tuple[float, tuple[float, float]]] = deque()
        """When the last calls went, and what the meters had counted before each."""

    # ---- before a call

    def estimate(self, place: Place) -> None:
        """Put a price on a call. Raises Rejected for one that no minute has tokens for."""
        if self.tokens is None and self._heard:
            return
        prompt, place.answer = self.costs.of(place.request)
        place.cost = prompt + place.answer
        most, longest = self._most_tokens, place.request.max_tokens
        if most is not None and prompt + longest > most:
            raise Rejected(
                f"a call of about {prompt:.0f} prompt tokens and up to {longest} more can never "
                f"fit into {most:.0f} tokens a minute: raise tokens_per_minute, or ask for "
                "shorter answers"
            )

    def wait_s(self, place: Place, now_s: float) -> float:
        """Seconds until this call may be paid; 0.0: now."""
        wait_s = 0.0
        self.short_of = ""
        if self.requests is not None:
            wait_s = self.requests.wait_s(1.0, now_s)
            if wait_s > 0:
                self.short_of = "requests"
        if self.tokens is not None:
            needed_s = self.tokens.wait_s(place.cost, now_s)
            if needed_s > wait_s:
                wait_s = needed_s
                self.short_of = "tokens"
        return wait_s

    def pay(self, place: Place, now_s: float) -> None:
        """The call goes out now; `wait_s` was zero."""
        calls, tokens = self.requests, self.tokens
        on_the_way = self._on_the_way
        if calls is None and tokens is None:
            # Where nothing is counted all marks are the same: the last call stands for the rest.
            on_the_way.clear()
        else:
            place.marks = (calls.spent if calls else 0.0, tokens.spent if tokens else 0.0)
        on_the_way.append((now_s, place.marks))
        while on_the_way[0][0] < now_s - _ON_THE_WAY_S:
            on_the_way.popleft()
        place.early_marks = on_the_way[0][1]
        if calls is not None:
            calls.pay(1.0, now_s)
        if tokens is not None:
            tokens.pay(place.cost, now_s)
        place.sent_s = now_s
        self._out += 1
        self._paid += place.cost
        self._pending += place.answer
        self._sent += 1
        self.calls_seen.add(now_s, 1.0)

    def take_back(self, place: Place) -> None:
        """The call was paid and not sent."""
        self._sent -= 1
        if self.requests is not None:
            self.requests.give_back(1.0)
        if self.tokens is not None:
            self.tokens.give_back(place.cost)
        self._returned(place)

    def renew(self, lease: Lease, *, hungry: bool, now_s: float) -> None:
        """Tell the other processes how much we need, and learn how much is ours."""
        meters = self._meters
        if not meters:
            # No limit showed itself so far, so there is nothing to share.
            lease.due_s = now_s + BEAT_S
            return
        used = max(meter.used_since_asked(now_s) for meter in meters)
        lease.renew(now_s, used=used, wants_more=hungry, learnt=self._learnt, taken=self._taken)
        for meter in meters:
            meter.set_share(lease, now_s)
        self._adopt(lease, now_s)

    def exchange_news(self, lease: Lease, now_s: float) -> None:
        """Tell the other processes of a refusal at once; hear of theirs while we try for more."""
        if lease.share == 1:
            return
        tries = now_s >= self._news_s and any(meter.tries for meter in self._meters)
        if tries or self._was_refused:
            self._was_refused = False
            self._news_s = now_s + _NEWS_S
            self.ask_others(lease, now_s)
            self._adopt(lease, now_s)

    def ask_others(self, lease: Lease, now_s: float) -> None:
        """How much they took so far: what a refusal says of the rate hangs on it."""
        lease.tell(now_s, learnt=self._learnt, taken=self._taken)
        for meter in self._meters:
            meter.others = lease.others.get(meter.name)

    def _adopt(self, lease: Lease, now_s: float) -> None:
        for meter in self._meters:
            if meter.name in lease.learnt:
                meter.adopt(*lease.learnt[meter.name], now_s)

    @property
    def _meters(self) -> list[Meter]:
        return [meter for meter in (self.requests, self.tokens) if meter is not None]

    @property
    def _taken(self) -> dict[str, float]:
        return {meter.name: meter.taken for meter in self._meters}

    @property
    def _learnt(self) -> dict[str, tuple[float, float]]:
        return {meter.name: meter.learnt for meter in self._meters if meter.learnt is not None}

    # ---- after a call

    def abandoned(self, place: Place) -> None:
        """Nobody knows what became of the call: it stays paid."""
        self._returned(place)

    def answered(self, place: Place, result: ChatResult, now_s: float) -> None:
        """Charge what the call took, and believe what the endpoint says of its limits."""
        self._returned(place)
        self._heard = True
        usage = result.usage
        if usage is not None:
            taken = usage.prompt_tokens + usage.completion_tokens
            self.tokens_seen.add(now_s, taken)
            if self.tokens is not None:
                self.tokens.give_back(place.cost - taken)
                self.costs.learn(place.request, usage)
        if result.rate_limits is not None:
            self._told(place, result.rate_limits, now_s)

    def failed(self, place: Place, error: ChatError) -> None:
        """No answer. An error status means that at least no tokens were generated."""
        self._returned(place)
        if error.status is not None and self.tokens is not None:
            self.tokens.give_back(place.answer)

    def refused(self, place: Place, error: RateLimited, now_s: float) -> bool:
        """A 429 takes nothing, and shows where a limit is.

        Returns whether it may be that too many calls were out, rather than too many a minute.
        """
        self._returned(place)
        self._was_refused = True
        self._sent -= 1
        if self.requests is not None:
            self.requests.refuse(1.0, place.sent_s, now_s)
        if self.tokens is not None:
            self.tokens.refuse(place.cost, place.sent_s, now_s)
        said = error.rate_limits
        if said is not None:
            self._told(place, said, now_s)
        known = self._costs_of(place)
        if not known:
            self._first_refusal(now_s)
            return True
        short = [each for each in known if each[0].lacks(each[1], said)]
        if said is not None and not short:
            return True
        for meter, _, pending, _ in short or known:
            meter.empty(pending, now_s)
        worst, cost, _, mark = max(short or known, key=lambda each: each[0].pressure(now_s))
        worst.learn_from_refusal(mark, cost, place.sent_s, now_s)
        return said is None

    def _costs_of(self, place: Place) -> list[tuple[Meter, float, float, float]]:
        """The meters that a call was paid to: how much, what is pending, and its mark."""
        known: list[tuple[Meter, float, float, float]] = []
        if self.requests is not None:
            known.append((self.requests, 1.0, 0.0, place.marks[0]))
        if self.tokens is not None:
            known.append((self.tokens, place.cost, self._pending, place.marks[1]))
        return known

    def _returned(self, place: Place) -> None:
        self._out -= 1
        self._paid -= place.cost
        self._pending -= place.answer

    def _first_refusal(self, now_s: float) -> None:
        """Nobody told us of a limit, but there is one."""
        if self._sent > 0:
            rate = self._sent / max(now_s - self._begun_s, 0.1)
            self.requests = Meter.from_refusal("requests", now_s, per_s=rate, sent=self._sent)

    def _told(self, place: Place, said: RateLimits, now_s: float) -> None:
        if said.requests_remaining is not None:
            if self.requests is None:
                self.requests = _undeclared("requests", said.requests_limit, now_s)
                self.requests.spent = self._out
            self.requests.told(
                said.requests_limit,
                said.requests_remaining,
                said.requests_reset_s,
                mark=place.early_marks[0],
                pending=0.0,
                sent_s=place.sent_s,
                now_s=now_s,
            )
        if said.tokens_remaining is not None:
            if self.tokens is None:
                self.tokens = _undeclared("tokens", said.tokens_limit, now_s)
                self.tokens.spent = self._paid
            self.tokens.told(
                said.tokens_limit,
                said.tokens_remaining,
                said.tokens_reset_s,
                mark=place.early_marks[1],
                pending=self._pending,
                sent_s=place.sent_s,
                now_s=now_s,
            )


def _undeclared(name: str, limit: float | None, now_s: float) -> Meter:
    """Of a limit that the endpoint tells of: by the minute, until more is known."""
    return Meter(name, now_s, per_s=(limit or 60.0) / 60, declared=False)
