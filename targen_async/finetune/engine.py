"""What a step of training runs on: one process of plain torch.

`PlainEngine` and `ShardedEngine` (sharded.py) have the same steps, and the loop asks no further.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from targen_async.finetune.config import Training
from targen_async.finetune.feeds import Feed, loss_sum
from targen_async.finetune.optim import build_optimizer

_STATE = "state.pt"


class Engine(Protocol):
    rank: int
    ranks: int
    device: torch.device

    def step(self, feeds: Iterable[Feed], count: int, rate: float) -> tuple[float, float]:
        """One optimiser step over this rank's batches; `count`: what the losses of all ranks are
        divided by. Returns the mean loss of all ranks and the gradient's norm before clipping."""

    def save(self, folder: Path) -> None:
        """This rank's part of weights and optimiser state."""

    def load(self, folder: Path) -> None:
        """The opposite of `save`."""

    def weights(self) -> dict[str, Any] | None:
        """All weights on the CPU, on rank 0; None on the others. Every rank has to call it."""

    def any_of(self, values: Sequence[bool]) -> list[bool]:
        """For each value, whether it is true on any rank. A barrier, too."""


class PlainEngine:
    """One process. bfloat16 is autocast over float32 weights."""

    rank, ranks = 0, 1

    def __init__(self, network: Any, training: Training, device: torch.device) -> None:  # noqa: ANN401
        self.device = device
        self._network = network.to(device).train()
        self._clip = training.clip
        self._half = takes_bfloat16(training, device)
        self._optimizer = build_optimizer(self._network, training)

    def step(self, feeds: Iterable[Feed], count: int, rate: float) -> tuple[float, float]:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for feed in feeds:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
                loss = loss_sum(self._network, feed) / count
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(total), float(norm)

    def save(self, folder: Path) -> None:
        state = {"network": self._network.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, folder / _STATE)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / _STATE, map_location=self.device, weights_only=True)
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])

    def weights(self) -> dict[str, Any]:
        return on_cpu(self._network.state_dict())

    def any_of(self, values: Sequence[bool]) -> list[bool]:
        return list(values)


def on_cpu(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights on the CPU; what is one tensor under several names is copied once and stays one,
    so that a model's file has tied embeddings once."""
    moved: dict[tuple[int, torch.Size], torch.Tensor] = {}
    found = {}
    for name, value in weights.items():
        place = (value.data_ptr(), value.shape)
        if place not in moved:
            moved[place] = value.detach().cpu()
        found[name] = moved[place]
    return found


def takes_bfloat16(training: Training, device: torch.device) -> bool:
    """What `precision` comes to on this device."""
    if training.precision == "auto":
        return device.type == "cuda" and bool(torch.cuda.is_bf16_supported())
    return training.precision == "bfloat16"
