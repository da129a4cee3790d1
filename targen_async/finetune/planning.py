"""A run before it is begun: what it needs, how long it takes, and whether it fits.

Nothing here is measured. Parameters are exact, states are counted, activations are estimated, and
time follows from an assumed share of an assumed peak: every line that assumes says so.
"""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.adapters import learnt_with
from targen_async.finetune.config import TrainConfig
from targen_async.finetune.data import load_examples
from targen_async.finetune.logits import logit_names
from targen_async.finetune.needs import (
    GIB,
    SEQUENCES,
    SPARE,
    Batch,
    Room,
    batch_of,
    disk_bytes,
    host_bytes,
    room_of,
)
from targen_async.finetune.shapes import Shape, shape_of_choice
from targen_async.finetune.zero import read_zero

OFFICIAL = {
    "boolq": 9427,
    "cb": 250,
    "copa": 400,
    "multirc": 27243,
    "record": 100730,
    "rte": 2490,
    "wic": 5428,
    "wsc": 554,
}
"""Rows of SuperGLUE's own training splits (Wang et al. 2019): what a source that is not there yet
is taken to have."""


class Machine(Struct, frozen=True, kw_only=True):
    """What a run is planned on."""

    gpus: int = 1
    gpu_memory: float = 80.0
    """GiB of each."""
    peak: float = 989e12
    """FLOP/s of each: of an H100 or H200, in bfloat16."""
    mfu: float = 0.35
    """Share of the peak that the model's FLOPs get. An assumption, not a measurement."""


class RunPlan(Struct, frozen=True, kw_only=True):
    config: TrainConfig
    machine: Machine
    shape: Shape
    learnt: int
    """Parameters."""
    half: bool
    batch: Batch
    room: Room
    host: int
    """Bytes of memory of a host."""
    checkpoint: int
    disk: int
    rows: int
    """Of an epoch."""
    assumed: tuple[str, ...]
    """Tasks whose rows are not there yet."""
    steps: int
    tokens_per_s: float
    hours: float
    """At most: every example is counted at its full length."""

    @property
    def fits(self) -> bool:
        return self.room.total <= self.machine.gpu_memory * (1 - SPARE) * GIB


def plan_run(config: TrainConfig, machine: Machine) -> RunPlan:
    """Raises UserError for a model whose shape is not known, and a DeepSpeed file that is none."""
    training, model = config.training, config.model
    if machine.gpus > 1 and training.deepspeed is None:
        raise UserError(
            f"{machine.gpus} GPUs need DeepSpeed: name a JSON in `training.deepspeed`, such as "
            "runners/deepspeed/zero1.json"
        )
    tasks = [one.task for one in config.data.train]
    logits = len(logit_names(tasks)) if model.family == "encoder" else 0
    shape = shape_of_choice(model, logits)
    if shape.family != model.family:
        raise UserError(
            f"`model.family` is {model.family}, and {model.init} is a {shape.kind}: {shape.family}"
        )
    half = training.precision != "float32"
    batch = batch_of(config, shape, machine.gpus)
    data = _epoch(config, shape)
    parallel = machine.gpus * training.accumulation
    if training.examples:
        per_epoch = ceil(data.rows / training.examples)
    else:
        per_epoch = ceil(data.sequences / (batch.sequences * parallel))
    steps = training.steps or max(1, round(training.epochs * per_epoch))
    learnt = learnt_with(config.lora, shape, logits) if config.lora else shape.parameters
    checkpoint, disk = disk_bytes(shape, training, half, learnt, bool(training.evaluate_every))
    again = 4 / 3 if training.gradient_checkpointing else 1
    flops = shape.flops(batch.source, batch.target) * again
    sequences_per_s = machine.gpus * machine.peak * machine.mfu / flops
    return RunPlan(
        config=config,
        machine=machine,
        shape=shape,
        learnt=learnt,
        half=half,
        batch=batch,
        room=room_of(shape, training, batch, machine.gpus, half, learnt),
        host=host_bytes(shape, training, machine.gpus, learnt),
        checkpoint=checkpoint,
        disk=disk,
        rows=data.rows,
        assumed=data.assumed,
        steps=steps,
        tokens_per_s=sequences_per_s * (batch.source + batch.target),
        hours=data.sequences * steps / per_epoch / sequences_per_s / 3600,
    )


class _Epoch(Struct, frozen=True):
    rows: int
    sequences: float
    assumed: tuple[str, ...]


def _epoch(config: TrainConfig, shape: Shape) -> _Epoch:
    """Rows and sequences of an epoch, counted where the sources are there."""
    compared = SEQUENCES if shape.family == "encoder" else {}
    counts, assumed = [], []
    for source in config.data.train:
        found = source.rows
        if Path(source.source).is_dir():
            found = found or len(load_examples(source.source, source.task, source.split).examples)
        else:
            assumed.append(source.task)
        counts.append(found or OFFICIAL[source.task])
    if config.data.equal_sizes:
        counts = [min(counts)] * len(counts)
    rows = sum(counts)
    sequences = sum(
        count * compared.get(source.task, 1)
        for count, source in zip(counts, config.data.train, strict=True)
    )
    kept = config.data.rows or round(rows * (1 - config.data.held_out))
    return _Epoch(kept, sequences * kept / rows, tuple(assumed))


