"""What a run needs is told before it is begun: by formulas that are held against the models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from targen_async import cli
from targen_async.errors import UserError
from targen_async.finetune.adapters import learnt_with
from targen_async.finetune.config import TrainConfig, load_train_config
from targen_async.finetune.needs import GIB, Batch, Room, room_of
from targen_async.finetune.peaks import peak_of
from targen_async.finetune.planning import Machine, misfit, plan_run
from targen_async.finetune.shapes import Shape, shape_of, shape_of_choice
from targen_async.finetune.sizes import SIZES
from tests.finetune.training import ROOT

CONFIGS = sorted(
    path
    for path in (ROOT / "runners" / "configs").glob("*.toml")
    if "[training]" in path.read_text("utf-8")
)
PUBLISHED = {
    "google-t5/t5-base": 222_903_552,
    "google-t5/t5-3b": 2_851_598_336,
    "google-t5/t5-11b": 11_307_321_344,
    "google/flan-t5-xl": 2_849_757_184,
    "google/flan-t5-xxl": 11_135_332_352,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "FacebookAI/roberta-base": 124_648_708,
    "FacebookAI/roberta-large": 355_363_844,
    "sentence-transformers/all-MiniLM-L6-v2": 22_713_216 + 4 * 385,
}
"""Parameters as transformers counts them, the encoders with a head of four logits."""


def shape(name: str, family: str = "decoder", **model: Any) -> Shape:
    from msgspec import convert

    from targen_async.finetune.config import ModelChoice

    choice = convert({"family": family, "init": name, **model}, ModelChoice)
    return shape_of_choice(choice, 4)


def t5_3b(path: Path = ROOT / "runners" / "configs" / "t5-3b-8gpu.toml") -> TrainConfig:
    return load_train_config(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models_are_exact(name: str) -> None:
    assert shape(name).parameters == PUBLISHED[name]
    assert shape(name.partition("/")[2]).parameters == PUBLISHED[name]


ALL = [(family, name) for family, sizes in SIZES.items() for name in sizes]


@pytest.mark.parametrize(("family", "name"), ALL, ids=[name for _, name in ALL])
def test_parameters_of_every_size_are_those_of_the_model_that_is_built(
    family: str, name: str
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from msgspec import convert

    from targen_async.finetune import models
    from targen_async.finetune.config import ModelChoice

    choice = convert({"family": family, "size": name, "max_source": 100}, ModelChoice)
    names = ("a", "b", "c", "d")
    config = models._config(choice, choice.vocabulary, names)
    with torch.device("meta"):
        built = models._auto(choice.family).from_config(config)
    assert shape("config", family, size=name, max_source=100).parameters == sum(
        value.numel() for value in built.parameters()
    )
    # The config that a run would hand out says the same.
    read = shape_of(config.model_type, config.to_dict(), len(names))
    assert read.parameters == shape("config", family, size=name, max_source=100).parameters


@pytest.mark.parametrize(
    ("name", "source", "target", "flops"),
    [
        ("google-t5/t5-3b", 512, 128, 5.84e12),
        ("google/flan-t5-xl", 512, 128, 5.47e12),
        ("google-t5/t5-11b", 512, 128, 23.3e12),
        ("google/flan-t5-xxl", 512, 128, 21.4e12),
        ("meta-llama/Llama-2-7b-hf", 2048, 0, 2048 * 41.3e9),
    ],
)
def test_flops_of_an_example(name: str, source: int, target: int, flops: float) -> None:
    assert shape(name).flops(source, target) == pytest.approx(flops, rel=3e-3)


@pytest.mark.parametrize("family", SIZES)
def test_flops_are_those_that_torch_counts(family: str) -> None:
    """Its counter knows matrix products alone, as the formula does; it counts a causal mask's
    hidden half, and the formula does not."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from msgspec import convert
    from torch.utils.flop_counter import FlopCounterMode

    from targen_async.finetune import models
    from targen_async.finetune.config import ModelChoice

    choice = convert({"family": family, "dropout": 0.0, "vocabulary": 1024}, ModelChoice)
    config = models._config(choice, 1024, ("a", "b"))
    config._attn_implementation = "eager"
    network = models._auto(choice.family).from_config(config)
    source, target = 96, 64 if family == "encoder-decoder" else 0
    inputs = {"input_ids": torch.ones(2, source, dtype=torch.long)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if target:
        inputs["decoder_input_ids"] = torch.ones(2, target, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        network(**inputs).logits.sum().backward()
    found = shape("config", family, vocabulary=1024)
    hidden = 6 * found.inner * 2
    hidden *= target**2 * found.written if target else source**2 * found.layers
    wanted = 2 * found.flops(source, target) + (0 if family == "encoder" else hidden)
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
    ("gpus", "stage", "states"),
    [(2, 1, 26.6), (2, 2, 23.9), (2, 3, 21.2), (8, 1, 14.6), (8, 2, 10.0), (8, 3, 5.3)],
)
def test_states_of_the_stages(gpus: int, stage: int, states: float) -> None:
    """2 bytes of weight, 2 of gradient, 12 of float32 weight and moments (Rajbhandari et al.)."""
    room = t5_room(gpus, f"zero{stage}.json")
    assert (room.weights + room.gradients + room.optimizer) / GIB == pytest.approx(states, abs=0.06)


def t5_room(gpus: int, zero: str | None, **training: Any) -> Room:
    from msgspec.structs import replace

    settings = replace(
        t5_3b().training,
        deepspeed=zero and str(ROOT / "runners" / "deepspeed" / zero),
        **training,
    )
    found = shape("google-t5/t5-3b")
    batch = Batch(sequences=8, source=512, target=128)
    return room_of(found, settings, batch, gpus, True, found.parameters)


def test_offload_and_adafactor_empty_a_gpu() -> None:
    whole = t5_room(1, "zero2.json")
    assert whole.optimizer == pytest.approx(31.9 * GIB, rel=0.01)
    assert t5_room(1, "zero2-offload.json").optimizer == 0
    offloaded = t5_room(1, "zero3-offload.json")
    assert offloaded.optimizer == offloaded.weights == 0
    assert t5_room(1, None, optimizer="adafactor").optimizer < 0.1 * GIB
    saving = t5_room(1, None, gradient_checkpointing=True)
    assert saving.activations < t5_room(1, None).activations / 8


@pytest.mark.parametrize("mode", ["float32", "autocast"])
@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("encoder", "tiny"),
        ("encoder-decoder", "tiny"),
        ("encoder-decoder", "tiny-gated"),
        ("decoder", "tiny"),
        ("decoder", "tiny-gpt2"),
        ("decoder", "tiny-llama"),
    ],
)
def test_activations_are_about_what_autograd_keeps(family: str, size: str, mode: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from msgspec import convert

    from targen_async.finetune import models
    from targen_async.finetune.config import ModelChoice, Training

    raw = {"family": family, "size": size, "dropout": 0.0, "vocabulary": 512}
    choice = convert(raw, ModelChoice)
    network = models._auto(choice.family).from_config(models._config(choice, 512, ("a", "b")))
    rows, source, target = 16, 64, 64 if family == "encoder-decoder" else 0
    inputs = {"input_ids": torch.ones(rows, source, dtype=torch.long)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if target:
        inputs["decoder_input_ids"] = torch.ones(rows, target, dtype=torch.long)
    weights = {value.untyped_storage().data_ptr() for value in network.parameters()}
    casts = {tuple(value.shape) for value in network.parameters() if value.ndim == 2}
    casts |= {shape[::-1] for shape in casts}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        scores = tensor.shape[-1] == source and tensor.numel() >= rows * 4 * source * source
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in casts and not scores:
            kept[storage.data_ptr()] = tensor
        return tensor

    half = mode == "autocast"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        logits = network(**inputs).logits
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert logits.requires_grad
    found = shape("config", family, size=size, dropout=0.0, vocabulary=512)
    batch = Batch(sequences=rows, source=source, target=target)
    training = convert({"examples": rows}, Training)
    told = room_of(found, training, batch, 1, half, found.parameters).activations
    assert told == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_read_and_planned(path: Path) -> None:
    config = load_train_config(path)
    hardware = config.hardware
    plan = plan_run(config, Machine(gpus=hardware.gpus, gpu_memory=hardware.gpu_memory))
    assert misfit(plan) is None
    assert plan.steps > 10 and plan.room.total > 0
    if config.training.deepspeed:
        assert Path(config.training.deepspeed).is_file()


def test_a_run_that_does_not_fit_is_a_mistake_that_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(ROOT / "runners" / "configs" / "t5-3b-4gpu.toml")
    assert cli.main(["plan-training", path]) == 0
    shown = capsys.readouterr().out
    assert "2,851,598,336" in shown and "assumed: 35% of 989 TFLOP/s" in shown
    assert cli.main(["plan-training", path, "--gpus", "2", "--gpu-memory", "24"]) == 2
    told = capsys.readouterr().err
    assert "GiB of each GPU, and 24 GiB less 8% are there" in told
    assert "zero2.json" in told and told.count("\n") == 1
    plain = str(ROOT / "runners" / "configs" / "t5-3b-1gpu.toml")
    assert cli.main(["plan-training", plain, "--gpus", "2"]) == 2
    assert "2 GPUs need DeepSpeed" in capsys.readouterr().err
    assert cli.main(["plan-training", plain, "--gpus", "0"]) == 2
    assert "--gpus" in capsys.readouterr().err


def test_a_model_that_is_not_known_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shape is not known without its config"):
        shape("someone/else")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}', "utf-8")
    with pytest.raises(UserError, match="`model_type` is 'mamba'"):
        shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 8}', "utf-8")
    with pytest.raises(UserError, match="has no 'd_ff'"):
        shape(str(tmp_path))


