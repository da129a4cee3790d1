"""How far a run is, at one moment: what a live view, a plain line, a JSON line and a log tell."""

import math
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec import Struct

from targen_async.records import StageName
from targen_async.stats import CostView, LimitView, Stats

STAGES: tuple[StageName, ...] = ("contexts", "seeds", "instances", "correction")
RATE_OVER_S = 15.0
"""Calls a second are told of this last stretch."""
PACE_OVER_S = 60.0
"""Rows a second too, and the time left: rows arrive in blocks."""
STILL_AFTER_S = 3.0
"""So long nothing may come back before that is worth a word."""


class StageView(Struct, frozen=True, kw_only=True):
    """One stage at a glance."""

    queue: int | None
    """Items that wait before it; None: not known."""
    queue_limit: int | None
    under_way: int
    """Calls that wait for their turn, are out, or wait for another try."""
    answered: int
    per_second: float
    """Answers, over the last 15 s."""
    asked_again: int
    """Answers that could not be read."""


class Progress(Struct, frozen=True, kw_only=True, tag_field="kind", tag="progress"):
    """A run at one moment. The fields are the keys of a line of `--json`."""

    at: str
    """UTC, as 2026-01-31T12:00:00Z."""
    elapsed_s: float
    """Since this start."""
    task: str
    model: str
    simulated: bool
    n: int
    delivered: int
    rows_per_second: float
    """Over the last minute."""
    eta_s: float | None
    """Seconds until the last row, at that pace; None: not known."""
    why: str
    """Why nothing moves, or moves slowly, in words; empty where calls go out and come back."""
    in_flight: int | None
    """Calls that are out; None: not known."""
    still_s: float
    """Seconds since something last moved: a call sent or answered, a row delivered."""
    stages: dict[str, StageView]
    limits: list[LimitView]
    cost: CostView | None
    balance: dict[str, int]
    transitions: dict[str, dict[str, int]]
    rejected: dict[str, int]
    failed: int
    waiting: int
    waiting_for: str


