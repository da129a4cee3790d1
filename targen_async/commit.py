"""The third ordered point: rows pass in key order; quotas and distinctness are decided here.

One writer owns the files. A row is committed when its line is in a shard; before that, every
answer it is made from is on the disk.
"""

import time
from collections.abc import Sequence

import anyio
import anyio.to_thread
import msgspec
import orjson
from msgspec import Struct, field

from targen_async.control import Demand, RunControl
from targen_async.distinct import DistinctGate
from targen_async.errors import RunStopped
from targen_async.journal import Journal, Kind, Target
from targen_async.pipeline import Incoming, Send
from targen_async.plan import RowPlan, RowPlanState, row_key
from targen_async.points import MAX_PER_CALL, SeedStart
from targen_async.records import (
    Failure,
    Judged,
    Note,
    Reason,
    Rejection,
    StageName,
    Usage,
    Vote,
    add_usage,
)
from targen_async.rows import Rows, decide, flat
from targen_async.rundir import Files, FilesState, to_line
from targen_async.slots import balance
from targen_async.stats import Stats

CHECKPOINT_EVERY_S = 1.0


class Counts(Struct, kw_only=True):
    """What the manifest tells of the committed prefix."""

    transitions: dict[str, dict[str, int]] = field(default_factory=dict)
    """Label before correction to what came of it: a label, `drop` or `review`."""
    rejected: dict[str, int] = field(default_factory=dict)
    """By stage and reason, as `instances.duplicate`; rows over a quota are counted apart."""
    failed: dict[str, int] = field(default_factory=dict)
    """By stage and kind, as `seeds.malformed`."""
    wasted: dict[str, Usage] = field(default_factory=dict)
    """Tokens that bought no row: `asked_again` and `rejected`."""


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
        self._replay_to = replay_to
        self._window: dict[int, Judged] = {}
        self._checkpointed_at = time.monotonic()
        stats.delivered_before = plan.delivered
        self._apply_targets()
        self._report()
        control.begin_replay(plan.state.watermark < replay_to)

    # ---- the stage

    async def work(self, incoming: Incoming, _send: Send) -> None:
        """Read to the end of the stream, or until n rows are committed."""
        async for judged in incoming:
            self._keep(judged)
            self._take_what_waits(incoming)
            try:
                self._commit_ready()
            except RunStopped as error:
                self._control.fail(error)
            if self.done:
                self._control.drain("all rows are delivered")
            await self.publish()
            if self.done:
                return

    def _take_what_waits(self, incoming: Incoming) -> None:
        while True:
            try:
                judged = incoming.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                return
            self._keep(judged)

    def _keep(self, judged: Judged) -> None:
        # Slots before the watermark come again when a block window is judged whole after a start.
        slot = judged.answer.call.slot
        if slot >= self.plan.state.watermark:
            self._window[slot] = judged

    @property
    def done(self) -> bool:
        """Are all rows delivered that were ever asked for?"""
        return self.plan.done and self.state.targets_applied == len(self._targets)

    def _commit_ready(self) -> None:
        """Commit the unbroken run of slots at the watermark."""
        self._control.moved_at = anyio.current_time()
        while not self.done and self.plan.state.watermark in self._window:
            self._commit(self._window.pop(self.plan.state.watermark))
            self._apply_targets()
        if (
            self._control.replaying
            and not self.done
            and self.plan.state.watermark >= self._replay_to
        ):
            self._control.end_replay()
        self._seed_demand.need(-(-self.plan.planned // self._rows_per_seed))
        self._report()

    def _apply_targets(self) -> None:
        """Raise n where the journal says so: rows over the old quota come first."""
        state = self.state
        while state.targets_applied < len(self._targets):
            target = self._targets[state.targets_applied]
            if target.slot > self.plan.state.watermark:
                break
            self.plan.state.n = target.n
            for id_, label, line in self._gate.surplus():
                if self.plan.wants(label):
                    self._files.add_row(line)
                    self.plan.accept(label)
                    self._gate.adopt_surplus(id_, state.targets_applied)
            self.plan.aim(target.n)
            state.targets_applied += 1
        self._seed_demand.need(-(-self.plan.planned // self._rows_per_seed))

    # ---- one slot

    def _commit(self, judged: Judged) -> None:
        answer = judged.answer
        call = answer.call
        if call.slot % self._rows_per_seed == 0:
            self._waste("asked_again", call.seed.wasted)
            for note in call.seed.notes:
                self._note(note)
        self._waste("asked_again", add_usage(answer.wasted, judged.wasted))
        usable = None
        if answer.failure is not None:
            self._note(answer.failure)
        else:
            usable = self._row(judged)
        self.plan.commit(call.slot, call.label, usable)
        if self.plan.starts_window(call.slot + 1, self._block_size):
            self.state.restart_slot = call.slot + 1
            self.state.seeds = SeedStart(call=call.seed.call.index, index=call.seed.first_index)

    def _row(self, judged: Judged) -> str | None:
        """Write the row where it belongs; returns its label if it is usable."""
        answer, call = judged.answer, judged.answer.call
        result = self._rows.result(answer.offset)
        outputs = self._rows.outputs(result)
        votes: list[Vote] = []
        for ballot in judged.ballots:
            vote = self._rows.vote(ballot)
            if vote is None and ballot.failure is not None:
                self._note(msgspec.structs.replace(ballot.failure, key=call.key))
            elif vote is not None:
                votes.append(vote)
        voters = self._voters if judged.ballots else 0
        outcome, label = decide(call.label, votes, voters)
        row = flat(self._rows.instance(call, result, outputs, votes, (outcome, label)))

        def reject(reason: Reason, detail: str) -> None:
            self._waste("rejected", result.usage)
            rejection = Rejection(
                key=call.key, stage="instances", reason=reason, detail=detail, row=row
            )
            self._note(rejection)

        if answer.invalid is not None:
            reject("invalid", answer.invalid)
            return None
        self._count_transition(call.label, label if outcome in ("keep", "relabel") else outcome)
        if outcome == "drop":
            reject("dropped", "the judge finds that no label fits")
            return None
        if outcome == "review":
            said = ", ".join(vote.label for vote in votes) or "nothing"
            reject("review", f"no majority of {voters}: the judges said {said}")
            return None
        texts = self._rows.distinct_texts(outputs)
        duplicate = self._gate.add_row(call.slot, self._rows_per_seed, texts)
        if duplicate is not None:
            same = duplicate.similarity == 1
            seed, place = divmod(duplicate.id, self._rows_per_seed)
            twin = f"{self._rows.task.name}/{seed:06d}/{place}"
            reject(
                "duplicate" if same else "near_duplicate",
                f"like {twin}, similarity {duplicate.similarity:.3f}",
            )
            return None
        line = to_line(row)
        if self.plan.wants(label):
            self._files.add_row(line)
            self.plan.accept(label)
        else:
            self._gate.keep_surplus(call.slot, label, line)
        return label

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