def test_the_family_has_to_be_the_models(tmp_path: Path) -> None:
    raw = {
        "model": {"family": "encoder", "init": "google-t5/t5-base"},
        "data": {"train": [{"task": "cb", "source": "nowhere"}]},
        "training": {"examples": 8},
    }
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(raw), "utf-8")
    with pytest.raises(UserError, match=r"`model.family` is encoder, and .* encoder-decoder"):
        plan_run(load_train_config(path), Machine())


def test_planning_needs_no_torch() -> None:
    script = (
        "import sys; from targen_async import cli; "
        "code = cli.main(['plan-training', 'runners/configs/t5-3b-8gpu.toml']); "
        "sys.exit(code or 10 * ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_the_table_of_the_docs_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ("-tiny", "-minilm")
    names = [path.name for path in CONFIGS if not path.stem.endswith(small)]
    paths = [str(ROOT / "runners" / "configs" / name) for name in sorted(names)]
    assert cli.main(["plan-training", "--table", *paths]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == len(paths) + 2
    assert table in (ROOT / "docs" / "training.md").read_text("utf-8")


def test_the_peaks_are_found_by_the_drivers_names() -> None:
    assert peak_of("NVIDIA H200") == peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA A10") == 125e12
    assert peak_of("cpu") is None


SLURM = {
    "scontrol": 'test "$*" = "show hostnames gpu[3-4]"; echo gpu3; echo gpu4',
    "targen": 'echo "$*" >> "$TOLD/plan"',
    # As Slurm does: options first, then a task a rank, numbered over all nodes and on its own.
    "srun": """while [ "${1#--}" != "$1" ]; do echo "$1" >> "$TOLD/options"; shift; done
for n in $(seq 0 15); do
  SLURM_PROCID=$n SLURM_LOCALID=$((n % 8)) "$@" & echo $! > "$TOLD/task-$n"; wait $!
done""",
    "python": """> "$TOLD/rank-$SLURM_PROCID" echo "$$ $RANK $LOCAL_RANK $WORLD_SIZE" \\
  "$MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS $*" """,
}
"""What the script calls, by programs that write down how they were called."""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_slurm_script_starts_every_rank_as_a_task_of_its_own(tmp_path: Path) -> None:
    path = ROOT / "runners" / "two-nodes.slurm"
    for name, body in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\nset -eu\n{body}\n", "utf-8")
        (tmp_path / name).chmod(0o755)
    asked = dict(
        line.removeprefix("#SBATCH --").split("=")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    ranks = int(asked["nodes"]) * int(asked["ntasks-per-node"])
    assert ranks == 16 and asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"] == "TERM@600"  # To the tasks; with `B:` it would be the script's alone.
    told = subprocess.run(
        ["bash", str(path)],
        cwd=ROOT,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TOLD": str(tmp_path),
            "SLURM_JOB_ID": "123457",
            "SLURM_JOB_NODELIST": "gpu[3-4]",
            "SLURM_NTASKS": str(ranks),
            "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    config = "runners/configs/t5-3b-8gpu.toml"
    assert (ROOT / config).is_file()
    assert (tmp_path / "plan").read_text("utf-8") == f"plan-training {config} --gpus 16\n"
    for number in range(ranks):
        task = (tmp_path / f"task-{number}").read_text("utf-8").strip()
        # The rank is Slurm's own process: a shell between them would keep its signals.
        assert (tmp_path / f"rank-{number}").read_text("utf-8") == (
            f"{task} {number} {number % 8} 16 gpu3 23457 8 "
            f"runners/train.py --config {config} --out runs/t5-3b\n"
        )


@pytest.mark.parametrize(
    ("family", "size"),
    [(family, name) for family, name in ALL if name.startswith("tiny")],
    ids=lambda value: value,
)
def test_adapters_are_counted_as_they_are_put_in(family: str, size: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    from msgspec import convert

    from targen_async.finetune import models
    from targen_async.finetune.config import Lora, ModelChoice
    from targen_async.finetune.lora import add_lora

    choice = convert({"family": family, "size": size, "vocabulary": 512}, ModelChoice)
    network = models._auto(choice.family).from_config(models._config(choice, 512, ("a", "b")))
    lora = Lora(rank=5)
    add_lora(models.Model(family=choice.family, network=network, tokenizer=None), lora)
    learnt = sum(value.numel() for value in network.parameters() if value.requires_grad)
    assert learnt == learnt_with(lora, shape("config", family, size=size, vocabulary=512), 2)
    with pytest.raises(UserError, match="adapters of 'wide' cannot be planned"):
        learnt_with(Lora(target=("wide",)), shape("config", family, size=size), 2)
