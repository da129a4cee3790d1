"""What the plain suite has a corner of, in full: kills, numbers of ranks, launchers. Long."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from tests.finetune.launches import (
    Job,
    ended,
    kill,
    said,
    start,
    start_jobs,
    wait_for_steps,
    with_stage,
)
from tests.finetune.made import write_lines
from tests.finetune.training import FAMILIES, ROOT, curve, environment, settings, write_config

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
RUNNER = str(ROOT / "runners" / "train.py")


class Runs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = grammar_run(folder / "cb", "cb", 96)

    def job(
        self,
        name: str,
        family: str,
        stage: int,
        stop: int | None = None,
        dropout: float = 0.0,
        **training: Any,
    ) -> Job:
        raw = settings(family, self.rows, **{"steps": 8, "save_every": 2, **training})
        raw["model"]["dropout"] = dropout
        raw["training"] = {k: v for k, v in raw["training"].items() if v is not None}
        config = write_config(self.folder / f"{name}.toml", with_stage(raw, self.folder, stage))
        return Job(config, self.folder / name, stop)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in curve(out)]


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_ranks_of_every_stage_go_on_where_they_were(family: str, runs: Runs) -> None:
    more: dict[str, Any] = {"dropout": 0.1, "steps": 16, "save_every": 5}
    whole = [runs.job(f"whole-{stage}", family, stage, **more) for stage in range(4)]
    broken = [runs.job(f"broken-{stage}", family, stage, -12, **more) for stage in range(4)]
    for job in broken:
        ranks = start_jobs([job], 2, runs.folder / "jobs.json")
        wait_for_steps(job.out, 12, ranks)
        kill(ranks)
        job.stop = None
    ended(start_jobs([*whole, *broken], 2, runs.folder / "jobs.json"))
    for one, two in zip(whole, broken, strict=True):
        assert "going on from step 10 of 16" in said(two.out)
        assert losses(two.out) == pytest.approx(losses(one.out), rel=1e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4), (4, 2)])
def test_other_numbers_of_ranks_go_on(before: int, after: int, runs: Runs) -> None:
    whole = [
        runs.job(f"whole-{family}-{stage}", family, stage)
        for family in FAMILIES
        for stage in range(3)
    ]
    moved = [
        runs.job(f"moved-{family}-{stage}", family, stage, 4)
        for family in FAMILIES
        for stage in range(3)
    ]
    ended(start_jobs([*whole, *moved], before, runs.folder / "jobs.json"))
    for job in moved:
        job.stop = None
    ended(start_jobs(moved, after, runs.folder / "jobs.json"))
    for one, two in zip(whole, moved, strict=True):
        assert "going on from step 4 of 8" in said(two.out)
        assert losses(two.out) == pytest.approx(losses(one.out), rel=1e-3), one.out.name


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bfloat16_goes_on_with_another_number_of_ranks(stage: int, runs: Runs) -> None:
    more: dict[str, Any] = {"precision": "bfloat16"}
    whole, moved = (
        runs.job("whole", "encoder-decoder", stage, **more),
        runs.job("moved", "encoder-decoder", stage, 4, **more),
    )
    ended(start_jobs([whole, moved], 2, runs.folder / "jobs.json"))
    moved.stop = None
    ended(start_jobs([moved], 1, runs.folder / "jobs.json"))
    assert losses(moved.out) == pytest.approx(losses(whole.out), rel=2e-2)


def test_batches_by_tokens_stay_those_of_the_first_start(runs: Runs) -> None:
    """A step keeps its four batches: with one rank as with two, and three cannot share them."""
    more: dict[str, Any] = {"tokens": 512, "examples": None, "accumulation": 2}
    whole, moved = (
        runs.job("whole", "encoder", 2, **more),
        runs.job("moved", "encoder", 2, 4, **more),
    )
    ended(start_jobs([whole, moved], 2, runs.folder / "jobs.json"))
    moved.stop = None
    ended(start_jobs([moved], 3, runs.folder / "jobs.json"))
    assert "has 4 batches of `training.tokens`, which cannot be dealt out to 3" in said(moved.out)
    ended(start_jobs([moved], 1, runs.folder / "jobs.json"))
    assert losses(moved.out) == pytest.approx(losses(whole.out), rel=1e-5)
    assert [a["tokens"] for a in curve(moved.out)] == [a["tokens"] for a in curve(whole.out)]


def test_a_conversion_that_was_cut_off_is_made_again(runs: Runs) -> None:
    whole, moved = runs.job("whole", "encoder", 2), runs.job("moved", "encoder", 2, 4)
    ended(start_jobs([whole, moved], 2, runs.folder / "jobs.json"))
    moved.stop = None
    half = moved.out / "universal" / "deepspeed" / "zero"
    half.mkdir(parents=True)
    (half / "left.pt").write_bytes(b"half")
    ended(start_jobs([moved], 1, runs.folder / "jobs.json"))
    assert losses(moved.out) == pytest.approx(losses(whole.out), rel=1e-5)
    assert not (moved.out / "universal").exists()


@contextmanager
def launched(launcher: list[str], job: Job) -> Iterator["subprocess.Popen[str]"]:
    """A launcher and its ranks in a group of their own, which nothing of outlives the test."""
    path = [sys.executable, *launcher, RUNNER, "--config", str(job.config), "--out", str(job.out)]
    with subprocess.Popen(
        path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


DEEPSPEED = ["-c", "from deepspeed.launcher.runner import main; main()", "--num_accelerators", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCHERS = {"deepspeed": [*DEEPSPEED, "--master_port", "29711"], "torchrun": TORCHRUN}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_sigterm_to_a_launcher_and_its_ranks_saves_within_its_grace(name: str, runs: Runs) -> None:
    """To all of them, as a scheduler sends it: alone, the `deepspeed` command passes none on."""
    job = runs.job("run", "encoder", 2, steps=100_000, save_every=50_000)
    with launched(LAUNCHERS[name], job) as child:
        wait_for_steps(job.out, 5, [child])
        os.killpg(child.pid, signal.SIGTERM)
        told = child.communicate(timeout=60)[0]
    assert "which is saved; the same command goes on" in told
    [path] = (job.out / "checkpoints").iterdir()
    assert (path / "COMPLETE").is_file() and int(path.name.removeprefix("step-")) >= 5


@pytest.mark.parametrize("name", LAUNCHERS)
def test_under_a_launcher_the_reason_of_a_death_is_told(name: str, runs: Runs) -> None:
    job = runs.job("run", "encoder", 2, steps=100_000, save_every=50_000)
    with launched(LAUNCHERS[name], job) as child:
        wait_for_steps(job.out, 5, [child])
        os.kill(_rank_of(str(job.out), 1), signal.SIGKILL)
        told = child.communicate(timeout=60)[0]
    assert child.returncode != 0 and "rank 1 died without a word" in told


def _rank_of(out: str, rank: int) -> int:
    """The process that trains into a folder as that rank."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            own = (path / "environ").read_bytes().split(b"\0")
            if words[-2:-1] == [out.encode()] and f"RANK={rank}".encode() in own:
                return int(path.name)
    raise AssertionError(f"no rank {rank} of {out}")


