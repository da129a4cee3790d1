"""What a person sees: progress while a run goes on, its status, rows and tables afterwards."""

import sys
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import anyio
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from targen_async.errors import UserError
from targen_async.estimate import Estimate
from targen_async.live import LiveView, one_line, visible
from targen_async.lock import SOMEBODY, lock_holder
from targen_async.manifest import Manifest
from targen_async.merged import decode_manifest
from targen_async.progress import Meter, Progress, calls, duration, usd
from targen_async.records import Instance
from targen_async.rundir import MANIFEST, RUN_TOML, read_manifest
from targen_async.shards import read_shards
from targen_async.stats import Stats
from targen_async.summary import simulated, summary_lines, transition_lines, written_at

_LIVE_EVERY_S = 0.25
_PLAIN_EVERY_S = 5.0
_PLAIN_STILL_S = 60.0
"""So seldom a plain line says that nothing moves."""
_JSON_EVERY_S = 1.0

Show = Callable[[Progress], None]
"""Takes the run as it is now. Raises OSError when nobody can see it any more."""


# ---- while it runs


@asynccontextmanager
async def show_progress(
    stats: Stats, console: Console, *, others: Sequence[Show] = ()
) -> AsyncIterator[None]:
    """A live picture on a terminal, a plain line every few seconds elsewhere, nothing on a quiet
    console. `others` are shown the run too, four times a second."""
    async with anyio.create_task_group() as group:
        group.start_soon(_show, stats, console, [*others])
        try:
            yield
        finally:
            group.cancel_scope.cancel()


async def _show(stats: Stats, console: Console, shows: list[Show]) -> None:
    meter = Meter(stats)
    with ExitStack() as stack:
        if is_live(console):
            shows.append(stack.enter_context(LiveView(console)).show)
        elif not console.quiet:
            shows.append(PlainView(console).show)
        while shows:
            await anyio.sleep(_LIVE_EVERY_S)
            for show in tuple(shows):
                try:
                    show(meter.progress())
                except (OSError, ValueError):
                    # ValueError: the stream was closed. Who no longer listens stops no run.
                    shows.remove(show)
                except Exception as error:
                    # Nor does a fault of the display's own, which a paid run should not pay for.
                    shows.remove(show)
                    warnings.warn(f"a display is left out: {error!r}", stacklevel=1)


def is_live(console: Console) -> bool:
    """Can lines be drawn in place? Colours that are forced upon a file make it no terminal."""
    terminal = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
    return terminal and not console.quiet


def tell(console: Console, line: str) -> None:
    """Print a line for a person, above what is drawn in place. Raises OSError where none looks."""
    console.print(visible(line), soft_wrap=True)


class PlainView:
    """A line every few seconds, and ever more seldom while nothing moves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = _PLAIN_EVERY_S
        self._every_s = _PLAIN_EVERY_S
        self._delivered = -1

    def show(self, progress: Progress) -> None:
        """Print a line if one is due."""
        if progress.elapsed_s < self._next_s:
            return
        still = progress.why and progress.delivered == self._delivered
        self._every_s = min(2 * self._every_s, _PLAIN_STILL_S) if still else _PLAIN_EVERY_S
        self._next_s = progress.elapsed_s + self._every_s
        self._delivered = progress.delivered
        self._console.print(visible(plain_line(progress)), soft_wrap=True)


def plain_line(progress: Progress) -> str:
    """The run in one sentence."""
    parts = [f"{progress.delivered} of {progress.n} rows"]
    if progress.eta_s is not None:
        parts.append(f"{progress.rows_per_second:.1f} rows/s, {duration(progress.eta_s)} left")
    answered = sum(stage.answered for stage in progress.stages.values())
    if progress.in_flight is not None:
        parts.append(f"{calls(answered)} answered, {progress.in_flight} out")
    if refused := sum(view.refused for view in progress.limits):
        parts.append(f"{refused} times 429")
    if progress.cost and progress.cost.usd is not None:
        parts.append(f"{usd(progress.cost.usd)} so far")
    elif progress.cost and progress.cost.usd_at_most is not None:
        parts.append(f"at most {usd(progress.cost.usd_at_most)} so far")
    if progress.why:
        parts.append(one_line(progress.why))
    return "; ".join(parts)


class JsonLines:
    """`--json`: an object a second while a run goes on, and one at its end. See docs/terminal.md.

    `stream` is flushed line by line. When nobody reads it any more, the run goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next_s = 0.0

    def show(self, progress: Progress) -> None:
        """Write a tick if one is due. Raises OSError when nobody reads."""
        if progress.elapsed_s >= self._next_s:
            self._next_s = progress.elapsed_s + _JSON_EVERY_S
            self._write(msgspec.json.encode(progress))

    def end(
        self,
        manifest: Manifest | dict[str, Any] | None,
        folder: Path,
        *,
        error: str = "",
        estimate: Estimate | None = None,
    ) -> None:
        """Write the last object: how the run ended. Raises nothing."""
        place = str(folder).encode("utf-8", "replace").decode()
        last = {
            "kind": "end",
            "folder": place,
            "error": error,
            "manifest": manifest,
            "estimate": estimate,
        }
        with suppress(OSError, ValueError):
            self._write(msgspec.json.encode(last))

    def _write(self, line: bytes) -> None:
        self._stream.write(line.decode() + "\n")
        self._stream.flush()


