"""A DeepSpeed JSON: what the run's configuration decides is `auto` in it, the rest is checked."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from msgspec import convert

from targen_async.errors import UserError
from targen_async.finetune.config import Training
from targen_async.finetune.zero import read_zero
from tests.finetune.training import ROOT

FILES = sorted((ROOT / "runners" / "deepspeed").glob("*.json"))
DECIDED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
HUB = {
    **dict.fromkeys(DECIDED, "auto"),
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "optimizer": "auto",
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": "auto",
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "sub_group_size": 1e9,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "auto"},
    },
}
"""As transformers' documentation has it, but for blocks of optimiser and schedule."""


def written(folder: Path, content: Any) -> Path:
    path = folder / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def stage_2(**keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 2}, **keys}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_leave_to_the_configuration_what_it_decides(path: Path) -> None:
    raw = json.loads(path.read_text("utf-8"))
    assert [raw[key] for key in DECIDED] == ["auto"] * len(DECIDED)
    assert raw["bf16"] == {"enabled": "auto"}
    zero = read_zero(path)
    assert f"zero{zero.stage}" in path.stem
    assert zero.optimizer_on_host == ("offload" in path.stem)
    assert not {*DECIDED, "bf16"} & set(zero.settings)


def test_auto_is_resolved_and_not_handed_on(tmp_path: Path) -> None:
    zero = read_zero(written(tmp_path, HUB))
    assert (zero.stage, zero.bucket, zero.buckets) == (3, 500_000_000, 2)
    assert zero.optimizer_on_host and not zero.weights_on_host
    assert set(zero.settings) == {"steps_per_print", "wall_clock_breakdown", "zero_optimization"}


WRONG: dict[str, tuple[Any, str]] = {
    "a batch size": (
        stage_2(train_batch_size=32),
        "`train_batch_size` is decided by `training.examples` or `training.tokens` of the configu"
        'ration: write "auto" there, or drop it',
    ),
    "clipping": (stage_2(gradient_clipping=1.0), "`gradient_clipping` is decided by `training.cl"),
    "an optimizer": (stage_2(optimizer={"type": "AdamW"}), "`optimizer` is decided by `training.o"),
    "bfloat16": (stage_2(bf16={"enabled": True}), "`bf16` is decided by `training.precision`"),
    "float16": (
        stage_2(fp16={"enabled": True}, bf16={"enabled": "auto"}),
        "`fp16.enabled`: T5's activations overflow float16",
    ),
    "a stage that nobody chose": (
        {"zero_optimization": {"stage": "auto"}},
        "`zero_optimization.stage`: expected `int`, got `str`",
    ),
    "a stage that there is not": (
        {"zero_optimization": {"stage": 4}},
        "`zero_optimization.stage`: expected `int` <= 3",
    ),
    "a stage for a table": (
        {"zero_optimization": 2},
        "`zero_optimization`: expected `object`, got `int`",
    ),
    "a mistyped table": ({"zero_optimisation": {}}, "there is no key `zero_optimisation`"),
    "a device": (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "disk"}}},
        "`zero_optimization.offload_optimizer.device`: invalid enum value 'disk'",
    ),
    "no norm": (
        {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
        "`zero_optimization.compute_grad_norm` is false",
    ),
    "a list": ([2], "expected `object`, got `array`"),
    "half a file": ('{"zero_optimization": ', "is not valid JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_belong_into_a_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = WRONG[case]
    with pytest.raises(UserError) as told:
        read_zero(written(tmp_path, content))
    assert sentence.casefold() in str(told.value).casefold()
    assert "own.json" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.skipif(
    not (find_spec("torch") and find_spec("deepspeed")),
    reason="deepspeed is not installed: pip install '.[train]'",
)
def test_what_deepspeed_itself_refuses_is_one_sentence(tmp_path: Path) -> None:
    from targen_async.finetune.sharded import check_sharded

    training = convert({"examples": 8}, Training)
    for path in (*FILES, written(tmp_path, HUB)):
        check_sharded(path, training)
    for table, sentence in (
        ({"overlap_com": True}, "`overlap_com`: Extra inputs are not permitted"),
        (
            {"allgather_bucket_size": "large"},
            "`allgather_bucket_size`: Input should be a valid int",
        ),
        ({"mics_shard_size": 2}, "MiCS ZeRO-3 sharding has been removed"),
    ):
        path = written(tmp_path, {"zero_optimization": {"stage": 2, **table}})
        with pytest.raises(UserError) as told:
            check_sharded(path, training)
        assert f"DeepSpeed refuses {path}: {sentence}" in str(told.value)
        assert "\n" not in str(told.value)
