"""kill -9 at any moment: the same shards, nothing paid twice beyond what was in flight."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.running import NOISY, command, digest, manifest, shard_bytes, simulator, targen, wait_for

LATENCY = {"latency_ms": 30, "latency_sigma": 1.0}


def killed_run(flags: tuple[object, ...], kills: int, span_s: float, random_seed: int) -> int:
    """Start the command again and again, killing it at random moments; returns how often it was."""
    moments = random.Random(random_seed)
    done = 0
    for _ in range(kills):
        run = subprocess.Popen(
            command("generate", *flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            run.wait(moments.uniform(0.3, span_s))
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            done += 1
    return done


@pytest.mark.slow
def test_trap_19_twenty_kills_leave_the_shards_byte_identical(tmp_path: Path) -> None:
    with simulator(**NOISY, **LATENCY) as endpoint:
        whole = ("copa", "-n", 2000, "--quiet", *endpoint.flags, "--out", tmp_path / "whole")
        started = time.monotonic()
        assert targen("generate", *whole).returncode == 0
        span_s = 0.5 + 1.2 * (time.monotonic() - started) / 20
    with simulator(**NOISY, **LATENCY) as endpoint:
        flags = ("copa", "-n", 2000, "--quiet", *endpoint.flags, "--out", tmp_path / "killed")
        kills = killed_run(flags, 20, span_s, random_seed=1)
        assert kills >= 12
        end = targen("generate", *flags)
        assert end.returncode == 0, end.stderr
        served = endpoint.stats()
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    calls, unbroken = manifest(tmp_path / "killed")["calls"], manifest(tmp_path / "whole")["calls"]
    assert calls["served"] <= served["served"] <= calls["served"] + calls["in_doubt"]
    assert calls["in_doubt"] <= 64 * kills
    assert calls["served"] <= unbroken["served"] + 64, "answers in the journal were asked for again"


@pytest.mark.parametrize("task", ["boolq", "cb"])
def test_kills_with_siblings_votes_and_several_shards(tmp_path: Path, task: str) -> None:
    common = (task, "-n", 240, "--votes", 3, "--set", "delivery.rows_per_shard=50", "--quiet")
    with simulator(**NOISY, **LATENCY) as endpoint:
        whole = (*common, *endpoint.flags, "--out", tmp_path / "whole")
        assert targen("generate", *whole).returncode == 0
        flags = (*common, *endpoint.flags, "--out", tmp_path / "killed")
        assert killed_run(flags, 8, 0.8, random_seed=2) >= 3
        assert targen("generate", *flags).returncode == 0
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "killed").glob("instances-*"))
    assert names == [f"instances-{index:05d}.jsonl" for index in range(5)]
    told = [manifest(tmp_path / name) for name in ("killed", "whole")]
    for key in ("balance", "transitions", "rejected", "failed", "wasted", "shards", "surplus"):
        assert told[0][key] == told[1][key], key


def test_trap_18_tokens_over_three_starts_equal_the_servers_count(tmp_path: Path) -> None:
    """Stopped politely, so that nothing is in doubt: every token is in the ledger exactly once."""
    with simulator(**NOISY, latency_ms=40) as endpoint:
        flags = ("cb", "-n", 600, "--quiet", "--max-in-flight", 8, *endpoint.flags)
        flags += ("--out", tmp_path / "run")
        for _ in range(2):
            run = subprocess.Popen(
                command("generate", *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            enough = endpoint.stats()["served"] + 100
            wait_for(lambda enough=enough: endpoint.stats()["served"] >= enough)
            run.send_signal(signal.SIGINT)
            _, said = run.communicate(timeout=30)
            assert run.returncode == 130
            assert b"goes on from here" in said
        assert targen("generate", *flags).returncode == 0
        served = endpoint.stats()
    told = manifest(tmp_path / "run")
    assert told["calls"]["in_doubt"] == 0
    assert told["calls"]["served"] == served["served"]
    assert told["spent"]["prompt_tokens"] == served["prompt_tokens"]
    assert told["spent"]["completion_tokens"] == served["completion_tokens"]


def test_ctrl_c_twice_stops_at_once_and_the_run_resumes(tmp_path: Path) -> None:
    with simulator(stall_rate=1.0, stall_s=20.0) as slow:
        flags = ("copa", "-n", 30, *slow.flags, "--out", tmp_path / "run")
        run = subprocess.Popen(command("generate", *flags), stderr=subprocess.PIPE)
        wait_for(lambda: slow.stats()["in_flight"])
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.poll() is None, "the first Ctrl-C waits for calls under way"
        started = time.monotonic()
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=10)
        assert time.monotonic() - started < 5
        assert run.returncode == 130
    with simulator() as quick:
        flags = ("copa", "-n", 30, *quick.flags, "--out", tmp_path / "run")
        assert targen("generate", *flags).returncode == 0
    assert manifest(tmp_path / "run")["calls"]["in_doubt"] >= 1


def test_calls_that_do_not_come_back_are_abandoned_after_the_drain(tmp_path: Path) -> None:
    with simulator(stall_rate=1.0, stall_s=30.0) as endpoint:
        flags = ("--set", "delivery.drain_s=1", *endpoint.flags, "--out", tmp_path / "run")
        run = subprocess.Popen(command("generate", "copa", *flags), stderr=subprocess.DEVNULL)
        wait_for(lambda: endpoint.stats()["in_flight"])
        started = time.monotonic()
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
        assert 0.8 < time.monotonic() - started < 5
    assert manifest(tmp_path / "run")["calls"]["in_doubt"] == 1


def test_sigterm_drains_like_ctrl_c(tmp_path: Path) -> None:
    with simulator(latency_ms=50) as endpoint:
        flags = ("copa", "-n", 2000, "--quiet", *endpoint.flags, "--out", tmp_path / "run")
        run = subprocess.Popen(command("generate", *flags), stderr=subprocess.DEVNULL)
        time.sleep(1.5)
        run.send_signal(signal.SIGTERM)
        assert run.wait(20) == 130
        assert manifest(tmp_path / "run")["state"] == "stopped"
        assert manifest(tmp_path / "run")["calls"]["in_doubt"] == 0
