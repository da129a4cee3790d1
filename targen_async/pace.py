"""How long the rest of a run may take: how fast its pilot went, and what the endpoints allow."""

import math
import time
from collections.abc import Iterable, Sequence

import anyio
from msgspec import Struct

from targen_async.chains import addresses
from targen_async.config import RunConfig
from targen_async.course import Range, Sums, range_of
from targen_async.endpoint import NOWHERE
from targen_async.ledger import Role
from targen_async.stats import LimitView, Stats

SAMPLE_EVERY_S = 0.02
BURST_S = 60.0
"""An endpoint may have saved up so much of its rate, to be had at once."""
REACHED = 0.95
"""Part of a rate that is made use of at least."""
STEPS = 5
"""Calls that wait for one another, from the first context to the last judgement."""


class Allowed(Struct, frozen=True, kw_only=True):
    """One rate of one endpoint."""

    role: Role
    place: str
    """Its address: what stands at one may be one quota."""
    what: str
    """`requests` or `tokens`."""
    per_minute: float
    source: str
    """`declared`, `told` in headers, or `measured` by refusals."""

    def seconds(self, part: Sums) -> float:
        """As long as `part` takes at this rate."""
        amount = part.asked.get(self.role, 0.0) if self.what == "requests" else part.of(self.role)
        return 60 * amount / self.per_minute

    def words(self) -> str:
        rate = f"{self.per_minute:,.0f} {self.what} a minute"
        rate += "" if self.role == "generator" else f" of the {self.role}"
        if self.source == "measured":
            return f"if the endpoint keeps to {rate}, as measured so far"
        if self.source == "told":
            return f"at about {rate}, by the endpoint's headers"
        return f"at {rate}"


class Time(Struct, frozen=True, kw_only=True):
    """Seconds from now on, and what they rest on."""

    seconds: Range | None
    """None: not known."""
    words: str


def allowed_by(config: RunConfig, views: Iterable[LimitView]) -> list[Allowed]:
    """The rates that are known: as declared, or as the pilot learnt them (`views`)."""
    seen = {view.name: view for view in views}
    found: list[Allowed] = []
    for address in addresses(config, NOWHERE):
        view, limits = seen.get(address.role), address.limits
        learnt = (view.requests_limit, view.tokens_limit) if view else (None, None)
        for what, declared, now in (
            ("requests", limits.requests_per_minute, learnt[0]),
            ("tokens", limits.tokens_per_minute, learnt[1]),
        ):
            source = "measured" if view and view.refused else "told"
            if (rate := now or declared) is not None:
                found.append(
                    Allowed(
                        role=address.role,
                        place=address.base_url,
                        what=what,
                        per_minute=rate,
                        source="declared" if declared and rate >= 0.9 * declared else source,
                    )
                )
    return found


class Pace:
    """How fast the pilot's calls came back. By Little's law a call takes as long, on average, as
    the calls in flight, summed over time, divided by the calls that came back."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        """Calls in flight times seconds."""
        self.calls = 0
        self.seconds = 0.0

    async def watch(self, stats: Stats) -> None:
        """Look again and again, until cancelled."""
        started = before = time.monotonic()
        while True:
            await anyio.sleep(SAMPLE_EVERY_S)
            now = time.monotonic()
            self.busy_s += stats.in_flight() * (now - before)
            self.seconds, before = now - started, now
            self.calls = sum(stage.done for stage in stats.stages.values())

    def rest(
        self, ways: Sequence[Sums], allowed: Sequence[Allowed], *, at_once: int, counted: bool
    ) -> Time:
        """For the rest of a run, which may go in any of these `ways`.

        Low: `at_once` calls at a time, and all that the endpoint may have saved up. High: at the
        pilot's pace, or at the known rates where they are slower, one role after another where two
        are asked at one address. `counted`: does the endpoint count tokens?
        """
        if not counted and any(one.what == "tokens" for one in allowed):
            return Time(seconds=None, words="tokens are limited, and the endpoint counts none")
        if not (self.calls or allowed):
            return Time(seconds=None, words="the pilot was there already, and nothing was asked")
        fast = [self._fastest(way, allowed, at_once) for way in ways]
        slow = [max(self._slowest(way), self._limited(way, allowed)) for way in ways]
        low, high = range_of(fast).low, range_of(slow).high
        high = max(low, high)
        words = self._rests_on(ways, allowed)
        return Time(seconds=Range(low=low, likely=math.sqrt(low * high), high=high), words=words)

    @property
    def _call_s(self) -> float:
        return self.busy_s / self.calls if self.calls else 0.0

    def _fastest(self, way: Sums, allowed: Sequence[Allowed], at_once: int) -> float:
        rates = max((one.seconds(way) - BURST_S for one in allowed), default=0.0)
        return max(way.requests * self._call_s / at_once, rates)

    def _slowest(self, way: Sums) -> float:
        return way.requests * self.seconds / self.calls if self.calls else 0.0

    def _limited(self, way: Sums, allowed: Sequence[Allowed]) -> float:
        by_role: dict[tuple[str, Role], float] = {}
        for one in allowed:
            place = one.place, one.role
            by_role[place] = max(by_role.get(place, 0.0), one.seconds(way))
        by_place: dict[str, float] = {}
        for (where, _), seconds in by_role.items():
            by_place[where] = by_place.get(where, 0.0) + seconds
        longest = max(by_place.values(), default=0.0)
        return longest / REACHED + STEPS * self._call_s if longest else 0.0

    def _rests_on(self, ways: Sequence[Sums], allowed: Sequence[Allowed]) -> str:
        if not allowed:
            return "if the endpoint keeps its pace: no limit of it is known"
        way = sorted(ways, key=lambda one: one.requests)[len(ways) // 2]
        if self._slowest(way) > self._limited(way, allowed):
            return "if the endpoint keeps its pace"
        return max(allowed, key=lambda one: one.seconds(way)).words()
