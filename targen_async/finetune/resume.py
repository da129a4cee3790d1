"""Where a run goes on, also with another number of ranks than wrote its checkpoint.

A step of a run has the same batches for ever, so that the order of the data is a function of seed
and step alone: fewer ranks accumulate more of them. ZeRO's optimiser state lies in as many parts
as there were ranks; DeepSpeed's universal checkpoints (Lian et al. 2024, arXiv 2406.18820) put it
together again by parameter. Of ZeRO-3 they lose Adam's step count, so that is refused.
"""

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from targen_async.errors import RunStopped, UserError
from targen_async.finetune.checkpoints import (
    Progress,
    newest_checkpoint,
    read_progress,
)
from targen_async.finetune.config import TrainConfig, Training
from targen_async.finetune.room import megabytes
from targen_async.finetune.saved import CARD, FACTS
from targen_async.finetune.sharded import TAG
from targen_async.finetune.zero import zero_stage


class Start(Struct, frozen=True, kw_only=True):
    progress: Progress
    """With the ranks and batches of this start."""
    path: Path | None = None
    """The checkpoint; None: the run begins."""
    universal: Path | None = None
    """The same, converted for another number of ranks."""


def claim_folder(out: Path, config: TrainConfig) -> None:
    """The folder is the configuration's that wrote its first checkpoint; before there is one, a
    mended configuration takes it over.

    Raises UserError where it holds another run or a trained model, which are left as they were, and
    where it cannot be written.
    """
    path, own = out / "config.json", msgspec.json.format(msgspec.json.encode(config))
    try:
        other = path.is_file() and path.read_bytes() != own
        if other and any((out / "checkpoints").glob("step-*")):
            raise UserError(
                f"{out} was begun with another configuration ({path}): name another folder, or "
                "give the same configuration"
            )
        if all((out / "model" / name).is_file() for name in (FACTS, CARD)):
            raise UserError(f"{out} holds a trained model: name another folder, or remove it")
        out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(own)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error


def find_start(out: Path, training: Training, ranks: int, say: Callable[[str], None]) -> Start:
    """The newest whole checkpoint in `out`, converted if need be. For rank 0 alone.

    Raises UserError where it cannot be gone on from with so many ranks, RunStopped where there is
    no room to convert it.
    """
    fresh = Progress(ranks=ranks, batches=ranks * training.accumulation)
    path = newest_checkpoint(out / "checkpoints", say)
    if path is None:
        # What an earlier start left may be of other rows or settings.
        for name in ("tokenizer", "best"):
            shutil.rmtree(out / name, ignore_errors=True)
        return Start(progress=fresh)
    progress = read_progress(path)
    if progress.ranks == ranks:
        return Start(progress=progress, path=path)
    stage = zero_stage(training)
    if stage == 3:
        raise UserError(
            f"{path} was written by {progress.ranks} ranks under ZeRO-3, and its conversion to "
            f"{ranks} would lose Adam's step count: start it with {progress.ranks}, or begin a "
            "folder of another stage"
        )
    batches = progress.batches
    if batches % ranks:
        if training.examples is None:
            raise UserError(
                f"a step of this run has {batches} batches of `training.tokens`, which cannot be "
                f"dealt out to {ranks} ranks evenly: start it with a number that divides {batches}"
            )
        batches = fresh.batches
    universal = None
    if stage:
        universal = convert(path, out / "universal")
        say(f"{path} was written by {progress.ranks} ranks, and is converted for {ranks}")
    return Start(
        progress=replace(progress, ranks=ranks, batches=batches), path=path, universal=universal
    )


def convert(path: Path, folder: Path) -> Path:
    """The universal form of a ZeRO-1 or ZeRO-2 checkpoint, in `folder`.

    Raises RunStopped where it does not fit on the disk: it is written twice, in parts and whole.
    """
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(folder, ignore_errors=True)  # Of a start that died while it converted.
    needed = 2 * sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if (free := shutil.disk_usage(path).free) < needed:
        raise RunStopped(
            f"{path} takes {megabytes(needed)} to convert to another number of ranks, and "
            f"{megabytes(free)} are free: make room, or start it with as many ranks as wrote it"
        )
    options = Namespace(
        input_folder=str(path / TAG),
        output_folder=str(folder / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    return folder
