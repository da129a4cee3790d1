"""Checkpoints that are whole or do not count: what they hold is written first, `COMPLETE` last."""

import os
import random
import shutil
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct

from targen_async.errors import RunStopped
from targen_async.finetune.engine import Engine
from targen_async.finetune.room import megabytes

COMPLETE = "COMPLETE"
_PROGRESS = "progress.json"
_NAME = "step-{:08d}"


class Progress(Struct, frozen=True, kw_only=True):
    """Where a run stands, besides weights and optimiser state."""

    step: int = 0
    """Steps that are done."""
    best: float | None = None
    """The best evaluation so far."""
    best_step: int = 0
    """Whose weights had it."""
    best_loss: float = 0.0
    """Of that step."""
    worse: int = 0
    """Evaluations since then."""
    ended: bool = False
    """Stopped early: there is nothing to go on with."""
    ranks: int = 1
    batches: int = 1
    """Of a step, over all ranks: the order of the data depends on it."""
    data: str = ""
    """Digest of what is trained on."""

    def figures(self, last_loss: float) -> dict[str, Any]:
        """What a model card says of the weights that are handed out."""
        if self.best is None:
            told: dict[str, Any] = {"last loss": f"{last_loss:.4f}"}
        else:
            best = f"of step {self.best_step}, the best of the evaluations"
            told = {"weights": best, "loss of that step": f"{self.best_loss:.4f}"}
        return {"steps": self.step, **told, "ranks": self.ranks}


class Seal(Struct, frozen=True):
    bytes: int
    sha256: str


def save_checkpoint(folder: Path, engine: Engine, progress: Progress, keep: int, room: int) -> None:
    """Every rank calls it. `room`: bytes that a checkpoint may take.

    Raises RunStopped where the disk is full; older checkpoints stay. A rank that fails in the
    writing does not wait for the others, which may be in a barrier: its lifeline ends them.
    """
    path = folder / _NAME.format(progress.step)
    free = room
    if engine.rank == 0:
        if path.exists():  # Left half-written by a start that died, or damaged.
            shutil.rmtree(path)
        path.mkdir(parents=True)
        free = shutil.disk_usage(path).free
    failed = "" if free >= room else f"it takes {megabytes(room)} and {megabytes(free)} are free"
    if engine.any_of([bool(failed)])[0]:
        if engine.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
        raise _unsaved(path, failed or "on another rank")
    try:
        engine.save(path)
        torch.save(_random_state(), path / f"random-{engine.rank}.pt")
        engine.any_of([False])
        if engine.rank == 0:
            (path / _PROGRESS).write_bytes(msgspec.json.encode(progress))
            _seal(path)
            _tidy(folder, keep)
    except (OSError, RuntimeError) as error:
        if engine.ranks == 1:
            shutil.rmtree(path, ignore_errors=True)
        raise _unsaved(path, str(error).split("\n")[0]) from error
    engine.any_of([False])


def _unsaved(path: Path, reason: str) -> RunStopped:
    return RunStopped(
        f"{path} could not be written ({reason}); make room, and the same command goes on from the "
        "checkpoint before it"
    )


def _tidy(folder: Path, keep: int) -> None:
    """Only the newest checkpoints stay, and no half of one."""
    whole = sorted(path for path in folder.iterdir() if (path / COMPLETE).is_file())
    for old in set(folder.iterdir()) - set(whole[-keep:]):
        (old / COMPLETE).unlink(missing_ok=True)  # First: no part of it is taken for the whole.
        shutil.rmtree(old)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest one that is whole; says of every newer one what is wrong with it."""
    found = sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
    for path in found:
        fault = checkpoint_fault(path)
        if fault is None:
            return path
        say(f"{path} is not used: {fault}")
    return None


def checkpoint_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None: nothing."""
    try:
        seals = msgspec.json.decode((path / COMPLETE).read_bytes(), type=dict[str, Seal])
    except OSError:
        return f"it has no {COMPLETE}, so its writing was cut off"
    except msgspec.DecodeError:
        return f"its {COMPLETE} is damaged"
    for name, seal in seals.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != seal.bytes or _hash(file) != seal.sha256:
            return f"{name} is not what was written (size or SHA-256 differ)"
    return None


def read_progress(path: Path) -> Progress:
    return msgspec.json.decode((path / _PROGRESS).read_bytes(), type=Progress)


def load_random_state(path: Path, engine: Engine) -> bool:
    """This rank's; False where the checkpoint was written without such a rank, or without a GPU."""
    file = path / f"random-{engine.rank}.pt"
    if not file.is_file():
        return False
    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["torch"])
    if engine.device.type != "cuda":
        return True
    if "cuda" not in state:
        return False
    torch.cuda.set_rng_state(state["cuda"], engine.device)
    return True


def _random_state() -> dict[str, torch.Tensor]:
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def seed_rank(random_seed: int, rank: int, step: int = 0) -> None:
    """Dropout of each rank draws from a stream of its own; `step`: where the rank came in."""
    torch.manual_seed(random.Random(f"rank:{random_seed}:{rank}:{step}").getrandbits(63))


def _seal(path: Path) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    seals = {str(f.relative_to(path)): Seal(f.stat().st_size, _hash(f)) for f in files}
    for file in files:
        _to_disk(file)
    half = path / f"{COMPLETE}.half"
    half.write_bytes(msgspec.json.encode(seals))
    _to_disk(half)
    half.replace(path / COMPLETE)
    _to_disk(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
