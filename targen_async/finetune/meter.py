"""How hard the machine works: memory and model FLOPs utilisation of a step, and whether a run that
is about to begin fits."""

import os
import resource
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch

from targen_async.finetune.batches import Step
from targen_async.finetune.config import TrainConfig
from targen_async.finetune.engine import takes_bfloat16
from targen_async.finetune.feeds import Pack, Sample
from targen_async.finetune.needs import GIB, LOCAL, SPARE, batch_of, host_bytes, room_of
from targen_async.finetune.peaks import peak_of
from targen_async.finetune.ranks import Ranks
from targen_async.finetune.shapes import Shape, shape_of
from targen_async.finetune.sizes import Kind


class Meter:
    """Of rank 0, for all ranks."""

    def __init__(
        self,
        config: TrainConfig,
        network: Any,  # noqa: ANN401
        samples: Sequence[Sample] | Sequence[Pack],
        ranks: Ranks,
    ) -> None:
        self._device = ranks.device
        self._peak = (
            device_peak(ranks.device) if takes_bfloat16(config.training, ranks.device) else None
        )
        self._ranks = ranks.count
        shape = known_shape(network)
        if shape is None or self._peak is None:
            self._flops = None
            return
        learnt = [value.requires_grad for value in network.parameters()]
        # Weights that stay as they are cost no gradient of their own.
        share = 1.0 if all(learnt) else 2 / 3
        self._flops = np.array([share * sample_flops(shape, one) for one in samples])

    def read(self, step: Step, seconds: float) -> dict[str, float]:
        """`memory_gib`: the most that rank 0 has held so far. `mfu`: FLOPs of the step's real
        tokens over what all GPUs could have done in that time; only where their peak is known."""
        told = {"memory_gib": round(peak_memory(self._device) / GIB, 3)}
        if self._flops is not None and self._peak is not None:
            done = sum(float(self._flops[batch].sum()) for batch in step)
            told["mfu"] = done / seconds / (self._peak * self._ranks)
        return told


def sample_flops(shape: Shape, sample: Sample | Pack) -> float:
    """FLOPs of forward and backward pass over a sample, without padding."""
    if isinstance(sample, Pack):
        return sum(sample_flops(shape, one) for one in sample.samples)
    item = sample.item
    if sample.choice is None:
        return sum(shape.flops(len(ids)) for ids in item.sources)
    source, target = len(item.sources[0]), len(item.choices[sample.choice])
    if shape.family == "encoder-decoder":
        return shape.flops(source, target)
    return shape.flops(source + target)


def known_shape(network: Any) -> Shape | None:  # noqa: ANN401
    """The shape of a network; None for an architecture that is not known here."""
    config = network.config
    if config.model_type not in get_args(Kind):
        return None
    return shape_of(config.model_type, config.to_dict(), getattr(config, "num_labels", 0))


def device_peak(device: torch.device) -> float | None:
    """FLOP/s in bfloat16 by the data sheet; None for a CPU and for a GPU that is not known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warn_of_room(
    config: TrainConfig,
    network: Any,  # noqa: ANN401
    ranks: Ranks,
    say: Callable[[str], None],
) -> None:
    """The check of `targen plan-training`, with what is there. It only warns: activations are an
    estimate."""
    shape = known_shape(network)
    if shape is None:
        return
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    half = takes_bfloat16(config.training, ranks.device)
    batch = batch_of(config, shape, ranks.count)
    room = room_of(shape, config.training, batch, ranks.count, half, trained).total
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if ranks.device.type == "cuda":
        there = torch.cuda.get_device_properties(ranks.device).total_memory
        held = host_bytes(shape, config.training, ranks.count, trained)
    else:
        there = host // min(ranks.count, LOCAL)
        held = 0
    if room > there * (1 - SPARE):
        say(
            f"warning: a step may not fit: about {room / GIB:.1f} GiB where {there / GIB:.1f} GiB "
            "are there; `targen plan-training` tells what helps"
        )
    if held > host:
        say(
            f"warning: loading takes about {held / GIB:.1f} GiB of this host's memory, which has "
            f"{host / GIB:.1f} GiB"
        )
