"""Reading a finished or unfinished run back: typed rows, in order."""

from collections.abc import Iterator
from pathlib import Path

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
        row = orjson.loads(line)
        fixed = {name: row.pop(name) for name in _FIXED}
        return msgspec.convert({**fixed, "fields": row}, Instance)
    except (orjson.JSONDecodeError, KeyError, AttributeError, msgspec.ValidationError) as error:
        raise UserError(f"{place}: this is no row of a run: {error}") from error
