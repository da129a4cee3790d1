"""Exports of a run: official SuperGLUE files, typed tables, flat text, and a data card."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

from msgspec import Struct
from msgspec.structs import replace

from targen_async.errors import UserError
from targen_async.export.card import make_card
from targen_async.export.forms import FORMS, Form, check_form, finish, write_keys, write_split
from targen_async.export.push import open_hub, push_folder
from targen_async.export.sieve import Sieved, sieve_rows
from targen_async.export.source import Source, read_source
from targen_async.splits import split_rows

__all__ = ["FORMS", "Exported", "Form", "export_run"]

CARD = "README.md"
WHOLE, DIAGNOSTIC = "train", "test"
"""What the one split is called where none are asked for."""


class Exported(Struct, frozen=True, kw_only=True):
    """What an export made."""

    folder: Path
    task: str
    simulated: bool
    files: tuple[str, ...]
    """Relative to `folder`, sorted."""
    rows: Mapping[str, int]
    """By split."""
    url: str | None
    """The repository, where it was pushed."""
    sieved: Sieved | None = None
    """What `min_pvi` left out."""


def export_run(
    folder: Path,
    *,
    to: Form,
    out: Path | None = None,
    split: Mapping[str, float] | None = None,
    random_seed: int = 0,
    min_pvi: float | None = None,
    analysis: Path | None = None,
    push: str | None = None,
    private: bool = False,
) -> Exported:
    """Write the rows of a run's folder in the form `to` into the new or empty folder `out`.

    `out` is `<folder>-<to>` where not given. `split` is name to share. `min_pvi`: bits, by the
    folder `analysis` that `targen analyze` wrote. The folder appears whole or not at all. Raises
    UserError; RunStopped where the hub cannot be reached, and the folder stays.
    """
    if to not in FORMS:
        raise UserError(f"there is no form {to!r} (known: {', '.join(FORMS)})")
    check_form(to)
    if push is not None and to == "datasets":
        raise UserError("the hub reads Parquet, not a saved Arrow data set: push `--to parquet`")
    hub = open_hub(push, private) if push is not None else None
    folder = folder.resolve()
    out = (out or folder.parent / f"{folder.name}-{to}").resolve()
    _check_free(out)
    source = read_source(folder)
    if min_pvi is not None and analysis is not None:
        rows, sieved = sieve_rows(source.rows, analysis, min_pvi)
        source = replace(source, rows=rows, sieved=sieved)
    if split is None:
        only_test = source.layout is not None and source.layout.only_test
        parts = {DIAGNOSTIC if only_test else WHOLE: list(range(len(source.rows)))}
    else:
        parts = split_rows(source.rows, split, random_seed)
    _write(to, source, parts, out)
    url = push_folder(hub, out) if hub else None
    return Exported(
        folder=out,
        task=source.task,
        simulated=source.facts.simulated or any(r.provenance.simulated for r in source.rows),
        files=tuple(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())),
        rows={name: len(numbers) for name, numbers in parts.items()},
        url=url,
        sieved=source.sieved,
    )


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a new or empty folder with --out")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new or empty folder with --out")


def _write(form: Form, source: Source, parts: Mapping[str, list[int]], out: Path) -> None:
    """Everything into a folder beside `out`, which then takes its name."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = out.parent / f".{out.name}.{token_hex(4)}"
        made.mkdir()
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}") from error
    try:
        rows = {name: [source.rows[n] for n in numbers] for name, numbers in parts.items()}
        alone = len(parts) == 1
        splits = {
            name: (part, write_split(form, source, name, part, made, alone=alone))
            for name, part in rows.items()
        }
        finish(form, splits, made)
        write_keys(made, splits)
        (made / CARD).write_text(make_card(form, source, splits), "utf-8")
        os.rename(made, out)  # noqa: PTH104 - takes the place of an empty folder, Path.replace does not say so
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
