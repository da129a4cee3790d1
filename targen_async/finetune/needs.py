"""What a run of training needs: memory of a GPU and of a host, disk, time. Without torch.

Model states are counted tensor by tensor. Activations are an estimate: bytes that autograd keeps a
token and layer, measured on transformers' models (saved tensors on a CPU, SDPA), without attention
scores, which the kernels of a GPU do not keep. Time is FLOPs over an assumed share of a peak.
"""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from targen_async.finetune.config import TrainConfig, Training
from targen_async.finetune.shapes import Shape
from targen_async.finetune.zero import Zero, read_zero

GIB = 2**30
SPARE = 0.08
"""Of a GPU's memory: CUDA's own part and what fragments take. An assumption."""
LOCAL = 8
"""GPUs of a host, where there are as many. An assumption."""
SEQUENCES: Mapping[str, int] = {"copa": 2, "record": 10}
"""Sequences of an example that an encoder compares; ReCoRD's are about as many as its entities."""

_KEPT: Mapping[str, tuple[float, float, float]] = {
    "roberta": (8.3, 16.3, 16.3),
    "bert": (8.3, 16.3, 16.3),
    "gpt_neox": (9, 11, 18),
    "gpt2": (13, 17, 26),
    "llama": (16.3, 26.3, 24.3),
    "t5": (20.1, 26.1, 24.1),
}
"""Bytes kept a token and layer, times the width: bfloat16 weights, autocast, float32."""
_ATTENDED: Mapping[str, tuple[float, float, float]] = {"t5": (14, 14, 16)}
"""The same, times `inner`: queries, keys, values, output. Of the others 8, 8 and 16."""
_FED: Mapping[str, tuple[float, float, float]] = {
    "relu": (2, 4, 4),
    "gelu": (4, 4, 8),
    "silu": (8, 8, 16),
    "gelu_new": (10, 10, 20),
    "gated gelu_new": (14, 14, 28),
}
"""The same, times the width of the feed-forward network."""


