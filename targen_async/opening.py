"""Opening a run's folder: the journal first, then files and index brought in step with it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from targen_async.commit import CommitState
from targen_async.config import RunConfig
from targen_async.distinct import DistinctGate
from targen_async.errors import RunStopped, UserError
from targen_async.journal import VERSION, Journal, Kind, Opened, Target, TaskChanged
from targen_async.ledger import Ledger
from targen_async.plan import RowPlan
from targen_async.points import MAX_PER_CALL
from targen_async.recover import Recovered, recover
from targen_async.rows import Forms, Rows
from targen_async.rundir import INDEX, JOURNAL, Files, FilesState, StaleFilesError
from targen_async.tasks import Task

_RESERVE_PER_CALL = 16 << 10


class Parts(Struct, frozen=True, kw_only=True):
    """An open run: its journal, and everything that stands at its last checkpoint."""

    folder: Path
    journal: Journal
    ledger: Ledger
    found: Recovered
    gate: DistinctGate
    files: Files
    state: CommitState
    plan: RowPlan
    rows: Rows
    replay_to: int
    """Row slots below it were committed before: making their files again takes no call."""


@contextmanager
def open_parts(
    config: RunConfig, task: Task, folder: Path, *, accept_task_change: bool
) -> Iterator[Parts]:
    """Open or begin the run in `folder`; the caller holds its lock. Closes everything at the end.

    Raises UserError when the journal belongs to another task or version, RunStopped when it is
    damaged.
    """
    reserve = _RESERVE_PER_CALL * max(64, config.delivery.limits.max_in_flight)
    with ExitStack() as stack:
        journal = Journal(folder / JOURNAL, reserve_bytes=reserve)
        stack.callback(journal.close)
        ledger = Ledger(journal)
        found = recover(journal.path, journal, ledger)
        _settle_task(config, task, folder, journal, found, accept_task_change)
        committed = found.checkpoint.plan.watermark if found.checkpoint else 0
        state, files, gate = _in_step(config, folder, found)
        stack.callback(files.close)
        stack.callback(gate.close)
        if state.plan.watermark < committed and found.task_changes:
            raise RunStopped(
                f"the files in {folder} are not what the journal says, and they cannot be made "
                "again as the task was changed since: restore them, or choose another --out"
            )
        if not found.targets or found.targets[-1].n != config.delivery.n:
            target = Target(slot=state.plan.watermark, n=config.delivery.n)
            journal.append(Kind.TARGET, msgspec.msgpack.encode(target))
            found.targets.append(target)
        yield Parts(
            folder=folder,
            journal=journal,
            ledger=ledger,
            found=found,
            gate=gate,
            files=files,
            state=state,
            plan=RowPlan(tuple(task.labels), config.data.random_seed, state.plan),
            rows=Rows(journal, task, Forms(task)),
            replay_to=committed,
        )


def _settle_task(
    config: RunConfig, task: Task, folder: Path, journal: Journal, found: Recovered, accept: bool
) -> None:
    """A run goes on with the task it began with, unless the user accepts the change."""
    digest = prompt_digest(task)
    if found.opened is None:
        found.opened = Opened(version=VERSION, data_digest=config.digest(), task_digest=digest)
        found.task_digest = digest
        journal.append(Kind.OPENED, msgspec.msgpack.encode(found.opened))
    elif found.opened.data_digest != config.digest():
        raise UserError(f"{journal.path} belongs to a run with another [data] than {folder}'s")
    elif found.task_digest != digest:
        if not accept:
            raise UserError(
                f"the prompts of task {task.name!r} were changed since {folder} was begun: rows to "
                "come would differ from those it holds. Give --accept-task-change to go on with "
                "the new ones, or choose another --out"
            )
        journal.append(Kind.TASK_CHANGED, msgspec.msgpack.encode(TaskChanged(task_digest=digest)))
        found.task_digest = digest
        found.task_changes += 1


def _in_step(
    config: RunConfig, folder: Path, found: Recovered
) -> tuple[CommitState, Files, DistinctGate]:
    """Files and index at the last checkpoint; from nothing where they do not stand there.

    Made again from nothing they come out the same, and no call is sent: the journal has them all.
    """
    threshold = config.data.near_duplicate
    per_shard = config.delivery.rows_per_shard
    state = found.checkpoint or CommitState()
    try:
        files = Files(folder, state.files, per_shard)
    except StaleFilesError:
        files, state = Files(folder, FilesState(), per_shard), CommitState()
    gate = DistinctGate(folder / INDEX, threshold)
    if not gate.rewind(state.plan.watermark, state.seeds.call * MAX_PER_CALL):
        gate.close()
        files.close()
        state = CommitState()
        files = Files(folder, FilesState(), per_shard)
        gate = DistinctGate(folder / INDEX, threshold)
        gate.rewind(0, 0)
    return state, files, gate


def prompt_digest(task: Task) -> str:
    """SHA-256 (hex) of all of a task that decides what is sent: not comments, not validators."""
    sent = {key: template.text for key, template in task.templates.items()}
    described = any("description" in t.placeholders for t in task.templates.values())
    parts = (
        task.name,
        task.system,
        task.labels,
        {name: spec.source for name, spec in task.fields.items()},
        task.placement,
        task.contexts,
        task.seeds,
        msgspec.structs.replace(task.instances, validators=()),
        task.correction,
        task.description if described else "",
        sent,
    )
    return sha256(msgspec.msgpack.encode(parts, order="deterministic")).hexdigest()
