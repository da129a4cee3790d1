"""A step of training over DeepSpeed: the same loss and the same gradient, on any number of ranks.

DeepSpeed divides by the accumulation steps and averages over the ranks; so each loss is multiplied
by both, and what is left is the sum over the global batch divided by its count.
"""

import os
import socket
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

from targen_async.errors import RunStopped, UserError
from targen_async.finetune.config import Training
from targen_async.finetune.engine import on_cpu, takes_bfloat16
from targen_async.finetune.feeds import Feed, loss_sum
from targen_async.finetune.lifeline import JOIN
from targen_async.finetune.optim import build_optimizer
from targen_async.finetune.zero import Zero, read_zero

TAG = "deepspeed"
"""The folder of DeepSpeed's files in a checkpoint."""


def check_sharded(path: Path, training: Training) -> None:
    """Raises UserError for what a ZeRO stage cannot do, for a file that DeepSpeed refuses, and
    where DeepSpeed is missing."""
    zero = read_zero(path)
    stage = zero.stage
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
    if stage == 3 and training.compile:
        raise UserError(
            "ZeRO-3 gathers weights in hooks that torch.compile would have to leave: drop "
            "`training.compile`, or use stage 2"
        )
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise UserError(
            "`training.deepspeed` needs the package `deepspeed`; pip install 'targen-async[train]'"
        ) from error
    _check_taken(path, zero)


def _check_taken(path: Path, zero: Zero) -> None:
    """DeepSpeed raises what comes: its own errors, pydantic's, assertions, a wrong type's."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig({**zero.settings, "train_micro_batch_size_per_gpu": 1})
    except Exception as error:
        faults = [
            f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg']}"
            for fault in getattr(error, "errors", list)()
        ]
        reason = faults[0] if faults else str(error).strip().partition("\n")[0]
        raise UserError(f"`training.deepspeed`: DeepSpeed refuses {path}: {reason}") from error


@cache
def meet() -> Any:  # noqa: ANN401
    """The store through which ranks find each other, once a process. Without a launcher the process
    is the only rank, and says so itself: DeepSpeed would look for MPI.

    Raises RunStopped where not all ranks come within `JOIN` seconds.
    """
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ |= {**alone, "MASTER_PORT": str(free.getsockname()[1])}
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN)))
    except (RuntimeError, ValueError) as error:
        raise RunStopped(
            f"the {os.environ['WORLD_SIZE']} ranks did not find each other: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    return store


def connect(store: Any, device: torch.device) -> None:  # noqa: ANN401
    """Join the other ranks. Once a process; on a CPU, DeepSpeed compiles an operator the first
    time, with g++ and the ninja of this environment."""
    import deepspeed

    if not torch.distributed.is_initialized():
        # A rank that dies is the lifeline's to notice. This bounds a wait for one that lives, and
        # rank 0 may be long at work alone: it tokenises, and converts checkpoints.
        minutes = int(os.environ.get("DEEPSPEED_TIMEOUT", "60"))
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(minutes=minutes),
        )
    here = str(Path(sys.executable).parent)
    if here not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join((here, os.environ["PATH"]))
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
        universal: bool = False,
    ) -> None:
        """`universal`: what is loaded was converted from another number of ranks."""
        import deepspeed

        self.rank, self.ranks, self.device = rank, ranks, device
        zero = read_zero(Path(training.deepspeed or ""))
        self._stage = zero.stage
        self._scale = ranks * training.accumulation
        half = takes_bfloat16(training, device)
        # At stage 0 in float32 DeepSpeed clips and tells nobody the norm.
        self._clip = None if self._stage or half else training.clip
        settings: dict[str, Any] = {
            "steps_per_print": 2**31,
            **zero.settings,
            # Never used for batches: the loop makes its own. Their product has to fit.
            "train_batch_size": self._scale,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": training.accumulation,
            "gradient_clipping": 0.0 if self._clip else training.clip,
            "bf16": {"enabled": half},
        }
        told = settings.get("checkpoint") or {}
        settings["checkpoint"] = {**told, "load_universal": universal}
        if self._stage == 3:
            table = settings["zero_optimization"]
            gathered = {**table, "stage3_gather_16bit_weights_on_model_save": True}
            settings["zero_optimization"] = gathered
        self._engine, *_ = deepspeed.initialize(
            model=network.to(device).train(),
            optimizer=build_optimizer(network, training),
            config=settings,
        )

    def step(self, feeds: Iterable[Feed], count: int, rate: float) -> tuple[float, float]:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        norm = None
        for feed in feeds:
            loss = loss_sum(self._engine, feed) / count
            self._engine.backward(loss * self._scale)
            if self._clip and self._engine.is_gradient_accumulation_boundary():
                weights = self._engine.module.parameters()
                norm = torch.nn.utils.clip_grad_norm_(weights, self._clip)
            self._engine.step()
            total += loss.detach()
        torch.distributed.all_reduce(total)
        return float(total), float(self._engine.get_global_grad_norm() if norm is None else norm)

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=TAG)

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RunStopped(f"DeepSpeed finds no checkpoint of its own in {folder}")

    def weights(self) -> dict[str, Any] | None:
        if self._stage == 3:
            found = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            found = self._engine.module.state_dict()
        if self.rank:
            return None
        return on_cpu(found)

    def any_of(self, values: Sequence[bool]) -> list[bool]:
        told = torch.tensor([int(value) for value in values], device=self.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return [bool(value) for value in told.tolist()]