# ---- afterwards


def standard_output() -> Console:
    """The console on stdout; what its encoding cannot say is escaped, not fatal."""
    # A stream that was closed before we began is None.
    if sys.stdout and not (sys.stdout.encoding or "").lower().startswith("utf"):
        with suppress(AttributeError):
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return Console(highlight=False, markup=False)


def print_summary(manifest: Manifest, out: Path, wall_s: float | None = None) -> None:
    """The end of a run, fit for a lab book; `wall_s`: seconds that this start took."""
    raw: dict[str, Any] = msgspec.to_builtins(manifest)
    console = standard_output()
    _print(console, summary_lines(raw, out, wall_s=wall_s))
    if manifest.delivered:
        console.print(f"look at some: targen show {out}", soft_wrap=True)


def _print(console: Console, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        console.print(visible(line), style="bold" if number == 0 else "", soft_wrap=True)


def print_status(folder: Path, *, as_json: bool) -> int:
    """How far a run is, from its manifest. Exit code 0."""
    if not as_json and (begun := _just_begun(folder)):
        _print(standard_output(), [begun])
        return 0
    raw = read_told(folder)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(raw)).decode())
        return 0
    console = standard_output()
    _print(console, summary_lines(raw, folder, when=written_at(folder)))
    return 0


def read_told(folder: Path) -> dict[str, Any]:
    """manifest.json; of a run that was killed its state is `interrupted`. Raises UserError where
    there is none, with what the folder holds instead."""
    if begun := _just_begun(folder):
        raise UserError(begun)
    if (folder / RUN_TOML).exists() and not (folder / MANIFEST).exists():
        raise UserError(
            f"{folder} holds a run that was killed before it told anything ({MANIFEST} is not "
            f"there): `targen generate --out {folder}` goes on"
        )
    # Looked at first: who leaves the folder has told how the run ended before.
    at_work = lock_holder(folder) is not None
    raw = read_manifest(folder)
    try:
        decode_manifest(folder)
    except UserError as error:
        again = f"`targen generate --out {folder}`"
        raise UserError(f"{folder}: {error}; restore it, or have it made again: {again}") from error
    if raw["state"] == "running" and not at_work:
        # A process that was killed could not take back that it works there.
        reason = f"it was killed: `targen generate --out {folder}` goes on"
        raw |= {"state": "interrupted", "reason": reason, "now": None}
    return raw


def _just_begun(folder: Path) -> str:
    """Of a run in its first seconds: who works on it; empty of any other."""
    holder = None if (folder / MANIFEST).exists() else lock_holder(folder)
    if holder is None:
        return ""
    return f"{folder}: running: {holder or SOMEBODY}; it has just begun, and told nothing yet"


def print_rows(folder: Path, count: int) -> int:
    """Some rows and the transition table. Exit code 0."""
    raw = read_told(folder)
    console = standard_output()
    if raw["simulated"]:
        said = f"{simulated(raw)}rows, not from a language model"
        console.print(Text(said, style="bold"))
    if not raw["delivered"]:
        _print(console, ["no rows yet", *summary_lines(raw, folder, when=written_at(folder))])
        return 0
    for row in islice(read_shards(folder), count):
        console.print(_card(row))
    _print(console, transition_lines(raw))
    return 0


def _card(row: Instance) -> Table:
    card = Table(title=visible(row.key), title_justify="left", show_header=False, min_width=60)
    card.add_column(style="dim")
    card.add_column(overflow="fold")
    for name, value in row.fields.items():
        card.add_row(visible(name), visible(value))
    label = row.label
    if row.label_before_correction != label:
        label += f"  (was {row.label_before_correction})"
    card.add_row("label", visible(label), style="bold")
    for vote in row.provenance.votes:
        card.add_row("judge", visible(vote.explanation))
    return card
