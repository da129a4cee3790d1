"""Two ranks on this machine under DeepSpeed: the same curve as one process of plain torch."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install '.[train]'")
if shutil.which("g++") is None:
    pytest.skip(
        "DeepSpeed compiles for ranks on a CPU, and g++ is missing", allow_module_level=True
    )

from tests.finetune.grammars import grammar_run
from tests.finetune.training import (
    FAMILIES,
    ROOT,
    command,
    curve,
    environment,
    run,
    settings,
    write_config,
)


def stage_file(folder: Path, stage: int) -> Path:
    """The shipped settings; of stage 3 every tensor is sharded, as small ones are not by default,
    which hides hangs of small models."""
    settings = json.loads((ROOT / "runners" / "deepspeed" / f"zero{stage}.json").read_text("utf-8"))
    if stage == 3:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(settings), "utf-8")
    return path


def launch(config: Path, out: Path) -> list["subprocess.Popen[str]"]:
    """Two ranks, as a launcher would start them; nothing outlives its kill."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # For ninja.
    return [
        subprocess.Popen(
            command(config, out),
            env=environment()
            | meeting
            | {"PATH": path, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]


def ended(ranks: list["subprocess.Popen[str]"]) -> str:
    """What rank 0 said, once both have ended well."""
    told = [rank.communicate(timeout=280)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)
    return told[0]


def made(folder: Path, family: str, **training: Any) -> dict[str, Any]:
    rows = folder / "cb"
    if not rows.exists():
        grammar_run(rows, "cb", 100)
    return settings(family, rows, **training)


def same_curves(one: Path, two: Path, tolerance: float) -> None:
    for a, b in zip(curve(one), curve(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=tolerance)
        # DeepSpeed has no norm at stage 0.
        assert b["gradient_norm"] is None or a["gradient_norm"] == pytest.approx(
            b["gradient_norm"], rel=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "stage"),
    [("encoder-decoder", 3)]
    + [
        pytest.param(family, stage, marks=pytest.mark.long)
        for family in FAMILIES
        for stage in range(4)
        if (family, stage) != ("encoder-decoder", 3)
    ],
)
def test_two_ranks_have_the_curve_of_one_process(family: str, stage: int, tmp_path: Path) -> None:
    plain = write_config(tmp_path / "plain.toml", made(tmp_path, family, steps=4))
    raw = made(tmp_path, family, steps=4, deepspeed=str(stage_file(tmp_path, stage)))
    assert run(plain, tmp_path / "one").returncode == 0
    ended(launch(write_config(tmp_path / "two.toml", raw), tmp_path / "two"))
    same_curves(tmp_path / "one", tmp_path / "two", 2e-5)
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()


@pytest.mark.long
@pytest.mark.parametrize("stage", range(4))
def test_two_killed_ranks_go_on_where_they_were(stage: int, tmp_path: Path) -> None:
    raw = made(tmp_path, "encoder", steps=24, save_every=5)
    raw["model"]["dropout"] = 0.1
    raw["training"]["deepspeed"] = str(stage_file(tmp_path, stage))
    config = write_config(tmp_path / "run.toml", raw)
    ended(launch(config, tmp_path / "whole"))
    ranks = launch(config, tmp_path / "broken")
    path, deadline = tmp_path / "broken" / "metrics.jsonl", time.monotonic() + 200
    while not path.is_file() or path.read_bytes().count(b"\n") < 13:
        assert ranks[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.communicate()
    assert "going on from step" in ended(launch(config, tmp_path / "broken"))
    same_curves(tmp_path / "whole", tmp_path / "broken", 1e-6)
