"""Every tiny configuration trains as it is, and the benches of training run to their end."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async.finetune.config import load_train_config
from tests.finetune.grammars import grammar_run
from tests.finetune.training import ROOT, command, environment

TWINS = sorted((ROOT / "runners" / "configs").glob("*-tiny.toml"))


@pytest.mark.long
@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_a_tiny_configuration_trains_as_it_is(path: Path, tmp_path: Path) -> None:
    training = load_train_config(path).training
    if training.deepspeed:
        pytest.importorskip("deepspeed")
        if shutil.which("g++") is None:
            pytest.skip("DeepSpeed compiles for ranks on a CPU, and g++ is missing")
    for source in load_train_config(path).data.train:
        grammar_run(tmp_path / source.source, source.task, 600)
    told = subprocess.run(
        command(path, tmp_path / "out"),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert told.returncode == 0, told.stderr
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_bytes().splitlines()
    ]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("training.py", "--rounds 1 --steps 3 --families encoder"),
        ("gpu_training.py", "--size tiny --device cpu --minutes 1 --most 4 --steps 1"),
    ],
)
def test_a_bench_of_training_runs(script: str, flags: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    told = subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *flags.split(), "--json", str(out)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(out.read_bytes())
    measured = found.get("measured") or [found["families"]["encoder"]]
    assert measured and "fault" not in measured[0]
    if script == "training.py":
        assert 0 < measured[0]["mfu"]["median"] < 1 and measured[0]["config"] == "encoder-tiny.toml"
