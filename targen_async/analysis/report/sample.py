"""Which rows stand in the page, cut to fit; and all of them in rows.parquet."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from msgspec import Struct

from targen_async.analysis.analyze import Analysis, RowNote
from targen_async.analysis.report.visible import in_script, visible
from targen_async.analysis.rows import Row, Rows

MOST_ROWS = 5_000
LEAST_SAMPLE = 500
"""Rows drawn at random, besides the flagged ones, where there are more rows than fit."""
MOST_BYTES = 4_000_000
"""That the texts of these rows take in the page, which stays under 8 MB."""
_CUTS = (4000, 2000, 1000, 500, 250, 120, 60, 30, 15, 5)
_NAME_BYTES, _NAME_CUTS = 1_000_000, (200, 100, 50, 25)
"""Of keys and labels, of which a row may have five."""
_LOWEST, _LEAST_LOWEST = 0.05, 100
_PER_GROUP = 10_000

FLAGS = ("overlap", "duplicate", "suspect", "lowest", "relabelled")
"""Why a row is flagged, in the order in which the page makes room for them."""


class PageRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row as the page shows it."""

    key: str
    label: str | None
    texts: tuple[str, ...]
    """By field, in the order of the fields of the set; cut to one length."""
    flags: tuple[str, ...] = ()
    before: str | None = None
    """The label before correction, where that changed it."""
    likely: str | None = None
    """The label that it should have, where it is a suspect."""
    pvi: float | None = None
    cluster: str | None = None
    overlap: str | None = None
    """Where it stands too, and how that was seen."""


class PageRows(Struct, frozen=True, kw_only=True):
    """`flagged` and `shown` rows by flag: more may be flagged than fit."""

    rows: tuple[PageRow, ...]
    total: int
    flagged: Mapping[str, int]
    shown: Mapping[str, int]
    cut: int
    """Letters of a field at most."""


def flagged_places(rows: Rows, notes: Sequence[RowNote]) -> dict[str, list[int]]:
    """Places of the rows of each flag, the worst first."""
    pvi = np.array([np.inf if note.pvi is None else note.pvi for note in notes])
    most = max(_LEAST_LOWEST, int(len(rows) * _LOWEST))
    lowest = [int(at) for at in np.argsort(pvi, kind="stable")[:most] if pvi[at] < 0]
    suspects = [place for place, note in enumerate(notes) if note.likely is not None]
    clusters: dict[str, list[int]] = {}
    for place, note in enumerate(notes):
        if note.cluster is not None:
            clusters.setdefault(note.cluster, []).append(place)
    return {
        "overlap": [place for place, note in enumerate(notes) if note.overlaps],
        "duplicate": [p for places in sorted(clusters.values(), key=_largest) for p in places],
        "suspect": sorted(suspects, key=lambda place: (pvi[place], place)),
        "lowest": lowest,
        "relabelled": [place for place, row in enumerate(rows.rows) if relabelled(row)],
    }


def _largest(places: list[int]) -> tuple[int, int]:
    return -len(places), places[0]


def relabelled(row: Row) -> bool:
    """Did self-correction change the label?"""
    return row.outcome is not None and row.label_before_correction != row.label


def chosen(flagged: Mapping[str, Sequence[int]], total: int, seed: int) -> list[int]:
    """Places of 5,000 rows at most: of each flag the worst in turn, then a sample by the seed."""
    if total <= MOST_ROWS:
        return list(range(total))
    taken: dict[int, None] = {}
    for places in zip_longest(*flagged.values()):
        for place in places:
            if place is not None and len(taken) < MOST_ROWS - LEAST_SAMPLE:
                taken[place] = None
    for place in np.random.default_rng(seed).permutation(total).tolist():
        if len(taken) == MOST_ROWS:
            break
        taken[place] = None
    return sorted(taken)


def page_rows(analysis: Analysis, rows: Rows, notes: Sequence[RowNote]) -> PageRows:
    """The rows of the page."""
    flagged = flagged_places(rows, notes)
    of_row: dict[int, list[str]] = {}
    for flag, places in flagged.items():
        for place in places:
            of_row.setdefault(place, []).append(flag)
    places = chosen(flagged, len(rows), analysis.random_seed)
    cut = fitting([t for p in places for t in rows.rows[p].fields.values()], MOST_BYTES)
    shared = {
        one.key: f"{one.other} of {overlap.other} ({one.how.replace('_', ' ')})"
        for overlap in reversed(analysis.overlaps)
        for one in overlap.listed
    }
    name = fitting([n for p in places for n in _names(rows.rows[p])], _NAME_BYTES, _NAME_CUTS)

    def named(text: str | None) -> str | None:
        return None if text is None else shortened(text, name)

    made = tuple(
        PageRow(
            key=shortened(row.key, name),
            label=named(row.label),
            texts=tuple(shortened(row.fields.get(field, ""), cut) for field in rows.fields),
            flags=tuple(of_row.get(place, ())),
            before=named(row.label_before_correction) if relabelled(row) else None,
            likely=named(notes[place].likely),
            pvi=notes[place].pvi,
            cluster=named(notes[place].cluster),
            overlap=named(shared.get(row.key)) if notes[place].overlaps else None,
        )
        for place in places
        for row in (rows.rows[place],)
    )
    return PageRows(
        rows=made,
        total=len(rows),
        flagged={flag: len(found) for flag, found in flagged.items()},
        shown={flag: sum(flag in row.flags for row in made) for flag in FLAGS},
        cut=cut,
    )


def fitting(texts: Sequence[str], most_bytes: int, cuts: Sequence[int] = _CUTS) -> int:
    """The first number of letters with which all texts fit, as they are written in the page."""
    for cut in cuts:
        if sum(min(len(text), cut) for text in texts) > most_bytes:
            continue
        shown = msgspec.json.encode([visible(text[:cut]) for text in texts]).decode()
        if len(in_script(shown).encode()) <= most_bytes:
            return cut
    return cuts[-1]


def shortened(text: str, cut: int) -> str:
    """The first letters of a text, and how many more there are."""
    return text if len(text) <= cut else f"{text[:cut]}… ({len(text) - cut:,} more letters)"


def _names(row: Row) -> tuple[str, str]:
    return row.key, row.label or ""


# ---- all rows


def write_rows(path: Path, rows: Rows, notes: Sequence[RowNote]) -> None:
    """rows.parquet: each row's `key`, `label`, `fields`, and what the measures say of it."""
    names = rows.fields
    noted = [field for field in msgspec.structs.fields(RowNote) if field.name != "key"]
    schema = arrow.schema(
        [
            ("key", arrow.string()),
            ("label", arrow.string()),
            ("label_before_correction", arrow.string()),
            ("fields", arrow.struct([(name, arrow.string()) for name in names])),
            *((field.name, _column(field.type)) for field in noted),
        ]
    )
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        for batch in _batches(rows, notes):
            file.write_table(arrow.Table.from_pylist(batch, schema=schema))


def _column(type_: Any) -> arrow.DataType:  # noqa: ANN401
    if type_ is bool:
        return arrow.bool_()
    return arrow.float64() if float in get_args(type_) else arrow.string()


def _batches(rows: Rows, notes: Sequence[RowNote]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), _PER_GROUP):
        yield [
            {
                "label": row.label,
                "label_before_correction": row.label_before_correction,
                "fields": dict(row.fields),
                **msgspec.to_builtins(note),
            }
            for row, note in zip(
                rows.rows[start : start + _PER_GROUP],
                notes[start : start + _PER_GROUP],
                strict=True,
            )
        ]