def misfit(plan: RunPlan) -> str | None:
    """One sentence where the run does not fit into a GPU, with what would help; else None."""
    if plan.fits:
        return None
    room, limit = plan.room, plan.machine.gpu_memory * (1 - SPARE) * GIB
    return (
        f"this run takes about {_gib(room.total)} GiB of each GPU, and {plan.machine.gpu_memory:g} "
        f"GiB less {SPARE:.0%} are there; what may help: {', '.join(_helps(plan, limit))}"
    )


def _helps(plan: RunPlan, limit: float) -> list[str]:
    """What makes a run smaller, the cheapest first."""
    training, room = plan.config.training, plan.room
    helps = []
    if room.total - room.activations - room.logits < limit:
        if not training.gradient_checkpointing:
            helps.append("`training.gradient_checkpointing = true`")
        if plan.batch.sequences > 1:
            helps.append("smaller batches with more `training.accumulation`")
    zero = read_zero(Path(training.deepspeed)) if training.deepspeed else None
    if zero is None or plan.machine.gpus == 1:
        helps.append("more GPUs with runners/deepspeed/zero1.json")
    elif zero.stage < 3:
        helps.append(f"runners/deepspeed/zero{zero.stage + 1}.json")
    if zero is None or not zero.optimizer_on_host:
        helps.append("runners/deepspeed/zero2-offload.json, which is slow")
    return helps or ["more or larger GPUs"]


# ---- told


def told(plan: RunPlan, name: str) -> str:
    """The plan in a few lines."""
    room, machine, batch = plan.room, plan.machine, plan.batch
    training = plan.config.training
    parts = ("weights", "gradients", "optimizer", "buffers", "activations", "logits")
    held = ", ".join(f"{part} {_gib(getattr(room, part))}" for part in parts)
    kind = "bfloat16" if plan.half else "float32"
    saving = "with" if training.gradient_checkpointing else "without"
    zero = Path(training.deepspeed).name if training.deepspeed else "plain torch"
    rows = f"{plan.rows:,} rows an epoch"
    if plan.assumed:
        rows += (
            "; assumed to be as many as SuperGLUE's own, because their source is not there: "
            f"{', '.join(plan.assumed)}"
        )
    learnt = "" if plan.config.lora is None else f", of which {plan.learnt:,} are learnt"
    bound = "" if training.steps or training.examples else " at most"
    width = f"{batch.source} tokens" + (f" and {batch.target} written" if batch.target else "")
    lines = [
        f"{name}: {plan.shape.kind} on {_gpus(machine)}, {zero}, {kind}",
        f"parameters   {plan.shape.parameters:,}{learnt}",
        f"a batch      {batch.sequences:,} sequences of {width} on each GPU, {saving} gradient "
        "checkpointing",
        f"GPU, GiB     {held}: {_gib(room.total)} of {machine.gpu_memory:g}",
        f"host, GiB    {_gib(plan.host)}; every rank loads all weights in float32",
        f"disk, GiB    {_gib(plan.checkpoint)} a checkpoint, {_gib(plan.disk)} in all",
        f"steps        {plan.steps:,}{bound}; {rows}",
    ]
    if _bound_by_flops(plan):
        lines += [
            f"tokens/s     {plan.tokens_per_s:,.0f} (assumed: {machine.mfu:.0%} of "
            f"{machine.peak / 1e12:g} TFLOP/s a GPU, nothing padded)",
            f"hours        {plan.hours:.1f} at most (every example at its full length)",
        ]
    else:
        lines.append("tokens/s     not told: so small a model is not bound by FLOPs")
    return "\n".join(lines)


def _bound_by_flops(plan: RunPlan) -> bool:
    return plan.shape.parameters >= 50_000_000


COLUMNS = (
    "configuration",
    "parameters",
    "GPUs",
    "states a GPU, GiB",
    "optimiser of it",
    "activations",
    "in all",
    "tokens/s",
)


def table(plans: Sequence[tuple[str, RunPlan]]) -> str:
    """A Markdown table with a row for each plan."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---{'|---:' * (len(COLUMNS) - 1)}|"]
    for name, plan in plans:
        room = plan.room
        states = room.weights + room.gradients + room.optimizer + room.buffers
        cells = (
            f"`{name}`",
            f"{plan.shape.parameters:,}",
            _gpus(plan.machine),
            _gib(states),
            _gib(room.optimizer),
            _gib(room.activations + room.logits),
            _gib(room.total),
            f"{float(f'{plan.tokens_per_s:.2g}'):,.0f}" if _bound_by_flops(plan) else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gpus(machine: Machine) -> str:
    return f"{machine.gpus} x {machine.gpu_memory:g} GiB"


def _gib(size: int) -> str:
    """In GiB, with two figures where it is less than one."""
    return f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.2g}"
