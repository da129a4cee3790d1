"""Ranks that live on end with the reason: by real processes, with no torch and no collective."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from targen_async.errors import RunStopped
from targen_async.finetune import lifeline
from targen_async.finetune.lifeline import Lifeline, open_lifeline

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
from targen_async.finetune import lifeline
from tests.finetune.test_lifeline import FolderStore

folder, rank, count, act = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
lifeline._SAME = 0.5
if act == "listen":  # And believe in no silence of two seconds.
    lifeline.Lifeline.__init__.__defaults__ = (2.0,)
line = lifeline.open_lifeline(FolderStore(folder), rank, count)
print("joined", flush=True)
if act == "fail":
    line.close("cb.jsonl:7: there is no such label", 2)
    sys.exit(2)
if act == "done":
    line.close()
    sys.exit(0)
time.sleep(60)  # As in a collective that never returns.
"""


class FolderStore:
    """What of a torch.distributed store is asked here, in files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _path(self, key: str) -> Path:
        return self.folder / key.replace("/", "-")

    def set(self, key: str, value: str) -> None:
        half = self._path(key + ".half")
        half.write_text(value, "utf-8")
        half.rename(self._path(key))

    def get(self, key: str) -> bytes:
        while not self._path(key).is_file():
            time.sleep(0.01)
        return self._path(key).read_bytes()

    def add(self, key: str, number: int) -> int:
        path = self._path(key)
        found = number + (int(path.read_text("utf-8")) if path.is_file() else 0)
        path.write_text(str(found), "utf-8")
        return found


def start(folder: Path, acts: list[str]) -> list["subprocess.Popen[str]"]:
    """A rank for each act, all of them joined."""
    here = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), str(rank), str(len(acts)), act],
            env=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, act in enumerate(acts)
    ]
    for rank in ranks:
        assert rank.stdout and rank.stdout.readline() == "joined\n"
    return ranks


def ends(ranks: list["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
    """Exit code and last line of each, none of which may take long."""
    told = [rank.communicate(timeout=20)[1] for rank in ranks]
    lines = [(text.strip().splitlines() or [""])[-1] for text in told]
    return list(zip([rank.returncode for rank in ranks], lines, strict=True))


def test_a_killed_rank_ends_the_others_and_rank_0_says_it_once(tmp_path: Path) -> None:
    ranks = start(tmp_path, ["wait", "wait", "wait"])
    ranks[2].kill()
    (one, reason), (two, nothing), _ = ends(ranks)
    assert one == two == 1 and nothing == ""
    assert reason.startswith("rank 2 died without a word: it was killed, or its machine ran out")
    assert reason.endswith("; the same command goes on")


def test_where_rank_0_is_killed_each_of_the_others_says_it(tmp_path: Path) -> None:
    ranks = start(tmp_path, ["wait", "wait", "wait"])
    ranks[0].kill()
    assert [
        (code, line.startswith("rank 0 died without a word")) for code, line in ends(ranks)[1:]
    ] == [(1, True)] * 2


def test_a_frozen_rank_is_given_up(tmp_path: Path) -> None:
    ranks = start(tmp_path, ["listen", "wait"])
    ranks[1].send_signal(signal.SIGSTOP)
    code, reason = ends(ranks[:1])[0]
    ranks[1].kill()
    ranks[1].communicate()
    assert code == 1
    assert reason.startswith("rank 1 has been silent for 2 seconds: it hangs, or its machine")


def test_a_rank_that_ends_with_a_reason_passes_it_on(tmp_path: Path) -> None:
    first, other, own = ends(start(tmp_path, ["wait", "wait", "fail"]))
    assert first[0] == other[0] == own[0] == 2
    assert first[1].startswith("rank 2: cb.jsonl:7: there is no such label")
    assert other[1] == ""


@pytest.mark.parametrize(
    ("word", "code", "reason"),
    [
        (b"+!2rank 1: there is no such label\n", 2, "rank 1: there is no such label"),
        (b"!1rank 1: the disk is fu", 1, "rank 1: the disk is fu"),
        (b"!", 1, "rank 1 failed and died before it said why"),
    ],
)
def test_a_last_word_may_come_in_pieces_or_be_cut_off(
    word: bytes, code: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP keeps no borders; and a rank that dies within its last word has failed all the same."""
    deaths: list[Any] = []
    monkeypatch.setattr(Lifeline, "_end", lambda _, death: deaths.append(death))
    own, other = socket.socketpair()
    line = Lifeline(0, {1: own})
    for piece in word:
        other.sendall(bytes([piece]))
        time.sleep(0.005)
    other.close()
    line._thread.join(10)
    line.close()
    [death] = deaths
    assert (death.reason, death.code, death.told) == (reason, code, True)


def test_a_rank_that_is_done_is_not_mourned(tmp_path: Path) -> None:
    ranks = start(tmp_path, ["wait", "done"])
    with pytest.raises(subprocess.TimeoutExpired):
        ranks[0].wait(4)
    ranks[0].kill()
    ends(ranks)


def test_ranks_that_come_to_the_same_fault_all_say_it_themselves() -> None:
    """Nobody ends this process while the other line closes."""
    a, b = socket.socketpair()
    one, two = Lifeline(0, {1: a}), Lifeline(1, {0: b})
    two.close("no rows", 2)
    one.close("no rows", 2)


def test_the_last_word_of_a_rank_is_not_lost_where_it_has_not_read_everything() -> None:
    """A rank that was done was taken for dead: closing with beats unread reset the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(20):
            own = socket.create_connection(server.getsockname())
            other, _ = server.accept()
            with other:
                other.sendall(b"+" * 100_000)
                line = Lifeline(1, {0: own})
                closing = threading.Thread(target=line.close)
                closing.start()
                heard = b""
                while b"." not in heard:
                    heard += other.recv(100) or b" and then nothing."
                other.shutdown(socket.SHUT_WR)
                closing.join(4)
                assert heard.endswith(b"+.") and not closing.is_alive()


def test_who_does_not_know_the_token_is_no_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(lifeline, "JOIN", 3.0)
    store = FolderStore(tmp_path)

    def stranger() -> None:
        port = int(store.get("targen/lifeline/1").split()[0])
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b"0" * 32 + b" 00000001")
            assert line.recv(1) == b""

    caller = threading.Thread(target=stranger)
    caller.start()
    with pytest.raises(RunStopped, match="rank 1 of 2 did not come within 3 seconds"):
        open_lifeline(store, 0, 2)
    caller.join()


def test_lines_of_one_process_do_not_meet(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = FolderStore(tmp_path)
    for _ in range(2):
        found: list[Lifeline] = []
        other = threading.Thread(target=lambda: found.append(open_lifeline(store, 1, 2)))  # noqa: B023
        other.start()
        own = open_lifeline(store, 0, 2)
        other.join()
        found[0].close()
        own.close()
