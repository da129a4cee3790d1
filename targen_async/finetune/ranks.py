"""Which process of how many this is, and the engine that fits: plain torch or DeepSpeed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from msgspec import Struct

from targen_async.errors import RunStopped, TargenError, UserError
from targen_async.finetune.config import Training
from targen_async.finetune.engine import Engine, PlainEngine
from targen_async.finetune.lifeline import Lifeline, open_lifeline

T = TypeVar("T")


class Ranks(Struct, frozen=True, kw_only=True):
    rank: int
    count: int
    device: torch.device
    lifeline: Lifeline | None = None
    """Where there are others."""

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 goes first; the others find what it left on the disk."""
        if self.count > 1 and self.rank:
            torch.distributed.barrier()
        try:
            yield
        finally:  # Where it fails, the others come to the same fault and do not wait.
            if self.count > 1 and not self.rank:
                torch.distributed.barrier()

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` comes to on rank 0, on every rank, and so do its errors."""
        if self.count == 1:
            return make()
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [make()]
            except TargenError as error:
                found = [error]
        torch.distributed.broadcast_object_list(found, device=self.device)
        if isinstance(found[0], TargenError):
            raise found[0]
        result: T = found[0]
        return result


@contextmanager
def join_ranks(training: Training) -> Iterator[Ranks]:
    """The ranks as the launcher says; one process where there is none. With DeepSpeed they are
    connected, and a rank that dies within ends the others.

    Raises UserError for several ranks of plain torch.
    """
    rank, count, local = (
        int(os.environ.get(name, alone))
        for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if training.deepspeed is None:
        if count > 1:
            raise UserError(
                f"{count} ranks were launched, and plain torch runs on one: name a DeepSpeed JSON "
                "in `training.deepspeed`"
            )
        yield Ranks(rank=rank, count=count, device=device)
        return
    from targen_async.finetune.sharded import check_sharded, connect, meet

    check_sharded(Path(training.deepspeed), training)
    store = meet()
    if count == 1:
        connect(store, device)
        yield Ranks(rank=rank, count=count, device=device)
        return
    lifeline = open_lifeline(store, rank, count)
    try:
        connect(store, device)
        yield Ranks(rank=rank, count=count, device=device, lifeline=lifeline)
    except KeyboardInterrupt:
        lifeline.close("it was stopped before a step was done")
        raise
    except TargenError as error:
        if isinstance(error, RunStopped) and isinstance(error.__cause__, RuntimeError | OSError):
            lifeline.outlive()  # What broke a writing may be another rank's death.
        lifeline.close(str(error), 2 if isinstance(error, UserError) else 1)
        raise
    except Exception as error:
        lifeline.outlive()
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        lifeline.close(reason)
        if isinstance(error, RuntimeError | OSError):
            raise RunStopped(f"rank {rank}: {reason}") from error
        raise
    lifeline.close()


def open_engine(
    network: Any,  # noqa: ANN401
    training: Training,
    ranks: Ranks,
    universal: bool = False,
) -> Engine:
    """The engine that `training.deepspeed` asks for; `universal`: see resume.py."""
    if training.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    if training.compile:  # In place, so that names of weights stay. Batches differ in their widths.
        network.compile(dynamic=True)
    if training.deepspeed is None:
        return PlainEngine(network, training, ranks.device)
    from targen_async.finetune.sharded import ShardedEngine

    return ShardedEngine(network, training, ranks.rank, ranks.count, ranks.device, universal)
