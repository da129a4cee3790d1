"""What is written down of a run, and what of it can be checked."""

import hashlib
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from targen_async.summary import summary_lines, transition_lines
from tests.running import manifest, targen

WHEN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "usd": None}


def tokens(prompt: int, completion: int, usd: float) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_prompt_tokens": 0,
        "usd": usd,
    }


def raw(**changes: object) -> dict[str, Any]:
    return {
        "format": 1,
        "state": "complete",
        "reason": "all rows are delivered",
        "simulated": False,
        "task": "copa",
        "task_version": 1,
        "task_digest": "90ba5330d3a9a6fefbdd5ff9c07626e2",
        "data_digest": "d5f6970f251ebe8ee0583b6e05105977",
        "model": "gpt-4o-mini",
        "n": 200,
        "delivered": 200,
        "surplus": 3,
        "balance": {"choice1": 100, "choice2": 100},
        "transitions": {"choice1": {"choice1": 98, "drop": 2}, "choice2": {"choice2": 100}},
        "rejected": {"instances.duplicate": 4},
        "failed": {"instances.rejected": 1},
        "calls": {"served": 260, "refused": 7, "in_doubt": 2, "served_without_usage": 0},
        "spent": tokens(5000, 700, 0.0123),
        "prices": {},
        "wasted": tokens(40, 5, 0.0001),
        "in_doubt": tokens(90, 80, 0.0002),
        "remaking": None,
        "generation": 0,
        "shards": [],
        "identity_broken_by": [],
        "contexts_missing": 0,
        "corpus": None,
        "waiting_for": "",
        "versions": {"python": "3.11.7", "targen-async": "0.1.0"},
        "config": {"data": {"random_seed": 7, "temperature": 1.0, "correction": {}}},
        **changes,
    }


def summary(folder: Path, **changes: object) -> str:
    return "\n".join(summary_lines(raw(**changes), folder, when=WHEN, wall_s=72.4))


def test_everything_a_lab_book_wants_is_there(tmp_path: Path) -> None:
    text = summary(tmp_path)
    for wanted in (
        "copa: 200 of 200 rows (choice1 100, choice2 100)",
        "date        2026-01-31 12:00 UTC",
        "wall time   1:12",
        "targen-async 0.1.0, Python 3.11.7",
        "copa, version 1, digest 90ba5330d3a9a6fe",
        "digest d5f6970f251ebe8e, random seed 7, temperature 1.0",
        "model       gpt-4o-mini",
        "instances.duplicate 4, failed instances.rejected 1, over quota 3",
        "260 answered, 7 refused by the endpoint, 2 in doubt",
        "5000 prompt + 700 completion, of them wasted 40 + 5",
        "$0.0123, of it wasted $0.0001; at most $0.0002 more is in doubt",
    ):
        assert wanted in text
    assert text.isascii()
    assert "state" not in text
    table = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert table == [
        ["before", "\\", "after", "choice1", "choice2", "drop"],
        ["choice1", "98", "0", "2"],
        ["choice2", "0", "100", "0"],
    ]


def test_a_run_that_stopped_says_why(tmp_path: Path) -> None:
    text = summary(tmp_path, state="stopped", reason="no\x1b[2Jcredit\nis left", delivered=12)
    assert "copa: 12 of 200 rows" in text
    assert "state       stopped: no\\u001b[2Jcredit is left" in text


def test_simulated_rows_are_called_so_and_cost_nothing(tmp_path: Path) -> None:
    text = summary(tmp_path, simulated=True, spent=NOTHING, wasted=NOTHING, in_doubt=NOTHING)
    assert text.startswith("SIMULATED copa: ")
    assert "cost        none: simulated" in text
    assert "no price is known" in summary(tmp_path, spent=NOTHING)


def test_cached_tokens_are_told_where_there_are_some(tmp_path: Path) -> None:
    spent = {"prompt_tokens": 5000, "cached_prompt_tokens": 900, "completion_tokens": 7, "usd": 1.0}
    assert "5000 prompt (900 cached) + 7 completion" in summary(tmp_path, spent=spent)


