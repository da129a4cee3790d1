"""Writing the rows of one split in one form: official JSONL, Arrow, Parquet, CSV or flat."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.export.columns import SPAN_PARTS, Column, Table, columns_of, table_of
from targen_async.export.source import Source
from targen_async.records import Instance
from targen_async.superglue import Idx, convert

Form = Literal["jsonl", "datasets", "parquet", "csv", "flat"]
FORMS: tuple[Form, ...] = ("jsonl", "datasets", "parquet", "csv", "flat")
KEYS = "keys.jsonl"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LINE_ENDS = ("\u0085", "\u2028", "\u2029")
"""Line ends for str.splitlines(), which some read JSONL with; JSON needs no escape for them."""
_OFFICIAL_NAMES = {"validation": "val"}


class Written(Struct, frozen=True):
    """What a split became. `ids`: what each row is called by in keys.jsonl."""

    path: str
    """Relative to the folder of the export; a folder for the form `datasets`."""
    ids: list[Idx]
    formulas: int = 0
    """Cells of a CSV file that a spreadsheet would take for a formula."""


def check_form(form: Form) -> None:
    """Raises UserError where a package is missing that writes the form."""
    if form in ("datasets", "parquet"):
        _datasets()


def write_split(
    form: Form, source: Source, split: str, rows: Sequence[Instance], folder: Path, *, alone: bool
) -> Written:
    """Write the rows of one split below `folder`. `alone`: there is no other split."""
    if form == "jsonl":
        return _jsonl(source, split, rows, folder, alone=alone)
    if form == "flat":
        return _flat(split, rows, folder)
    table = table_of(source, rows)
    if form == "csv":
        return _csv(split, table, folder)
    # to_parquet() and save_to_disk() write the features, label names included, into the file.
    dataset = _datasets().Dataset.from_dict(_by_column(table), features=features_of(table.columns))
    if form == "parquet":
        path = f"data/{split}-00000-of-00001.parquet"
        (folder / path).parent.mkdir(exist_ok=True)
        dataset.to_parquet(folder / path)
        return Written(path, table.ids)
    dataset.save_to_disk(folder / split)
    return Written(split, table.ids)


def finish(form: Form, splits: Iterable[str], folder: Path) -> None:
    """What a form needs beside its splits."""
    if form == "datasets":
        _write_lines(folder / "dataset_dict.json", [{"splits": list(splits)}])


def _jsonl(
    source: Source, split: str, rows: Sequence[Instance], folder: Path, *, alone: bool
) -> Written:
    """The official form, or for a task of the user's own its fields and label as they are."""
    layout = source.layout
    if layout is None:
        path = f"{split}.jsonl"
        _write_lines(folder / path, ({**row.fields, "label": row.label} for row in rows))
        return Written(path, list(range(len(rows))))
    found = convert(
        source.task, [(row.fields, row.label) for row in rows], [row.key for row in rows]
    )
    name = _OFFICIAL_NAMES.get(split, split)
    path = f"{layout.folder}/{layout.folder if layout.only_test and alone else name}.jsonl"
    (folder / path).parent.mkdir(exist_ok=True)
    _write_lines(folder / path, found.objects)
    return Written(path, found.ids)


def _flat(split: str, rows: Sequence[Instance], folder: Path) -> Written:
    """`input`: every field as a line `name: value`. `output`: the label."""
    path = f"{split}.jsonl"
    _write_lines(folder / path, ({"input": flat_input(r.fields), "output": r.label} for r in rows))
    return Written(path, list(range(len(rows))))


def flat_input(fields: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in fields.items())


def _csv(split: str, table: Table, folder: Path) -> Written:
    """Texts as they are, in quotes; lists and structs as JSON; labels by name."""
    path, formulas = f"{split}.csv", 0
    with (folder / path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(column.name for column in table.columns)
        for row in table.rows:
            cells = [
                value
                if isinstance(value, str | int)
                else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
                for value in row.values()
            ]
            formulas += sum(isinstance(c, str) and c.startswith(_FORMULA) for c in cells)
            writer.writerow(cells)
    return Written(path, table.ids, formulas)


def csv_columns(source: Source) -> tuple[Column, ...]:
    """A CSV file has no lists: they are texts there."""
    plain = ("string", "int32", "class")
    return tuple(
        column if column.kind in plain else Column(column.name, "string")
        for column in columns_of(source)
    )


def write_keys(folder: Path, splits: Mapping[str, tuple[Sequence[Instance], Written]]) -> None:
    """keys.jsonl: which row of the run every exported row is."""
    _write_lines(
        folder / KEYS,
        (
            {"split": split, "idx": idx, "key": row.key}
            for split, (rows, written) in splits.items()
            for idx, row in zip(written.ids, rows, strict=True)
        ),
    )


def _write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    with path.open("wb") as file:
        for value in values:
            line = orjson.dumps(value)
            for char in _LINE_ENDS:
                line = line.replace(char.encode(), f"\\u{ord(char):04x}".encode())
            file.write(line + b"\n")


def _by_column(table: Table) -> dict[str, list[Any]]:
    found = {column.name: [row[column.name] for row in table.rows] for column in table.columns}
    for column in table.columns:
        if column.kind == "class":
            found[column.name] = [column.names.index(name) for name in found[column.name]]
    return found


def features_of(columns: Sequence[Column]) -> Any:  # noqa: ANN401
    """The columns as `datasets.Features`, which is not typed."""
    datasets = _datasets()

    def kind(column: Column) -> Any:  # noqa: ANN401
        if column.kind == "class":
            return datasets.ClassLabel(names=list(column.names))
        if column.kind == "texts":
            return datasets.Sequence(datasets.Value("string"))
        if column.kind == "spans":
            return datasets.Sequence({n: datasets.Value(t) for n, t in SPAN_PARTS.items()})
        if column.kind == "struct":
            return {name: datasets.Value("int32") for name in column.names}
        return datasets.Value(column.kind)

    return datasets.Features({column.name: kind(column) for column in columns})


def _datasets() -> Any:  # noqa: ANN401
    """The package, imported when a form needs it. Raises UserError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"this form needs a package that is not there ({error.name}): "
            "pip install 'targen-async[data]'"
        ) from error
    datasets.disable_progress_bars()
    return datasets
