"""`targen merge`: the rows of several runs of one task in one folder, none of them twice.

Every source is verified first. What a merged folder holds is in docs/runs.md.
"""

import os
import platform
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib import metadata
from itertools import groupby
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from targen_async.audit import number_of, place_of
from targen_async.config import Data, Delivery
from targen_async.distinct import DistinctGate, Duplicate
from targen_async.errors import UserError
from targen_async.manifest import FORMAT, Calls, Tokens
from targen_async.merged import FolderManifest, Origin, key_of
from targen_async.records import Instance, Reason, Rejection
from targen_async.rows import EXPLANATION
from targen_async.rundir import INDEX, Files, FilesState, sync_folder, to_line, write_manifest
from targen_async.shards import to_instance
from targen_async.tasks import Task, load_task
from targen_async.verify import Check

_STRIDE = 1 << 40
"""Ids of a source's rows. The gate takes those of one stride for one group and compares them
exactly only: how near they may be was decided when they were made."""
_FLUSH_EVERY = 1000


class Part(Struct, frozen=True, kw_only=True):
    """A source that was found sound."""

    folder: Path
    manifest: FolderManifest
    fields: tuple[str, ...]
    """Of its rows; empty where it has none."""


class Row(Struct, frozen=True):
    """A row of a source, with the key it has in the merged folder."""

    line: Mapping[str, Any]
    instance: Instance


def merge(folders: Sequence[Path], out: Path, *, task: str | None = None) -> FolderManifest:
    """Write the rows of `folders` into the new or empty folder `out`, which appears whole or not.

    `task` names the task where it is not where the runs say. Raises UserError.
    """
    _check_places(folders, out)
    parts = [_verified(folder) for folder in folders]
    _check_alike(parts)
    loaded, place = _task_of(parts, task)
    out = out.resolve()
    made = out.parent / f".{out.name}.{token_hex(4)}"
    try:
        made.mkdir(parents=True)
        manifest = _Merging(parts, loaded, place, made).run()
        os.rename(made, out)  # noqa: PTH104 - takes the place of an empty folder
        sync_folder(out.parent)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {out}: {reason}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return manifest


def _check_places(folders: Sequence[Path], out: Path) -> None:
    if len(folders) < 2:
        raise UserError("name two folders or more to merge")
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"{folder} is named twice: its rows would all be duplicates")
        seen.add(folder.resolve())
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a new or empty folder with --out")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new or empty folder with --out")


def _verified(folder: Path) -> Part:
    check = Check(folder)
    first = next(check.faults(), None)
    if first is not None:
        raise UserError(f"{folder} is not sound ({first}); `targen verify {folder}` tells all")
    assert check.manifest is not None
    row = next(_rows(folder, check.manifest), None)
    fields = tuple(to_instance(row).fields) if row else ()
    return Part(folder=folder, manifest=check.manifest, fields=fields)


def _check_alike(parts: Sequence[Part]) -> None:
    """Raises UserError that names the difference between the first source and another."""
    first, *others = parts
    for other in others:
        pairs = (
            ("task", first.manifest.task, other.manifest.task),
            ("labels", list(first.manifest.balance), list(other.manifest.balance)),
            ("fields", list(first.fields), list(other.fields)),
        )
        for what, one, two in pairs:
            if one and two and one != two:
                raise UserError(
                    f"{first.folder} and {other.folder} do not go together: {what} {_named(one)} "
                    f"in the one, {_named(two)} in the other"
                )


def _named(what: str | list[str]) -> str:
    return what if isinstance(what, str) else ", ".join(what)


def _task_of(parts: Sequence[Part], named: str | None) -> tuple[Task, str]:
    """The task of the sources, and its name or folder: what of a row is compared stands there."""
    places = [_setting(part, "task") for part in parts]
    errors: list[UserError] = []
    for place in [named] if named else dict.fromkeys(map(str, filter(None, places))):
        try:
            task = load_task(place)
        except UserError as error:
            errors.append(error)
            continue
        _check_task(task, parts, place)
        return task, place
    reason = str(errors[0]).partition("\n")[0].rstrip(":") if errors else "none is named"
    raise UserError(f"the task of these runs cannot be read ({reason}); name it with --task")


def _check_task(task: Task, parts: Sequence[Part], place: str) -> None:
    for part in parts:
        manifest = part.manifest
        labels, fields = list(manifest.balance), list(part.fields)
        for what, now, then in (
            ("name", task.name, manifest.task),
            ("labels", list(task.classes), labels),
            ("fields", list(task.fields), fields),
        ):
            if then and now != then:
                raise UserError(
                    f"the task {place!r} is not that of {part.folder}: its {what} "
                    f"{_named(now)} were {_named(then)} then; name the right one with --task"
                )


