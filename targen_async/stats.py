"""Counters of a running engine, for progress displays. Nothing here decides anything."""

import time
from collections.abc import Callable

from msgspec import Struct, field

from targen_async.records import StageName


class StageStats(Struct):
    """Calls of one stage since this start."""

    sent: int = 0
    done: int = 0
    useless: int = 0
    """Answers that could not be read."""


class LimitView(Struct, frozen=True, kw_only=True):
    """One endpoint's limits at a glance. Rates are what went out in the last 60 s; None: no such
    limit."""

    name: str
    """What the endpoint is asked for: `generator`, `judge` or `fallback`."""
    in_flight: int
    most_in_flight: int
    """As many as may be out now; it moves where the limit is adaptive."""
    waiting: int
    """Calls that wait in line."""
    requests_per_minute: float
    requests_limit: float | None
    tokens_per_minute: float
    tokens_limit: float | None
    refused: int
    """429s since this start."""
    waits_for: str
    """Why nothing is sent right now, as in "waiting 42 s: Retry-After from the endpoint"; empty
    where calls go out."""


class CostView(Struct, frozen=True, kw_only=True):
    """Money and tokens so far. `usd` None: no price is known, or answers came without a count."""

    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    usd: float | None
    usd_at_most: float | None = None
    """With the worst case of what was not counted or is still out; None: no price is known."""
    usd_projected: float | None
    """At the end of the run, by what rows have cost so far."""
    budget: str
    """What is left of the caps, in words; empty where there are none."""


class Stats(Struct):
    """What a person wants to see while a run goes on."""

    stages: dict[str, StageStats] = field(default_factory=dict)
    n: int = 0
    delivered: int = 0
    delivered_before: int = 0
    """Rows that were there when this start began."""
    balance: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    waiting: int = 0
    """Row slots that are sent and not committed."""
    waiting_for: str = ""
    """The key that the next commit waits for."""
    started_at: float = field(default_factory=time.monotonic)

    transitions: dict[str, dict[str, int]] = field(default_factory=dict)
    """Label before correction to what became of it, as in the manifest."""
    queues: Callable[[], dict[str, tuple[int, int]]] = dict
    """Stage to the items that wait before it, and how many may."""
    task: str = ""
    model: str = ""
    """As asked for."""
    simulated: bool = False
    limits: Callable[[], list[LimitView]] = list
    cost: Callable[[], CostView | None] = lambda: None
    endpoint: Callable[[], str] = str
    """One line on the endpoint's state."""
    in_flight: Callable[[], int] = int
    """Calls that are out right now."""
    draining: Callable[[], str | None] = lambda: None
    """Why nothing new is sent any more."""
    replaying: Callable[[], bool] = bool
    """Are files being made again from the journal, so that nothing is sent?"""
    window_full: Callable[[], bool] = bool
    """Do new row slots wait for the one at `waiting_for`?"""
    held: Callable[[], str] = str
    """Any other reason why calls wait, as in "budget: waiting for calls under way"."""

    def stage(self, name: StageName) -> StageStats:
        """The counters of a stage, begun at zero."""
        return self.stages.setdefault(name, StageStats())