def row(model: str, *judges: str) -> bytes:
    votes = [{"label": "a", "explanation": "e", "model": judge} for judge in judges]
    return orjson.dumps({"key": "k", "provenance": {"model": model, "votes": votes}}) + b"\n"


def shards(folder: Path, *contents: bytes) -> list[dict[str, object]]:
    seals: list[dict[str, object]] = []
    for number, content in enumerate(contents):
        name = f"instances-{number:05d}.jsonl"
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        seals.append({"name": name, "rows": 1, "bytes": len(content), "sha256": digest})
    return seals


def test_models_are_named_as_asked_for_and_as_served(tmp_path: Path) -> None:
    seals = shards(tmp_path, row("gpt-4o-mini-2024-07-18", "judge@main"), row("b", "judge@main"))
    correction = {"model": "judge", "mode": "blind"}
    config = {"data": {"random_seed": 0, "temperature": 1.0, "correction": correction}}
    text = summary(tmp_path, shards=seals, config=config)
    assert (
        "gpt-4o-mini, served by b, gpt-4o-mini-2024-07-18; judge judge, served by judge@main"
        in text
    )
    seals = shards(tmp_path, row("gpt-4o-mini", "gpt-4o-mini"))
    assert "model       gpt-4o-mini\n" in summary(tmp_path, shards=seals)


def test_all_that_wrote_rows_are_named_with_how_many(tmp_path: Path) -> None:
    two = {"models": {"b": 1, "gpt-4o-mini-2024-07-18": 199}}
    served = "b (1 row), gpt-4o-mini-2024-07-18 (199 rows)"
    assert f"model       gpt-4o-mini, served by {served}\n" in summary(tmp_path, **two)
    config = {"data": {"random_seed": 7, "temperature": 1.0, "fallback_model": "b"}}
    text = summary(tmp_path, config=config, **two)
    assert f"model       gpt-4o-mini, fallback b; rows by {served}\n" in text
    one = {"models": {"gpt-4o-mini": 200}}
    assert "model       gpt-4o-mini\n" in summary(tmp_path, **one)


@pytest.mark.parametrize("count", [1, 3])
def test_the_digest_is_what_sha256sum_says(tmp_path: Path, count: int) -> None:
    seals = shards(tmp_path, *(row(f"m{number}") for number in range(count)))
    text = summary(tmp_path, shards=seals)
    pipe = "sha256sum instances-*.jsonl" + (" | sha256sum" if count > 1 else "")
    told = subprocess.run(pipe, shell=True, cwd=tmp_path, capture_output=True, check=True).stdout
    assert f"sha256      {told.decode().split()[0]}" in text


def test_a_run_without_judges_has_no_table() -> None:
    assert transition_lines(raw(transitions={})) == []


def test_a_damaged_or_missing_shard_spoils_no_summary(tmp_path: Path) -> None:
    seals = shards(tmp_path, b"\xff{", row("m"))
    (tmp_path / "instances-00001.jsonl").unlink()
    assert "model       gpt-4o-mini" in summary(tmp_path, shards=seals)


def test_a_finished_run_and_its_status_tell_the_same(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = targen("generate", "copa", "-n", 20, "--simulate", "--out", out)
    assert done.returncode == 0, done.stderr
    status = targen("status", out)
    ours = [line for line in done.stdout.splitlines() if not re.match("wall|date|look", line)]
    theirs = [line for line in status.stdout.splitlines() if not re.match("wall|date|look", line)]
    assert ours == theirs
    assert manifest(out)["shards"][0]["sha256"] in done.stdout
    assert not re.search("[\u2500-\u257f\x1b]", done.stdout + done.stderr)


def test_a_run_of_before_prefix_caches_were_counted_is_still_shown(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert targen("generate", "copa", "-n", 4, "--simulate", "--out", out).returncode == 0
    told = manifest(out)
    del told["spent"]["cached_prompt_tokens"]
    (out / "manifest.json").write_text(json.dumps(told))
    status = targen("status", out)
    assert status.returncode == 0, status.stderr
    assert "4 of 4 rows" in status.stdout


def test_a_standard_output_that_knows_only_ascii_is_no_accident(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from targen_async.terminal import standard_output, visible
standard_output().print(visible("caf\\u00e9 \\u6587"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"caf\\xe9 \\u6587\n"
