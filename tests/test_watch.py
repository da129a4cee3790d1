"""`targen status --watch`: a run seen from a second terminal."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import to_builtins

from targen_async.errors import UserError
from targen_async.lock import Lock
from targen_async.terminal import print_status
from targen_async.watch import watch
from tests.running import command, manifest, simulator, targen, wait_for
from tests.scenes import GENERATOR, healthy, progress, waits
from tests.test_summary import NOTHING, raw

WATCH = "import sys; from pathlib import Path; from targen_async.watch import watch; "
WATCH += "sys.exit(watch(Path(sys.argv[1]), as_json='--json' in sys.argv, every_s=0.2))"


NOW = to_builtins(progress(healthy(limits=lambda: [waits(GENERATOR, "waiting 9 s: Retry-After")])))
NOW |= {"delivered": 40, "n": 200}


def watched(out: Path, *flags: str) -> "subprocess.Popen[str]":
    """The watching process, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", WATCH, str(out), *flags], stdout=subprocess.PIPE, text=True
    )


def write(folder: Path, **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    told = raw(**{"state": "running", "waiting_for": "copa/000003/1", **changes})
    (folder / "manifest.json").write_bytes(orjson.dumps(told))


@contextmanager
def somebody_at_work(folder: Path, seconds: float) -> Iterator[None]:
    """Holds the lock in a thread, as a run does, and then leaves."""
    folder.mkdir(exist_ok=True)
    begun = threading.Event()

    def work() -> None:
        with Lock(folder):
            begun.set()
            time.sleep(seconds)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    yield
    thread.join()


def seen_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Any]]:
    code = watch(folder, as_json=True, every_s=0.2)
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_live_run_is_followed_to_its_end(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = command("generate", "copa", "-n", 120, "--simulate", "--out", out, "--quiet")
    words += ["--set", "data.simulator.latency_ms=400", "--max-in-flight", "6"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not (out / "lock").exists() or not (out / "lock").read_text("utf-8"):
            assert run.poll() is None
            time.sleep(0.02)
        people, script = watched(out), watched(out, "--json")
        told, ticks = people.communicate(timeout=120)[0], script.communicate(timeout=120)[0]
    assert (people.returncode, script.returncode) == (0, 0)
    assert "SIMULATED copa: 120 of 120 rows" in told
    assert manifest(out)["shards"][0]["sha256"] in told
    lines = [json.loads(line) for line in ticks.splitlines()]
    assert {line["kind"] for line in lines[:-1]} == {"progress"}
    assert any(0 < line["delivered"] < 120 for line in lines[:-1])
    assert lines[-1]["kind"] == "end"
    assert lines[-1]["manifest"] == manifest(out)


def test_a_finished_run_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, state="complete", waiting_for="")
    began = time.monotonic()
    assert watch(tmp_path) == 0
    assert time.monotonic() - began < 1
    assert "200 of 200 rows" in capsys.readouterr().out


def test_a_killed_run_is_called_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, delivered=77)
    assert watch(tmp_path) == 1
    assert "it was killed: `targen generate" in capsys.readouterr().out


def test_a_killed_run_is_nowhere_called_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, delivered=77, now=NOW)
    watch(tmp_path)
    print_status(tmp_path, as_json=False)
    told = capsys.readouterr().out
    assert "state       running" not in told
    assert "Retry-After" not in told
    print_status(tmp_path, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["now"], shown["delivered"]) == ("interrupted", None, 77)
    assert shown["reason"] == f"it was killed: `targen generate --out {tmp_path}` goes on"
    watch(tmp_path, as_json=True)
    (last,) = capsys.readouterr().out.splitlines()
    assert json.loads(last)["error"] == shown["reason"]
    assert json.loads(last)["manifest"] == shown


def test_a_run_at_work_is_called_running_for_scripts_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with somebody_at_work(folder, 0.5):
        write(folder, delivered=77, now=NOW)
        print_status(folder, as_json=True)
        assert json.loads(capsys.readouterr().out) == manifest(folder)