def _setting(part: Part, name: str) -> Any:  # noqa: ANN401
    return part.manifest.config.get("data", {}).get(name)


def _rows(folder: Path, manifest: FolderManifest) -> Iterator[dict[str, Any]]:
    for seal in manifest.shards:
        with (folder / seal.name).open("rb") as file:
            for line in file:
                yield orjson.loads(line)


# ---- what rows are compared by


def distinct_texts(task: Task, instance: Instance) -> list[str]:
    """The texts of a finished row that its run compared rows by."""
    outputs = _outputs_of(task, instance)
    names = task.instances.distinct_on or [n for n in task.instances.outputs if n != EXPLANATION]
    # Of outputs that differ in a group a row has its own only: they stand for each other.
    return list({outputs[name][0]: outputs[name][1] for name in names}.values())


def _outputs_of(task: Task, instance: Instance) -> dict[str, tuple[str, str]]:
    """Output to (what the row calls it, its text)."""
    found = {EXPLANATION: (EXPLANATION, instance.provenance.explanation)}
    for name, spec in task.fields.items():
        for output in spec.outputs or (name,):
            if spec.source == "output":
                found[output] = (name, instance.fields[name])
    if task.placement is not None:
        before = list(task.labels).index(instance.label_before_correction)
        slots = list(task.placement.slots)
        slots.insert(0, slots.pop(before))
        for output, slot in zip((task.placement.right, *task.placement.wrong), slots, strict=True):
            found[output] = (slot, instance.fields[slot])
    if task.answer is not None:
        found.setdefault(task.answer.output, ("label", instance.label_before_correction))
    return found


# ---- the work


class _Merging:
    """One merge, written into a folder that has no name yet."""

    def __init__(self, parts: Sequence[Part], task: Task, place: str, made: Path) -> None:
        self._parts = parts
        self._task = task
        self._place = place
        self._made = made
        self._files = Files(made, FilesState(), Delivery().rows_per_shard)
        limits = [_setting(part, "near_duplicate") for part in parts]
        self._near = min((x for x in limits if x is not None), default=Data.near_duplicate)
        group = task.group
        self._together = group.size if group and group.whole else 1
        self._keys: list[list[str]] = []
        """Of each source, the keys of its rows that were kept."""
        self._balance: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()

    def run(self) -> FolderManifest:
        gate = DistinctGate(self._made / INDEX, self._near)
        with closing(self._files):
            with closing(gate):
                for number, part in enumerate(self._parts):
                    self._keys.append([])
                    self._take(number, part, gate)
            self._files.flush()
            self._files.sync()
        for index in self._made.glob(f"{INDEX}*"):
            index.unlink()
        manifest = self._manifest()
        write_manifest(self._made, manifest)
        return manifest

    def _take(self, number: int, part: Part, gate: DistinctGate) -> None:
        """All rows of a source, those that stay together at once."""
        for count, (_, members) in enumerate(
            groupby(_rows(part.folder, part.manifest), self._group_of)
        ):
            rows = []
            for raw in members:
                line = {**raw, "key": key_of(number, raw["key"])}
                rows.append(Row(line, to_instance(line)))
            self._settle(number, rows, gate)
            if count % _FLUSH_EVERY == 0:
                self._files.flush()

    def _group_of(self, row: Mapping[str, Any]) -> tuple[str, int]:
        """Equal for rows that are kept or dropped together."""
        key: str = row["key"]
        found = number_of(key)
        place = place_of(found)[1] if found is not None else 0
        return key.rpartition("/")[0], place // self._together

    def _settle(self, number: int, rows: Sequence[Row], gate: DistinctGate) -> None:
        kept = self._keys[number]
        first = number * _STRIDE + len(kept)
        sketches = [gate.sketch(distinct_texts(self._task, row.instance)) for row in rows]
        found = [gate.duplicate_of(first, _STRIDE, sketch) for sketch in sketches]
        if not any(found):
            for place, (row, sketch) in enumerate(zip(rows, sketches, strict=True)):
                gate.add_row(first + place, sketch)
                kept.append(row.instance.key)
                self._files.add_row(to_line(row.line))
                instance = row.instance
                self._balance[self._task.class_of(instance.fields, instance.label)] += 1
            return
        twin = next(row for row, duplicate in zip(rows, found, strict=True) if duplicate)
        for row, duplicate in zip(rows, found, strict=True):
            self._reject(row, duplicate, twin.instance.key)

    def _reject(self, row: Row, duplicate: Duplicate | None, twin: str) -> None:
        reason: Reason = "twin"
        detail = f"its twin {twin} was refused: duplicate"
        if duplicate is not None:
            source, place = divmod(duplicate.id, _STRIDE)
            like = self._keys[source][place]
            reason = "duplicate" if duplicate.similarity == 1 else "near_duplicate"
            detail = f"like {like}, similarity {duplicate.similarity:.3f}"
        self._rejected[f"instances.{reason}"] += 1
        note = Rejection(
            key=row.instance.key, stage="instances", reason=reason, detail=detail, row=row.line
        )
        self._files.rejected.add(to_line(msgspec.to_builtins(note)))

    # ---- manifest.json

    def _manifest(self) -> FolderManifest:
        told = [part.manifest for part in self._parts]
        delivered = sum(len(keys) for keys in self._keys)
        return FolderManifest(
            format=FORMAT,
            state="complete",
            reason="",
            simulated=any(one.simulated for one in told),
            task=self._task.name,
            task_version=max(one.task_version for one in told),
            task_digest=_common([one.task_digest for one in told]),
            data_digest=_common([one.data_digest for one in told]),
            model=", ".join(dict.fromkeys(one.model for one in told)),
            n=delivered,
            delivered=delivered,
            surplus=0,
            balance={label: self._balance[label] for label in self._task.classes},
            transitions=_added([one.transitions for one in told]),
            rejected=dict(sorted(self._rejected.items())),
            failed={},
            calls=Calls(
                **{
                    name: sum(getattr(one.calls, name) for one in told)
                    for name in Calls.__struct_fields__
                }
            ),
            spent=_sum([one.spent for one in told]),
            wasted=_sum([one.wasted for one in told]),
            in_doubt=_sum([one.in_doubt for one in told]),
            prices={},
            remaking=None,
            generation=0,
            shards=self._files.state().shards,
            identity_broken_by=[],
            contexts_missing=sum(one.contexts_missing for one in told),
            corpus=None,
            waiting_for="",
            versions={
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("targen-async", "rensa")},
            },
            config={"data": self._data()},
            sources=[
                _origin(part, len(keys)) for part, keys in zip(self._parts, self._keys, strict=True)
            ],
        )

    def _data(self) -> dict[str, Any]:
        """The settings that all sources have in common, and those of the merge."""
        settings = [part.manifest.config.get("data", {}) for part in self._parts]
        common = {
            name: value
            for name, value in settings[0].items()
            if all(name in other and other[name] == value for other in settings)
        }
        return common | {"task": self._place, "near_duplicate": self._near}


