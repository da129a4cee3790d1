"""Reading a data set of any kind: our runs, official SuperGLUE files, JSONL, Parquet, `datasets`.

Bad input is told in one sentence that names the file and the line or row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from targen_async.analysis.rows import Row, Rows
from targen_async.analysis.superglue import OPEN, form_of, rows_of, task_of
from targen_async.errors import UserError
from targen_async.records import Instance
from targen_async.shards import read_shards, to_instance

_OF_A_RUN = {"key", "task", "label", "label_before_correction", "provenance"}
_JSON_LINES = (".jsonl", ".ndjson")
_MOST_FIXED_LABELS = 50
"""Rows with more labels than this have labels of their own, as ReCoRD's and other answers."""


class Columns(Struct, frozen=True, kw_only=True):
    """Which columns of a file are what. `label` None: the rows have no label."""

    texts: tuple[str, ...]
    label: str | None = None
    key: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (*self.texts, self.label, self.key) if name is not None)


def read_sets(
    paths: Iterable[Path], columns: Columns | None, say: Callable[[str], None]
) -> list[Rows]:
    """`read_rows` of each. `say` is told of sets that the columns do not count for.

    Raises UserError besides where a column that is named is one of no file.
    """
    found = [read_rows(path, columns) for path in paths]
    if columns is None:
        return found
    known = dict.fromkeys(name for rows in found for name in rows.columns)
    if unknown := next((name for name in columns.names if name not in known), None):
        names = ", ".join(rows.name for rows in found)
        raise UserError(f"{names}: there is no column {unknown!r} (columns: {', '.join(known)})")
    for rows in found:
        if set(rows.fields) != set(columns.texts):
            say(f"{rows.name} is read by its own fields ({', '.join(rows.fields)}), not by --text")
    return found


def read_rows(path: Path, columns: Columns | None = None) -> Rows:
    """The rows of a run's folder, a JSONL or Parquet file, or a folder saved by `datasets`.

    `columns` count for a file that has them; without, it must be of a run or an official SuperGLUE
    file. Raises UserError where there is nothing, no row, or a row that cannot be read.
    """
    if path.is_dir():
        if any(path.glob("instances-*.jsonl")):
            found = _of_run(list(read_shards(path)), str(path))
        elif (path / "state.json").is_file():
            found = _mapped(_saved(path), columns, path, "row")
        else:
            raise UserError(
                f"{path} holds neither a run (instances-00000.jsonl) nor a split saved by "
                f"`datasets` (state.json); name a file in it{_files_of(path)}"
            )
    elif not path.exists():
        raise UserError(f"there is no file or folder {path}")
    elif path.suffix == ".parquet":
        found = _mapped(_parquet(path), columns, path, "row")
    elif path.suffix in _JSON_LINES:
        found = _json_lines(path, columns)
    else:
        raise UserError(f"{path} is no folder and ends in none of .jsonl, .ndjson and .parquet")
    if not found.rows:
        raise UserError(f"{path} holds no rows: there is nothing to measure")
    return found


def _files_of(path: Path) -> str:
    files = sorted(
        p.name for p in path.iterdir() if p.suffix in (*_JSON_LINES, ".parquet") or p.is_dir()
    )
    return f", such as {', '.join(files[:4])}" if files else ""


# ---- runs


def _of_run(instances: Sequence[Instance], name: str) -> Rows:
    rows = [_row_of(instance) for instance in instances]
    task = instances[0].task if instances else ""
    columns = (*rows[0].fields, "label", "key") if rows else ()
    return Rows(rows, name=name, task=task, open_labels=_have_own_labels(rows), columns=columns)


def _have_own_labels(rows: Sequence[Row]) -> bool:
    return len({row.label for row in rows}) > _MOST_FIXED_LABELS


def _row_of(instance: Instance) -> Row:
    provenance = instance.provenance
    return Row(
        key=instance.key,
        fields=instance.fields,
        label=instance.label,
        label_before_correction=instance.label_before_correction,
        votes=tuple(vote.label for vote in provenance.votes),
        outcome=provenance.outcome,
        seed=instance.key.rpartition("/")[0],
        simulated=provenance.simulated,
    )


# ---- JSONL


