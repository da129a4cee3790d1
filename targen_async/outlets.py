"""Where a run tells of itself: the terminal, JSON lines, a log, metrics."""

import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from msgspec import Struct, field
from rich.console import Console

from targen_async.config import Delivery
from targen_async.estimate import Estimate
from targen_async.log import Level, Log, Observer, secrets_in
from targen_async.manifest import Manifest
from targen_async.metrics import HOST, serve_metrics
from targen_async.presets import presets, secrets_of
from targen_async.stats import Stats
from targen_async.terminal import JsonLines, Show, print_summary, show_progress, tell


class Outlets(Struct, frozen=True, kw_only=True):
    """All of them, as the flags of a command say. Made by `open_outlets`."""

    console: Console
    json_lines: JsonLines | None
    logs: list[Log]
    began: float = field(default_factory=time.monotonic)

    def event(self, level: Level, name: str, /, **fields: object) -> None:
        """Write an event into every log."""
        for log in self.logs:
            log.event(level, name, **fields)

    def say(self, line: str) -> None:
        """Tell a person something; who no longer listens does not stop a run."""
        self.event("info", "notice", text=line)
        with suppress(OSError):
            tell(self.console, line)

    @asynccontextmanager
    async def attend(self, stats: Stats, metrics_port: int | None) -> AsyncIterator[None]:
        """Show the run while the block runs. Raises UserError when the port cannot be had."""
        shows: list[Show] = [self.json_lines.show] if self.json_lines else []
        if self.logs:
            shows.append(Observer(self.event).show)
        async with AsyncExitStack() as stack:
            if metrics_port is not None:
                port = await stack.enter_async_context(serve_metrics(stats, metrics_port))
                self.say(f"metrics at http://{HOST}:{port}/metrics")
            await stack.enter_async_context(show_progress(stats, self.console, others=shows))
            yield

    def end(self, manifest: Manifest, folder: Path, *, estimate: Estimate | None = None) -> None:
        """The estimate or the summary, or the last object of the JSON lines."""
        if self.json_lines:
            self.json_lines.end(manifest, folder, estimate=estimate)
        elif estimate is not None:
            print("\n".join(estimate.lines()))
        else:
            print_summary(manifest, folder, time.monotonic() - self.began)

    def failed(self, error: BaseException, folder: Path) -> None:
        """What ended the run, for scripts; people are told by the command."""
        self.event("error", "failed", kind=type(error).__name__, text=str(error))
        if self.json_lines:
            self.json_lines.end(None, folder, error=str(error))


@contextmanager
def open_outlets(
    delivery: Delivery, *, quiet: bool, as_json: bool, log_file: Path | None
) -> Iterator[Outlets]:
    """The outlets that were asked for. Raises UserError when the log cannot be written."""
    secrets = _secrets(delivery)
    logs = [Log(log_file, secrets)] if log_file else []
    logs += [Log(None, secrets)] if as_json else []
    try:
        yield Outlets(
            console=Console(stderr=True, quiet=quiet or as_json),
            json_lines=JsonLines(sys.stdout) if as_json else None,
            logs=logs,
        )
    finally:
        for log in logs:
            log.close()


def _secrets(delivery: Delivery) -> set[str]:
    """What no line may hold: keys, and what headers and proxies have from the environment."""
    variables = {kind.api_key_env for kind in presets().values()}
    found: set[str] = set()
    for place in (delivery, delivery.judge, delivery.fallback):
        if place is not None:
            variables.add(place.api_key_env or "")
            found |= secrets_of(place.headers, place.proxy)
    return found | secrets_in(os.environ, variables)
