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

    endpoint: Callable[[], str] = str
    """One line on the endpoint's state."""
    in_flight: Callable[[], int] = int
    """Calls that are out right now."""

    def stage(self, name: StageName) -> StageStats:
        """The counters of a stage, begun at zero."""
        return self.stages.setdefault(name, StageStats())