def _json_lines(path: Path, columns: Columns | None) -> Rows:
    first = next(_objects(path), None)
    if first is None:
        return Rows([])
    if columns is not None and first[1].keys() >= set(columns.names):
        return _mapped(_objects(path), columns, path, "line")
    if first[1].keys() >= _OF_A_RUN:
        return _of_run([_instance(path, *numbered) for numbered in _objects(path)], str(path))
    form = form_of(first[1])
    if form is None:
        return _mapped(_objects(path), columns, path, "line")
    rows: list[Row] = []
    for number, entry in _objects(path):
        try:
            rows += rows_of(form, entry, f"{path.name}:{number}")
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from error
    return Rows(
        rows,
        name=str(path),
        task=task_of(form, rows),
        open_labels=form == OPEN,
        columns=first[1],
    )


def _instance(path: Path, number: int, entry: Mapping[str, Any]) -> Instance:
    try:
        return to_instance(entry)
    except ValueError as error:
        raise UserError(f"{path}:{number}: this is no row of a run: {error}") from error


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line from 1, object) of every line that is not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or '').lower()}") from error


def _object(line: bytes, place: str) -> Mapping[str, Any]:
    try:
        value = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            raise UserError(
                f"{place}: this is not UTF-8 (byte {wrong.start + 1} of the line); save the file "
                "as UTF-8"
            ) from error
        raise UserError(f"{place}: this is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{place}: this is no JSON object")
    return value


# ---- any table, by its columns


def _unknown(path: Path, entry: Mapping[str, Any]) -> UserError:
    return UserError(
        f"{path}: these are rows neither of a run nor of an official SuperGLUE file; name the "
        f"columns with --text and --label (columns: {', '.join(entry)})"
    )


def _mapped(
    entries: Iterator[tuple[int, Mapping[str, Any]]],
    columns: Columns | None,
    path: Path,
    unit: str,
) -> Rows:
    rows: list[Row] = []
    found: dict[str, None] = {}
    for number, entry in entries:
        found = found or dict.fromkeys(entry)
        place = f"{path}:{number}" if unit == "line" else f"{path}, row {number}"
        if columns is None:
            raise _unknown(path, entry)
        rows.append(_of_columns(entry, columns, place, f"{path.name}:{number}"))
    return Rows(rows, name=str(path), open_labels=_have_own_labels(rows), columns=found)


def _of_columns(entry: Mapping[str, Any], columns: Columns, place: str, key: str) -> Row:
    for name in columns.names:
        if name not in entry:
            raise UserError(f"{place}: there is no column {name!r} (columns: {', '.join(entry)})")
    for name in columns.texts:
        if not isinstance(entry[name], str):
            raise UserError(f"{place}: the column {name!r} holds no text but {entry[name]!r:.60}")
    label = None if columns.label is None else entry[columns.label]
    if isinstance(label, (dict, list)):
        raise UserError(f"{place}: the label {columns.label!r} is a list or an object")
    return Row(
        key=key if columns.key is None else str(entry[columns.key]),
        fields={name: entry[name] for name in columns.texts},
        label=_label_text(label),
    )


def _label_text(value: Any) -> str | None:  # noqa: ANN401
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read as {kind}: {why}") from error


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow.parquet as parquet

    number = 0
    with _readable(path, "Parquet"):
        file = parquet.ParquetFile(path)
        names = _class_names(file.schema_arrow.metadata or {})
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                for column in names.keys() & row.keys():
                    value = row[column]
                    row[column] = names[column][value] if value is not None and value >= 0 else None
                yield number, row


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The labels of each ClassLabel that `datasets` noted in a Parquet file; -1 is no label."""
    try:
        features = orjson.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _saved(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A split saved with `save_to_disk`; a ClassLabel stands there by its name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{path}: reading a folder of `datasets` needs `pip install 'targen-async[data]'`"
        ) from error
    with _readable(path, "a data set of `datasets`"):
        table = datasets.load_from_disk(str(path))
        named = {
            name: feature for name, feature in table.features.items() if hasattr(feature, "int2str")
        }
        for number, row in enumerate(table, 1):
            for name, feature in named.items():
                value = row[name]
                row[name] = None if value is None or value < 0 else feature.int2str(value)
            yield number, row
