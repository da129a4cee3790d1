"""A DeepSpeed JSON, as far as it is of consequence here. Without torch and without DeepSpeed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.config import Training

_BUCKET = 500_000_000
"""DeepSpeed's own `reduce_bucket_size`."""


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


def read_zero(path: Path) -> Zero:
    """Raises UserError where the file is no DeepSpeed JSON."""
    settings = read_settings(path)
    told = settings.get("zero_optimization", {})
    bucket = told.get("reduce_bucket_size", _BUCKET)
    return Zero(
        stage=stage_of(settings),
        optimizer_on_host=_on_host(told, "offload_optimizer"),
        weights_on_host=_on_host(told, "offload_param"),
        bucket=bucket if isinstance(bucket, int) else _BUCKET,
        buckets=2 if told.get("overlap_comm") else 1,
    )


def read_settings(path: Path) -> dict[str, Any]:
    """A DeepSpeed JSON. Raises UserError where it is none."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UserError(f"`training.deepspeed`: cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UserError(f"`training.deepspeed`: {path} is not valid JSON: {error}") from error
    return found


def zero_stage(training: Training) -> int | None:
    """Of `training.deepspeed`; None: plain torch."""
    return stage_of(read_settings(Path(training.deepspeed))) if training.deepspeed else None


def stage_of(settings: Mapping[str, Any]) -> int:
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def _on_host(told: Mapping[str, Any], key: str) -> bool:
    place = told.get(key) or {}
    return bool(place.get("device", "none") != "none")
