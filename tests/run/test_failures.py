"""What goes wrong: each a clear outcome, one sentence, the right exit code, and nothing lost."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.running import command, digest, lines, manifest, rows, simulator, targen


def one_sentence(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The complaint of a command that failed as it should."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    complaint = [line for line in done.stderr.splitlines() if line.startswith("targen: ")]
    assert len(complaint) == 1, done.stderr
    return complaint[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- the endpoint


def test_trap_11_a_wrong_key_stops_in_seconds_and_the_key_is_nowhere(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(api_key="g00d-k3y-of-some-length") as endpoint:
        started = time.monotonic()
        done = targen(
            "generate", "copa", "-n", 20, "--out", out, *endpoint.flags, OPENAI_API_KEY="wr0ng-k3y"
        )
        assert time.monotonic() - started < 10
        assert "401" in one_sentence(done, 2)
        assert "wr0ng-k3y" not in done.stderr + done.stdout
        good = targen(
            "generate",
            "copa",
            "-n",
            20,
            "--out",
            out,
            *endpoint.flags,
            OPENAI_API_KEY="g00d-k3y-of-some-length",
        )
        assert good.returncode == 0, good.stderr
    for file in out.iterdir():
        data = file.read_bytes()
        assert b"wr0ng-k3y" not in data, file
        assert b"g00d-k3y-of-some-length" not in data, file


def test_a_wrong_model_is_named(tmp_path: Path) -> None:
    with simulator(models=["targen-simulator"]) as endpoint:
        flags = ("--model", "gpt-nine", "--base-url", endpoint.url)
        done = targen("generate", "copa", "-n", 20, "--out", tmp_path / "run", *flags)
    assert "gpt-nine" in one_sentence(done, 2)


def test_a_dead_port_is_given_up_after_ten_seconds(tmp_path: Path) -> None:
    port = free_port()
    flags = ("--model", "m", "--base-url", f"http://127.0.0.1:{port}/v1")
    started = time.monotonic()
    done = targen("generate", "copa", "-n", 20, "--out", tmp_path / "run", *flags)
    assert time.monotonic() - started < 20
    complaint = one_sentence(done, 1)
    assert f"127.0.0.1:{port}" in complaint
    assert "cannot be reached" in complaint


def test_an_outage_in_the_middle_is_waited_for_and_changes_nothing(tmp_path: Path) -> None:
    calm, hit = {"latency_ms": 20}, {"latency_ms": 20, "outages": [{"start_s": 1, "duration_s": 4}]}
    for name, settings in {"calm": calm, "hit": hit}.items():
        with simulator(**settings) as endpoint:
            flags = ("--max-in-flight", 16, *endpoint.flags)
            done = targen("generate", "copa", "-n", 600, "--out", tmp_path / name, *flags)
            assert done.returncode == 0, done.stderr
            if name == "hit":
                assert "breaker open since" in done.stderr
                assert endpoint.stats()["served"] < 1.1 * 800
    assert digest(tmp_path / "calm") == digest(tmp_path / "hit")


def test_an_endpoint_that_dies_for_good_is_given_up_and_the_run_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(latency_ms=30) as endpoint:
        run = subprocess.Popen(
            command(
                *("generate", "copa", "-n", 800, "--out", out, "--max-in-flight", 8),
                *("--give-up-after", 3, "--quiet", *endpoint.flags),
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(2.5)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "served nothing for" in said
    assert "goes on from there" in said
    kept = len(rows(out))
    with simulator(port=endpoint.port) as again:
        done = targen(
            "generate", "--out", out, "--base-url", again.url, "--model", *again.flags[1:2]
        )
        assert done.returncode == 0, done.stderr
        assert again.stats()["served"] < 1200
    assert kept > 0
    assert len(rows(out)) == 800


def test_429_with_retry_after_is_obeyed(tmp_path: Path) -> None:
    """Somebody else takes from the same quota, so that no header says in time what is left."""
    body = b'{"model": "targen-simulator", "messages": [{"role": "user", "content": "OK?"}]}'
    over = threading.Event()

    def knock(url: str) -> None:
        while not over.wait(0.1):
            with contextlib.suppress(OSError):
                asked = urllib.request.Request(f"{url}/chat/completions", body)
                urllib.request.urlopen(asked, timeout=5).close()

    with simulator(requests_per_minute=1200, burst_s=1) as endpoint:
        stranger = threading.Thread(target=knock, args=(endpoint.url,))
        stranger.start()
        try:
            done = targen("generate", "copa", "-n", 60, "--out", tmp_path / "run", *endpoint.flags)
        finally:
            over.set()
            stranger.join()
    assert done.returncode == 0, done.stderr
    told = manifest(tmp_path / "run")
    assert told["delivered"] == 60
    assert told["calls"]["refused"] > 0


def test_declared_limits_keep_429_away(tmp_path: Path) -> None:
    with simulator(requests_per_minute=1200, burst_s=2) as endpoint:
        flags = ("--requests-per-minute", 1200, *endpoint.flags)
        done = targen("generate", "copa", "-n", 60, "--out", tmp_path / "run", *flags)
        assert done.returncode == 0, done.stderr
        stats = endpoint.stats()
    assert stats["rejected_429"] <= 0.02 * stats["served"]


@pytest.mark.parametrize("fault", ["hostile", "refusals", "truncation", "malformed", "reset_rate"])
def test_faults_of_every_kind_cost_calls_but_not_rows(tmp_path: Path, fault: str) -> None:
    out = tmp_path / "run"
    with simulator(**{fault: 0.2}) as endpoint:
        done = targen("generate", "cb", "-n", 60, "--out", out, *endpoint.flags)
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert len(found) == 60
    for row in found:
        for text in (row["premise"], row["hypothesis"]):
            assert text.isprintable()
            assert len(text) < 5000
    told = manifest(out)
    if fault == "reset_rate":
        assert told["calls"]["in_doubt"] > 0
    else:
        assert told["wasted"]["completion_tokens"] > 0


def test_an_endpoint_that_only_refuses_stops_with_the_reason_and_keeps_what_it_said(
    tmp_path: Path,
) -> None:
    """Trap 2: what was paid for and is of no use is still on disk, and named."""
    out = tmp_path / "run"
    with simulator(refusals=1.0) as endpoint:
        done = targen("generate", "copa", "-n", 20, "--out", out, *endpoint.flags)
        assert "contexts" in one_sentence(done, 1)
        assert manifest(out)["calls"]["served"] == endpoint.stats()["served"]
    failures = lines(out / "failures.jsonl")
    assert {failure["kind"] for failure in failures} <= {"refused", "malformed"}
    assert all(failure["attempts"] == 3 for failure in failures)


# ---- the disk


def unprivileged() -> bool:
    return os.geteuid() != 0


def test_a_read_only_folder_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    if unprivileged():
        folder.chmod(0o555)
        out = folder / "run"
    else:
        # The superuser may write anywhere but below a file.
        (folder / "file").write_text("")
        out = folder / "file" / "run"
    complaint = one_sentence(targen("generate", "copa", "--out", out), 2)
    assert "cannot write to" in complaint
    assert "--out" in complaint


def test_a_full_disk_stops_the_run_and_space_lets_it_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(latency_ms=10) as endpoint:
        arguments = ["generate", "copa", "-n", 300, "--out", out, "--quiet", *endpoint.flags]
        limited = (
            "import resource, signal, sys; from targen_async.cli import main;"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1_100_000, 1_100_000));"
            "sys.exit(main(sys.argv[1:]))"
        )
        # The reserve fits under the limit, the journal of 300 rows does not.
        small = ("--set", "data.near_duplicate=1.0", "--max-in-flight", "8")
        done = subprocess.run(
            [sys.executable, "-c", limited, *map(str, [*arguments, *small, "-n", 3000])],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        complaint = one_sentence(done, 1)
        assert "file too large" in complaint
        assert "start the same command again" in complaint
        again = targen(*arguments, *small, "-n", 3000)
        assert again.returncode == 0, again.stderr
    assert len(rows(out)) == 3000


def test_a_torn_journal_is_mended_and_a_damaged_one_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator() as endpoint:
        flags = ("generate", "copa", "-n", 60, "--out", out, *endpoint.flags)
        targen(*flags)
        before = digest(out)
        journal = out / "journal"
        whole = journal.read_bytes()
        journal.write_bytes(whole + whole[:20])
        assert targen(*flags).returncode == 0
        assert digest(out) == before
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 0xFF
        journal.write_bytes(damaged)
        complaint = one_sentence(targen(*flags), 1)
        assert "damaged at byte" in complaint
        assert "nothing was touched" in complaint
        assert journal.read_bytes() == damaged
        assert digest(out) == before


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(latency_ms=300) as endpoint:
        flags = ("generate", "copa", "-n", 200, "--out", out, "--quiet", *endpoint.flags)
        first = subprocess.Popen(command(*flags), stderr=subprocess.DEVNULL)
        try:
            time.sleep(1.5)
            complaint = one_sentence(targen(*flags), 2)
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
    assert f"process {first.pid} on {socket.gethostname()}" in complaint


def test_a_folder_with_strangers_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    complaint = one_sentence(targen("generate", "copa", "--out", tmp_path), 2)
    assert "thesis.tex" in complaint


# ---- the user


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "coppa"], "copa"),
        (["generate"], "no task"),
        (["generate", "copa", "-n", "0"], "delivery.n"),
        (["generate", "copa", "--votes", "2"], "data.correction.votes"),
        (["generate", "copa", "--temperature", "9"], "data.temperature"),
        (["generate", "copa", "--set", "data.temprature=1"], "temprature"),
        (["generate", "copa", "--set", "nonsense"], "KEY=VALUE"),
        (["generate", "copa", "--base-url", "http://127.0.0.1:1/v1"], "--model"),
        (["generate", "copa", "--model", "m", "--base-url", "127.0.0.1:1"], "delivery.base_url"),
        (["generate", "copa", "--model", "m", "--base-url", "http://u:p@h/v1"], "credentials"),
        (["generate", "copa", "--simulate", "--model", "m"], "--simulate"),
        (["generate", "copa", "--model", "gpt-4o-mini"], "OPENAI_API_KEY"),
        (["generate", "copa", "--config", "no.toml"], "no.toml"),
        (["generate", "copa", "--config", "n.toml", "--base-url", "http://h/v1"], "--model"),
        (["generate", "copa", "--set", "data.simulator.label_noise=2"], "label_noise"),
        (["status", "nowhere"], "nowhere"),
        (["show", "nowhere"], "nowhere"),
        (["render", "nothing"], "nothing"),
        (["check", "nothing"], "nothing"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n.toml").write_text("[delivery]\nn = 20\n")
    assert said in one_sentence(targen(*arguments), 2)
    assert not list(tmp_path.glob("runs/*/journal"))


def test_a_key_without_a_model_neither_spends_nor_simulates(tmp_path: Path) -> None:
    done = targen("generate", "copa", "--out", tmp_path / "run", OPENAI_API_KEY="k")
    complaint = one_sentence(done, 2)
    assert "--model NAME" in complaint
    assert "--simulate" in complaint


def test_a_changed_data_section_is_refused_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    targen("generate", "copa", "-n", 20, "--out", out)
    done = targen("generate", "copa", "-n", 20, "--out", out, "--temperature", "0.5")
    assert "data.temperature: 1.0 -> 0.5" in one_sentence(done, 2)
    done = targen("generate", "copa", "-n", 10, "--out", out)
    assert "n may only grow" in one_sentence(done, 2)


def test_trap_5_and_6_a_changed_template_asks_again_a_comment_or_a_key_does_not(
    tmp_path: Path,
) -> None:
    task = tmp_path / "copa"
    shutil.copytree(Path(__file__).parents[2] / "prompts" / "copa", task)
    out = tmp_path / "run"
    template = task / "instances.cause.txt"
    with simulator(task_folders=[str(task)]) as endpoint:
        flags = ("generate", task, "--out", out, "--contexts", 20, *endpoint.flags)
        assert targen(*flags, "-n", 40).returncode == 0
        calls = endpoint.stats()["served"]
        template.write_text("## a comment\n" + template.read_text())
        workers = ("--max-in-flight", 3)
        assert targen(*flags, *workers, "-n", 40, OPENAI_API_KEY="another").returncode == 0
        assert endpoint.stats()["served"] == calls
        template.write_text("Mind the tense. " + template.read_text())
        refused = targen(*flags, "-n", 60)
        assert "--accept-task-change" in one_sentence(refused, 2)
        assert endpoint.stats()["served"] == calls
        accepted = targen(*flags, "-n", 60, "--accept-task-change")
        assert accepted.returncode == 0, accepted.stderr
        stages = endpoint.stats()["by_stage"]
    assert len(rows(out)) == 60
    assert "the task was changed" in manifest(out)["identity_broken_by"]
    assert stages["contexts"] <= 4
    assert manifest(out)["generation"] == 1


def test_config_files_and_flags_give_the_same_run(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[data]\ntask = "copa"\nrandom_seed = 3\n[delivery]\nn = 20\n')
    assert targen("generate", "--config", config, "--out", tmp_path / "a").returncode == 0
    flags = ("-n", 20, "--random-seed", 3)
    assert targen("generate", "copa", *flags, "--out", tmp_path / "b").returncode == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert (
        json.loads(json.dumps(manifest(tmp_path / "a")["config"]["data"]))
        == (manifest(tmp_path / "b")["config"]["data"])
    )
