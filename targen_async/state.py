"""What a checkpoint holds: all that a resumed run must know of what is committed."""

from typing import Literal

from msgspec import Struct, field

from targen_async.plan import RowPlanState, Wave
from targen_async.points import SeedStart
from targen_async.records import Usage
from targen_async.rundir import FilesState

JUDGED_AGAIN = "judged_again"
"""Waste of the judge's, whose price may be another."""


class Counts(Struct, kw_only=True):
    """What the manifest tells of the committed prefix."""

    transitions: dict[str, dict[str, int]] = field(default_factory=dict)
    """Label before correction to what came of it: a label, `drop` or `review`."""
    rejected: dict[str, int] = field(default_factory=dict)
    """By stage and reason, as `instances.duplicate`; rows over a quota are counted apart."""
    failed: dict[str, int] = field(default_factory=dict)
    """By stage and kind, as `seeds.malformed`."""
    models: dict[str, int] = field(default_factory=dict)
    """Rows in the shards by the model that wrote them, as served."""
    wasted: dict[str, Usage] = field(default_factory=dict)
    """Tokens that bought no row: `asked_again`, `judged_again` and `rejected`."""


class CommitState(Struct, kw_only=True):
    """A checkpoint: all that a resumed run must know of what is committed."""

    plan: RowPlanState = field(default_factory=RowPlanState)
    files: FilesState = field(default_factory=FilesState)
    seeds: SeedStart = field(default_factory=SeedStart)
    restart_slot: int = 0
    """Where a resumed run begins: the start of the block window that the watermark lies in, since
    a block is judged whole. Answers to the slots before the watermark are in the journal."""
    targets_applied: int = 0
    counts: Counts = field(default_factory=Counts)


class Generation(Struct, frozen=True, kw_only=True):
    """The rows are made anew from the first on, out of what the journal holds.

    They stand apart until they are complete; then they take the place of the rows before them.
    `waves`: the slots that were planned; they keep their labels, so that no row that was paid for
    is asked for again. `until`: how many of them were committed.
    """

    why: Literal["retry", "reparse", "task"]
    waves: list[Wave]
    until: int

    def start(self) -> CommitState:
        """The state before the first row."""
        planned = self.waves[-1].end if self.waves else 0
        return CommitState(plan=RowPlanState(waves=list(self.waves), replan_at=planned))
