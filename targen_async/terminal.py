"""What a person sees: progress while a run goes on, its status, rows and tables afterwards."""

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from targen_async.lock import lock_holder
from targen_async.manifest import Manifest
from targen_async.records import Instance
from targen_async.rundir import FAILURES, REJECTED, read_manifest
from targen_async.settle import OPEN_LABEL
from targen_async.shards import read_shards
from targen_async.stats import Stats

_LIVE_EVERY_S = 0.25
_PLAIN_EVERY_S = 5.0
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> Text:
    """Model text for a terminal: no escape sequence, control or bidi character gets through."""
    return Text(_UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text))


# ---- while it runs


@asynccontextmanager
async def show_progress(stats: Stats, console: Console) -> AsyncIterator[None]:
    """A live table on a terminal, a plain line every few seconds elsewhere."""
    async with anyio.create_task_group() as group:
        if console.is_terminal and not console.quiet:
            group.start_soon(_live, stats, console)
        else:
            group.start_soon(_plain, stats, console)
        try:
            yield
        finally:
            group.cancel_scope.cancel()


async def _live(stats: Stats, console: Console) -> None:
    # A terminal that goes away does not stop a run.
    with (
        suppress(OSError),
        Live(_picture(stats), console=console, auto_refresh=False, transient=True) as live,
    ):
        while True:
            await anyio.sleep(_LIVE_EVERY_S)
            live.update(_picture(stats), refresh=True)


async def _plain(stats: Stats, console: Console) -> None:
    with suppress(OSError):
        while True:
            await anyio.sleep(_PLAIN_EVERY_S)
            calls = sum(stage.done for stage in stats.stages.values())
            console.print(
                f"{stats.delivered}/{stats.n} rows, {calls} calls, {stats.in_flight()} in flight, "
                f"{_left(stats)}; {stats.endpoint() or 'first call'}",
                highlight=False,
                soft_wrap=True,
            )


def _left(stats: Stats) -> str:
    elapsed = time.monotonic() - stats.started_at
    new = stats.delivered - stats.delivered_before
    if new <= 0:
        return "no rows yet"
    rate = new / elapsed
    return f"{rate:.1f} rows/s, {_duration((stats.n - stats.delivered) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _picture(stats: Stats) -> Group:
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(f"{stats.delivered}/{stats.n} rows", style="bold"),
        ProgressBar(total=max(stats.n, 1), completed=stats.delivered, width=40),
        _left(stats),
    )
    stages = Table("stage", "calls", "per s", "under way", "useless", box=None, padding=(0, 2))
    elapsed = max(time.monotonic() - stats.started_at, 1e-9)
    for name, stage in list(stats.stages.items()):
        rate = f"{stage.done / elapsed:.1f}"
        under_way = str(stage.sent - stage.done)
        stages.add_row(name, str(stage.done), rate, under_way, str(stage.useless))
    balance = "  ".join(f"{label} {count}" for label, count in stats.balance.items())
    lost = "  ".join(f"{reason} {count}" for reason, count in sorted(stats.rejected.items()))
    lines = [
        f"labels   {balance}",
        f"refused  {lost or 'none'}   failed {stats.failed}",
        f"waiting  {stats.waiting} rows behind {stats.waiting_for}",
        f"{stats.endpoint()}, {stats.in_flight()} in flight",
    ]
    return Group(head, stages, *(Text(line, style="dim", no_wrap=True) for line in lines))


# ---- afterwards


def print_summary(manifest: Manifest, out: Path) -> None:
    """The end of a run in a few lines, with the transition table."""
    raw = msgspec.to_builtins(manifest)
    console = Console()
    _print_counts(console, raw)
    if manifest.transitions:
        _print_transitions(console, manifest.transitions)
    console.print(
        f"rows in {out}/; look at some: targen show {out}", highlight=False, soft_wrap=True
    )
    if manifest.failed or manifest.rejected:
        console.print(
            f"what was refused and why: {out / REJECTED}, {out / FAILURES}", highlight=False
        )


