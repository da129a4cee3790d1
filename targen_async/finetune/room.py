"""Room on the disk: whether a run has it, and what is said where it has not."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from targen_async.errors import RunStopped


def checkpoint_bytes(parameters: int, sharded: bool, adapters: bool = False) -> int:
    """Weights and two moments in float32; sharded optimisers hold the weights once more. Adapters
    alone have moments, and are a small part of the weights."""
    return parameters * (5 if adapters else 16 if sharded else 12)


def check_room(folder: Path, room: int, models: int, keep: int) -> None:
    """Raises RunStopped where `keep` checkpoints of `room` bytes, one in the writing and `models`
    bytes of whole models would not fit beside what is there."""
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    needed = room * (keep + 1) + models - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunStopped(
            f"{folder}: {keep + 1} checkpoints and the model take {megabytes(needed)} more and "
            f"{megabytes(free)} are free; make room, or set `training.keep` lower"
        )


def megabytes(number: int) -> str:
    return f"{max(number, 0) / 1e6:,.0f} MB"


def unwritten(path: Path, error: Exception) -> RunStopped:
    """What is said of a file that could not be written."""
    place = getattr(error, "filename", None) or path
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return RunStopped(
        f"{place} could not be written ({reason}): make room, and start the same command again"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises RunStopped where `path` cannot be written."""
    try:
        yield
    except Exception as error:
        # What tokenizers raises is of no class of its own.
        if isinstance(error, OSError | SafetensorError) or type(error) is Exception:
            raise unwritten(path, error) from error
        raise
