"""A disk that is full, broken or closed: one sentence, nothing lost, and the next start goes on."""

import ctypes
import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from targen_async.config import Data
from targen_async.errors import TargenError
from targen_async.journal import Journal, Kind, Opened
from targen_async.rundir import INDEX
from tests.durability.disk import Disk
from tests.durability.losses import known_memos
from tests.durability.world import Server, configured, faults, run
from tests.running import command, manifest, rows, shard_bytes, simulator, targen

CONFIG = configured("cb", 16, rows_per_shard=7)
SAID = {errno.ENOSPC: "no space left on device", errno.EIO: "input/output error"}
FULL_INDEX = sqlite3.OperationalError("database or disk is full")


class Breaking:
    """A disk whose call number `first`, of some kind and on some file, fails; and `more` after."""

    def __init__(
        self, call: str, name: str, first: int, error: OSError | sqlite3.Error, more: int
    ) -> None:
        self.call = call
        self.name = name
        self.first = first
        self.error = error
        self.more = more
        self.seen = 0

    def __call__(self, call: str, name: str) -> int | None:
        if (call, name) != (self.call, self.name):
            return None
        self.seen += 1
        if self.first <= self.seen <= self.first + self.more:
            raise self.error
        return None


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[tuple[str, str]], bytes]:
    """Everything a run does to its folder, how often, and the rows that come of it."""
    root = tmp_path_factory.mktemp("whole")
    disk, seen = Disk(root), Counter[tuple[str, str]]()
    disk.fault = lambda call, name: seen.update([(call, name)])
    run(Server(1, malformed=0.1), CONFIG, root / "run", disk=disk)
    return seen, shard_bytes(root / "run")


def test_a_call_to_the_disk_that_fails_is_a_sentence_and_the_run_goes_on(
    calls: tuple[Counter[tuple[str, str]], bytes], tmp_path: Path
) -> None:
    """Each kind of call on each file, failing once and for good, with either error."""
    luck, (seen, whole) = random.Random(5), calls
    wrong: list[str] = []
    for (call, name), count in sorted(seen.items()):
        if call in ("close", "unlink"):
            continue
        for more in (0, 10**9):
            code = luck.choice(list(SAID))
            error: OSError | sqlite3.Error = OSError(code, os.strerror(code))
            if name == INDEX and call in ("save", "close"):
                error = FULL_INDEX
            place = tmp_path / "place"
            place.mkdir()
            disk = Disk(place)
            disk.fault = Breaking(call, name, luck.randint(1, count), error, more)
            endpoint = Server(1, malformed=0.1)
            what = f"{call} {name}{' ever after' * bool(more)}: "
            try:
                run(endpoint, CONFIG, place / "run", disk=disk)
            except TargenError as told:
                if not str(told) or "\n" in str(told):
                    wrong.append(f"{what}{told}")
            except Exception as told:
                wrong.append(f"{what}{type(told).__name__}: {told}")
            known = known_memos(place / "run")[0]
            again = Server(2, malformed=0.1)
            try:
                run(again, CONFIG, place / "run")
            except Exception as told:
                wrong.append(f"{what}the next start: {type(told).__name__}: {told}")
            else:
                if shard_bytes(place / "run") != whole:
                    wrong.append(f"{what}other rows")
                if known & set(again.sent):
                    wrong.append(f"{what}paid twice")
                if found := faults(place / "run"):
                    wrong.append(f"{what}{found}")
            shutil.rmtree(place)
    assert not wrong, "\n".join(wrong)


def test_a_write_that_is_cut_short_is_done_again(
    calls: tuple[Counter[tuple[str, str]], bytes], tmp_path: Path
) -> None:
    """write(2) may take less than it is given; nobody is told and nothing is torn."""
    luck, disk = random.Random(7), Disk(tmp_path)

    def short(call: str, _name: str) -> int | None:
        return luck.randint(1, 40) if call == "pwrite" else None

    disk.fault = short
    run(Server(1, malformed=0.1), CONFIG, tmp_path / "run", disk=disk)
    assert shard_bytes(tmp_path / "run") == calls[1]
    assert faults(tmp_path / "run") == []


def test_an_index_that_the_disk_has_no_room_for_is_a_sentence(tmp_path: Path) -> None:
    """SQLite's log, to which every checkpoint adds, reaches the limit before the journal does."""
    out = tmp_path / "run"
    with simulator(latency_ms=40) as endpoint:
        arguments = ("generate", "copa", "-n", 900, "--max-in-flight", 8, "--quiet")
        arguments += ("--set", "delivery.rows_per_shard=100", "--set", "data.near_duplicate=0.5")
        arguments += (*endpoint.flags, "--out", out)
        limited = (
            "import resource, signal, sys; from targen_async.cli import main;"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1_060_000, 1_060_000));"
            "sys.exit(main(sys.argv[1:]))"
        )
        start = [sys.executable, "-c", limited, *map(str, arguments)]
        done = subprocess.run(start, capture_output=True, text=True, timeout=120, check=False)
        assert "Traceback" not in done.stderr
        assert done.returncode == 1
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("targen: ")]
        assert str(out) in said and "start the same command again" in said
        assert (out / "journal").stat().st_size < 1_000_000
        again = targen(*arguments)
        assert again.returncode == 0, again.stderr
        calls = manifest(out)["calls"]
        assert calls["served"] <= endpoint.stats()["served"] <= calls["served"] + calls["in_doubt"]
    assert len(rows(out)) == 900


def left(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock, which is no part of the run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.mark.parametrize("verb", ["generate", "retry", "reparse"])
def test_a_run_of_a_newer_version_is_refused_and_every_file_is_as_it_was(
    tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "run"
    run(Server(1), configured("copa", 8), out)
    whole = (out / "journal").read_bytes()
    (out / "journal").unlink()
    journal = Journal(out / "journal")
    opened = Opened(version=99, data=Data(task="copa", model="m"), task_digest="")
    journal.append(Kind.OPENED, msgspec.msgpack.encode(opened))
    journal.close()
    with (out / "journal").open("ab") as file:
        file.write(whole[100:] + b"records of kinds to come")
    before = left(out)
    arguments = (verb, "--out", out) if verb == "generate" else (verb, out)
    done = targen(*arguments)
    assert done.returncode == 2
    assert "journal format 99" in done.stderr and "nothing was touched" in done.stderr
    assert left(out) == before


PR_SET_SECUREBITS, SECBIT_NOROOT = 28, 1


def _bound() -> None:
    """Have permissions bind the program that comes next: root's capabilities are not handed on."""
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0) == 0


def test_a_run_in_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    """It can be looked at and verified, and a start says what is in the way."""
    out = tmp_path / "run"
    run(Server(1), configured("copa", 8), out)
    for path in out.iterdir():
        path.chmod(0o444)
    out.chmod(0o555)
    before = left(out)
    said: dict[str, tuple[int, str]] = {}
    for name in ("status", "show", "verify", "generate", "retry", "reparse"):
        arguments = (name, "--out", out) if name == "generate" else (name, out)
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, preexec_fn=_bound, check=False
        )
        said[name] = (done.returncode, done.stderr)
    assert [code for code, _ in said.values()] == [0, 0, 0, 2, 2, 2], said
    for name in ("generate", "retry", "reparse"):
        assert said[name][1] == (
            f"targen: cannot write to {out}: permission denied; choose another --out\n"
        )
    assert left(out) == before
    out.chmod(0o755)
