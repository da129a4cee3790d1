"""Rows made anew out of the journal: a retry, a reparse, a changed task. What is asked, and what
stands where, as the simulated endpoint counts it."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from targen_async.tasks import prompts_root
from tests.running import (
    MODEL,
    Endpoint,
    command,
    digest,
    lines,
    manifest,
    rows,
    shard_bytes,
    simulator,
    targen,
)


def own(tmp_path: Path, name: str = "cb") -> Path:
    """A copy of a shipped task that a test may edit."""
    return Path(shutil.copytree(prompts_root() / name, tmp_path / name))


def edit(file: Path, pattern: str, to: str) -> None:
    text, count = re.subn(pattern, to, file.read_text("utf-8"), count=1)
    assert count == 1, f"{pattern} is not in {file}"
    file.write_text(text, "utf-8")


def asked(endpoint: Endpoint) -> dict[str, int]:
    return dict(endpoint.stats()["by_stage"])


def made(task: Path, out: Path, endpoint: Endpoint, n: int = 120) -> dict[str, Any]:
    done = targen("generate", task, "-n", n, "--out", out, *endpoint.flags, "--quiet")
    assert done.returncode == 0, done.stderr
    return manifest(out)


def test_a_retry_asks_only_for_what_failed_and_keeps_all_other_rows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(malformed=0.35, label_noise=0.1) as endpoint:
        before = made(own(tmp_path), out, endpoint, 300)
        lost = before["failed"]["instances.malformed"]
        assert lost >= 3, "the noise of this test brought no failure; choose another seed"
        kept = {row["key"]: row for row in rows(out)}
        counted = asked(endpoint)
        done = targen("retry", out, "--quiet")
        assert done.returncode == 0, done.stderr
        again = {stage: n - counted[stage] for stage, n in asked(endpoint).items()}
        assert again["contexts"] == again["seeds"] == 0
        # One to three askings a row that had failed, and one block for each that came.
        assert lost <= again["instances"] <= 3 * lost
        assert again["correction"] <= 3 * lost
        after = manifest(out)
        assert after["state"] == "complete" and after["delivered"] == 300
        assert after["failed"].get("instances.malformed", 0) < lost
        assert after["calls"]["served"] == endpoint.stats()["served"]
        assert after["generation"] == 1
        assert after["identity_broken_by"] == ["calls that had failed were made again"]
        same = [row for row in rows(out) if kept.get(row["key"]) == row]
        assert len(same) >= 300 - lost
        assert not (out / "next").exists()
        # Nothing is left to be asked: a start and another retry answer out of the journal.
        counted, bytes_ = asked(endpoint), digest(out)
        assert targen("generate", "--out", out, "--quiet").returncode == 0
        assert (asked(endpoint), digest(out)) == (counted, bytes_)
        assert manifest(out)["identity_broken_by"] == after["identity_broken_by"]


def test_a_changed_validator_needs_a_reparse_and_no_call(tmp_path: Path) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator(label_noise=0.1, malformed=0.05) as endpoint:
        made(task, out, endpoint)
        before = rows(out)
        lengths = sorted(len(row["premise"].split()) for row in before)
        most = lengths[len(lengths) * 9 // 10]
        edit(task / "task.toml", r"words = \[8, 140\]", f"words = [8, {most}]")
        counted = asked(endpoint)
        done = targen("reparse", out, "--quiet")
        assert asked(endpoint) == counted
        told = manifest(out)
        short = [row for row in before if len(row["premise"].split()) <= most]
        assert told["rejected"]["instances.invalid"] >= len(before) - len(short) > 0
        kept = {row["key"]: row for row in rows(out)}
        # What was said of a row stands, although its block lost a member.
        assert all(kept[row["key"]] == row for row in short)
        assert all(len(row["premise"].split()) <= most for row in kept.values())
        assert not any(failure["kind"] == "needs_call" for failure in lines(out / "failures.jsonl"))
        assert (told["state"] == "complete") == (done.returncode == 0)
        # The rows that are missing now are made by going on.
        done = targen("generate", "--out", out, "--quiet")
        assert done.returncode == 0, done.stderr
        assert manifest(out)["delivered"] == 120
        assert asked(endpoint)["contexts"] == counted["contexts"]


def test_a_reparse_takes_place_without_an_endpoint_or_a_key(tmp_path: Path) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator() as endpoint:
        made(task, out, endpoint, 30)
        before = shard_bytes(out)
    done = targen("reparse", out, "--quiet", timeout_s=30)
    assert done.returncode == 0, done.stderr
    assert shard_bytes(out) == before


def test_a_changed_comment_asks_for_nothing(tmp_path: Path) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator() as endpoint:
        made(task, out, endpoint, 30)
        counted, before = asked(endpoint), shard_bytes(out)
        edit(task / "instances.neutral.txt", r"^## .*", "## Another remark.")
        (task / "task.toml").write_text("# A remark.\n" + (task / "task.toml").read_text("utf-8"))
        assert targen("generate", task, "--out", out, *endpoint.flags, "-n", 30).returncode == 0
        assert (asked(endpoint), shard_bytes(out)) == (counted, before)


@pytest.mark.parametrize(
    ("file", "asked_again"),
    [
        ("seeds.txt", {"seeds", "instances", "correction"}),
        ("instances.neutral.txt", {"instances", "correction"}),
        ("correction.txt", {"correction"}),
    ],
)
def test_a_changed_template_asks_again_for_what_it_changed(
    tmp_path: Path, file: str, asked_again: set[str]
) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator(task_folders=[str(task)]) as endpoint:
        made(task, out, endpoint, 60)
        old, port = {row["key"]: row for row in rows(out)}, endpoint.port
    edit(task / file, r"We are building a data set\.", "We build a data set.")
    with simulator(port, task_folders=[str(task)]) as endpoint:
        flags = ("generate", task, "--out", out, *MODEL, "--base-url", endpoint.url, "-n", 60)
        refused = targen(*flags)
        assert refused.returncode == 2 and "--accept-task-change" in refused.stderr
        done = targen(*flags, "--accept-task-change", "--quiet")
        assert done.returncode == 0, done.stderr
        stages = asked(endpoint)
    assert {stage for stage in stages if stage != "other"} == asked_again
    if file == "instances.neutral.txt":
        # Only the rows of that label were to be written anew: a third of them.
        assert 20 <= stages["instances"] <= 24
    told = manifest(out)
    assert told["delivered"] == 60 and told["generation"] == 1
    if file == "correction.txt":
        assert {row["key"] for row in rows(out)} == set(old)
        assert stages["correction"] < 15


def test_the_old_rows_stand_until_the_new_ones_are_complete_whenever_it_is_killed(
    tmp_path: Path,
) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator(task_folders=[str(task)]) as endpoint:
        made(task, out, endpoint, 200)
        old, port = shard_bytes(out), endpoint.port
    edit(task / "correction.txt", r"We are building a data set\.", "We build a data set.")
    flags = ("generate", task, "--out", out, *MODEL, "-n", 200, "--accept-task-change", "--quiet")
    with simulator(port, task_folders=[str(task)], latency_ms=150) as endpoint:
        more = ("--base-url", endpoint.url, "--max-in-flight", 1)
        for _ in range(3):
            child = subprocess.Popen(command(*flags, *more), stderr=subprocess.DEVNULL)
            time.sleep(1.1)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            assert shard_bytes(out) == old
        done = targen(*flags, *more)
        assert done.returncode == 0, done.stderr
        served = manifest(out)["calls"]
        assert served["served"] + served["in_doubt"] >= endpoint.stats()["served"]
    assert len(rows(out)) == 200 and not (out / "next").exists()
    template = {row["provenance"]["templates"]["correction"] for row in rows(out)}
    assert len(template) == 1
