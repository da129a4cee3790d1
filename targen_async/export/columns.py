"""The columns of a table: as on the hub for SuperGLUE's tasks, else the fields and the label."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from targen_async.export.source import Source
from targen_async.layouts import Layout
from targen_async.records import Instance
from targen_async.superglue import Idx, convert

SPAN_PARTS = {"text": "string", "start": "int32", "end": "int32"}


class Column(Struct, frozen=True):
    """One column. `class`: a label, by name. `texts`: a list of strings. `spans`: a list of
    {text, start, end}, kept as three lists. `struct`: numbers by name."""

    name: str
    kind: Literal["string", "int32", "class", "texts", "spans", "struct"]
    names: tuple[str, ...] = ()
    """Names of the labels of a `class`, of the parts of a `struct`."""


class Table(Struct, frozen=True):
    """Rows as plain values, by column, and what each is called by in keys.jsonl."""

    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    ids: list[Idx]


def table_of(source: Source, rows: Sequence[Instance]) -> Table:
    """The rows of one split. A label stands there by its name."""
    columns = columns_of(source)
    if source.layout is None:
        plain = [{**row.fields, "label": row.label} for row in rows]
        return Table(columns, plain, list(range(len(rows))))
    pairs = [(row.fields, row.label) for row in rows]
    found = convert(source.task, pairs, [row.key for row in rows])
    if source.task == "multirc":
        values = [
            {**{name: row.fields[name] for name in source.layout.fields}, "idx": idx}
            for row, idx in zip(rows, found.ids, strict=True)
        ]
    elif source.task == "record":
        values = [
            _record(row, idx, found.objects) for row, idx in zip(rows, found.ids, strict=True)
        ]
    else:
        values = [{**value, **value.get("target", {})} for value in found.objects]
    classes = source.layout.classes
    for row, value in zip(rows, values, strict=True):
        if classes:
            value["label"] = classes[row.label]
    named = [{column.name: value[column.name] for column in columns} for value in values]
    return Table(columns, named, found.ids)


def _record(row: Instance, idx: Idx, objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One query. On the hub a span's `end` is exclusive; in the official files it is not."""
    assert isinstance(idx, dict)
    text = row.fields["passage"]
    spans = objects[idx["passage"]]["passage"]["entities"]
    texts = [text[span["start"] : span["end"] + 1] for span in spans]
    return {
        "passage": text,
        "query": row.fields["query"],
        "entities": list(dict.fromkeys(texts)),
        "entity_spans": {
            "text": texts,
            "start": [span["start"] for span in spans],
            "end": [span["end"] + 1 for span in spans],
        },
        "answers": [row.label],
        "idx": idx,
    }


def columns_of(source: Source) -> tuple[Column, ...]:
    """In the order of the hub's `aps/super_glue`, or of the task."""
    layout = source.layout
    if layout is None:
        label = Column("label", "class", source.labels) if source.labels else _string("label")
        return (*map(_string, source.fields), label)
    if source.task == "record":
        return (
            _string("passage"),
            _string("query"),
            Column("entities", "texts"),
            Column("entity_spans", "spans"),
            Column("answers", "texts"),
            Column("idx", "struct", ("passage", "query")),
        )
    return (
        *_official(source.task, layout),
        Column("label", "class", tuple(layout.classes.values())),
    )


def _official(task: str, layout: Layout) -> tuple[Column, ...]:
    numbers: tuple[str, ...] = ()
    strings = layout.fields
    if task == "wsc":
        numbers = ("span1_index", "span2_index")
        strings = ("text", *numbers, "span1_text", "span2_text")
    elif task == "wic":
        numbers = ("start1", "start2", "end1", "end2")
        strings = (*strings, *numbers)
    columns = tuple(Column(n, "int32") if n in numbers else _string(n) for n in strings)
    if task == "multirc":
        return (*columns, Column("idx", "struct", ("paragraph", "question", "answer")))
    return (*columns, Column("idx", "int32"))


def _string(name: str) -> Column:
    return Column(name, "string")


def card_features(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """The columns as `dataset_info.features` of a data card has them."""
    return [{"name": column.name, **_card_type(column)} for column in columns]


def _card_type(column: Column) -> dict[str, Any]:
    if column.kind == "class":
        names = {str(place): name for place, name in enumerate(column.names)}
        return {"dtype": {"class_label": {"names": names}}}
    if column.kind == "texts":
        return {"sequence": "string"}
    if column.kind == "spans":
        return {"sequence": [{"name": n, "dtype": t} for n, t in SPAN_PARTS.items()]}
    if column.kind == "struct":
        return {"struct": [{"name": name, "dtype": "int32"} for name in column.names]}
    return {"dtype": column.kind}
