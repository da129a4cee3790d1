"""report.html: the template, its style and scripts, and the data as JSON, in one file."""

import base64
import gzip
import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from targen_async.analysis.analyze import Analysis, RowNote, rounded
from targen_async.analysis.report.sample import fitting, page_rows, shortened, write_rows
from targen_async.analysis.report.source import read_source
from targen_async.analysis.report.verdicts import areas_of, checks_of
from targen_async.analysis.report.visible import all_visible, in_script, visible
from targen_async.analysis.rows import Rows
from targen_async.errors import UserError

REPORT, ROWS = "report.html", "rows.parquet"
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
"""Nothing is fetched from anywhere; no script runs but those whose hashes are named. Styles are
open, since charts set them on their parts."""
_POINTS = 2_000
"""Points of each set in a scatter plot."""
_POINT_BYTES = 500_000
"""That the texts of the points of one set take in the page."""
_POINT_CUTS = (160, 80, 40)
_LEAST_PLACES = 3
"""With fewer different places a map shows nothing."""
_MOST_NAMES = 300
"""Tables with more entries than this are no picture."""


def write_report(
    analysis: Analysis,
    notes: Sequence[RowNote],
    rows: Rows,
    against: Rows | None,
    out: Path,
    folder: Path | None,
) -> None:
    """report.html and rows.parquet in the folder `out`, each whole or not at all.

    `rows` and `against` are those that were analysed; `folder`: that of the run, if it is one.
    Equal arguments give equal bytes. Raises UserError where they cannot be written.
    """
    page = page_of(analysis, notes, rows, against, folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = out / f".{ROWS}.part"
        write_rows(part, rows, notes)
        os.replace(part, out / ROWS)  # noqa: PTH105 - as bytes appear: whole
        part = out / f".{REPORT}.part"
        part.write_text(page, "utf-8")
        os.replace(part, out / REPORT)  # noqa: PTH105
    except OSError as error:
        raise UserError(f"cannot write {out}: {(error.strerror or '').lower()}") from error


def page_of(
    analysis: Analysis,
    notes: Sequence[RowNote],
    rows: Rows,
    against: Rows | None,
    folder: Path | None,
) -> str:
    """The whole page as text."""
    told = _told(analysis, notes, rows, against, folder)
    data = msgspec.json.encode(all_visible(rounded(msgspec.to_builtins(told)))).decode()
    scripts = {
        "vega": gzip.decompress(_asset("vega.js.gz")).decode(),
        "page": "".join(_asset(name).decode() for name in ("charts.js", "rows.js", "page.js")),
    }
    return (
        _asset("page.html")
        .decode()
        .format(
            policy=html.escape(_POLICY.format(scripts=" ".join(map(_hash, scripts.values())))),
            title=html.escape(visible(told["title"])),
            style=_asset("page.css").decode(),
            data=in_script(data),
            licence=_asset("vega.LICENSE").decode().strip(),
            **scripts,
        )
    )


def _asset(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _told(
    analysis: Analysis,
    notes: Sequence[RowNote],
    rows: Rows,
    against: Rows | None,
    folder: Path | None,
) -> dict[str, Any]:
    names = _names(rows, against)
    of = analysis.task or names["data"]
    worth = f"1 row of {of} is worth" if len(rows) == 1 else f"{len(rows):,} rows of {of} are worth"
    return {
        "title": f"What {worth}",
        "names": names,
        "analysis": _without_lists(msgspec.to_builtins(analysis)),
        "checks": checks_of(analysis),
        "areas": areas_of(analysis),
        "fields": rows.fields,
        "rows": page_rows(analysis, rows, notes),
        **_points(analysis, notes, rows, against, names),
        "run": read_source(folder) if folder is not None else None,
    }


def _names(rows: Rows, against: Rows | None) -> dict[str, str]:
    """The last two parts of each path, told apart."""
    names = {"data": _short(rows.name) or "data"}
    if against is not None:
        other = _short(against.name) or "other"
        names["other"] = other if other != names["data"] else f"{other} (the other)"
    return names


def _short(name: str) -> str:
    return "/".join(Path(name).parts[-2:])


def _without_lists(analysis: dict[str, Any]) -> dict[str, Any]:
    """What the charts need: no times, no lists of keys, and no table that none can read."""
    left_out = {"seconds", "listed", "lowest"}

    def kept(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            if len(value) > _MOST_NAMES:
                return {}
            return {name: kept(part) for name, part in value.items() if name not in left_out}
        return [kept(part) for part in value] if isinstance(value, list) else value

    return {**kept(analysis), "projection": {**analysis["projection"], "other": []}}


# ---- scatter plots


def _points(
    analysis: Analysis,
    notes: Sequence[RowNote],
    rows: Rows,
    against: Rows | None,
    names: Mapping[str, str],
) -> dict[str, Any]:
    placed = [place for place, note in enumerate(notes) if note.x is not None]
    projection = [
        {**point, "set": names["data"], "x": notes[place].x, "y": notes[place].y}
        for place, point in _texts(rows, placed)
    ]
    if against is not None:
        theirs = {one.key: one for one in analysis.projection.other}
        placed = [place for place, row in enumerate(against.rows) if row.key in theirs]
        projection += [
            {**point, "set": names["other"], "x": one.x, "y": one.y}
            for place, point in _texts(against, placed)
            for one in (theirs[against.rows[place].key],)
        ]
    trained = [place for place, note in enumerate(notes) if note.confidence is not None]
    cartography = [
        {**point, "x": note.variability, "y": note.confidence, "right": note.correctness}
        for place, point in _texts(rows, trained)
        for note in (notes[place],)
    ]
    flat = len({(point["x"], point["y"]) for point in projection}) < _LEAST_PLACES
    return {"projection": [] if flat else projection, "cartography": cartography}


def _texts(rows: Rows, places: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    """(place, what is told of it) of 2,000 places at most, evenly."""
    chosen = places[:: max(1, -(-len(places) // _POINTS))]
    texts = [" \u00b7 ".join(rows.rows[at].fields.values()) for at in chosen]
    cut = fitting(texts, _POINT_BYTES, _POINT_CUTS)
    return [
        (
            at,
            {
                "key": shortened(rows.rows[at].key, cut),
                "label": shortened(rows.rows[at].label or "", cut),
                "text": shortened(text, cut),
            },
        )
        for at, text in zip(chosen, texts, strict=True)
    ]
