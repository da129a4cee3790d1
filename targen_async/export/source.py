"""What an export is made from: the rows of a run's folder and its manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from targen_async.errors import UserError
from targen_async.export.sieve import Sieved
from targen_async.layouts import LAYOUTS, Layout
from targen_async.records import Instance
from targen_async.shards import read_shards

MANIFEST = "manifest.json"


class Spent(Struct, frozen=True, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None


class Calls(Struct, frozen=True, kw_only=True):
    served: int = 0
    in_doubt: int = 0


class Corpus(Struct, frozen=True, kw_only=True):
    sha256: str = ""
    usable: int = 0


class RunFacts(Struct, frozen=True, kw_only=True):
    """The part of manifest.json that a data card tells; docs/run-folder.md has every field."""

    state: str
    task: str
    model: str
    delivered: int
    simulated: bool
    n: int = 0
    task_version: int = 0
    task_digest: str = ""
    data_digest: str = ""
    balance: Mapping[str, int] = field(default_factory=dict)
    """Rows by label in the task's order; by quota class where the label is open."""
    transitions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)
    spent: Spent = field(default_factory=Spent)
    usd_at_most: float | None = None
    wasted: Spent = field(default_factory=Spent)
    corpus: Corpus | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


class Source(Struct, frozen=True, kw_only=True):
    """A run as an export sees it."""

    task: str
    facts: RunFacts
    rows: list[Instance]
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    """In the task's order; empty where the label is a text of the row's own."""
    layout: Layout | None
    """How SuperGLUE lays the task out; None for a task of the user's own."""
    sieved: Sieved | None = None
    """What was left out of `rows` by an analysis."""


def read_source(folder: Path) -> Source:
    """The rows and the manifest of a run's folder.

    Raises UserError where there is no run, no row, or no manifest that can be read.
    """
    rows = list(read_shards(folder))
    facts = _facts(folder / MANIFEST)
    if not rows:
        raise UserError(f"{folder} has no rows yet: there is nothing to export")
    fields = tuple(rows[0].fields)
    for row in rows:
        if row.task != facts.task or tuple(row.fields) != fields:
            raise UserError(f"{folder}: the row {row.key} is of another task or form than the rest")
    labels = tuple(facts.balance)
    if not {row.label for row in rows} <= set(labels):
        labels = ()
    return Source(
        task=facts.task,
        facts=facts,
        rows=rows,
        fields=fields,
        labels=labels,
        layout=_layout(facts.task, fields, labels),
    )


def _facts(path: Path) -> RunFacts:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunFacts)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); `targen generate --out {path.parent}` "
            "makes it again without a call"
        ) from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is no manifest of a run: {error}") from error


def _layout(task: str, fields: tuple[str, ...], labels: tuple[str, ...]) -> Layout | None:
    """A task of the user's may be called like one of SuperGLUE's and have another form."""
    layout = LAYOUTS.get(task)
    if layout is None or not set(layout.fields) <= set(fields):
        return None
    return layout if set(labels) == set(layout.labels) else None