def test_a_run_without_a_manifest_is_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with somebody_at_work(folder, 0.5):
        assert print_status(folder, as_json=False) == 0
        with pytest.raises(UserError, match=r"running: process \d+ on .*; it has just begun"):
            print_status(folder, as_json=True)
    told = capsys.readouterr().out
    assert re.search(r"running: process \d+ on .*; it has just begun, and told nothing", told)
    (folder / "run.toml").write_text("", "utf-8")
    for look in (watch, partial(print_status, as_json=False)):
        with pytest.raises(UserError, match=r"was killed before it told anything .* goes on"):
            look(folder)


def test_a_run_that_waits_says_why_in_the_second_terminal(tmp_path: Path) -> None:
    """The endpoint asks for an hour; so say the run, the folder, and who looks on."""
    out = tmp_path / "run"
    with simulator(requests_per_minute=1, burst_s=600, latency_ms=20) as server:
        words = command("generate", "copa", "-n", 100, *server.flags, "--out", out, "--quiet")
        words += ["--max-tokens", "900000"]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as run:
            wait_for(lambda: (out / "manifest.json").exists() and why(out).startswith("waiting"))
            with watched(out, "--json") as looking:
                assert looking.stdout is not None
                tick = json.loads(looking.stdout.readline())
                looking.kill()
            status = targen("status", out).stdout
            run.send_signal(signal.SIGINT)
        assert run.returncode == 130
    assert re.match(r"waiting \d+ s: ", tick["why"]), tick["why"]
    assert tick["limits"][0]["name"] == "generator"
    assert tick["stages"]["seeds"]["under_way"] + tick["stages"]["instances"]["under_way"] > 0
    assert "tokens" in tick["cost"]["budget"]
    assert re.search(r"state +running: process \d+ on .*; waiting \d+ s: ", status), status
    assert manifest(out)["now"] is None
    assert "waiting" not in targen("status", out).stdout


def why(out: Path) -> str:
    return (manifest(out)["now"] or {}).get("why", "")


@pytest.mark.parametrize("fresh", [True, False])
def test_what_an_earlier_process_told_is_not_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fresh: bool
) -> None:
    folder = tmp_path / "run"
    write(folder, delivered=40, now=NOW)
    with somebody_at_work(folder, 1.0):
        if fresh:
            time.sleep(0.05)
            write(folder, delivered=40, now=NOW)
        _, lines = seen_as_json(folder, capsys)
    assert (lines[0]["why"] == NOW["why"]) is fresh
    assert bool(lines[0]["limits"]) is fresh
    assert lines[0]["delivered"] == 40


def test_where_there_is_no_run_a_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        watch(tmp_path / "absent")


def test_a_run_that_has_written_nothing_yet_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with somebody_at_work(folder, 0.6):
        threading.Timer(0.3, write, [folder], {"state": "stopped"}).start()
        code, lines = seen_as_json(folder, capsys)
    assert code == 1
    assert lines[0]["why"] == "opening the run"


def test_rows_that_are_made_anew_are_the_ones_that_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    write(folder, state="complete")
    write(folder / "next", delivered=40, spent=NOTHING)
    with somebody_at_work(folder, 0.5):
        code, lines = seen_as_json(folder, capsys)
    assert lines[0]["delivered"] == 40
    # Nobody works there any more: the rows of before stand, and are complete.
    assert code == 0
    assert lines[-1]["manifest"]["delivered"] == 200
    watch(folder)
    assert "unfinished, in next/" in capsys.readouterr().out


def test_a_run_where_nothing_comes_in_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("targen_async.watch._STILL_AFTER_S", 0.3)
    folder = tmp_path / "run"
    write(folder, delivered=40)
    with somebody_at_work(folder, 2.0):
        _, lines = seen_as_json(folder, capsys)
    assert lines[0]["why"] == ""
    assert re.fullmatch(r"nothing came in for \d s; next is copa/000003/1", lines[1]["why"])


def test_an_old_or_strange_manifest_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]", "utf-8")
    with pytest.raises(UserError, match="no manifest"):
        watch(tmp_path)


def test_a_live_picture_is_drawn_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FORCE_COLOR", "1")
    folder = tmp_path / "run"
    write(folder, delivered=40)
    with somebody_at_work(folder, 0.7):
        watch(folder, every_s=0.2)
    text = file.getvalue()
    assert "40 of 200 rows, 20 %" in text
    assert "260 answered, 7 refused by the endpoint" in text
    assert "running   " in text.replace("\x1b[0m", "")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
