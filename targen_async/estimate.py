"""What a run will take, before it is begun in earnest: a pilot of its first rows, and a range.

The pilot is the run itself with a smaller n, in the same folder: what it asks is journalled, and
the real run, which raises n, asks none of it again. Until then any n from the pilot's on can still
be chosen.
"""

import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import anyio
from msgspec import Struct

from targen_async.config import Budget, Prices, RunConfig
from targen_async.course import Course, Range, Sums, range_of, spent
from targen_async.errors import UserError
from targen_async.ledger import Role
from targen_async.manifest import Manifest
from targen_async.pace import Allowed, Pace, allowed_by
from targen_async.pilot import Pilot, read_pilot
from targen_async.prices import models_of, prices_of
from targen_async.records import StageName
from targen_async.rundir import JOURNAL, MANIFEST, read_manifest
from targen_async.stats import Stats
from targen_async.tasks import Task, load_task

PILOT_ROWS = 20
PILOT_CALLS = 8
PILOT_SHARE = 0.02
MOST_PILOT_ROWS = 200
DRAWS = 1000


class Estimate(Struct, frozen=True, kw_only=True):
    """A whole run from its first call to the last, the pilot included."""

    n: int
    pilot_rows: int
    pilot_calls: int
    pilot_usd: float | None
    requests: Range
    """Served; attempts that were refused cost nothing and are not counted."""
    prompt_tokens: Range | None
    """None where the endpoint reports no usage; likewise the rest."""
    completion_tokens: Range | None
    tokens: Range | None
    usd: Range | None
    """None where a price is not known, too."""
    usd_part: Range | None
    """Of the models whose price is known, where another's is not."""
    unpriced: list[str]
    """The models whose price is not known."""
    seconds: Range | None
    """From now on; None: not known."""
    seconds_hold: str
    """What the time rests on, or why it is not known."""
    stages: dict[StageName, Range]
    """Requests by stage."""
    budget: Budget

    def lines(self) -> list[str]:
        """For a person."""
        cost = "" if self.pilot_usd is None else f", {_usd(self.pilot_usd)}"
        said = [
            f"estimate for {self.n:,} rows from the first {self.pilot_rows} "
            f"({self.pilot_calls:,} calls{cost}; kept, the run goes on from them)",
            f"  requests  {_span(self.requests, _count)}",
        ]
        if self.tokens is None or self.prompt_tokens is None or self.completion_tokens is None:
            said.append("  tokens    not known: the endpoint reports no usage")
        else:
            said.append(
                f"  tokens    {_span(self.tokens, _count)} "
                f"(prompt {_count(self.prompt_tokens.likely)}, "
                f"completion {_count(self.completion_tokens.likely)})"
            )
        said += self._cost()
        if self.seconds is not None:
            said.append(f"  time      {_span(self.seconds, _duration)}, {self.seconds_hold}")
        else:
            said.append(f"  time      not known: {self.seconds_hold}")
        said += self._caps()
        said.append(
            f"  {self._held()} end within their range in about nine runs of ten; "
            "the same command without --estimate goes on"
        )
        return said

    def _cost(self) -> list[str]:
        if self.usd is not None:
            return [f"  cost      {_span(self.usd, _usd)}"]
        if self.tokens is None:
            return []
        names = " and ".join(map(repr, self.unpriced))
        mend = "docs/endpoints.md tells how to name one"
        if self.usd_part is None:
            return [f"  cost      not known: no price for {names}; {mend}"]
        return [
            f"  cost      not known: {_span(self.usd_part, _usd)}, and there is no price for "
            f"{names}; {mend}"
        ]

    def _held(self) -> str:
        if self.usd is not None:
            return "requests, tokens and cost"
        return "requests and tokens" if self.tokens is not None else "requests"

    def _caps(self) -> list[str]:
        caps: list[tuple[str, float | None, Range | None]] = [
            ("--max-usd", self.budget.max_usd, self.usd),
            ("--max-tokens", self.budget.max_tokens, self.tokens),
            ("--max-requests", self.budget.max_requests, self.requests),
        ]
        return [
            f"  {flag} {cap:,} {'will' if cap < need.low else 'may'} stop it before the end"
            for flag, cap, need in caps
            if cap is not None and need is not None and cap < need.high
        ]


class Generate(Protocol):
    """`targen_async.engine.generate`."""

    def __call__(
        self,
        config: RunConfig,
        out: Path | str,
        *,
        stats: Stats | None = None,
        first: int | None = None,
    ) -> Awaitable[Manifest]: ...


