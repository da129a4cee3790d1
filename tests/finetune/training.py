"""Small runs of training, in this process and in one of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "runners" / "train.py"
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FAMILIES = ("encoder", "encoder-decoder", "decoder")


def settings(family: str, source: Path, task: str = "cb", **training: Any) -> dict[str, Any]:
    """A tiny model of a family, without dropout."""
    return {
        "model": {"family": family, "vocabulary": 600, "max_source": 96, "dropout": 0.0},
        "data": {"train": [{"task": task, "source": str(source)}]},
        "training": {"examples": 8, "learning_rate": 1e-3, **training},
    }


def begun_from(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same with a model that is there, which has a vocabulary and a dropout of its own."""
    model = {k: v for k, v in raw["model"].items() if k not in ("vocabulary", "dropout")}
    return raw | {"model": model | {"init": str(folder)}}


def write_config(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(raw), "utf-8")
    return path


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, str(RUNNER), "--config", str(config), "--out", str(out)]


def environment() -> dict[str, str]:
    """Without what this process says of its own rank, if it has been one."""
    own = {k: v for k, v in os.environ.items() if k not in _LAUNCHERS}
    return {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(config: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(config, out), env=environment(), capture_output=True, text=True, timeout=240
    )


def curve(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the machine decides."""
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    timed = ("seconds", "memory_gib", "mfu")
    return [{k: v for k, v in line.items() if k not in timed} for line in found]
