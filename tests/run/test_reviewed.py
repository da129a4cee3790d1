"""Faults that a reviewer found once, each with the history that brought it out."""

import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

from targen_async import Data, RunConfig, generate_sync
from targen_async.config import Correction
from targen_async.embedded import embedded_simulator
from targen_async.journal import Journal
from targen_async.rows import Rows
from targen_async.rundir import Files
from tests.run.test_failures import one_sentence
from tests.running import NOISY, command, digest, manifest, rows, simulator, targen


def test_the_limit_on_the_embedded_simulators_start_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("targen_async.embedded._START_TIMEOUT_S", 3.0)

    async def main() -> bool:
        async with embedded_simulator({}) as base_url:
            assert base_url.startswith("http://127.0.0.1:")
            await anyio.sleep(4)
        return True

    assert anyio.run(main)


def test_raising_n_one_by_one_never_delivers_a_row_twice(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(label_noise=0.3) as endpoint:
        for n in range(60, 68):
            assert targen("generate", "cb", "-n", n, "--out", out, *endpoint.flags).returncode == 0
            keys = [row["key"] for row in rows(out)]
            assert len(keys) == n == len(set(keys))
        balance = Counter(row["label"] for row in rows(out))
        assert max(balance.values()) - min(balance.values()) <= 1


def test_a_raised_run_is_made_again_from_its_journal(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(**NOISY) as endpoint:
        for n in (40, 60):
            assert (
                targen("generate", "copa", "-n", n, "--out", out, *endpoint.flags).returncode == 0
            )
        before, calls = digest(out), endpoint.stats()["served"]
        for file in out.glob("distinct.sqlite*"):
            file.unlink()
        again = targen("generate", "--out", out, timeout_s=60)
        assert again.returncode == 0, again.stderr
        assert endpoint.stats()["served"] == calls
    assert digest(out) == before


@pytest.mark.parametrize("seed", range(3))
def test_files_are_made_again_after_a_kill_by_fewer_workers(tmp_path: Path, seed: int) -> None:
    """A worker that waits for the replay to end must not keep the replay from ending."""
    out = tmp_path / "run"
    with simulator(latency_ms=20) as endpoint:
        flags = ("generate", "cb", "-n", 300, "--out", out, "--quiet", *endpoint.flags)
        run = subprocess.Popen(command(*flags), stdout=subprocess.DEVNULL)
        time.sleep(random.Random(seed).uniform(1.0, 1.6))
        run.send_signal(signal.SIGKILL)
        run.wait()
        for file in out.glob("distinct.sqlite*"):
            file.unlink()
        again = targen(*flags, "--max-in-flight", 2, timeout_s=100)
        assert again.returncode == 0, again.stderr
    assert len({row["key"] for row in rows(out)}) == 300


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_rows_without_their_journal_are_not_overwritten(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    targen("generate", "copa", "-n", 20, "--out", out)
    before = digest(out)
    if damage == "missing":
        (out / "journal").unlink()
    else:
        (out / "journal").write_bytes(b"")
    complaint = one_sentence(targen("generate", "--out", out), 2)
    assert "its journal is missing or empty" in complaint
    assert digest(out) == before


def test_rows_of_a_changed_task_are_made_again_with_the_index(tmp_path: Path) -> None:
    task, out = tmp_path / "cb", tmp_path / "run"
    root = Path(__file__).parents[2]
    subprocess.run(["cp", "-r", str(root / "prompts" / "cb"), str(task)], check=True)
    targen("generate", task, "-n", 30, "--out", out)
    template = task / "contexts.txt"
    template.write_text("Please. " + template.read_text())
    done = targen("generate", task, "-n", 40, "--out", out, "--accept-task-change")
    assert done.returncode == 0, done.stderr
    before, served = digest(out), manifest(out)["calls"]["served"]
    for file in out.glob("distinct.sqlite*"):
        file.unlink()
    done = targen("generate", task, "-n", 40, "--out", out)
    assert done.returncode == 0, done.stderr
    assert digest(out) == before
    assert manifest(out)["calls"]["served"] == served


def test_an_unreadable_index_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    targen("generate", "copa", "-n", 30, "--out", out)
    before = digest(out)
    for file in out.glob("distinct.sqlite*"):
        file.unlink()
    (out / "distinct.sqlite").write_bytes(b"not a database at all" * 100)
    done = targen("generate", "--out", out)
    assert done.returncode == 0, done.stderr
    assert digest(out) == before
    with sqlite3.connect(out / "distinct.sqlite") as index:
        assert index.execute("SELECT count(*) FROM rows").fetchone()[0] >= 30


def test_ctrl_c_sends_nothing_more_even_to_those_who_stand_in_line(tmp_path: Path) -> None:
    with simulator(latency_ms=20) as endpoint:
        flags = ("--requests-per-minute", 120, "--out", tmp_path / "run", *endpoint.flags)
        run = subprocess.Popen(
            command("generate", "copa", "-n", 400, "--quiet", *flags), stderr=subprocess.DEVNULL
        )
        time.sleep(6)
        before = endpoint.stats()["served"]
        run.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert run.wait(15) == 130
        assert time.monotonic() - started < 5
        assert endpoint.stats()["served"] <= before + 3


def test_a_limit_too_low_for_one_call_is_the_users_and_can_be_raised(tmp_path: Path) -> None:
    with simulator() as endpoint:
        flags = ("generate", "copa", "-n", 20, "--out", tmp_path / "run", *endpoint.flags)
        low = targen(*flags, "--tokens-per-minute", 10)
        assert "tokens a minute" in one_sentence(low, 2)
        assert targen(*flags, "--tokens-per-minute", 10_000_000).returncode == 0


def test_a_first_start_that_got_nothing_fixes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(models=["targen-simulator"]) as endpoint:
        wrong = ("--model", "gpt-nine", "--base-url", endpoint.url)
        assert targen("generate", "copa", "-n", 20, "--out", out, *wrong).returncode == 2
        done = targen("generate", "copa", "-n", 20, "--out", out, *endpoint.flags)
        assert done.returncode == 0, done.stderr
    assert manifest(out)["config"]["data"]["model"] == "targen-simulator"


def test_a_refused_start_changes_no_setting(tmp_path: Path) -> None:
    out = tmp_path / "run"
    targen("generate", "copa", "-n", 20, "--out", out)
    before = (out / "run.toml").read_bytes()
    assert targen("generate", "copa", "-n", 50, "--contexts", 7, "--out", out).returncode == 2
    assert (out / "run.toml").read_bytes() == before
    (out / "run.toml").write_bytes(before.replace(b"n = 20", b"n = 5"))
    assert "n may only grow" in one_sentence(targen("generate", "--out", out), 2)


def test_a_pasted_key_is_neither_kept_nor_repeated(tmp_path: Path) -> None:
    done = targen(
        *("generate", "copa", "--out", tmp_path / "run", "--model", "m"),
        *("--api-key-env", "sk-SECRET-123"),
    )
    assert "SECRET" not in one_sentence(done, 2)
    assert not (tmp_path / "run").exists()


def test_a_config_file_without_a_model_does_not_pass_a_key_by(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[data]\ntask = "copa"\n')
    flags = ("generate", "--config", config, "--out", tmp_path / "run")
    assert "--model NAME" in one_sentence(targen(*flags, OPENAI_API_KEY="k"), 2)
    config.write_text('[data]\ntask = "copa"\n[delivery]\nbase_url = "http://127.0.0.1:9/v1"\n')
    assert "--model" in one_sentence(targen(*flags), 2)


def test_a_task_folder_is_the_same_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["cp", "-r", str(root / "prompts" / "cb"), str(tmp_path / "cb")], check=True)
    monkeypatch.chdir(tmp_path)
    assert targen("generate", "./cb", "-n", 10, "--out", "run").returncode == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert targen("generate", "--out", "../run", "-n", 12).returncode == 0
    assert targen("generate", "../cb", "--out", "../run", "-n", 14).returncode == 0


def test_smaller_shards_are_honoured_on_a_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    targen("generate", "copa", "-n", 20, "--out", out)
    smaller = ("--set", "delivery.rows_per_shard=10")
    assert targen("generate", "--out", out, "-n", 40, *smaller).returncode == 0
    assert [shard["rows"] for shard in manifest(out)["shards"]] == [20, 10, 10]


def test_status_knows_a_killed_run_from_a_running_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(latency_ms=50) as endpoint:
        flags = ("generate", "copa", "-n", 2000, "--out", out, "--quiet", *endpoint.flags)
        run = subprocess.Popen(command(*flags), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not (out / "manifest.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running = targen("status", out).stdout
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert f"running: process {run.pid}" in running
    assert "waits for copa/" in running
    killed = targen("status", out).stdout
    assert "it was killed" in killed
    assert "running: process" not in killed


def test_closed_streams_and_deaf_readers_do_not_stop_a_run(tmp_path: Path) -> None:
    flags = "--set data.simulator.latency_ms=300 --max-in-flight 8"
    line = " ".join(command("generate", "copa", "-n", 60, "--out", tmp_path / "deaf")) + f" {flags}"
    subprocess.run(f"({line}) 2>&1 >/dev/null | head -1", shell=True, check=True, timeout=100)
    deadline = time.monotonic() + 60
    while not (tmp_path / "deaf" / "manifest.json").exists() or (
        manifest(tmp_path / "deaf")["state"] == "running"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert manifest(tmp_path / "deaf")["state"] == "complete"
    closed = " ".join(command("generate", "copa", "-n", 10, "--out", tmp_path / "closed"))
    done = subprocess.run(f"{closed} <&- >&- 2>&-", shell=True, check=False, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "copa", "-n", "99999999999999999999999"],
        ["generate", "copa", "--random-seed", "99999999999999999999999"],
        ["generate", "copa", "--model", "m", "--base-url", "http://127.0.0.1:99999/v1"],
        ["generate", "copa", "--model", "m", "--base-url", "http://[::1/v1"],
        ["generate", "copa", "--model", "m", "--base-url", "http://127.0.0.1:1/v1#x"],
        ["generate", "copa", "--set", "data=3"],
        ["status", "/dev/null"],
        ["show", "/dev/null"],
    ],
)
def test_odd_input_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one_sentence(targen(*arguments), 2)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "\xff"])
def test_a_strange_manifest_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, "latin-1")
    for name in ("status", "show"):
        assert "manifest.json" in one_sentence(targen(name, tmp_path), 2)


def test_no_row_is_written_before_its_answers_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contract 2: what a row is made from is on the disk before the row is."""
    journals: list[Journal] = []
    read: list[int] = [0]
    open_for_real, read_for_real = Journal.__init__, Rows.draft
    flush_for_real = Files.flush
    flushes = Counter[str]()

    def opened(journal: Journal, *arguments: object, **options: object) -> None:
        journals.append(journal)
        open_for_real(journal, *arguments, **options)  # type: ignore[arg-type]

    def draft(of: Rows, offset: int) -> object:
        read.append(offset)
        return read_for_real(of, offset)

    def flush(files: Files) -> None:
        if files.pending:
            flushes["safe" if journals[0].synced > max(read) else "unsafe"] += 1
        flush_for_real(files)

    monkeypatch.setattr(Journal, "__init__", opened)
    monkeypatch.setattr(Rows, "draft", draft)
    monkeypatch.setattr(Files, "flush", flush)
    config = RunConfig(data=Data(task="copa", correction=Correction(mode="off")))
    generate_sync(config, tmp_path / "run")
    assert flushes["safe"] > 0
    assert flushes["unsafe"] == 0
    assert len(rows(tmp_path / "run")) == 200
