"""Which process of how many this is, and the engine that fits: plain torch or DeepSpeed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.config import Training
from targen_async.finetune.engine import Engine, PlainEngine


class Ranks(Struct, frozen=True, kw_only=True):
    rank: int
    count: int
    device: torch.device

    @classmethod
    def of_environment(cls, training: Training) -> "Ranks":
        """As the launcher says; one process where there is none. With DeepSpeed, ranks are
        connected. Raises UserError for several ranks of plain torch."""
        rank, count, local = (
            int(os.environ.get(name, alone))
            for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if training.deepspeed is None and count > 1:
            raise UserError(
                f"{count} ranks were launched, and plain torch runs on one: name a DeepSpeed JSON "
                "in `training.deepspeed`"
            )
        if training.deepspeed is not None:
            from targen_async.finetune.sharded import check_sharded, connect

            check_sharded(Path(training.deepspeed), training)
            connect(device)
        return cls(rank=rank, count=count, device=device)

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


def open_engine(network: Any, training: Training, ranks: Ranks) -> Engine:  # noqa: ANN401
    """The engine that `training.deepspeed` asks for."""
    if training.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    if training.deepspeed is None:
        return PlainEngine(network, training, ranks.device)
    from targen_async.finetune.sharded import ShardedEngine

    return ShardedEngine(network, training, ranks.rank, ranks.count, ranks.device)