class Room(Struct, frozen=True, kw_only=True):
    """What stands in a GPU's memory at the worst moment of a step, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    logits: int
    loading: int
    """Before the first step, in place of all the others: the weights as they were loaded."""

    @property
    def total(self) -> int:
        parts = (self.weights, self.gradients, self.optimizer, self.buffers)
        return max(sum(parts) + self.activations + self.logits, self.loading)


class Batch(Struct, frozen=True, kw_only=True):
    """The largest batch of one rank: every sequence at its full length."""

    sequences: int
    source: int
    target: int


def batch_of(config: TrainConfig, shape: Shape, gpus: int) -> Batch:
    """The batch whose activations a GPU has to hold."""
    training, model = config.training, config.model
    source = _eight(model.max_source)
    target = _eight(model.max_target) if shape.family == "encoder-decoder" else 0
    if training.tokens is not None:
        rows = max(1, training.tokens // (source + target))
        return Batch(sequences=rows, source=source, target=target)
    rows = -(-(training.examples or 1) // (gpus * training.accumulation))
    if shape.family == "encoder":
        rows *= max(SEQUENCES.get(one.task, 1) for one in config.data.train)
    return Batch(sequences=rows, source=source, target=target)


def room_of(
    shape: Shape, training: Training, batch: Batch, gpus: int, half: bool, trained: int
) -> Room:
    """Memory of one GPU. `half`: computed in bfloat16; `trained`: parameters that are learnt.

    Plain torch has float32 weights, under autocast with bfloat16 copies beside them. DeepSpeed's
    bfloat16 has two bytes of weight and of gradient, and float32 weights with the moments.
    """
    zero = read_zero(Path(training.deepspeed)) if training.deepspeed else None
    count, stage = shape.parameters, zero.stage if zero else 0
    moments = 8 * trained
    if training.optimizer == "adafactor":
        moments = 8 * trained // shape.width  # A row and a column of a matrix.
    if zero is None:
        weights, gradients, optimizer = (6 if half else 4) * count, 4 * trained, moments
    else:
        one = 2 if half else 4
        weights, gradients = one * count, one * trained
        optimizer = moments + (4 * trained if half or stage else 0)
    optimizer //= gpus if stage >= 1 else 1
    gradients //= gpus if stage >= 2 else 1
    weights //= gpus if stage >= 3 else 1
    buffers = min(zero.bucket, trained) * (2 if half else 4) * zero.buckets if zero and stage else 0
    if zero and zero.optimizer_on_host:
        optimizer = 0
    if zero and zero.weights_on_host:
        weights = 0
    way = 2 if not half else 1 if zero is None else 0
    return Room(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        activations=round(_activations(shape, batch, way, training.gradient_checkpointing)),
        logits=_logits(shape, batch, half),
        loading=4 * count,
    )


def host_bytes(shape: Shape, training: Training, gpus: int, trained: int) -> int:
    """Memory of a host: every rank loads all weights in float32, then what is kept there."""
    zero = read_zero(Path(training.deepspeed)) if training.deepspeed else None
    local = min(gpus, LOCAL)
    loading = 4 * shape.parameters * local
    return max(loading, _held_on_host(shape, zero, trained) * local // gpus)


def _held_on_host(shape: Shape, zero: Zero | None, trained: int) -> int:
    if zero is None or not zero.optimizer_on_host:
        return 0
    return 16 * trained + (2 * shape.parameters if zero.weights_on_host else 0)


def disk_bytes(
    shape: Shape, training: Training, half: bool, trained: int, evaluated: bool
) -> tuple[int, int]:
    """A checkpoint, and all that lies on the disk at once: `keep` of them, one in the writing, the
    model, and the best weights where the run evaluates."""
    sharded = training.deepspeed is not None
    weights = 2 if sharded and half else 4
    moments = 0 if training.optimizer == "adafactor" else 8
    masters = 4 if sharded and half else 0
    checkpoint = weights * shape.parameters + (moments + masters) * trained
    models = weights * shape.parameters * (2 if evaluated else 1)
    return checkpoint, checkpoint * (training.keep + 1) + models


def _activations(shape: Shape, batch: Batch, way: int, saving: bool) -> float:
    """Bytes; `way` is the column of the tables above."""
    gated = "gated " if shape.gated and shape.activation == "gelu_new" else ""
    fed = _FED.get(gated + shape.activation, _FED["gelu_new"])[way]
    drops = 4 if shape.dropout else 0
    per_width = _KEPT[shape.kind][way] + drops
    attended = _ATTENDED.get(shape.kind, (8, 8, 16))[way] * shape.inner
    ff = (fed + (4 if drops and shape.kind == "t5" else 0)) * shape.ff
    layer = batch.source * (per_width * shape.width + attended + ff)
    size = 4 if way else 2
    kept = [layer] * shape.layers
    edges = batch.source * shape.width * size * shape.layers
    if shape.written:
        crossed = 1.25 * per_width * shape.width + 1.5 * attended + ff
        own = batch.target * crossed + batch.source * attended / 4
        kept += [own] * shape.written
        edges += batch.target * shape.width * size * shape.written
    total = edges + max(kept) if saving else sum(kept)
    if shape.kind == "t5":
        # The relative bias as a mask of every head, its gradient and a sum of those.
        total += 3 * shape.heads * (batch.source**2 + batch.target**2) * (2 if way < 2 else 4)
    return batch.sequences * total


def _logits(shape: Shape, batch: Batch, half: bool) -> int:
    """Logits of every token, their logarithms and both gradients, in float32."""
    if shape.family == "encoder":
        return 0
    tokens = batch.sequences * (batch.target or batch.source)
    return tokens * shape.vocabulary * (14 if half else 12)


def _eight(length: int) -> int:
    return -(-length // 8) * 8
