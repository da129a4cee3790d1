"""Ranks on this machine, started as a launcher would, but by hand: nobody ends the others."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.finetune.training import ROOT, environment


class Job:
    """A run of a launch: a configuration, its folder, and the step to stop at, if any; at a
    negative one it waits to be killed, so that a busy machine does not end it before."""

    def __init__(self, config: Path, out: Path, stop: int | None = None) -> None:
        self.config, self.out, self.stop = config, out, stop


def stage_file(folder: Path, stage: int) -> Path:
    """The shipped settings; of stage 3 every tensor is sharded, as small ones are not by default,
    which hides hangs of small models."""
    settings = json.loads((ROOT / "runners" / "deepspeed" / f"zero{stage}.json").read_text("utf-8"))
    if stage == 3:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(settings), "utf-8")
    return path


def start(arguments: list[str], count: int) -> list["subprocess.Popen[str]"]:
    """`python ARGUMENTS` as that many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment()
            | meeting
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def start_jobs(jobs: list[Job], count: int, file: Path) -> list["subprocess.Popen[str]"]:
    """All of them, in turn, by the same ranks."""
    told = [[str(job.config), str(job.out), job.stop] for job in jobs]
    file.write_text(json.dumps(told), "utf-8")
    return start(["-m", "tests.finetune.rank", str(file)], count)


def ended(ranks: list["subprocess.Popen[str]"], timeout: float = 600) -> list[str]:
    """What each said, once all have ended well."""
    told = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(told)[-5000:]
    return told


def wait_for_steps(out: Path, steps: int, ranks: list["subprocess.Popen[str]"]) -> None:
    """Until a run's curve has so many lines."""
    path, deadline = out / "metrics.jsonl", time.monotonic() + 600
    while not path.is_file() or path.read_bytes().count(b"\n") < steps:
        assert time.monotonic() < deadline
        for rank in ranks:
            assert rank.poll() is None, rank.communicate()[0][-5000:]
        time.sleep(0.005)


def kill(ranks: list["subprocess.Popen[str]"]) -> None:
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.communicate()


def said(out: Path, rank: int = 0) -> str:
    """What a rank said of its last start in a folder."""
    return (out / f"said-{rank}.txt").read_text("utf-8")


def with_stage(raw: dict[str, Any], folder: Path, stage: int) -> dict[str, Any]:
    training = raw["training"] | {"deepspeed": str(stage_file(folder, stage))}
    return raw | {"training": training}
