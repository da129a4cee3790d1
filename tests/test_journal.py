"""The journal survives what happens to files, and refuses what it cannot understand."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targen_async.config import Data
from targen_async.errors import RunStopped, UserError
from targen_async.journal import (
    VERSION,
    Intent,
    Journal,
    Kind,
    Opened,
    body_of,
    frames,
    parse_intent,
    ticket_of,
    valid_end,
)
from targen_async.ledger import Ledger
from targen_async.recover import recover

MEMO = bytes(range(16))
BODY = b'{"choices":[{"message":{"content":"hello"}}]}'


def write(path: Path, bodies: list[bytes]) -> list[int]:
    journal = Journal(path)
    offsets = []
    for index, body in enumerate(bodies):
        ticket = journal.intent(Intent(MEMO, 10, 20, f"copa/{index:06d}/0"))
        offsets.append(journal.answer(ticket, body))
    journal.close()
    return offsets


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    offsets = write(tmp_path / "journal", [BODY, b"", b"\x00" * 5000])
    journal = Journal(tmp_path / "journal")
    assert [journal.read_answer(offset) for offset in offsets] == [BODY, b"", b"\x00" * 5000]
    kinds = [frame.kind for frame in frames(tmp_path / "journal")]
    assert kinds == [Kind.INTENT, Kind.ANSWER] * 3
    first, second = list(frames(tmp_path / "journal"))[:2]
    assert parse_intent(first.payload) == Intent(MEMO, 10, 20, "copa/000000/0")
    assert ticket_of(second.payload) == first.offset
    assert body_of(second.payload) == BODY
    journal.close()


def test_trap_1_torn_tail_then_append_then_reopen_twice(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, [BODY, BODY])
    with path.open("ab") as file:
        file.write(path.read_bytes()[:9])
    for more in range(2):
        journal = Journal(path)
        journal.cut_torn_tail()
        journal.answer(0, BODY + b"%d" % more)
        journal.close()
    bodies = [body_of(f.payload) for f in frames(path) if f.kind == Kind.ANSWER]
    assert bodies == [BODY, BODY, BODY + b"0", BODY + b"1"]
    assert valid_end(path) == path.stat().st_size


@settings(max_examples=60)
@given(cut=st.integers(0, 500))
def test_any_cut_leaves_a_whole_prefix(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal"
    write(path, [BODY, BODY, BODY])
    whole = list(frames(path))
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    journal = Journal(path)
    journal.cut_torn_tail()
    journal.close()
    left = list(frames(path))
    assert left == whole[: len(left)]
    assert len(left) == len(whole) or whole[len(left)].offset + 12 + len(
        whole[len(left)].payload
    ) > len(data)


@settings(max_examples=60)
@given(place=st.integers(0, 299), flip=st.integers(1, 255))
def test_trap_8_damage_in_the_middle_is_refused_and_nothing_is_touched(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "journal"
    write(path, [BODY] * 4)
    data = bytearray(path.read_bytes())
    data[place] ^= flip
    path.write_bytes(data)
    journal = Journal(path)
    with pytest.raises(RunStopped, match="damaged at byte"):
        journal.cut_torn_tail()
    journal.close()
    assert path.read_bytes() == bytes(data)


def test_a_length_that_points_past_the_end_is_damage_when_records_follow(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, [BODY] * 3)
    data = bytearray(path.read_bytes())
    data[6] = 0x7F
    path.write_bytes(data)
    with pytest.raises(RunStopped, match="intact records follow"):
        valid_end(path)


def test_a_journal_from_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    opened = Opened(version=99, data=Data(task="copa"), task_digest="")
    journal.append(Kind.OPENED, msgspec.msgpack.encode(opened))
    with path.open("ab") as file:
        file.write(b"a tail of a kind we do not know")
    before = path.read_bytes()
    with pytest.raises(UserError, match="journal format 99, this one reads 2"):
        recover(path, journal, Ledger(journal))
    assert path.read_bytes() == before
    journal.close()


def test_intents_without_an_answer_are_in_doubt_at_worst_case(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    opened = Opened(version=VERSION, data=Data(task="copa"), task_digest="")
    journal.append(Kind.OPENED, msgspec.msgpack.encode(opened))
    tickets = [journal.intent(Intent(MEMO, 100, 50, "k")) for _ in range(3)]
    journal.answer(tickets[0], BODY)
    journal.void(tickets[1], "HTTP 503")
    ledger = Ledger(journal)
    found = recover(journal.path, journal, ledger)
    totals = ledger.totals()
    assert (totals.served, totals.refused, totals.in_doubt) == (1, 1, 1)
    assert totals.in_doubt_worst.prompt_tokens == 100
    assert totals.in_doubt_worst.completion_tokens == 50
    assert list(found.memos) == [MEMO]
    journal.close()


def test_a_record_survives_kill_9_without_any_sync(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from targen_async.journal import Journal;"
        "Journal(Path(sys.argv[1])).answer(7, b'paid'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert child.returncode == -9
    assert [body_of(frame.payload) for frame in frames(path)] == [b"paid"]


def test_sync_makes_all_that_was_appended_durable(tmp_path: Path) -> None:
    async def main() -> None:
        journal = Journal(tmp_path / "journal")
        async with anyio.create_task_group() as group:
            group.start_soon(journal.keep_synced)
            journal.answer(0, BODY)
            with anyio.fail_after(2):
                while journal.synced < journal.end:
                    await anyio.sleep(0.01)
            journal.answer(0, BODY)
            await journal.sync()
            assert journal.synced == journal.end
            group.cancel_scope.cancel()
        journal.close()

    anyio.run(main)


def test_a_full_disk_gives_up_the_reserve_so_that_answers_under_way_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal", reserve_bytes=4096)
    ticket = journal.intent(Intent(MEMO, 1, 1, "k"))
    write_for_real = os.pwrite

    def full_while_the_reserve_stands(fd: int, data: bytes, offset: int) -> int:
        if (tmp_path / "reserve.bin").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_for_real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full_while_the_reserve_stands)
    offset = journal.answer(ticket, BODY)
    assert journal.read_answer(offset) == BODY
    with pytest.raises(RunStopped, match="no space left on device; free some space"):
        journal.intent(Intent(MEMO, 1, 1, "k"))
    journal.close()


def test_a_disk_that_stays_full_stops_the_run_and_leaves_no_torn_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    script = f"""
import resource, signal
from pathlib import Path
from targen_async.config import Data
from targen_async.errors import RunStopped
from targen_async.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
journal = Journal(Path({str(path)!r}))
try:
    for _ in range(100):
        journal.answer(0, b"x" * 90)
except RunStopped as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "file too large" in out.stdout
    assert valid_end(path) == path.stat().st_size > 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
