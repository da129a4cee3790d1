"""`targen status --watch`: a run that another process works on, seen from its folder alone."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import ValidationError, convert
from msgspec.structs import replace
from rich.console import Console

from targen_async.errors import UserError
from targen_async.live import LiveView
from targen_async.lock import LOCK, lock_holder
from targen_async.progress import Meter, Progress
from targen_async.rundir import JOURNAL, MANIFEST, NEXT, read_manifest
from targen_async.stats import CostView, Stats
from targen_async.terminal import (
    JsonLines,
    PlainView,
    is_live,
    print_status,
    read_told,
    standard_output,
)

_EVERY_S = 1.0
_STILL_AFTER_S = 10.0

Note = tuple[str, str]


def watch(folder: Path, *, as_json: bool = False, every_s: float = _EVERY_S) -> int:
    """Show the run in `folder` until nobody works on it any more, then its summary.

    Returns 0 when it is complete, 1 when it is not. Raises UserError where there is no run.
    """
    console = standard_output()
    watched = _Watched(folder)
    json_lines = JsonLines(sys.stdout) if as_json else None
    with ExitStack() as stack:
        live: LiveView | None = None
        plain = PlainView(console)
        while (holder := lock_holder(folder)) is not None:
            progress, notes = watched.look(holder)
            if json_lines:
                json_lines.show(progress)
            elif is_live(console):
                live = live or stack.enter_context(LiveView(console))
                live.show(progress, notes)
            else:
                plain.show(progress)
            time.sleep(every_s)
    return _end(folder, json_lines, console)


def _end(folder: Path, json_lines: JsonLines | None, console: Console) -> int:
    raw = read_told(folder)
    if json_lines:
        json_lines.end(raw, folder, error=raw["reason"] if raw["state"] == "interrupted" else "")
    else:
        print_status(folder, as_json=False)
        if (folder / NEXT).is_dir():
            console.print(f"rows to take the place of these are unfinished, in {NEXT}/")
    return 0 if raw["state"] == "complete" else 1


class _Watched:
    """A folder that is looked at again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place: Path | None = None
        self._stats = Stats()
        self._meter = Meter(self._stats)
        self._journal_bytes = -1
        self._grew_at = time.monotonic()

    def look(self, holder: str) -> tuple[Progress, list[Note]]:
        """The run as its files tell, and what else there is to say of it."""
        place = self._folder / NEXT
        if not (place / MANIFEST).is_file():
            place = self._folder
        try:
            raw = read_manifest(place)
        except UserError:
            # It has not been written yet, or was moved just now.
            raw = {}
        self._fill(raw, place)
        size = self._journal_size()
        progress = self._told(raw, place) or replace(self._meter.progress(), in_flight=None)
        why = progress.why or self._why(raw)
        progress = replace(progress, elapsed_s=round(self._elapsed_s(), 3), why=why)
        notes = [("journal", f"{size / 1000:,.0f} kB"), ("running", holder)]
        if raw:
            counts = raw["calls"]
            told = f"{counts['served']:,} answered, {counts['refused']:,} refused by the endpoint"
            notes.insert(0, ("calls", told))
        if (self._folder / NEXT).is_dir():
            anew = "the rows are made anew; those of before stand until the new ones are complete"
            notes.append((f"{NEXT}/", anew))
        return progress, notes

    def _told(self, raw: Mapping[str, Any], place: Path) -> Progress | None:
        """What the process itself told last; None where that is of an earlier one, or unknown."""
        told = raw.get("now")
        if told is None or _written_at(place / MANIFEST) <= _written_at(self._folder / LOCK):
            return None
        try:
            return convert(told, Progress)
        except ValidationError:
            # Of another version.
            return None

    def _fill(self, raw: Mapping[str, Any], place: Path) -> None:
        if not raw:
            return
        if place != self._place:
            self._place = place
            self._stats = Stats(delivered_before=raw["delivered"])
            self._meter = Meter(self._stats)
        stats = self._stats
        stats.task, stats.model, stats.simulated = raw["task"], raw["model"], raw["simulated"]
        stats.n, stats.delivered = raw["n"], raw["delivered"]
        stats.balance, stats.transitions = raw["balance"], raw["transitions"]
        stats.rejected, stats.failed = raw["rejected"], sum(raw["failed"].values())
        stats.waiting_for = raw["waiting_for"]
        cost = _cost(raw)
        stats.cost = lambda: cost

    def _journal_size(self) -> int:
        try:
            size = (self._folder / JOURNAL).stat().st_size
        except OSError:
            size = 0
        if size != self._journal_bytes:
            self._journal_bytes, self._grew_at = size, time.monotonic()
        return size

    def _elapsed_s(self) -> float:
        """Since the process that works there took the lock."""
        return max(time.time() - (_written_at(self._folder / LOCK) or time.time()), 0.0)

    def _why(self, raw: Mapping[str, Any]) -> str:
        if not raw:
            return "opening the run"
        still_s = time.monotonic() - self._grew_at
        if still_s < _STILL_AFTER_S:
            return ""
        waits = f"; next is {raw['waiting_for']}" if raw["waiting_for"] else ""
        return f"nothing came in for {still_s:.0f} s{waits}"


def _written_at(path: Path) -> float:
    """On the clock of `time.time`; 0.0 where there is no such file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _cost(raw: Mapping[str, Any]) -> CostView:
    spent = raw["spent"]
    money = spent["usd"]
    share = raw["delivered"] / raw["n"] if raw["n"] else 0.0
    return CostView(
        prompt_tokens=spent["prompt_tokens"],
        cached_prompt_tokens=spent.get("cached_prompt_tokens", 0),
        completion_tokens=spent["completion_tokens"],
        usd=money,
        usd_at_most=raw.get("usd_at_most"),
        usd_projected=money / share if money is not None and share else None,
        budget="",
    )
