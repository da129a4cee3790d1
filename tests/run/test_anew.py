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
        new = {row["key"]: row for row in rows(out)}
        assert [key for key in kept if key in new and new[key] != kept[key]] == []
        # What is gone made room for rows that came now, and is kept for the day n is raised.
        known = {refused["key"] for refused in lines(out / "rejected.jsonl")}
        gone = [key for key in kept if key not in new]
        assert all(key in known or key > max(new) for key in gone)
        assert len(gone) <= 2 * lost
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


def test_a_retry_where_nothing_failed_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator() as endpoint:
        made(own(tmp_path), out, endpoint, 30)
        before, counted = shard_bytes(out), asked(endpoint)
        done = targen("retry", out)
        assert done.returncode == 0 and "nothing to ask for again" in done.stderr
        assert (shard_bytes(out), asked(endpoint)) == (before, counted)
    assert manifest(out)["generation"] == 0 and manifest(out)["identity_broken_by"] == []


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


def test_a_reparse_that_is_interrupted_leaves_the_rows_as_they_were(tmp_path: Path) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator() as endpoint:
        made(task, out, endpoint, 1500)
    before = shard_bytes(out)
    child = subprocess.Popen(command("reparse", out, "--quiet"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (out / "next" / "instances-00000.jsonl").exists():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode in (0, 130)
    assert child.returncode == 0 or "interrupted" in said
    assert shard_bytes(out) == before
    again = targen("generate", "--out", out)
    if again.returncode:
        # Ended before the last row; else the new rows only had to be put in their place.
        assert again.returncode == 2 and "let `targen reparse` finish it" in again.stderr
        assert targen("reparse", out, "--quiet").returncode == 0
    assert shard_bytes(out) == before
    assert manifest(out)["delivered"] == 1500 and manifest(out)["remaking"] is None


def test_shards_that_a_shorter_generation_does_not_have_are_gone(tmp_path: Path) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    flags = ("-n", 40, "--out", out, "--simulate", "--quiet")
    more = ("--set", "delivery.rows_per_shard=10")
    assert targen("generate", task, *flags, *more).returncode == 0
    edit(task / "task.toml", r"words = \[2, 25\]", "words = [6, 8]")
    done = targen("reparse", out, "--quiet")
    told = manifest(out)
    assert done.returncode == 1
    assert f"{40 - told['delivered']} rows are missing" in done.stderr
    assert told["state"] == "stopped" and told["reason"] == "all answers are read again"
    shards = sorted(path.name for path in out.glob("instances-*.jsonl"))
    assert shards == [shard["name"] for shard in told["shards"]]
    assert len(rows(out)) == told["delivered"] < 30
    assert targen("verify", out).returncode == 0


def test_a_half_finished_swap_is_finished_by_the_next_start(tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--set", "delivery.rows_per_shard=10", "--quiet", "--simulate")
    assert targen("generate", "cb", "-n", 40, "--out", out, *more).returncode == 0
    assert targen("reparse", out, "--quiet").returncode == 0
    before = shard_bytes(out)
    (out / "next").mkdir()
    for name in ("instances-00000.jsonl", "instances-00002.jsonl", "manifest.json"):
        (out / name).rename(out / "next" / name)
    (out / "instances-00009.jsonl").write_bytes(b"{}\n")
    assert targen("generate", "--out", out, "--quiet").returncode == 0
    assert shard_bytes(out) == before and not (out / "next").exists()


NOISE = {"label_noise": 0.15, "malformed": 0.3, "missing_ids": 0.5}


def test_a_retry_puts_judgements_again_that_did_not_fit_their_rows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(**NOISE) as endpoint:
        before = made(own(tmp_path), out, endpoint, 100)
        lost = sum(n for what, n in before["failed"].items() if what.startswith("correction"))
        assert lost, "no judgement failed; choose another seed"
        counted = asked(endpoint)["correction"]
        assert targen("retry", out, "--quiet").returncode == 0
        assert asked(endpoint)["correction"] > counted


@pytest.mark.parametrize("votes", [1, 3])
def test_after_a_retry_and_a_larger_n_files_are_made_again_without_a_call(
    tmp_path: Path, votes: int
) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator(**NOISE) as endpoint:
        flags = ("--out", out, *endpoint.flags, "--quiet", "--votes", votes)
        assert targen("generate", task, "-n", 80, *flags).returncode == 0
        assert targen("retry", out, "--quiet").returncode == 0
        assert targen("generate", "--out", out, "-n", 110, "--quiet").returncode == 0
        before, counted = shard_bytes(out), asked(endpoint)
        (out / "instances-00000.jsonl").unlink()
        done = targen("generate", "--out", out, "--quiet")
        assert done.returncode == 0, done.stderr
        assert (shard_bytes(out), asked(endpoint)) == (before, counted)


def test_what_a_reparse_left_out_stays_out_until_a_retry(tmp_path: Path) -> None:
    """A row that the loosened check lets in was never judged."""
    task, out = own(tmp_path), tmp_path / "run"
    edit(task / "task.toml", r"words = \[2, 25\]", "words = [6, 8]")
    with simulator() as endpoint:
        made(task, out, endpoint, 40)
        edit(task / "task.toml", r"words = \[6, 8\]", "words = [2, 25]")
        targen("reparse", out, "--quiet")
        told, before, counted = manifest(out), shard_bytes(out), asked(endpoint)
        assert told["failed"]["correction.needs_call"] > 0
        (out / "rejected.jsonl").unlink()
        assert targen("generate", "--out", out, "--quiet").returncode == 0
        assert shard_bytes(out).startswith(before)
        assert asked(endpoint)["correction"] - counted["correction"] <= 5
        counted = asked(endpoint)
        assert targen("retry", out, "--quiet").returncode == 0
        assert asked(endpoint)["correction"] > counted["correction"]
        assert "correction.needs_call" not in manifest(out)["failed"]


def test_another_description_is_another_question_to_the_judge(tmp_path: Path) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    for name in ("contexts", "seeds", "instances.neutral", "instances.entailment"):
        edit(task / f"{name}.txt", r"\{\{ description \}\}", "")
    edit(task / "instances.contradiction.txt", r"\{\{ description \}\}", "")
    with simulator(task_folders=[str(task)]) as endpoint:
        made(task, out, endpoint, 40)
        counted = asked(endpoint)
        edit(task / "task.toml", r'description = "', 'description = "In short: ')
        flags = ("generate", task, "--out", out, "-n", 40, *endpoint.flags, "--quiet")
        done = targen(*flags, "--accept-task-change")
        assert done.returncode == 0, done.stderr
        again = {stage: n - counted[stage] for stage, n in asked(endpoint).items()}
    assert again["correction"] >= counted["correction"] - 1
    assert again["instances"] == again["seeds"] == again["contexts"] == 0


def test_what_a_generation_costs_is_told_while_it_is_under_way(tmp_path: Path) -> None:
    task, out = own(tmp_path), tmp_path / "run"
    with simulator(task_folders=[str(task)]) as endpoint:
        before = made(task, out, endpoint, 60)
        port = endpoint.port
    edit(task / "instances.neutral.txt", r"We are building a data set\.", "We build a data set.")
    with simulator(port, error_rate=1.0) as endpoint:
        flags = ("generate", task, "--out", out, *MODEL, "--base-url", endpoint.url, "-n", 60)
        done = targen(*flags, "--accept-task-change", "--quiet", "--give-up-after", 3)
        assert done.returncode == 1
    told = manifest(out)
    assert told["remaking"] == {"why": "task", "n": 60, "delivered": told["remaking"]["delivered"]}
    assert told["shards"] == before["shards"] and told["delivered"] == 60
    assert told["calls"]["refused"] > before["calls"]["refused"]
