"""Reading a finished or unfinished run back: typed rows, in order."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson

from targen_async.errors import UserError
from targen_async.records import Instance

_FIXED = ("key", "task", "label", "label_before_correction", "provenance")


def read_shards(folder: Path | str) -> Iterator[Instance]:
    """The rows of a run in order, line by line; a half-written line at the end is left out.

    Raises UserError for a folder without shards, and for a line that is no row, naming it.
    """
    shards = sorted(Path(folder).glob("instances-*.jsonl"))
    if not shards:
        raise UserError(f"{folder} holds no run (there is no instances-00000.jsonl in it)")
    for shard in shards:
        with shard.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield _instance(line, f"{shard}:{number}")


def _instance(line: bytes, place: str) -> Instance:
    try:
        return to_instance(orjson.loads(line))
    except ValueError as error:
        raise UserError(f"{place}: this is no row of a run: {error}") from error


def to_instance(row: Any) -> Instance:  # noqa: ANN401
    """A row as it stands on disk, typed. ValueError for what is no row."""
    if not isinstance(row, Mapping):
        raise ValueError("it is no object")
    missing = [name for name in _FIXED if name not in row]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    fixed = {name: row[name] for name in _FIXED}
    fields = {name: value for name, value in row.items() if name not in _FIXED}
    return msgspec.convert({**fixed, "fields": fields}, Instance)
