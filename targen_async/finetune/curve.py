"""The curve of a run: a JSON line a step on disk, and a view of it on the terminal."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from targen_async.finetune.board import Board
from targen_async.finetune.metrics import Report

_LINES = 20
"""Lines a run prints of its steps where there is no terminal."""


class Curve:
    """Of rank 0; on other ranks it keeps the last loss and writes nothing."""

    def __init__(
        self,
        path: Path,
        steps: int,
        writes: bool,
        say: Callable[[str], None],
        board: Path | None = None,
    ) -> None:
        """`board`: a folder for TensorBoard."""
        self.loss = float("nan")
        self._path, self._steps, self._writes, self._say = path, steps, writes, say
        self._file: IO[bytes] | None = None
        self._events = board
        self._board: Board | None = None
        self._view = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            disable=not (writes and sys.stdout.isatty()),
        )
        self._task = self._view.add_task("training", total=steps, loss="", speed="")

    def __enter__(self) -> Self:
        self._view.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._view.stop()

    def begin(self, step: int) -> None:
        """The lines up to `step` stay; what a killed start wrote after it is made again."""
        kept = b""
        for line in self._path.read_bytes().splitlines(True) if self._path.is_file() else ():
            try:
                found = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:  # Cut off in the writing.
                break
            if found["step"] > step:
                break
            self.loss = found.get("loss", self.loss)
            kept += line
        if self._writes:
            self._path.write_bytes(kept)
            self._file = self._path.open("ab")
            if self._events:
                self._board = Board(self._events, step)
        self._view.update(self._task, completed=step)

    def step(self, *, step: int, loss: float, tokens: int, seconds: float, **more: float) -> None:
        """`more`: whatever else is known of the step; `mfu` and `memory_gib` are shown."""
        self.loss = loss
        self._write({"step": step, "loss": loss, "tokens": tokens, "seconds": seconds, **more})
        if self._board:
            self._board.write(step, {"loss": loss, "tokens_per_s": tokens / seconds, **more})
        speed = _speed(tokens / seconds, more)
        self._view.update(self._task, completed=step, loss=f"{loss:.4f}", speed=speed)
        if self._view.disable and step % max(1, self._steps // _LINES) == 0:
            self._say(f"step {step} of {self._steps}: loss {loss:.4f}, {speed}")

    def evaluation(self, step: int, reports: Mapping[str, Report]) -> None:
        told = {
            task: {score.name: score.value for score in report.scores}
            for task, report in reports.items()
        }
        self._write({"step": step, "evaluation": told})
        if self._board:
            named = {f"{task}/{name}": v for task, of in told.items() for name, v in of.items()}
            self._board.write(step, named)
        for task, scores in told.items():
            text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            self._say(f"step {step}: {task} {text}")

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()


def _speed(tokens_per_s: float, more: Mapping[str, float]) -> str:
    parts = [f"{tokens_per_s:,.0f} tokens/s"]
    if "mfu" in more:
        parts.append(f"MFU {more['mfu']:.0%}")
    if "memory_gib" in more:
        parts.append(f"{more['memory_gib']:.1f} GiB")
    return ", ".join(parts)