def _print_counts(console: Console, raw: Mapping[str, Any]) -> None:
    simulated = f"{_simulated(raw)} " if raw["simulated"] else ""
    balance = ", ".join(f"{label} {count}" for label, count in raw["balance"].items())
    console.print(
        Text(f"{simulated}{raw['task']}: {raw['delivered']} of {raw['n']} rows ({balance})"),
        style="bold",
        soft_wrap=True,
    )
    if sources := raw.get("sources"):
        text = ", ".join(f"{one['kept']} of {one['rows']} rows of {one['name']}" for one in sources)
        console.print(f"merged: {text}", markup=False, highlight=False, soft_wrap=True)
    if raw["state"] != "complete":
        why = f"; {raw['reason']}" if raw["reason"] else ""
        console.print(f"state: {raw['state']}{why}", markup=False, highlight=False, soft_wrap=True)
    refused = {**raw["rejected"], **{f"failed {k}": v for k, v in raw["failed"].items()}}
    if raw["surplus"]:
        refused["over quota"] = raw["surplus"]
    if refused:
        text = ", ".join(f"{reason} {count}" for reason, count in refused.items())
        console.print(f"not delivered: {text}", markup=False, highlight=False, soft_wrap=True)
    calls, spent, wasted = raw["calls"], raw["spent"], raw["wasted"]
    cost = f", ${spent['usd']:.4f}" if spent["usd"] is not None else ""
    console.print(
        f"calls: {calls['served']} answered, {calls['refused']} refused, {calls['in_doubt']} in "
        f"doubt; tokens: {spent['prompt_tokens']} prompt + {spent['completion_tokens']} "
        f"completion{cost}, of them wasted {wasted['prompt_tokens']} + "
        f"{wasted['completion_tokens']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _simulated(raw: Mapping[str, Any]) -> str:
    """How a folder with simulated rows is called: a merged one may have others too."""
    mixed = not all(one["simulated"] for one in raw.get("sources", ()))
    return "partly SIMULATED" if mixed else "SIMULATED"


def _print_transitions(console: Console, transitions: Mapping[str, Mapping[str, int]]) -> None:
    console.print(
        "self-correction: label before (down), after (across)", highlight=False, soft_wrap=True
    )
    console.print(transition_table(transitions))


def transition_table(transitions: Mapping[str, Mapping[str, int]]) -> Table:
    """Label before correction against what became of it."""
    found = {after for row in transitions.values() for after in row}
    # Where labels are open rows and columns are of different kinds.
    columns = sorted(found if set(transitions) == {OPEN_LABEL} else found | set(transitions))
    ends: list[str] = [name for name in ("drop", "review") if name in columns]
    columns = [name for name in columns if name not in ends] + ends
    table = Table()
    table.add_column("before")
    for name in columns:
        table.add_column(name, justify="right")
    for before in sorted(transitions):
        counts = transitions[before]
        table.add_row(before, *(str(counts.get(after, 0)) for after in columns))
    return table


def print_status(folder: Path, *, as_json: bool) -> int:
    """How far a run is, from its manifest. Exit code 0."""
    raw = read_manifest(folder)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(raw)).decode())
        return 0
    console = Console()
    _print_counts(console, raw)
    holder = lock_holder(folder)
    if holder is None and raw["state"] == "running":
        console.print(
            f"it was killed: `targen generate --out {folder}` goes on",
            markup=False,
            highlight=False,
        )
    elif holder is not None:
        waits = f", waits for {raw['waiting_for']}" if raw["waiting_for"] else ""
        console.print(f"running: {holder}{waits}", markup=False, highlight=False, soft_wrap=True)
    return 0


def print_rows(folder: Path, count: int) -> int:
    """Some rows and the transition table. Exit code 0."""
    raw = read_manifest(folder)
    console = Console()
    if raw["simulated"]:
        console.print(f"[bold]{_simulated(raw)} rows[/bold], not from a language model")
    if not raw["delivered"]:
        console.print("no rows yet")
        _print_counts(console, raw)
    for row in islice(read_shards(folder), count):
        console.print(_card(row))
    if raw["transitions"]:
        _print_transitions(console, raw["transitions"])
    return 0


def _card(row: Instance) -> Table:
    card = Table(title=visible(row.key), title_justify="left", show_header=False, min_width=60)
    card.add_column(style="dim")
    card.add_column(overflow="fold")
    for name, value in row.fields.items():
        card.add_row(name, visible(value))
    label = row.label
    if row.label_before_correction != label:
        label += f"  (was {row.label_before_correction})"
    card.add_row("label", Text(label, style="bold"))
    for vote in row.provenance.votes:
        card.add_row("judge", visible(vote.explanation))
    return card
