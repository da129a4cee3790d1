"""A step of training over DeepSpeed: the same loss and the same gradient, on any number of ranks.

DeepSpeed divides by the accumulation steps and averages over the ranks; so each loss is multiplied
by both, and what is left is the sum over the global batch divided by its count.
"""

import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from targen_async.errors import UserError
from targen_async.finetune.config import Training
from targen_async.finetune.engine import takes_bfloat16
from targen_async.finetune.feeds import Feed, loss_sum
from targen_async.finetune.optim import build_optimizer

_TAG = "deepspeed"


def read_settings(path: Path) -> dict[str, Any]:
    """A DeepSpeed JSON. Raises UserError where it is none."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UserError(f"`training.deepspeed`: cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UserError(f"`training.deepspeed`: {path} is not valid JSON: {error}") from error
    return found


def stage_of(settings: dict[str, Any]) -> int:
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def check_sharded(path: Path, training: Training) -> None:
    """Raises UserError for what a ZeRO stage cannot do, and where DeepSpeed is missing."""
    stage = stage_of(read_settings(path))
    if stage and training.optimizer == "adafactor":
        raise UserError(
            f"Adafactor does not go with ZeRO-{stage}, which hands it flat pieces of tensors that "
            "it cannot factor: use `adamw`, or stage 0"
        )
    if stage == 3 and training.evaluate_every:
        raise UserError(
            "ZeRO-3 has no whole weights to evaluate within a run: drop `training.evaluate_every` "
            "and use `targen evaluate` on the model"
        )
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise UserError(
            "`training.deepspeed` needs the package `deepspeed`; pip install 'targen-async[train]'"
        ) from error


def connect(device: torch.device) -> None:
    """Join the other ranks. Without a launcher the process is the only rank, and says so itself:
    DeepSpeed would look for MPI."""
    import deepspeed

    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ |= {**alone, "MASTER_PORT": str(free.getsockname()[1])}
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")


class ShardedEngine:
    """`deepspeed.initialize` around the network."""

    def __init__(
        self,
        network: Any,  # noqa: ANN401
        training: Training,
        rank: int,
        ranks: int,
        device: torch.device,
    ) -> None:
        import deepspeed

        self.rank, self.ranks, self.device = rank, ranks, device
        settings = read_settings(Path(training.deepspeed or ""))
        self._stage = stage_of(settings)
        self._scale = ranks * training.accumulation
        own = {
            # Never used for batches: the loop makes its own. Their product has to fit.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": training.accumulation,
            "gradient_clipping": training.clip,
            "bf16": {"enabled": takes_bfloat16(training, device)},
            "steps_per_print": 2**31,
        }
        self._engine, *_ = deepspeed.initialize(
            model=network.to(device).train(),
            optimizer=build_optimizer(network, training),
            config={**settings, **own},
        )

    def step(self, feeds: Iterable[Feed], count: int, rate: float) -> tuple[float, float]:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for feed in feeds:
            loss = loss_sum(self._engine, feed) / count
            self._engine.backward(loss * self._scale)
            self._engine.step()
            total += loss.detach()
        torch.distributed.all_reduce(total)
        norm = self._engine.get_global_grad_norm()
        return float(total), float("nan") if norm is None else float(norm)

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=_TAG)

    def load(self, folder: Path) -> None:
        self._engine.load_checkpoint(str(folder), tag=_TAG)

    def weights(self) -> dict[str, Any] | None:
        if self._stage == 3:
            found = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            found = self._engine.module.state_dict()
        if self.rank:
            return None
        return {name: value.detach().cpu() for name, value in found.items()}

    def any_of(self, values: Sequence[bool]) -> list[bool]:
        told = torch.tensor([int(value) for value in values], device=self.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return [bool(value) for value in told.tolist()]
