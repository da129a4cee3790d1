"""The examples and the launch points do what they say, from a folder outside the checkout."""

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from targen_async.config import load
from targen_async.finetune.config import load_train_config
from tests.running import manifest, rows

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RUNNER = ROOT / "runners" / "generate.py"
SHIPPED = sorted((ROOT / "runners" / "configs").glob("*.toml"))
CONFIGS = [path for path in SHIPPED if "[training]" not in path.read_text("utf-8")]
TRAININGS = [path for path in SHIPPED if path not in CONFIGS]
MAX_RUNNER_LINES = 60


def run(
    script: Path, *arguments: object, cwd: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a script to its end, without a key and without a PYTHONPATH of the developer's own."""
    own = {n: v for n, v in os.environ.items() if n not in ("OPENAI_API_KEY", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=cwd,
        env=own | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def balance(out: Path) -> Counter[str]:
    return Counter(row["label"] for row in rows(out))


def test_no_example_is_left_out() -> None:
    tested = {"generate_copa.py", "async_progress.py", "own_task.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_generate_copa_makes_twenty_rows_and_a_second_start_asks_nothing(tmp_path: Path) -> None:
    done = run(EXAMPLES / "generate_copa.py", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SIMULATED")
    assert "20 rows in out" in done.stdout
    assert balance(tmp_path / "out") == {"choice1": 10, "choice2": 10}
    served = manifest(tmp_path / "out")["calls"]["served"]
    assert run(EXAMPLES / "generate_copa.py", "out", cwd=tmp_path).returncode == 0
    assert manifest(tmp_path / "out")["calls"]["served"] == served
    assert len(rows(tmp_path / "out")) == 20


def test_async_progress_tells_how_far_it_is(tmp_path: Path) -> None:
    done = run(EXAMPLES / "async_progress.py", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    steps = [line for line in told if line.endswith("in flight")]
    assert len(steps) > 1
    assert any(not line.endswith("0 calls, 0 in flight") for line in steps)
    assert told[-1] == "complete: 60 of 60 rows in out"
    assert set(balance(tmp_path / "out").values()) == {20}


def test_own_task_is_written_checked_and_generated(tmp_path: Path) -> None:
    done = run(EXAMPLES / "own_task.py", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert balance(tmp_path / "out" / "run") == {"bug": 10, "question": 10, "wish": 10}
    assert all(row["ticket"] for row in rows(tmp_path / "out" / "run"))
    assert {row["task"] for row in rows(tmp_path / "out" / "run")} == {"tickets"}


def test_a_launch_point_is_short_and_nothing_imports_it() -> None:
    for path in RUNNER.parent.glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= MAX_RUNNER_LINES, path
    for path in (ROOT / "targen_async").rglob("*.py"):
        text = path.read_text("utf-8")
        assert not re.search(r"^\s*(from|import)\s+runners\b", text, re.MULTILINE), path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_is_valid_and_sets_nothing_that_is_not_in_it(config: Path) -> None:
    loaded = load(config, {})
    # A line that is commented out to be used must fit too.
    commented = [
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line
        for line in config.read_text("utf-8").splitlines()
    ]
    raw = tomllib.loads("\n".join(commented))
    whole = load(None, [(part, raw[part]) for part in raw])
    assert whole.data == loaded.data
    assert whole != loaded


@pytest.mark.parametrize("config", TRAININGS, ids=lambda path: path.name)
def test_a_shipped_configuration_of_training_is_valid(config: Path) -> None:
    loaded = load_train_config(config)
    assert loaded.model.family in ("encoder", "encoder-decoder", "decoder")
    commands = [
        line for line in config.read_text("utf-8").splitlines() if "targen generate" in line
    ]
    # What is not generated is official: nobody but the user has it. Of several runs, the command of
    # one stands for all.
    made = [source.source for source in loaded.data.train if source.source != "superglue"]
    assert not made or any(source in " ".join(commands) for source in made)


def test_the_runner_makes_the_rows_of_its_configuration(tmp_path: Path) -> None:
    config = ROOT / "runners" / "configs" / "copa.toml"
    done = run(RUNNER, "--config", config, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("complete: 200 of 200 rows in out\n")
    assert balance(tmp_path / "out") == {"choice1": 100, "choice2": 100}


def test_the_runner_tells_a_mistake_in_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "wrong.toml"
    config.write_text('[data]\ntask = "copa"\n[delivery]\nrpm = 3\n', "utf-8")
    done = run(RUNNER, "--config", config, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "`rpm`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
