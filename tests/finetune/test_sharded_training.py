"""Ranks under DeepSpeed, on this machine over gloo: what one process of plain torch does, they do.

Processes start slowly, so a few launches make many runs in turn: two ranks that train everything
and are killed in their last run; two that go on and of which one dies; one that goes on alone.
"""

import json
import shutil
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install '.[train]'")
if shutil.which("g++") is None:
    pytest.skip(
        "DeepSpeed compiles for ranks on a CPU, and g++ is missing", allow_module_level=True
    )

import torch
from safetensors.torch import load_file, save_file

from targen_async.finetune.config import TrainConfig
from targen_async.finetune.loop import train
from targen_async.finetune.models import open_model
from targen_async.finetune.room import checkpoint_bytes
from tests.finetune.grammars import grammar_run
from tests.finetune.launches import (
    Job,
    ended,
    kill,
    said,
    start_jobs,
    wait_for_steps,
    with_stage,
)
from tests.finetune.made import write_lines
from tests.finetune.training import FAMILIES, begun_from, curve, settings, write_config

# A first start compiles an operator, which takes a minute of one core.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STAGES = range(4)
STEPS, STOP = 6, 3
ADAPTED = (2, 3) if find_spec("peft") else ()


class Bench:
    """Runs by name, in folders of their own, on the same rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = grammar_run(folder / "cb", "cb", 96)
        self.jobs: dict[str, Job] = {}

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def raw(self, family: str, **training: Any) -> dict[str, Any]:
        return settings(family, self.rows, **{"steps": STEPS, "save_every": 2, **training})

    def add(self, name: str, raw: Mapping[str, Any], stage: int, stop: int | None = None) -> Job:
        made = with_stage(dict(raw), self.folder, stage)
        config = write_config(self.folder / f"{name}.toml", made)
        self.jobs[name] = Job(config, self[name], stop)
        return self.jobs[name]

    def alone(self, name: str, raw: Mapping[str, Any]) -> Path:
        """One process of plain torch: this one."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        train(msgspec.convert(raw, TrainConfig), self[name], say=lambda _: None)
        torch.set_num_threads(before)
        return self[name]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """After three launches; what they left is what the tests look at."""
    made = Bench(tmp_path_factory.mktemp("sharded"))
    flan = untied_t5(made)
    for name, (raw, _) in refused(made).items():
        made.add(name, raw, 1)
    made.add("measured", measured(made), 2)
    for stage in ADAPTED:
        made.add(f"adapted-{stage}", adapters(made), stage)
    for stage in STAGES:
        for family in FAMILIES:
            made.add(f"{family}-{stage}", made.raw(family), stage)
        raw = made.raw("encoder-decoder", learning_rate=1e-12, steps=1)
        made.add(f"untied-{stage}", begun_from(raw, flan), stage)
        wet = made.raw("encoder")
        wet["model"] |= {"dropout": 0.1}
        made.add(f"whole-{stage}", wet, stage)
        if stage < 3:
            made.add(f"stopped-{stage}", wet, stage, STOP)
        made.add(f"fewer-{stage}", made.raw("encoder"), stage, STOP)
    killed = made.add("stopped-3", wet | {"training": {**wet["training"], "save_every": 2}}, 3, -5)

    ranks = start_jobs(list(made.jobs.values()), 2, made["first.json"])
    wait_for_steps(killed.out, 5, ranks)
    kill(ranks)
    for job in made.jobs.values():
        job.stop = None

    more = [made.jobs[f"stopped-{stage}"] for stage in STAGES]
    dying = made.add("dying", made.raw("encoder", steps=100_000, save_every=5), 2)
    ranks = start_jobs([*more, dying], 2, made["second.json"])
    wait_for_steps(dying.out, 12, ranks)
    ranks[1].kill()
    began = time.monotonic()
    made.last_words = ranks[0].communicate(timeout=120)[0]
    made.outlived = time.monotonic() - began
    made.code = ranks[0].returncode
    ranks[1].communicate()

    ended(start_jobs([made.jobs[f"fewer-{n}"] for n in STAGES], 1, made["third.json"]))
    return made


