"""A run in a process of its own, killed in the middle: the same command ends as if it had not."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import (  # noqa: E402
    command,
    curve,
    environment,
    run,
    settings,
    write_config,
)


@pytest.mark.slow
def test_after_sigkill_and_sigterm_the_run_is_bit_for_bit_the_unbroken_one(tmp_path: Path) -> None:
    raw = settings("encoder-decoder", grammar_run(tmp_path / "cb", "cb", 120))
    raw["model"]["dropout"] = 0.1
    raw["training"] |= {"steps": 40, "save_every": 7, "random_seed": 3, "accumulation": 2}
    config = write_config(tmp_path / "run.toml", raw)
    whole = run(config, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr

    broken = tmp_path / "broken"
    _signal_at(signal.SIGKILL, 17, config, broken, -signal.SIGKILL)
    assert not (broken / "model").exists()
    for number, lines, code in ((signal.SIGTERM, 26, 1), (signal.SIGINT, 33, 130)):
        told = _signal_at(number, lines, config, broken, code)
        assert "which is saved; the same command goes on" in told and told.count("\n") == 1
    last = run(config, broken)
    assert last.returncode == 0, last.stderr
    assert "going on from step" in last.stdout

    assert curve(broken) == curve(tmp_path / "whole")
    name = "model/model.safetensors"
    assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _signal_at(number: int, lines: int, config: Path, out: Path, code: int) -> str:
    """Start the run and signal it once its curve has that many lines; what it said at last."""
    with subprocess.Popen(
        command(config, out),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    ) as child:
        path, deadline = out / "metrics.jsonl", time.monotonic() + 200
        while not path.is_file() or path.read_bytes().count(b"\n") < lines:
            assert child.poll() is None and time.monotonic() < deadline, child.communicate()[1]
            time.sleep(0.005)
        child.send_signal(number)
        told = child.communicate()[1]
    assert child.returncode == code, told
    return told
