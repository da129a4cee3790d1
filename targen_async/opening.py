"""Opening a run's folder: the journal first, then files and index brought in step with it."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from targen_async.config import Data, RunConfig
from targen_async.config import differences as data_differences
from targen_async.corpus import Corpus, open_material
from targen_async.distinct import DistinctGate
from targen_async.errors import UserError
from targen_async.journal import VERSION, Journal, Kind, Opened, Target, TaskChanged
from targen_async.ledger import Ledger
from targen_async.plan import Grouping, RowPlan
from targen_async.points import MAX_PER_CALL
from targen_async.recover import Recovered, recover
from targen_async.rows import Forms, Rows
from targen_async.rundir import (
    INDEX,
    JOURNAL,
    NEXT,
    Files,
    files_stand,
    finish_swap,
    write_config,
)
from targen_async.state import CommitState, Generation
from targen_async.tasks import Task

_RESERVE_PER_CALL = 16 << 10


class Parts(Struct, frozen=True, kw_only=True):
    """An open run: its journal, and everything that stands at its last checkpoint."""

    folder: Path
    place: Path
    """Where rows are written: the folder, or within it where a new generation stands apart."""
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
    corpus: Corpus | None
    """Where the seeds come from; None: they are generated."""
    rows_per_seed: int


@contextmanager
def open_parts(
    config: RunConfig,
    task: Task,
    folder: Path,
    first: int | None = None,
    *,
    accept: bool,
    again: Literal["retry", "reparse"] | None,
) -> Iterator[Parts]:
    """Open or begin the run in `folder`; the caller holds its lock. Closes everything at the end.

    `again`: have the rows made anew. A generation that is complete is put in its place. `accept`:
    go on with a changed task. `first`: so many of the n rows are wanted for now; run.toml has n, so
    that a later start makes them all.

    Nothing is touched before the run is known to be the one that was begun here. Raises UserError
    when it is another, RunStopped when the journal is damaged.
    """
    rows_per_seed = _rows_per_seed(config, task)
    reserve = _RESERVE_PER_CALL * max(64, config.delivery.limits.max_in_flight)
    with ExitStack() as stack:
        journal = Journal(folder / JOURNAL, reserve_bytes=reserve)
        stack.callback(journal.close)
        ledger = Ledger(journal)
        found = recover(journal.path, journal, ledger, rows_per_seed=rows_per_seed)
        if found.opened is None or ledger.untouched:
            ledger = _begin(config, task, journal, found)
        changed = _check_identity(config, task, folder, found, accept)
        corpus, material = stack.enter_context(
            open_material(config, task, folder, rows_per_seed=rows_per_seed)
        )
        place = _place(folder, task, journal, found, "task" if changed else again)
        committed = found.checkpoint.plan.watermark if found.checkpoint else 0
        state, gate = _in_step(config, place, found)
        if found.lacks(state):
            # Rows are made again that a checkpoint held: now all answers are wanted.
            found.memos = recover(journal.path, journal, Ledger(journal)).memos
        stack.callback(gate.close)
        files = Files(place, state.files, config.delivery.rows_per_shard)
        stack.callback(files.close)
        _aim(first or config.delivery.n, state, journal, found)
        write_config(folder, config)
        yield Parts(
            folder=folder,
            place=place,
            journal=journal,
            ledger=ledger,
            found=found,
            gate=gate,
            files=files,
            state=state,
            plan=RowPlan(task.classes, config.data.random_seed, state.plan, _grouping(task)),
            rows=Rows(journal, task, Forms(task), config.data, material),
            replay_to=committed,
            corpus=corpus,
            rows_per_seed=rows_per_seed,
        )
    if found.swapped:
        finish_swap(folder)


def _aim(n: int, state: CommitState, journal: Journal, found: Recovered) -> None:
    """See to it that the last target is n rows."""
    if not found.targets or found.targets[-1].n != n:
        found.targets.append(Target(slot=state.plan.watermark, n=n))
        journal.append(Kind.TARGET, msgspec.msgpack.encode(found.targets[-1]))


def _rows_per_seed(config: RunConfig, task: Task) -> int:
    """Rows of a seed. Raises UserError for numbers that do not go with the rows of one call."""
    size, whole = task.rows_per_call, task.group is not None and task.group.whole
    rows = config.data.rows_per_seed or task.instances.rows_per_seed
    if rows % size:
        raise UserError(
            f"data.rows_per_seed is {rows}, but a call of task {task.name!r} writes {size} rows: "
            f"make it a multiple of {size}"
        )
    if whole and config.delivery.n % size:
        raise UserError(
            f"rows of task {task.name!r} come in groups of {size} that stay together: "
            f"make n a multiple of {size}, not {config.delivery.n}"
        )
    return rows


def _grouping(task: Task) -> Grouping:
    group = task.group
    if group is None:
        return Grouping()
    return Grouping(size=group.size, whole=group.whole, labels=group.labels)


def _begin(config: RunConfig, task: Task, journal: Journal, found: Recovered) -> Ledger:
    """Write the first record. A start that nothing was served to leaves no identity behind, and no
    refusals on the bill."""
    journal.clear()
    digest = prompt_digest(task)
    found.opened = Opened(version=VERSION, data=config.data, task_digest=digest)
    found.task_digest = digest
    found.targets, found.checkpoint, found.generation, found.swapped = [], None, None, True
    journal.append(Kind.OPENED, msgspec.msgpack.encode(found.opened))
    return Ledger(journal)


def _check_identity(
    config: RunConfig, task: Task, folder: Path, found: Recovered, accept: bool
) -> bool:
    """Refuse another run than the one begun here. True: the task was changed, with consent."""
    assert found.opened is not None
    changed = found.task_digest != prompt_digest(task)
    before, now = _placeless(found.opened.data), _placeless(config.data)
    if not changed:
        # The same prompts from another place, or by another path, are the same task.
        before = msgspec.structs.replace(before, task=now.task)
    differences = data_differences(before, now)
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
            "come would differ from those it holds. Give --accept-task-change to have the rows "
            "made anew, asking again only for what the change concerns, or choose another --out"
        )
    return changed


def _placeless(data: Data) -> Data:
    """The same but for where files stand: what they hold counts."""
    replace = msgspec.structs.replace
    corpus = data.corpus and replace(data.corpus, file="corpus")
    exclude = tuple(replace(source, file="excluded") for source in data.exclude)
    return replace(data, corpus=corpus, exclude=exclude)


def _in_step(config: RunConfig, folder: Path, found: Recovered) -> tuple[CommitState, DistinctGate]:
    """State and index at the last checkpoint; from nothing where the files do not stand there.

    Made again from nothing they come out the same: the journal has all answers.
    """
    state = found.checkpoint or found.start()
    gate = _open_gate(config, folder)
    if files_stand(folder, state.files) and gate.rewind(
        state.plan.watermark, state.seeds.call * MAX_PER_CALL, state.targets_applied
    ):
        return state, gate
    gate.rewind(0, 0, 0)
    return found.start(), gate


Why = Literal["retry", "reparse", "task"]
_ANEW: Mapping[Why, str] = {
    "retry": "a retry",
    "reparse": "a reparse",
    "task": "for a changed task",
}


def _place(folder: Path, task: Task, journal: Journal, found: Recovered, why: Why | None) -> Path:
    """Where the rows are written. `why`: what they are to be made anew for, if they are."""
    if found.swapped:
        finish_swap(folder)
    if why == "task":
        found.task_digest = prompt_digest(task)
        record = TaskChanged(task_digest=found.task_digest)
        journal.append(Kind.TASK_CHANGED, msgspec.msgpack.encode(record))
    _begin_generation(why, task, journal, found)
    if found.swapped:
        return folder
    (folder / NEXT).mkdir(exist_ok=True)
    return folder / NEXT


def _begin_generation(why: Why | None, task: Task, journal: Journal, found: Recovered) -> None:
    """Have the rows made anew, unless that is under way already."""
    under_way = None if found.swapped else found.generation
    if why is None and under_way and under_way.why == "reparse":
        raise UserError("a reparse of this run was ended half-way: let `targen reparse` finish it")
    if why is None:
        return
    if under_way and why != "task":
        if under_way.why == why:
            return
        raise UserError(
            f"the rows are being made anew already ({_ANEW[under_way.why]}): let `targen generate` "
            f"finish that before a {why}"
        )
    if why == "retry" and found.checkpoint and not _failed(found.checkpoint):
        return
    if not found.targets:
        raise UserError("there is nothing yet to be made anew: start it with `targen generate`")
    plan = found.checkpoint.plan if found.checkpoint else found.start().plan
    # Waves of other labels than the task's are no plan for it.
    kept = all(set(wave.counts) == set(task.classes) for wave in plan.waves)
    until = max(plan.watermark, under_way.until if under_way else 0)
    generation = Generation(why=why, waves=plan.waves if kept else [], until=until if kept else 0)
    offset = journal.append(Kind.GENERATION, msgspec.msgpack.encode(generation))
    found.begin(generation, offset)


def _failed(state: CommitState) -> bool:
    """Did a call or a judgement of a row fail, which a retry could put again?"""
    return any(what.startswith(("instances.", "correction.")) for what in state.counts.failed)


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
        {name: (spec.source, spec.outputs) for name, spec in task.fields.items()},
        task.placement,
        task.answer,
        task.group and msgspec.structs.replace(task.group, validators=()),
        task.contexts,
        task.seeds,
        msgspec.structs.replace(task.instances, validators=()),
        task.correction,
        task.description if described else "",
        sent,
    )
    return sha256(msgspec.msgpack.encode(parts, order="deterministic")).hexdigest()