def untied_t5(bench: Bench) -> Path:
    """A T5 with an lm_head of its own, as T5 v1.1 and Flan-T5 have, in two files as large ones."""
    folder = bench.alone("tied", bench.raw("encoder-decoder", steps=1)) / "model"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["shared.weight"] * 0.5 + 0.01
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    parts = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": head}
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"})
    places = {tensor: name for name, part in parts.items() for tensor in part}
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}), "utf-8")
    return folder


def adapters(bench: Bench) -> dict[str, Any]:
    """A decoder that one process has begun, with adapters from there on."""
    if not bench["begun"].exists():
        bench.alone("begun", bench.raw("decoder", steps=1))
    return begun_from(bench.raw("decoder"), bench["begun"] / "model") | {"lora": {}}


def refused(bench: Bench) -> dict[str, tuple[dict[str, Any], str]]:
    """What cannot be run on two ranks, and what each of them says."""
    strange = made_label(bench)
    return {
        "crowded": (
            bench.raw("encoder", examples=102, accumulation=51),
            "UserError: 96 examples are too few for 102 batches a step (ranks ",
        ),
        "mislabelled": (
            settings("encoder", strange, steps=STEPS),
            f"UserError: {strange}/CB/train.jsonl:1: ",
        ),
        "roomless": (
            bench.raw("encoder", keep=10_000_000),
            f"RunStopped: {bench['roomless']}: 10000001 checkpoints and the model take ",
        ),
    }


def made_label(bench: Bench) -> Path:
    row = {"premise": "A.", "hypothesis": "B.", "label": "maybe", "idx": 0}
    return write_lines(bench["strange"] / "CB" / "train.jsonl", row).parents[1]


def measured(bench: Bench) -> dict[str, Any]:
    """At a rate of nothing: the first evaluation is never bettered, and the second ends the run."""
    more = {"evaluate_every": 2, "patience": 1, "learning_rate": 1e-9}
    raw = bench.raw("encoder", **more)
    return raw | {"data": raw["data"] | {"held_out": 0.2}}


def same_curves(one: Path, two: Path, later: float = 1e-3) -> None:
    """The first step to rounding; then AdamW, which divides by small numbers, lets it grow."""
    for number, (a, b) in enumerate(zip(curve(one), curve(two), strict=True)):
        assert a["loss"] == pytest.approx(b["loss"], rel=later if number else 1e-5)
        assert a["gradient_norm"] == pytest.approx(
            b["gradient_norm"], rel=10 * later if number else 1e-4
        )
        assert [a["step"], a["tokens"]] == [b["step"], b["tokens"]]