def test_a_rank_that_never_starts_is_named(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    job = runs.job("run", "encoder", 1)
    program = (
        "import sys; from targen_async.finetune import sharded; sharded.JOIN = 5.0;"
        f"sys.argv[0] = {RUNNER!r}; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = ["--config", str(job.config), "--out", str(job.out)]
    ranks = start(["-c", program, *flags], 2)
    ranks[1].kill()
    told = ranks[0].communicate(timeout=120)[0]
    ranks[1].communicate()
    last = told.strip().splitlines()[-1]
    assert last.startswith("train.py: the 2 ranks did not find each other: ")
    assert ranks[0].returncode == 1


def test_bad_input_on_two_ranks_is_one_sentence_of_the_first(runs: Runs) -> None:
    """A file that every rank reads for itself, and room, which the first one looks for."""
    row = {"premise": "A.", "hypothesis": "B.", "label": "maybe", "idx": 0}
    source = write_lines(runs.folder / "odd" / "CB" / "train.jsonl", row).parents[1]
    mislabelled = runs.job("mislabelled", "encoder", 2)
    config = mislabelled.config.read_text("utf-8").replace(str(runs.rows), str(source))
    mislabelled.config.write_text(config, "utf-8")
    roomless = runs.job("roomless", "encoder", 2, keep=10_000_000)
    for job, code, sentence in ((mislabelled, 2, ":1: "), (roomless, 1, "make room")):
        ranks = start([RUNNER, "--config", str(job.config), "--out", str(job.out)], 2)
        first, other = (rank.communicate(timeout=120)[0] for rank in ranks)
        assert [rank.returncode for rank in ranks] == [code, code], first + other
        assert [sentence in line for line in first.splitlines() if "train.py: " in line] == [True]
        assert "train.py: " not in other and "Traceback" not in first + other


def test_before_a_step_is_done_sigterm_ends_both_ranks_at_once(runs: Runs) -> None:
    """One of them may wait for the other in a collective, where it hears no signal."""
    job = runs.job("run", "encoder", 2, steps=100_000)
    ranks = start([RUNNER, "--config", str(job.config), "--out", str(job.out)], 2)
    deadline = time.monotonic() + 120
    while not (job.out / "config.json").is_file():
        assert time.monotonic() < deadline and ranks[0].poll() is None
        time.sleep(0.005)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    told = "".join(rank.communicate(timeout=60)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 1], told
    assert "stopped before a step was done" in told and "Traceback" not in told
    assert not (job.out / "checkpoints").exists()