class Meter:
    """Looks at `Stats` now and then, and knows from that how fast things go."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._seen: deque[tuple[float, int, dict[str, int]]] = deque()
        self._moved: tuple[int, ...] = ()
        self._moved_at = stats.started_at

    def progress(self, now: float | None = None) -> Progress:
        """The run right now; `now` is on the clock of `time.monotonic`, in seconds."""
        stats = self._stats
        now = time.monotonic() if now is None else now
        self._look(now)
        still_s = now - self._moved_at
        limits = stats.limits()
        rate = self._pace(now)
        left = stats.n - stats.delivered
        return Progress(
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            elapsed_s=round(now - stats.started_at, 3),
            task=stats.task,
            model=stats.model,
            simulated=stats.simulated,
            n=stats.n,
            delivered=stats.delivered,
            rows_per_second=round(rate, 3),
            eta_s=round(left / rate, 1) if rate > 0 and left > 0 else None,
            why=why(stats, limits, still_s),
            in_flight=stats.in_flight(),
            still_s=round(still_s, 1),
            stages=self._stages(now),
            limits=limits,
            cost=stats.cost(),
            balance=dict(stats.balance),
            transitions={before: dict(row) for before, row in stats.transitions.items()},
            rejected=dict(stats.rejected),
            failed=stats.failed,
            waiting=stats.waiting,
            waiting_for=stats.waiting_for,
        )

    def _look(self, now: float) -> None:
        stats = self._stats
        done = {name: stage.done for name, stage in stats.stages.items()}
        self._seen.append((now, stats.delivered, done))
        while now - self._seen[0][0] > PACE_OVER_S:
            self._seen.popleft()
        sent = sum(stage.sent for stage in stats.stages.values())
        moved = (sent, sum(done.values()), stats.delivered, stats.n)
        if moved != self._moved:
            self._moved, self._moved_at = moved, now

    def _pace(self, now: float) -> float:
        """Rows a second. Before the first minute is over: of all this start."""
        stats = self._stats
        since, before = stats.started_at, stats.delivered_before
        if now - since > PACE_OVER_S:
            since, before, _ = self._seen[0]
        return max(stats.delivered - before, 0) / max(now - since, 1.0)

    def _stages(self, now: float) -> dict[str, StageView]:
        queues = self._stats.queues()
        known = self._stats.stages
        names = [name for name in STAGES if name in known or name in queues]
        since, _, before = next(
            (seen for seen in self._seen if now - seen[0] <= RATE_OVER_S), self._seen[-1]
        )
        views: dict[str, StageView] = {}
        for name in names:
            stage, queue = known.get(name), queues.get(name)
            sent, done = (stage.sent, stage.done) if stage else (0, 0)
            new = done - before.get(name, 0)
            views[name] = StageView(
                queue=queue[0] if queue else None,
                queue_limit=queue[1] if queue else None,
                under_way=sent - done,
                answered=done,
                per_second=round(new / max(now - since, 1.0), 2),
                asked_again=stage.useless if stage else 0,
            )
        return views


def why(stats: Stats, limits: Iterable[LimitView], still_s: float) -> str:
    """The reason why nothing moves, or moves slowly, in words; empty where all is well."""
    draining = stats.draining()
    if draining is not None:
        return _draining(draining, stats.in_flight())
    if stats.replaying():
        return "making files again from the journal: nothing is sent until they are whole"
    waits = _waits(list(limits), stats.endpoint())
    if waits:
        return waits
    if held := stats.held():
        return held
    if stats.window_full():
        return f"key {stats.waiting_for} holds the window: {stats.waiting:,} rows wait behind it"
    return _still(stats, still_s)


def is_calm(reason: str) -> bool:
    """Is a reason of `why` in the order of things, so that nobody need look?"""
    return reason.startswith(("draining", "making files", "opening", "asking"))


def _draining(reason: str, in_flight: int) -> str:
    tail = f"waiting for {calls(in_flight)} under way" if in_flight else "writing the last rows"
    return f"draining: {tail}" + (f" ({reason})" if reason != "interrupted" else "")


def _waits(limits: list[LimitView], endpoint: str) -> str:
    found: dict[str, list[str]] = {}
    for view in limits:
        if view.waits_for:
            found.setdefault(view.waits_for, []).append(view.name)
    if not found:
        return "" if endpoint == "endpoint up" else endpoint
    if len(limits) == 1:
        return next(iter(found))
    return "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in found.items())


def _still(stats: Stats, still_s: float) -> str:
    if not stats.n:
        return "opening the run"
    probe = stats.stages.get("probe")
    if probe and probe.sent > probe.done:
        return "asking the endpoint what it can do"
    if still_s < STILL_AFTER_S:
        return ""
    since = f"for {still_s:.0f} s"
    under_way = sum(stage.sent - stage.done for stage in stats.stages.values())
    if out := stats.in_flight():
        return f"no answer {since}: {calls(out)} under way"
    if under_way:
        return f"nothing sent {since}: {calls(under_way)} in line or waiting for another try"
    return f"nothing to ask {since}"


def calls(count: int) -> str:
    """A number of calls in words."""
    return f"{count} call" if count == 1 else f"{count} calls"


def duration(seconds: float) -> str:
    """Like 0:42, 12:03, 1:02:03 or 3 days 4:05:06."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} {'day' if days == 1 else 'days'} {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def amount(value: float) -> str:
    """A count in few characters: 950, 12.3 k, 1.20 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            number = value / (1e3 if unit == " k" else size)
            return f"{number:.0f}{unit}" if number >= 100 else f"{number:.1f}{unit}"
    return f"{value:.0f}"


def usd(value: float) -> str:
    """Dollars, with as many places as tell something."""
    return f"${value:.2f}" if value >= 10 else f"${value:.4f}"
