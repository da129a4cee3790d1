"""The third ordered point: rows pass in key order; quotas and distinctness are decided here.

One writer owns the files. A row is committed when its line is in a shard; before that, every
answer it is made from is on the disk.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import orjson
from msgspec.structs import replace

from targen_async.control import Demand, RunControl
from targen_async.distinct import DistinctGate, Duplicate
from targen_async.errors import RunStopped
from targen_async.journal import Journal, Kind, Target
from targen_async.pipeline import Incoming, Send
from targen_async.plan import RowPlan, row_key
from targen_async.points import MAX_PER_CALL, SeedStart
from targen_async.records import (
    Failure,
    Judged,
    Note,
    Reason,
    Rejection,
    SlotCall,
    StageName,
    Usage,
    add_usage,
)
from targen_async.rows import Rows
from targen_async.rundir import Files, to_line
from targen_async.settle import Settled, settle, settle_together
from targen_async.slots import balance
from targen_async.state import JUDGED_AGAIN, CommitState
from targen_async.stats import Stats

CHECKPOINT_EVERY_S = 1.0
MOST_MODELS = 50
"""Models whose rows are counted apart: a server may call itself something else each time."""
MODEL_SHOWN = 200
OTHER_MODELS = "others"


class Committer:
    """Takes judged slots in any order and commits them in key order."""

    def __init__(
        self,
        state: CommitState,
        targets: Sequence[Target],
        *,
        rows: Rows,
        plan: RowPlan,
        journal: Journal,
        files: Files,
        gate: DistinctGate,
        control: RunControl,
        seed_demand: Demand,
        stats: Stats,
        voters: int,
        block_size: int,
        rows_per_seed: int,
        replay_to: int,
        remake_to: int,
        stop_at: int | None,
    ) -> None:
        self.state = state
        self.plan = plan
        self._targets = targets
        self._rows = rows
        self._journal = journal
        self._files = files
        self._gate = gate
        self._control = control
        self._seed_demand = seed_demand
        self._stats = stats
        self._voters = voters
        self._block_size = block_size
        self._rows_per_seed = rows_per_seed
        self._together = plan.grouping.size if plan.grouping.whole else 1
        self._replay_to = replay_to
        self._remake_to = remake_to
        self._stop_at = stop_at
        self._window: dict[int, Judged] = {}
        self._checkpointed_at = time.monotonic()
        stats.delivered_before = plan.delivered
        self._apply_targets()
        self._report()
        control.begin_replay(
            files=plan.state.watermark < replay_to, rows=plan.state.watermark < remake_to
        )

    # ---- the stage

    async def work(self, incoming: Incoming, _send: Send) -> None:
        """Read to the end of the stream, or until n rows are committed."""
        async for judged in incoming:
            self._keep(judged)
            for more in incoming.take_waiting():
                self._keep(more)
            try:
                self._commit_ready()
            except RunStopped as error:
                self._control.fail(error)
            if self.done:
                whole = "all rows are delivered"
                self._control.drain(whole if self.plan.done else "all answers are read again")
            await self.publish()
            if self.done:
                return

    def _keep(self, judged: Judged) -> None:
        # Slots before the watermark come again when a block window is judged whole after a start.
        slot = judged.answer.call.slot
        if slot >= self.plan.state.watermark:
            self._window[slot] = judged

    @property
    def done(self) -> bool:
        """Are all rows delivered that were ever asked for, or had that can be without a call?"""
        if self._stop_at is not None and self.plan.state.watermark >= self._stop_at:
            return True
        return self.plan.done and self.state.targets_applied == len(self._targets)

    def _commit_ready(self) -> None:
        """Commit the unbroken run of slots at the watermark."""
        self._control.moved_at = anyio.current_time()
        while not self.done and self._next_is_there():
            start = self.plan.state.watermark
            self._commit([self._window.pop(start + place) for place in range(self._together)])
            self._apply_targets()
        if not self.done:
            watermark = self.plan.state.watermark
            self._control.end_replay(
                files=watermark >= self._replay_to, rows=watermark >= self._remake_to
            )
        self._seed_demand.need(-(-self.plan.planned // self._rows_per_seed))
        self._report()

    def _next_is_there(self) -> bool:
        watermark = self.plan.state.watermark
        return all(watermark + place in self._window for place in range(self._together))

    def _apply_targets(self) -> None:
        """Raise n where the journal says so: rows over the old quota come first."""
        state = self.state
        while state.targets_applied < len(self._targets):
            target = self._targets[state.targets_applied]
            if target.slot > self.plan.state.watermark:
                break
            self.plan.state.n = target.n
            self._adopt_surplus()
            self.plan.aim(target.n)
            state.targets_applied += 1
        self._seed_demand.need(-(-self.plan.planned // self._rows_per_seed))

    def _adopt_surplus(self) -> None:
        """Take what now has a place, twins together."""
        groups: dict[int, list[tuple[int, str, bytes]]] = {}
        for row in self._gate.surplus():
            groups.setdefault(row[0] // self._together, []).append(row)
        for rows in groups.values():
            if self.plan.wants(*(label for _, label, _ in rows)):
                for id_, label, line in rows:
                    self._add_row(line, orjson.loads(line))
                    self.plan.accept(label)
                    self._gate.adopt_surplus(id_, self.state.targets_applied)

    # ---- the slots of one call, or of a part of it that stands by itself

    def _commit(self, judged: Sequence[Judged]) -> None:
        first = judged[0].answer
        if first.call.slot % self._rows_per_seed == 0:
            self._waste("asked_again", first.call.seed.wasted)
            for note in first.call.seed.notes:
                self._note(note)
        for one in judged:
            self._waste("asked_again", one.answer.wasted)
            self._waste(JUDGED_AGAIN, one.wasted)
        usable: list[str | None] = [None] * len(judged)
        if first.failure is None:
            usable = self._settled(judged)
        elif first.call.slot % self._rows.task.rows_per_call == 0:
            # The rows of a call fail together: it is told once.
            self._note(first.failure)
        for one, quota_class in zip(judged, usable, strict=True):
            self._pass(one.answer.call, quota_class)

    def _pass(self, call: SlotCall, usable: str | None) -> None:
        """The watermark goes over a slot."""
        self.plan.commit(call.slot, call.label, usable)
        if self.plan.starts_window(call.slot + 1, self._block_size):
            self.state.restart_slot = call.slot + 1
            self.state.seeds = SeedStart(call=call.seed.call.index, index=call.seed.first_index)

    def _settled(self, judged: Sequence[Judged]) -> list[str | None]:
        """Write rows of one call where they belong; returns the class of each that is usable."""
        settled = [settle(self._rows, one, self._voters) for one in judged]
        whole = len(settled) > 1
        if whole:
            settled = settle_together(self._rows, settled)
        for one in settled:
            for failure in one.failures:
                self._note(failure)
            if one.transition:
                self._count_transition(*one.transition)
        settled = self._distinct(settled, whole)
        if all(one.reason is None for one in settled):
            self._deliver(settled)
        for one in settled:
            if one.reason is not None:
                self._reject(one)
        return [None if one.reason else one.quota_class for one in settled]

    def _distinct(self, settled: list[Settled], whole: bool) -> list[Settled]:
        """Pass rows through the distinct gate; those it stops get their reason."""
        sketches = [self._gate.sketch(one.texts) for one in settled]
        found = [
            None
            if one.reason
            else self._gate.duplicate_of(one.call.slot, self._rows_per_seed, sketch)
            for one, sketch in zip(settled, sketches, strict=True)
        ]
        marked = [
            one if duplicate is None else self._as_duplicate(one, duplicate)
            for one, duplicate in zip(settled, found, strict=True)
        ]
        if whole:
            marked = settle_together(self._rows, marked)
        for one, sketch in zip(marked, sketches, strict=True):
            if one.reason is None:
                self._gate.add_row(one.call.slot, sketch)
        return marked

    def _as_duplicate(self, one: Settled, duplicate: Duplicate) -> Settled:
        reason: Reason = "duplicate" if duplicate.similarity == 1 else "near_duplicate"
        detail = f"like {self._key(duplicate.id)}, similarity {duplicate.similarity:.3f}"
        return replace(one, reason=reason, detail=detail)

    def _deliver(self, settled: Sequence[Settled]) -> None:
        """Rows that are of use: into the shards as far as there is room in the quotas."""
        wanted = self.plan.wants(*(one.quota_class for one in settled))
        for one in settled:
            line = to_line(one.row)
            if wanted:
                self._add_row(line, one.row)
                self.plan.accept(one.quota_class)
            else:
                self._gate.keep_surplus(one.call.slot, one.quota_class, line)

    def _add_row(self, line: bytes, row: Mapping[str, Any]) -> None:
        self._files.add_row(line)
        models = self.state.counts.models
        name = row["provenance"]["model"][:MODEL_SHOWN]
        if name not in models and len(models) >= MOST_MODELS:
            name = OTHER_MODELS
        models[name] = models.get(name, 0) + 1

    def _reject(self, one: Settled) -> None:
        assert one.reason is not None
        self._waste("rejected", one.usage)
        self._note(
            Rejection(
                key=one.call.key,
                stage="instances",
                reason=one.reason,
                detail=one.detail,
                row=one.row,
            )
        )

    # ---- notes and counts

    def _note(self, note: Note) -> None:
        if isinstance(note, Failure):
            self._files.failures.add(to_line(msgspec.to_builtins(note)))
            _count(self.state.counts.failed, note.stage, note.kind)
        else:
            self._files.rejected.add(to_line(msgspec.to_builtins(note)))
            _count(self.state.counts.rejected, note.stage, note.reason)

    def _waste(self, cause: str, usage: Usage | None) -> None:
        if usage is not None and (usage.prompt_tokens or usage.completion_tokens):
            wasted = self.state.counts.wasted
            wasted[cause] = add_usage(wasted.get(cause, Usage()), usage)

    def _count_transition(self, before: str, after: str) -> None:
        row = self.state.counts.transitions.setdefault(before, {})
        row[after] = row.get(after, 0) + 1

    def _report(self) -> None:
        stats, plan = self._stats, self.plan
        stats.n = plan.state.n
        stats.delivered = plan.delivered
        stats.balance = balance(plan.state.accepted, plan.labels)
        stats.rejected = self.state.counts.rejected
        stats.transitions = self.state.counts.transitions
        stats.failed = sum(self.state.counts.failed.values())
        stats.waiting = len(self._window)
        stats.waiting_for = self._key(plan.state.watermark)

    def _key(self, slot: int) -> str:
        return row_key(self._rows.task.name, slot, self._rows_per_seed)

    # ---- durability

    async def publish(self) -> None:
        """Write committed lines, once the answers behind them are safe; maybe a checkpoint."""
        if self._files.pending:
            await self._journal.sync()
            self._files.flush()
        if time.monotonic() - self._checkpointed_at >= CHECKPOINT_EVERY_S:
            await anyio.to_thread.run_sync(self._files.sync)
            self._checkpoint()

    async def finish(self, trailing: Sequence[Note], wasted: Usage) -> None:
        """The last checkpoint of this start: everything committed is safe when it returns.

        `trailing`: what was refused behind the last committed row, and `wasted` the tokens of it.
        Both are counted behind the checkpoint: a resumed run finds them again.
        """
        await self._journal.sync()
        self._files.flush()
        await anyio.to_thread.run_sync(self._files.sync)
        self._checkpoint()
        for note in trailing:
            self._note(note)
        self._waste("asked_again", wasted)
        self._list_surplus()
        await anyio.to_thread.run_sync(self._files.sync)
        await self._journal.sync()

    def _list_surplus(self) -> None:
        """Rows over a quota, at the end of rejected.jsonl and behind its checkpoint: a start with a
        larger n cuts them off and takes what it can use."""
        for id_, label, line in self._gate.surplus():
            rejection = Rejection(
                key=self._key(id_),
                stage="instances",
                reason="surplus",
                detail=f"the quota of {label} is full",
                row=orjson.loads(line),
            )
            self._files.rejected.add(to_line(msgspec.to_builtins(rejection)))
        self._files.flush()

    def _checkpoint(self) -> None:
        self._gate.save(self.plan.state.watermark, self.state.seeds.call * MAX_PER_CALL)
        self.state.files = self._files.state()
        self._journal.append(Kind.CHECKPOINT, msgspec.msgpack.encode(self.state))
        self._checkpointed_at = time.monotonic()


def _count(counts: dict[str, int], stage: StageName, what: str) -> None:
    name = f"{stage}.{what}"
    counts[name] = counts.get(name, 0) + 1
