"""The rows of a run's folder as examples: exactly the shards that its manifest names and seals."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import msgspec
import orjson
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.schema import Example, field_fault, short_marks
from targen_async.layouts import Layout, layout_of
from targen_async.records import Instance
from targen_async.shards import to_instance
from targen_async.splits import row_marks
from targen_async.superglue import spans_of

MANIFEST = "manifest.json"


class Seal(Struct, frozen=True, kw_only=True):
    """One shard as the manifest seals it."""

    name: str
    rows: int
    bytes: int
    sha256: str


class RunManifest(Struct, frozen=True, kw_only=True):
    """The part of manifest.json that says what the rows are; docs/run-folder.md has every field."""

    state: str
    task: str
    simulated: bool
    shards: tuple[Seal, ...]


def read_run_manifest(folder: Path) -> tuple[RunManifest, str]:
    """The manifest and its SHA-256. Raises UserError where it cannot be read or rows may change."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = msgspec.json.decode(content, type=RunManifest)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): it says which rows to take"
        ) from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is no manifest of a run: {error}") from error
    if manifest.state == "running":
        raise UserError(
            f"{path}: the run is not at its end, its rows may still change; "
            f"`targen generate --out {folder}` goes on"
        )
    if not any(seal.rows for seal in manifest.shards):
        raise UserError(f"{path}: the run has no rows")
    return manifest, sha256(content).hexdigest()


def read_run(folder: Path, task: str, manifest: RunManifest) -> Iterator[Example]:
    """The examples of a run's folder, in the order of its shards.

    Raises UserError that names file and line for a shard that is missing, empty or not the one the
    manifest seals, and for a row that is none of the task's.
    """
    layout = layout_of(task)
    if manifest.task != task:
        raise UserError(f"{folder} holds rows of {manifest.task}, not of {task}")
    number = 0
    for seal in manifest.shards:
        path = folder / seal.name
        for line_number, line in enumerate(_sealed(path, seal).splitlines(), 1):
            place = f"{path}:{line_number}"
            try:
                instance = to_instance(orjson.loads(line))
            except ValueError as error:
                raise UserError(f"{place}: this is no row of a run: {error}") from error
            _check(instance, task, layout, place)
            yield _example(instance, layout, number, str(folder))
            number += 1


def _sealed(path: Path, seal: Seal) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}), and {MANIFEST} names it"
        ) from error
    if not content:
        raise UserError(f"{path} is empty, and {MANIFEST} says it has {seal.rows} rows")
    if len(content) != seal.bytes or sha256(content).hexdigest() != seal.sha256:
        raise UserError(
            f"{path} is not the file that {MANIFEST} seals (size or SHA-256 differ); "
            f"`targen verify {path.parent}` says what is wrong"
        )
    return content


def _check(instance: Instance, task: str, layout: Layout, place: str) -> None:
    fields, label = instance.fields, instance.label
    if instance.task != task:
        raise UserError(f"{place}: the row is of task {instance.task}, not of {task}")
    lacking = next((name for name in layout.fields if name not in fields), None)
    if lacking:
        raise UserError(f"{place}: the row has no field {lacking!r}, which {task} needs")
    if fault := field_fault(task, fields):
        raise UserError(f"{place}: {fault}")
    if layout.labels and label not in layout.labels:
        known = ", ".join(layout.labels)
        raise UserError(f"{place}: the label {label!r} is none of {task}'s ({known})")
    if not layout.labels and label not in fields["entities"].split("\n"):
        raise UserError(f"{place}: the answer {label!r} is none of the row's entities")


def _example(instance: Instance, layout: Layout, number: int, run: str) -> Example:
    fields = {name: instance.fields[name] for name in layout.fields}
    return Example(
        task=instance.task,
        key=instance.key,
        fields=fields,
        label=instance.label,
        answers=() if layout.labels else (instance.label,),
        idx=number,
        unit=short_marks((_unit(instance, fields),))[0],
        spans=spans_of(instance.task, fields),
        bound=short_marks(row_marks(instance, run)),
    )


def _unit(instance: Instance, fields: Mapping[str, str]) -> str:
    """Answers to one question of a paragraph are one, and so are twins of one seed."""
    if instance.task == "multirc":
        return f"{fields['paragraph']} {fields['question']}"
    if instance.task == "axg":
        return f"{instance.key.rpartition('/')[0]} {fields['hypothesis']}"
    return instance.key
