"""`targen verify`: everything in a run's folder held against its manifest and its journal.

It reads and never writes. Shards are read line by line, so the size of a run does not matter.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import orjson
from msgspec import UNSET

from targen_async.accounts import Counted, file_faults, ledger_faults, own_faults
from targen_async.audit import Audit, ReadOnlyJournal
from targen_async.config import Data
from targen_async.corpus import Corpus
from targen_async.errors import TargenError, UserError
from targen_async.journal import VERSION
from targen_async.lock import lock_holder
from targen_async.merged import FolderManifest, decode_manifest, split_key
from targen_async.opening import prompt_digest
from targen_async.records import Failure, Instance, Rejection
from targen_async.reread import Reread
from targen_async.rundir import (
    FAILURES,
    JOURNAL,
    MANIFEST,
    NEXT,
    REJECTED,
    SEEDS,
    ShardSeal,
    read_config,
    shard_name,
)
from targen_async.shards import to_instance
from targen_async.tasks import ALL, Task, load_task


class Check:
    """One look at a folder. `faults` finds what is wrong; the rest tells what was looked at."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the folder holds no run, or a process works in it."""
        self.folder = folder
        self.manifest: FolderManifest | None = None
        self.notes: list[str] = []
        """What a person should know and is no fault."""
        self.counted = Counted()
        self.audit: Audit | None = None
        self._settled = True
        """Was the manifest written at the end of a start, so that it tells of all there is?"""
        self._reread: Reread | None = None
        self._whole = True
        """Could every row be read?"""
        if not any((folder / name).exists() for name in (MANIFEST, JOURNAL, shard_name(0))):
            raise UserError(f"{folder} holds no run (there is no {MANIFEST} in it)")
        self._refuse_busy()

    def _refuse_busy(self) -> None:
        holder = lock_holder(self.folder)
        if holder is not None:
            raise UserError(f"{self.folder} is in use by {holder}; verify it when that is done")

    def faults(self) -> Iterator[str]:
        """One line for each thing that is not as it should be, with its file and line or its key.

        Raises UserError when a process begins to work in the folder meanwhile.
        """
        found = False
        with ExitStack() as stack:
            for fault in self._all(stack):
                if not found:
                    self._refuse_busy()
                found = True
                yield fault

    def _all(self, stack: ExitStack) -> Iterator[str]:
        try:
            self.manifest = decode_manifest(self.folder)
        except OSError as error:
            yield f"{MANIFEST}: cannot be read ({(error.strerror or '').lower()})"
        except UserError as error:
            yield str(error)
        merged = self.manifest is not None and bool(self.manifest.sources)
        if not merged:
            yield from self._journal(stack)
        if self.manifest is None:
            return
        if merged or "n was raised" in self.manifest.identity_broken_by:
            self.counted.raises = inf
        if self.audit is not None:
            self.counted.raises = self.audit.standing.raises
        yield from own_faults(self.manifest)
        yield from self._shards(self.manifest)
        yield from self._noted()
        if self._settled and self._whole:
            yield from file_faults(self.manifest, self.counted)
        if self.audit is not None and self._settled:
            yield from ledger_faults(self.manifest, self.audit)

    def totals(self, faults: int) -> str:
        """What was looked at, in one line; call it when `faults` is through."""
        counted, manifest = self.counted, self.manifest
        held = f"{self.audit.answers} answers in the journal" if self.audit else "no journal"
        if manifest is not None and manifest.sources:
            held = "merged from " + ", ".join(origin.name for origin in manifest.sources)
        found = "sound" if not faults else _many(faults, "fault")
        shards = _many(len(manifest.shards) if manifest else 0, "shard")
        rejected = counted.rejected.total() + counted.surplus
        return (
            f"{self.folder}: {found}; {_many(counted.rows, 'row')} in {shards}, "
            f"{rejected} rejected, {_many(counted.failed.total(), 'failure')}, {held}"
        )

    # ---- the journal, and what rows are compared with

    def _journal(self, stack: ExitStack) -> Iterator[str]:
        try:
            journal = stack.enter_context(closing(ReadOnlyJournal(self.folder / JOURNAL)))
        except OSError as error:
            yield f"{JOURNAL}: cannot be read ({(error.strerror or '').lower()})"
            return
        task = self._task()
        audit = Audit(journal, bound=task is not None)
        audit.read()
        if task is not None and audit.standing.task_digest != prompt_digest(task):
            self.notes.append(
                f"the prompts of task {task.name!r} are others than the run's: rows are compared "
                "with the answers without it"
            )
            task = None
            audit = Audit(journal, bound=False)
            audit.read()
        yield from self._state(audit)
        yield from audit.faults
        if audit.opened is not None and audit.opened.version != VERSION:
            yield f"{JOURNAL}: format {audit.opened.version} is not known here"
        elif audit.opened is not None and not audit.damaged:
            self.audit = audit
            corpus = yield from self._corpus(audit.opened.data, stack)
            labels = tuple(self.manifest.balance) if self.manifest else ()
            self._reread = Reread(audit, audit.opened.data, task, corpus, labels)

    def _task(self) -> Task | None:
        """The run's task, where it still is to be had."""
        try:
            return load_task(read_config(self.folder).data.task)
        except TargenError:
            self.notes.append(
                "the run's task cannot be loaded: rows are compared with the answers without it"
            )
            return None

    def _state(self, audit: Audit) -> Iterator[str]:
        """Where the run is: under way, killed, being made anew."""
        again = f"`targen generate --out {self.folder}` goes on"
        if self.manifest is not None and self.manifest.state == "running":
            self._settled = False
            yield f"{MANIFEST}: the run was killed; {again}, and then it can be verified as a whole"
        if not audit.swapped and audit.generation is not None:
            why = audit.generation.why
            go_on = again if why == "task" else f"`targen {why} {self.folder}` goes on"
            self.notes.append(
                f"{NEXT}/: the rows are being made anew ({why}); until that is done those before "
                f"stand and are what is verified; {go_on}"
            )
        elif (self.folder / NEXT).is_dir():
            self._settled = False
            yield f"{NEXT}/: rows made anew wait to be put in place; {again}"
        try:
            read_config(self.folder)
        except UserError as error:
            yield str(error)

    def _corpus(self, data: Data, stack: ExitStack) -> Generator[str, None, Corpus | None]:
        """Is the run's copy of its corpus whole, and of the file the run was begun with?"""
        if data.corpus is None:
            return None
        try:
            corpus = Corpus(self.folder / SEEDS, data.random_seed)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            yield f"{SEEDS}: cannot be read ({error})"
            return None
        stack.enter_context(closing(corpus))
        told = corpus.summary
        if told.sha256 != data.corpus.sha256:
            yield f"{SEEDS}:1: it is made from another file than the run was begun with"
        if told.exclude != [source.sha256 for source in data.exclude]:
            yield f"{SEEDS}:1: other files were excluded than the run was begun with"
        if len(corpus) != told.usable:
            yield f"{SEEDS}: {len(corpus)} texts, and its first line says {told.usable}"
        sound = True
        with (self.folder / SEEDS).open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if number > 1:
                        msgspec.json.decode(line, type=tuple[int, str])
                except msgspec.DecodeError as error:
                    yield f"{SEEDS}:{number}: this is no text of a corpus: {error}"
                    sound = False
        if self.manifest is not None and self.manifest.corpus != orjson.loads(
            msgspec.json.encode(told)
        ):
            yield f"{MANIFEST}: corpus is not what the first line of {SEEDS} says"
        return corpus if sound else None

    # ---- rows

    def _shards(self, manifest: FolderManifest) -> Iterator[str]:
        seals = {seal.name: seal for seal in manifest.shards}
        if list(seals) != [shard_name(index) for index in range(len(manifest.shards))]:
            yield f"{MANIFEST}: the shards are not numbered from 0 on"
        found = sorted(path.name for path in self.folder.glob("instances-*.jsonl"))
        for name in sorted({*seals, *found}):
            if name not in found:
                self._whole = False
                yield f"{name}: missing"
            elif name not in seals and self._settled:
                yield f"{name}: stray, {MANIFEST} does not name it"
            else:
                yield from self._shard(name, seals.get(name))

    def _shard(self, name: str, seal: ShardSeal | None) -> Iterator[str]:
        digest, size, rows = sha256(), 0, 0
        sealed = ""
        with (self.folder / name).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and not self._settled:
                    break  # The kill came while it was written.
                digest.update(line)
                size += len(line)
                rows += 1
                if seal is not None and size == seal.bytes:
                    sealed = digest.hexdigest()
                yield from self._line(line, f"{name}:{number}")
        if seal is None:
            return
        if size != seal.bytes and (self._settled or size < seal.bytes):
            yield f"{name}: {size} bytes, and {MANIFEST} says {seal.bytes}"
        elif (sealed or digest.hexdigest()) != seal.sha256:
            yield f"{name}: its SHA-256 is not the one in {MANIFEST}"
        if rows != seal.rows and (self._settled or rows < seal.rows):
            yield f"{name}: {rows} rows, and {MANIFEST} says {seal.rows}"

    def _line(self, line: bytes, place: str) -> Iterator[str]:
        try:
            row = orjson.loads(line)
            instance = to_instance(row)
        except ValueError as error:
            self._whole = False
            yield f"{place}: this is no row of a run: {error}"
            return
        if not line.endswith(b"\n"):
            yield f"{place}: the last line is cut off"
        for fault in self._row(row, instance, judged=True):
            yield f"{place}: {instance.key}: {fault}"
        self.counted.deliver(instance, self._class_of(instance))
        misplaced = self.counted.out_of_order(instance.key)
        if misplaced is not None:
            yield f"{place}: {misplaced}"

    def _row(self, row: Mapping[str, Any], instance: Instance, *, judged: bool) -> Iterator[str]:
        assert self.manifest is not None
        name, key = self.manifest.task, instance.key
        if self.manifest.sources:
            found = split_key(key)
            if found is None or found[0] >= len(self.manifest.sources):
                yield "its key names no source of this folder"
        elif not key.startswith(f"{name}/"):
            yield f"its key is not one of task {name}"
        if instance.task != name:
            yield f"its task is {instance.task}, and the run's is {name}"
        if self._reread is not None:
            yield from self._reread.faults(row, instance, judged=judged)

    def _class_of(self, instance: Instance) -> str | None:
        """What a row counts as in the balance; None: that cannot be told without the task."""
        assert self.manifest is not None
        task, balance = self._reread.task if self._reread else None, self.manifest.balance
        if task is not None:
            try:
                return task.class_of(instance.fields, instance.label)
            except (LookupError, ValueError):
                return ""
        if list(balance) == [ALL]:
            return ALL
        return instance.label if instance.label in balance else None

    # ---- what was not delivered

    def _noted(self) -> Iterator[str]:
        for number, line in self._lines(REJECTED):
            try:
                note = msgspec.json.decode(line, type=Rejection)
                yield from self._rejection(note, f"{REJECTED}:{number}")
            except ValueError as error:
                self._whole = False
                yield f"{REJECTED}:{number}: this is no rejection: {error}"
        for number, line in self._lines(FAILURES):
            try:
                failure = msgspec.json.decode(line, type=Failure)
                self.counted.failed[f"{failure.stage}.{failure.kind}"] += 1
            except ValueError as error:
                self._whole = False
                yield f"{FAILURES}:{number}: this is no failure: {error}"

    def _lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        try:
            with (self.folder / name).open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n") or self._settled:
                        yield number, line
        except FileNotFoundError:
            return  # Its counts are told where there should be any.

    def _rejection(self, note: Rejection, place: str) -> Iterator[str]:
        self.counted.reject(note)
        if note.row is UNSET:
            text = "" if note.text is UNSET else note.text
            if self.audit is not None and not self.audit.holds_text(note.stage, text):
                yield f"{place}: {note.key}: its text is in no stored answer"
            return
        row = dict(note.row)
        instance = to_instance(dict(row))
        if note.key != instance.key:
            yield f"{place}: {note.key}: the row is that of {instance.key}"
        if note.reason != "invalid":
            self.counted.move(instance)
        for fault in self._row(row, instance, judged=note.reason != "invalid"):
            yield f"{place}: {instance.key}: {fault}"


def run_verify(folder: Path) -> int:
    """Print every fault, then one line of totals. Exit code 0 when there is none, else 1.

    Raises UserError where the folder holds no run, or a process works in it.
    """
    check = Check(folder)
    count = 0
    for fault in check.faults():
        count += 1
        print(_printable(fault))
    for note in check.notes:
        print(_printable(f"note: {note}"))
    print(_printable(check.totals(count)))
    return 1 if count else 0


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _printable(text: str) -> str:
    """Text of others for a terminal: one line, no control characters."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
