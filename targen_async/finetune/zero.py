"""A DeepSpeed JSON, as far as it is of consequence here. Without torch and without DeepSpeed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from targen_async.errors import UserError
from targen_async.finetune.config import NO_FLOAT16, Training, fault_of

_BUCKET = 500_000_000
"""DeepSpeed's own `reduce_bucket_size`."""
Auto = Literal["auto"]
"""In the table of ZeRO: DeepSpeed's own value. Elsewhere: what the run's configuration says."""


class Zero(Struct, frozen=True, kw_only=True):
    """What ZeRO (Rajbhandari et al. 2020) keeps where."""

    stage: int
    """1: optimiser states are cut up among ranks; 2: gradients too; 3: weights too."""
    optimizer_on_host: bool
    weights_on_host: bool
    bucket: int
    """Gradients that are reduced at a time."""
    buckets: int
    """How many of them there are at once."""
    settings: Mapping[str, Any]
    """The file, without what the run's configuration decides."""


class _Offload(Struct, frozen=True):
    device: Literal["none", "cpu", "nvme", "auto"] = "none"

    @property
    def on_host(self) -> bool:
        return self.device in ("cpu", "nvme")


class _Table(Struct, frozen=True):
    """What is read here of `zero_optimization`; its other keys are DeepSpeed's to check."""

    stage: Annotated[int, Meta(ge=0, le=3)] = 0
    reduce_bucket_size: Annotated[float, Meta(gt=0)] | Auto = "auto"
    overlap_comm: bool | Auto | None = None
    compute_grad_norm: bool | Auto = True
    offload_optimizer: _Offload | None = None
    offload_param: _Offload | None = None


class _Half(Struct, frozen=True):
    enabled: bool | Auto = False


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys that a file may have: any other would be read by nobody, or change the numbers."""

    zero_optimization: _Table = field(default_factory=_Table)
    zero_force_ds_cpu_optimizer: bool = False
    zero_allow_untested_optimizer: bool = False
    aio: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    comms_logger: dict[str, Any] | None = None
    flops_profiler: dict[str, Any] | None = None
    steps_per_print: int | Auto = "auto"
    wall_clock_breakdown: bool = False
    fp16: _Half = field(default_factory=_Half)
    train_batch_size: Any = "auto"
    train_micro_batch_size_per_gpu: Any = "auto"
    gradient_accumulation_steps: Any = "auto"
    gradient_clipping: Any = "auto"
    bf16: Any = "auto"
    optimizer: Any = "auto"
    scheduler: Any = "auto"


_DECIDED: Mapping[str, str] = {
    "train_batch_size": "training.examples` or `training.tokens",
    "train_micro_batch_size_per_gpu": "training.examples` or `training.tokens",
    "gradient_accumulation_steps": "training.accumulation",
    "gradient_clipping": "training.clip",
    "bf16": "training.precision",
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
}
"""Keys that are `auto`, and what decides them. `bf16` may be a table whose `enabled` is."""


def read_zero(path: Path) -> Zero:
    """Raises UserError where the file is no DeepSpeed JSON, and for what belongs into the run's
    configuration and not into it."""
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        file = msgspec.convert(raw, _File)
    except OSError as error:
        raise UserError(f"`training.deepspeed`: cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"`training.deepspeed`: {path}: {fault_of(error)}") from error
    except msgspec.DecodeError as error:
        raise UserError(f"`training.deepspeed`: {path} is not valid JSON: {error}") from error
    if file.fp16.enabled is True:
        raise UserError(f"`training.deepspeed`: {path}: `fp16.enabled`: {NO_FLOAT16}")
    for key, decides in _DECIDED.items():
        if getattr(file, key) not in ("auto", {"enabled": "auto"}):
            raise UserError(
                f"`training.deepspeed`: {path}: `{key}` is decided by `{decides}` of the "
                'configuration: write "auto" there, or drop it'
            )
    table = file.zero_optimization
    if table.compute_grad_norm is False:
        raise UserError(
            f"`training.deepspeed`: {path}: `zero_optimization.compute_grad_norm` is false, and a "
            "gradient that is not finite is known by its norm: drop it"
        )
    bucket, overlaps = table.reduce_bucket_size, table.overlap_comm
    if overlaps in ("auto", None):
        overlaps = table.stage == 3
    return Zero(
        stage=table.stage,
        optimizer_on_host=table.offload_optimizer is not None and table.offload_optimizer.on_host,
        weights_on_host=table.offload_param is not None and table.offload_param.on_host,
        bucket=_BUCKET if bucket == "auto" else int(bucket),
        buckets=2 if overlaps else 1,
        settings={
            key: value
            for key, value in raw.items()
            if key not in (*_DECIDED, "fp16") and value != "auto"
        },
    )


def zero_stage(training: Training) -> int | None:
    """Of `training.deepspeed`; None: plain torch."""
    return read_zero(Path(training.deepspeed)).stage if training.deepspeed else None
