"""What a run will take, before it is begun in earnest: a pilot of its first rows, and a range.

The pilot is the run itself with a smaller n, in the same folder: what it asks is journalled, and
the real run, which raises n, asks none of it again. Until then any n from the pilot's on can still
be chosen.
"""

import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import anyio
from msgspec import Struct
from msgspec.structs import replace

from targen_async.config import Budget, Prices, RunConfig
from targen_async.control import RunControl
from targen_async.course import Course, Sums, spent
from targen_async.errors import UserError
from targen_async.ledger import Role
from targen_async.manifest import Manifest
from targen_async.pilot import Pilot, read_pilot
from targen_async.prices import prices_of
from targen_async.records import StageName
from targen_async.rundir import JOURNAL, MANIFEST, read_manifest, write_config
from targen_async.stats import Stats
from targen_async.tasks import Task, load_task

PILOT_ROWS = 20
PILOT_CALLS = 8
PILOT_SHARE = 0.02
MOST_PILOT_ROWS = 200
DRAWS = 1000
OUTSIDE = 0.01
"""Share of the draws left out at each end of a range: with what the model of a run leaves out, at
least nine of ten runs end inside."""
SAMPLE_EVERY_S = 0.02


class Range(Struct, frozen=True, kw_only=True):
    low: float
    likely: float
    high: float


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
    seconds: Range
    """From now on. Low: as many calls at once as allowed; high: at the pilot's pace."""
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
        if self.usd is not None:
            said.append(f"  cost      {_span(self.usd, _usd)}")
        elif self.tokens is not None:
            said.append("  cost      not known: no price for the model; see delivery.prices_file")
        said.append(f"  time      {_span(self.seconds, _duration)}")
        said += self._caps()
        said.append(
            "  ranges hold in about nine runs of ten; the same command without --estimate goes on"
        )
        return said

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
        control: RunControl | None = None,
        stats: Stats | None = None,
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
    control: RunControl | None = None,
    stats: Stats | None = None,
) -> Estimate | None:
    """Run the pilot in `out` and extrapolate from it to `config.delivery.n`.

    Afterwards run.toml holds `config`, so that a start without flags makes all rows. None: the
    pilot was stopped before its end. Raises what `generate` raises, and UserError where the folder
    already aims at n.
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
    pilot = replace(config, delivery=replace(config.delivery, n=pilot_rows(config, task, begun)))
    pace = Pace()
    async with anyio.create_task_group() as group:
        group.start_soon(pace.watch, stats)
        manifest = await generate(pilot, folder, control=control, stats=stats)
        group.cancel_scope.cancel()
    if manifest.state != "complete":
        return None
    write_config(folder, config)
    return extrapolate(config, task, read_pilot(folder / JOURNAL, task), prices, pace)


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

    def rest(self, requests: Range, config: RunConfig) -> Range:
        """Seconds for so many more calls."""
        limits = config.delivery.limits
        call_s = self.busy_s / self.calls if self.calls else 0.0
        fastest = requests.low * call_s / limits.max_in_flight
        slowest = requests.high * (self.seconds / self.calls if self.calls else 0.0)
        if limits.requests_per_minute:
            fastest = max(fastest, 60 * requests.low / limits.requests_per_minute)
            slowest = max(slowest, 60 * requests.high / limits.requests_per_minute)
        slowest = max(slowest, fastest)
        return Range(low=fastest, likely=math.sqrt(fastest * slowest), high=slowest)


def extrapolate(
    config: RunConfig,
    task: Task,
    pilot: Pilot,
    prices: Mapping[Role, Prices],
    pace: Pace,
) -> Estimate:
    """From the pilot to the whole run, by drawing what is not known many times over."""
    luck = random.Random(0)
    course = Course(config, task, pilot)
    so_far = spent(pilot)
    draws = [course.draw(luck) for _ in range(DRAWS)]
    calls = [call for one in pilot.stages.values() for call in one.calls]
    known = any(call.usage for call in calls)
    priced = known and all(call.role in prices for call in calls)

    def whole(measure: Callable[[Sums], float], *, told: bool = True) -> Range | None:
        return _range([measure(one) for one in draws], measure(so_far)) if told else None

    rest = _range([one.requests for one in draws], 0)
    return Estimate(
        n=config.delivery.n,
        pilot_rows=sum(pilot.plan.accepted.values()),
        pilot_calls=len(calls),
        pilot_usd=so_far.usd(prices) if priced else None,
        requests=_range([one.requests for one in draws], so_far.requests),
        prompt_tokens=whole(lambda one: one.prompt, told=known),
        completion_tokens=whole(lambda one: one.completion, told=known),
        tokens=whole(lambda one: one.tokens, told=known),
        usd=whole(lambda one: one.usd(prices), told=priced),
        seconds=pace.rest(rest, config),
        stages={
            stage: _range([one.calls.get(stage, 0.0) for one in draws], so_far.calls[stage])
            for stage in so_far.calls
        },
        budget=config.delivery.budget,
    )


def _range(draws: list[float], spent: float) -> Range:
    ordered = sorted(draws)

    def at(share: float) -> float:
        return spent + ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Range(low=at(OUTSIDE), likely=at(0.5), high=at(1 - OUTSIDE))


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