@pytest.fixture(scope="module")
def alone(bench: Bench) -> dict[str, Path]:
    """Of each family: the same steps in one process of plain torch, of one batch and of two."""
    for family in FAMILIES:
        bench.alone(f"{family}-8", bench.raw(family))
        bench.alone(f"{family}-4x2", bench.raw(family, accumulation=2))
    return {name: bench[name] for family in FAMILIES for name in (f"{family}-8", f"{family}-4x2")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_and_two_batches_have_the_curve_of_one_batch(
    family: str, stage: int, bench: Bench, alone: Mapping[str, Path]
) -> None:
    """Loss and gradient norm from the first step on; transformers' Trainer multiplies both."""
    same_curves(alone[f"{family}-8"], alone[f"{family}-4x2"])
    same_curves(alone[f"{family}-8"], bench[f"{family}-{stage}"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_of_every_stage_has_the_same_weights(
    family: str, bench: Bench, alone: Mapping[str, Path]
) -> None:
    wanted = load_file(alone[f"{family}-8"] / "model" / "model.safetensors")
    for stage in STAGES:
        found = load_file(bench[f"{family}-{stage}"] / "model" / "model.safetensors")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert (found[name] - value).abs().mean() < 2e-5, (stage, name)


@pytest.mark.parametrize("stage", STAGES)
def test_the_room_that_is_looked_for_is_what_a_checkpoint_takes(stage: int, bench: Bench) -> None:
    """But for a few kilobytes a file, which only a tiny model notices."""
    out = bench[f"encoder-decoder-{stage}"]
    parameters = sum(v.numel() for v in load_file(out / "model" / "model.safetensors").values())
    [*_, newest] = sorted((out / "checkpoints").iterdir())
    found = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    assert (
        0.7 * checkpoint_bytes(parameters, True) < found < 1.1 * checkpoint_bytes(parameters, True)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_an_lm_head_of_its_own_survives(stage: int, bench: Bench) -> None:
    source, path = bench["tied"] / "model", bench[f"untied-{stage}"] / "model"
    parts = [load_file(file) for file in sorted(source.glob("*.safetensors"))]
    before = parts[0] | parts[1]
    after = load_file(path / "model.safetensors")
    for name in ("lm_head.weight", "shared.weight"):
        assert torch.allclose(before[name], after[name], atol=1e-6), name
    assert not torch.allclose(after["lm_head.weight"], after["shared.weight"], atol=1e-3)
    head = open_model(str(path)).network.get_output_embeddings().weight
    assert torch.allclose(head, before["lm_head.weight"], atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_go_on_where_they_stopped_or_were_killed(stage: int, bench: Bench) -> None:
    """With dropout: each rank has its random numbers back. Those of stage 3 were killed."""
    step = 4 if stage == 3 else STOP
    assert f"going on from step {step} of {STEPS}" in said(bench[f"stopped-{stage}"])
    same_curves(bench[f"whole-{stage}"], bench[f"stopped-{stage}"], 1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_one_rank_goes_on_where_two_stopped(stage: int, bench: Bench) -> None:
    """Exactly: the same batches, and Adam's moments put together again."""
    told = said(bench[f"fewer-{stage}"])
    assert ("was written by 2 ranks, and is converted for 1" in told) == bool(stage)
    assert f"going on from step {STOP} of {STEPS}" in told
    same_curves(bench[f"encoder-{stage}"], bench[f"fewer-{stage}"], 1e-5)
    assert not bench[f"fewer-{stage}"].joinpath("universal").exists()


def test_of_zero_3_it_is_refused_before_a_model_is_built(bench: Bench) -> None:
    told = said(bench["fewer-3"])
    assert told.startswith("UserError: ") and "\n" not in told
    assert "was written by 2 ranks under ZeRO-3" in told and "lose Adam's step count" in told


def test_a_rank_that_dies_ends_the_other_with_the_reason(bench: Bench) -> None:
    """Nobody else would end it: the ranks were started by hand."""
    assert bench.code == 1 and bench.outlived < 30
    last = bench.last_words.strip().splitlines()[-1]
    assert last.startswith("rank 1 died without a word"), bench.last_words[-2000:]


@pytest.mark.skipif(not ADAPTED, reason="peft is not installed: pip install '.[lora]'")
def test_adapters_on_two_ranks_come_to_the_weights_of_one_process(bench: Bench) -> None:
    one = bench.alone("adapted", adapters(bench))
    wanted = load_file(one / "model" / "model.safetensors")
    for stage in ADAPTED:
        same_curves(one, bench[f"adapted-{stage}"])
        found = load_file(bench[f"adapted-{stage}"] / "model" / "model.safetensors")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert (found[name] - value).abs().mean() < 2e-5, (stage, name)


@pytest.mark.parametrize("name", ["crowded", "mislabelled", "roomless"])
def test_what_cannot_be_run_is_told_and_no_rank_waits(name: str, bench: Bench) -> None:
    _, sentence = refused(bench)[name]
    for rank in (0, 1):
        told = said(bench[name], rank)
        assert told.startswith(sentence) and "\n" not in told
    assert not (bench[name] / "metrics.jsonl").exists()


def test_two_ranks_measure_and_end_early_as_one_process_does(bench: Bench) -> None:
    one, two = bench.alone("measured-alone", measured(bench)), bench["measured"]
    same_figures(one, two)
    assert [line["step"] for line in curve(two)] == [1, 2, 2, 3, 4, 4]
    cards = [(out / "model" / "README.md").read_text("utf-8") for out in (one, two)]
    assert all("- weights: of step 2, the best of the evaluations" in card for card in cards)
    assert said(two, 1) == ""


def same_figures(one: Path, two: Path) -> None:
    for a, b in zip(curve(one), curve(two), strict=True):
        assert a["step"] == b["step"]
        assert a.get("evaluation") == b.get("evaluation")
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-5)