def _origin(part: Part, kept: int) -> Origin:
    manifest = part.manifest
    return Origin(
        name=part.folder.resolve().name,
        rows=manifest.delivered,
        kept=kept,
        simulated=manifest.simulated,
        model=manifest.model,
        task_digest=manifest.task_digest,
        data_digest=manifest.data_digest,
        spent=manifest.spent,
        shards=manifest.shards,
        sources=manifest.sources,
    )


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else ""


def _added(tables: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for table in tables:
        for before, row in table.items():
            mine = total.setdefault(before, {})
            for after, count in row.items():
                mine[after] = mine.get(after, 0) + count
    return total


def _sum(tokens: Sequence[Tokens]) -> Tokens:
    """Dollars are known where they are for every source."""
    known = [one.usd for one in tokens if one.usd is not None]
    return Tokens(
        prompt_tokens=sum(one.prompt_tokens for one in tokens),
        completion_tokens=sum(one.completion_tokens for one in tokens),
        cached_prompt_tokens=sum(one.cached_prompt_tokens for one in tokens),
        usd=sum(known) if len(known) == len(tokens) else None,
    )


def run_merge(folders: Sequence[Path], out: Path, *, task: str | None = None) -> int:
    """Merge and say what came of it. Exit code 0."""
    manifest = merge(folders, out, task=task)
    simulated = "partly SIMULATED " if manifest.mixed else "SIMULATED " * manifest.simulated
    balance = ", ".join(f"{label} {count}" for label, count in manifest.balance.items())
    print(f"{simulated}{manifest.task}: {manifest.delivered} rows ({balance}) in {out}/")
    for number, origin in enumerate(manifest.sources):
        kind = ", SIMULATED" if origin.simulated else ""
        print(f"  r{number}/  {origin.kept} of {origin.rows} rows of {origin.name}{kind}")
    if manifest.rejected:
        told = ", ".join(f"{reason} {count}" for reason, count in manifest.rejected.items())
        print(f"not taken: {told}; see {out / 'rejected.jsonl'}")
    return 0