def pilot_rows(config: RunConfig, task: Task, begun: int = 0) -> int:
    """Rows of the pilot: 20 or 2 % of n, whichever is more; no more than 200 or half of n.

    `begun`: the n that the folder already aims at, below which it cannot go.
    """
    n, step = config.delivery.n, task.rows_per_call
    wanted = max(PILOT_ROWS, PILOT_CALLS * step, math.ceil(PILOT_SHARE * n))
    rows = min(wanted, MOST_PILOT_ROWS, max(n // 2, 1))
    return min(max(-(-rows // step) * step, begun), n)


async def estimate(
    config: RunConfig,
    out: Path | str,
    *,
    generate: Generate,
    stats: Stats | None = None,
) -> tuple[Manifest, Estimate | None]:
    """Run the pilot in `out` and extrapolate from it to `config.delivery.n`.

    Returns the pilot's manifest too. However it ends, run.toml holds `config`, so that a start
    without flags makes all rows. None: the pilot was stopped before its end. Raises what `generate`
    raises, and UserError where the folder already aims at n.
    """
    folder, task = Path(out), load_task(config.data.task)
    begun = int(read_manifest(folder)["n"]) if (folder / MANIFEST).exists() else 0
    if begun >= config.delivery.n:
        raise UserError(
            f"{folder} already aims at n = {begun}: there is nothing left to estimate; "
            "`targen status` tells what it has cost"
        )
    prices = prices_of(config)
    stats = stats or Stats()
    first = pilot_rows(config, task, begun)
    pace = Pace()
    async with anyio.create_task_group() as group:
        group.start_soon(pace.watch, stats)
        manifest = await generate(config, folder, stats=stats, first=first)
        group.cancel_scope.cancel()
    if manifest.state != "complete":
        return manifest, None
    allowed = allowed_by(config, stats.limits())
    pilot = read_pilot(folder / JOURNAL, task)
    return manifest, extrapolate(config, task, pilot, prices, pace, allowed)


def extrapolate(
    config: RunConfig,
    task: Task,
    pilot: Pilot,
    prices: Mapping[Role, Prices],
    pace: Pace,
    allowed: Sequence[Allowed],
) -> Estimate:
    """From the pilot to the whole run, by drawing what is not known many times over."""
    luck = random.Random(0)
    course = Course(config, task, pilot)
    so_far = spent(pilot)
    draws = [course.draw(luck) for _ in range(DRAWS)]
    calls = [call for one in pilot.stages.values() for call in one.calls]
    known = any(call.usage for call in calls)
    asked = list(dict.fromkeys(call.role for call in calls))
    priced = [role for role in asked if role in prices]
    whole_price = known and len(priced) == len(asked)
    part_price = known and 0 < len(priced) < len(asked)
    models = models_of(config)

    def whole(measure: Callable[[Sums], float], *, told: bool = True) -> Range | None:
        return range_of([measure(one) for one in draws], measure(so_far)) if told else None

    def part(one: Sums) -> float:
        return sum(one.usd_of(role, prices[role]) for role in priced)

    at_once = config.delivery.limits.max_in_flight
    time = pace.rest(draws, allowed, at_once=at_once, counted=known)
    return Estimate(
        n=config.delivery.n,
        pilot_rows=sum(pilot.plan.accepted.values()),
        pilot_calls=len(calls),
        pilot_usd=so_far.usd(prices) if whole_price else None,
        requests=range_of([one.requests for one in draws], so_far.requests),
        prompt_tokens=whole(lambda one: one.prompt, told=known),
        completion_tokens=whole(lambda one: one.completion, told=known),
        tokens=whole(lambda one: one.tokens, told=known),
        usd=whole(lambda one: one.usd(prices), told=whole_price),
        usd_part=whole(part, told=part_price),
        unpriced=list(
            dict.fromkeys(models.get(role, role) for role in asked if role not in prices)
        ),
        seconds=time.seconds,
        seconds_hold=time.words,
        stages={
            stage: range_of([one.calls.get(stage, 0.0) for one in draws], so_far.calls[stage])
            for stage in so_far.calls
        },
        budget=config.delivery.budget,
    )


def _span(one: Range, show: Callable[[float], str]) -> str:
    low, high = show(one.low), show(one.high)
    return low if low == high else f"{low} to {high}"


def _count(number: float) -> str:
    """Three digits that mean something."""
    if number >= 1e6:
        return f"{number / 1e6:.3g} M"
    return f"{float(f'{number:.3g}'):,.0f}"


def _usd(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 10 else f"${amount:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
