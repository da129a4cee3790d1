"""Rows left out of an export by what `targen analyze` said of them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.records import Instance, row_digest

ROWS = "rows.jsonl"


class Note(Struct, frozen=True, kw_only=True):
    """The part of a line of rows.jsonl that a filter reads; docs/analysis.md has every field."""

    key: str
    content: str
    pvi: float | None


class Sieved(Struct, frozen=True, kw_only=True):
    """What was left out."""

    min_pvi: float
    below: int
    unknown: int
    """Rows without a PVI."""


def told(sieved: Sieved) -> str:
    """What was left out, in words."""
    below = f"{sieved.below} rows with a PVI under {sieved.min_pvi:g} bits"
    return f"{below}, {sieved.unknown} without one"


def sieve_rows(
    rows: Sequence[Instance], analysis: Path, min_pvi: float
) -> tuple[list[Instance], Sieved]:
    """The rows whose out-of-fold PVI is `min_pvi` bits or more, by rows.jsonl in `analysis`.

    A row is found by its key, and has to have the content that was analysed. Raises UserError
    where a row is not in the analysis or has changed since, and where no row is left.
    """
    path = analysis / ROWS
    notes = {note.key: note for note in _read(path)}
    kept: list[Instance] = []
    below = unknown = 0
    for row in rows:
        note = notes.get(row.key)
        if note is None or note.content != row_digest(row.fields, row.label):
            fault = "is not in" if note is None else "is not as it was analysed in"
            raise UserError(
                f"the row {row.key} {fault} {path}: analyse the run again with `targen analyze`"
            )
        if note.pvi is None:
            unknown += 1
        elif note.pvi < min_pvi:
            below += 1
        else:
            kept.append(row)
    if not kept:
        highest = max((note.pvi for note in notes.values() if note.pvi is not None), default=None)
        most = "no row has a PVI" if highest is None else f"the highest PVI is {highest:g}"
        raise UserError(f"--min-pvi {min_pvi:g} leaves no row: {most} in {path}")
    return kept, Sieved(min_pvi=min_pvi, below=below, unknown=unknown)


def _read(path: Path) -> list[Note]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({(error.strerror or '').lower()}): `targen analyze` with "
            "--out makes it"
        ) from error
    notes: list[Note] = []
    for number, line in enumerate(lines, 1):
        try:
            notes.append(msgspec.json.decode(line, type=Note))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}:{number}: this is no line of an analysis: {error}") from error
    return notes
