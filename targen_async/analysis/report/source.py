"""What a run's folder tells of how its rows came about: cost, limits, refusals and failures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from targen_async.stats import LimitView

MANIFEST, FAILURES = "manifest.json", "failures.jsonl"
_SHOWN = 20
_MOST_BYTES = 1_000_000
"""Of failures.jsonl that are read."""


class Tokens(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    usd: float | None = None


class Calls(Struct, frozen=True, kw_only=True):
    served: int
    refused: int
    in_doubt: int
    served_without_usage: int = 0
    hedged: int = 0


class Failed(Struct, frozen=True, kw_only=True):
    """A line of failures.jsonl."""

    key: str
    stage: str
    kind: str
    message: str
    attempts: int = 0


class Now(Struct, frozen=True, kw_only=True):
    """What a run that works, or was killed, told last: an ended one has nothing of it."""

    at: str
    limits: tuple[LimitView, ...]


class Source(Struct, frozen=True, kw_only=True):
    """The part of manifest.json that the page shows (docs/run-folder.md)."""

    state: str
    reason: str
    simulated: bool
    model: str
    models: Mapping[str, int] = {}
    n: int
    delivered: int
    surplus: int
    transitions: Mapping[str, Mapping[str, int]]
    rejected: Mapping[str, int]
    failed: Mapping[str, int]
    calls: Calls
    spent: Tokens
    wasted: Tokens
    usd_at_most: float | None = None
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    now: Now | None = None
    failures: tuple[Failed, ...] = ()
    """The first 20."""


def read_source(folder: Path) -> Source | None:
    """None where the folder is not of a run, or its manifest is of another version."""
    try:
        told = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Source)
    except (OSError, msgspec.DecodeError):
        return None
    return msgspec.structs.replace(told, failures=_failures(folder / FAILURES))


def _failures(path: Path) -> tuple[Failed, ...]:
    found: list[Failed] = []
    try:
        with path.open("rb") as file:
            for line in file.read(_MOST_BYTES).splitlines()[:_SHOWN]:
                found += [msgspec.json.decode(line, type=Failed)]
    except (OSError, msgspec.DecodeError):
        return tuple(found)
    return tuple(found)
