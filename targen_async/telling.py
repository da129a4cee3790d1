"""What the engine tells of a run: to who looks on (`Stats`), and as events (`Event`)."""

import warnings
from typing import Any

import anyio
from msgspec import to_builtins

from targen_async.config import RunConfig
from targen_async.control import RunControl
from targen_async.log import Event, Level
from targen_async.manifest import Manifest
from targen_async.opening import Parts
from targen_async.progress import Meter
from targen_async.stats import Stats

CHECKPOINT_EVERY_S = 60.0


def show_run(stats: Stats, parts: Parts, config: RunConfig, control: RunControl) -> None:
    """Let `stats` tell what is known when a run has been opened."""
    stats.task, stats.model = parts.rows.task.name, config.data.model
    stats.draining = lambda: control.draining
    stats.replaying = lambda: control.replaying


def tell_start(event: Event, parts: Parts, config: RunConfig) -> None:
    """A run is begun, or gone on with, maybe with rows that are made anew."""
    name = "run_started" if parts.ledger.untouched else "run_resumed"
    task, n = parts.rows.task.name, parts.plan.state.n
    event(
        "info",
        name,
        folder=parts.folder,
        task=task,
        model=config.data.model,
        n=n,
        **_counts(parts),
    )
    if not parts.found.swapped and parts.found.generation is not None:
        event("info", "generation_begun", why=parts.found.generation.why, folder=parts.place)


async def keep_telling(event: Event, parts: Parts) -> None:
    """An event a minute with the figures of the ledger, until cancelled."""
    while True:
        await anyio.sleep(CHECKPOINT_EVERY_S)
        event("info", "checkpoint", **_counts(parts))


def tell_end(event: Event, parts: Parts, manifest: Manifest) -> None:
    """This start is over. One that did not deliver all is an error, unless it was interrupted."""
    if manifest.generation and parts.found.swapped:
        event("info", "generation_complete", generation=manifest.generation)
    interrupted = manifest.reason == "interrupted"
    level: Level = "info" if manifest.state == "complete" or interrupted else "error"
    event(
        level,
        "done",
        state=manifest.state,
        reason=manifest.reason,
        n=manifest.n,
        usd=manifest.spent.usd,
        **_counts(parts),
    )


def for_onlookers(meter: Meter) -> dict[str, Any] | None:
    """What the manifest tells of this moment; None where that cannot be told, which is no reason
    to end a run that was paid for."""
    try:
        told: dict[str, Any] = to_builtins(meter.progress())
    except Exception as error:
        warnings.warn(f"the manifest does not say what goes on: {error!r}", stacklevel=1)
        return None
    return told


def _counts(parts: Parts) -> dict[str, int]:
    totals = parts.ledger.totals()
    return {
        "delivered": parts.plan.delivered,
        "calls_served": totals.served,
        "calls_refused": totals.refused,
        "calls_in_doubt": totals.in_doubt,
        "prompt_tokens": totals.usage.prompt_tokens,
        "completion_tokens": totals.usage.completion_tokens,
    }
