"""What a start keeps of a journal: the answers that it may ask for, however long the run was."""

from pathlib import Path

import msgspec
import pytest

from targen_async.config import Data
from targen_async.journal import VERSION, Dead, Intent, Journal, Kind, Opened, Target
from targen_async.ledger import Ledger
from targen_async.plan import RowPlanState, Wave
from targen_async.points import SeedStart
from targen_async.recover import Recovered, recover
from targen_async.state import CommitState, Generation

BODY = b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1}}'
ROWS_PER_SEED = 2
KEYS = {
    "probe": "copa/probe",
    "context": "copa/c0000",
    "early seeds": "copa/s000000",
    "late seeds": "copa/s000003",
    "early row": "copa/000004/1",
    "early row again": "copa/000004/1~1",
    "row at the start": "copa/000005/0",
    "late row": "copa/000007/1",
    "early block": "copa/x000008/v0@judge",
    "half an early block": "copa/x000008/v0.1",
    "late block": "copa/x000010/v0",
}
LATE = {"probe", "context", "late seeds", "row at the start", "late row", "late block"}


def state(slot: int, call: int) -> CommitState:
    plan = RowPlanState(watermark=slot)
    return CommitState(plan=plan, restart_slot=slot, seeds=SeedStart(call=call))


def checkpoint(journal: Journal, slot: int, call: int) -> None:
    journal.append(Kind.CHECKPOINT, msgspec.msgpack.encode(state(slot, call)))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Every kind of call answered, then a checkpoint at slot 10, in the third call for seeds."""
    journal = Journal(tmp_path / "journal")
    opened = Opened(version=VERSION, data=Data(task="copa"), task_digest="")
    journal.append(Kind.OPENED, msgspec.msgpack.encode(opened))
    journal.append(Kind.TARGET, msgspec.msgpack.encode(Target(slot=0, n=20)))
    for name, key in KEYS.items():
        journal.answer(journal.intent(Intent(memo_of(name), 1, 1, key)), BODY)
    checkpoint(journal, 10, 3)
    return journal


def memo_of(name: str) -> bytes:
    return name.encode().ljust(16)[:16]


def read(journal: Journal, rows_per_seed: int | None = ROWS_PER_SEED) -> tuple[set[str], Recovered]:
    ledger = Ledger(journal)
    found = recover(journal.path, journal, ledger, rows_per_seed=rows_per_seed)
    assert ledger.totals().served == len(KEYS)
    return {name for name in KEYS if memo_of(name) in found.memos}, found


def test_answers_to_committed_rows_are_let_go(journal: Journal) -> None:
    kept, found = read(journal)
    assert kept == LATE
    assert found.checkpoint is not None and not found.lacks(found.checkpoint)
    assert found.lacks(CommitState())
    assert read(journal, None)[0] == set(KEYS)


def test_failures_for_good_are_known_for_ever(journal: Journal) -> None:
    dead = Dead(memo=memo_of("gone"), kind="rejected", message="no")
    journal.append(Kind.DEAD, msgspec.msgpack.encode(dead))
    checkpoint(journal, 14, 4)
    assert memo_of("gone") in read(journal)[1].memos


def test_rows_that_are_made_anew_miss_what_was_let_go_before(journal: Journal) -> None:
    waves = [Wave(start=0, counts={"cause": 20})]
    generation = Generation(why="task", waves=waves, until=10)
    journal.append(Kind.GENERATION, msgspec.msgpack.encode(generation))
    _, found = read(journal)
    assert found.lacks(found.start())
    # Half-way, and past where the rows before it were.
    checkpoint(journal, 4, 1)
    _, found = read(journal)
    assert found.checkpoint is not None and found.lacks(found.checkpoint)
    checkpoint(journal, 12, 3)
    kept, found = read(journal)
    assert found.checkpoint is not None and not found.lacks(found.checkpoint)
    assert kept == LATE - {"row at the start", "late block"}


def test_damage_far_behind_a_break_is_found_without_reading_all_at_once(journal: Journal) -> None:
    """The magic of the record behind it lies across two chunks."""
    end = journal.end
    for size in ((1 << 20) - 14, (1 << 20) - 13, (1 << 20) - 12):
        journal.append(Kind.ANSWER, b"x" * size)
        whole = journal.append(Kind.VOID, bytes(8))
        with journal.path.open("r+b") as file:
            file.seek(end)
            file.write(b"---")
        before = journal.path.read_bytes()
        with pytest.raises(Exception, match="intact records follow"):
            recover(journal.path, journal, Ledger(journal))
        assert journal.path.read_bytes() == before
        assert whole > end
        with journal.path.open("r+b") as file:
            file.truncate(end)
        journal.end = end
