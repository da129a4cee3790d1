"""Opening a run's folder: the journal first, then files and index brought in step with it."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from targen_async.commit import CommitState
from targen_async.config import RunConfig
from targen_async.config import differences as data_differences
from targen_async.distinct import DistinctGate
from targen_async.errors import RunStopped, UserError
from targen_async.journal import VERSION, Journal, Kind, Opened, Target, TaskChanged
from targen_async.ledger import Ledger
from targen_async.plan import RowPlan
from targen_async.points import MAX_PER_CALL
from targen_async.recover import Recovered, recover
from targen_async.rows import Forms, Rows
from targen_async.rundir import INDEX, JOURNAL, Files, files_stand, write_config
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

    Nothing is touched before the run is known to be the one that was begun here. Raises UserError
    when it is another, RunStopped when the journal is damaged.
    """
    reserve = _RESERVE_PER_CALL * max(64, config.delivery.limits.max_in_flight)
    with ExitStack() as stack:
        journal = Journal(folder / JOURNAL, reserve_bytes=reserve)
        stack.callback(journal.close)
        ledger = Ledger(journal)
        found = recover(journal.path, journal, ledger)
        if found.opened is None:
            _refuse_orphans(folder)
        if found.opened is None or ledger.untouched:
            _begin(config, task, journal, found)
        changed = _check_identity(config, task, folder, found, accept_task_change)
        committed = found.checkpoint.plan.watermark if found.checkpoint else 0
        state, gate = _in_step(config, folder, found, remakeable=not found.task_changes + changed)
        stack.callback(gate.close)
        files = Files(folder, state.files, config.delivery.rows_per_shard)
        stack.callback(files.close)
        if changed:
            record = TaskChanged(task_digest=prompt_digest(task))
            journal.append(Kind.TASK_CHANGED, msgspec.msgpack.encode(record))
            found.task_digest = record.task_digest
            found.task_changes += 1
        if not found.targets or found.targets[-1].n != config.delivery.n:
            target = Target(slot=state.plan.watermark, n=config.delivery.n)
            journal.append(Kind.TARGET, msgspec.msgpack.encode(target))
            found.targets.append(target)
        write_config(folder, config)
        yield Parts(
            folder=folder,
            journal=journal,
            ledger=ledger,
            found=found,
            gate=gate,
            files=files,
            state=state,
            plan=RowPlan(tuple(task.labels), config.data.random_seed, state.plan),
            rows=Rows(journal, task, Forms(task), config.data),
            replay_to=committed,
        )


def _refuse_orphans(folder: Path) -> None:
    """Rows without the journal they were made from cannot be gone on with, only overwritten."""
    for path in sorted(folder.glob("*.jsonl")):
        if path.stat().st_size:
            raise UserError(
                f"{folder} holds rows ({path.name}) but its journal is missing or empty: nothing "
                "was touched; restore the journal, or choose another --out"
            )


def _begin(config: RunConfig, task: Task, journal: Journal, found: Recovered) -> None:
    """Write the first record. A start that nothing was served to leaves no identity behind."""
    journal.clear()
    digest = prompt_digest(task)
    found.opened = Opened(version=VERSION, data=config.data, task_digest=digest)
    found.task_digest, found.task_changes = digest, 0
    found.targets, found.checkpoint = [], None
    journal.append(Kind.OPENED, msgspec.msgpack.encode(found.opened))


def _check_identity(
    config: RunConfig, task: Task, folder: Path, found: Recovered, accept: bool
) -> bool:
    """Refuse another run than the one begun here. True: the task was changed, with consent."""
    assert found.opened is not None
    changed = found.task_digest != prompt_digest(task)
    before = found.opened.data
    if not changed:
        # The same prompts from another place, or by another path, are the same task.
        before = msgspec.structs.replace(before, task=config.data.task)
    differences = data_differences(before, config.data)
    if differences:
        raise UserError(
            f"{folder} holds a run with another [data]: {'; '.join(differences)}. Start it as it "
            "was, or choose another --out"
        )
    if found.targets and config.delivery.n < found.targets[-1].n:
        raise UserError(
            f"{folder} already aims at n = {found.targets[-1].n}, and n may only grow "
            f"({config.delivery.n} was asked for)"
        )
    if changed and not accept:
        raise UserError(
            f"the prompts of task {task.name!r} were changed since {folder} was begun: rows to "
            "come would differ from those it holds. Give --accept-task-change to go on with the "
            "new ones, or choose another --out"
        )
    return changed


def _in_step(
    config: RunConfig, folder: Path, found: Recovered, *, remakeable: bool
) -> tuple[CommitState, DistinctGate]:
    """State and index at the last checkpoint; from nothing where the files do not stand there.

    Made again from nothing they come out the same: the journal has all answers. After a change of
    the task it has not, so then nothing is touched.
    """
    state = found.checkpoint or CommitState()
    gate = _open_gate(config, folder)
    if files_stand(folder, state.files) and gate.rewind(
        state.plan.watermark, state.seeds.call * MAX_PER_CALL, state.targets_applied
    ):
        return state, gate
    if not remakeable:
        gate.close()
        raise RunStopped(
            f"files in {folder} are not what the journal says, and they cannot be made again as "
            "the task was changed since: restore them, or choose another --out"
        )
    gate.rewind(0, 0, 0)
    return CommitState(), gate


def _open_gate(config: RunConfig, folder: Path) -> DistinctGate:
    path = folder / INDEX
    try:
        return DistinctGate(path, config.data.near_duplicate)
    except sqlite3.DatabaseError:
        # An index that cannot be read is as good as none: it is made again.
        for file in folder.glob(f"{INDEX}*"):
            file.unlink()
        return DistinctGate(path, config.data.near_duplicate)


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
