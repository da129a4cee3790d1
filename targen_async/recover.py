"""Reading a journal at a start: what is known, what was spent, where to go on."""

import re
import struct
from heapq import heappop, heappush
from pathlib import Path

import msgspec
from msgspec import Struct, field

from targen_async.errors import RunStopped, UserError
from targen_async.journal import (
    NEEDS_CALL,
    NO_SCHEMA,
    VERSION,
    Dead,
    Frame,
    Intent,
    Journal,
    Kind,
    Opened,
    Target,
    TaskChanged,
    body_of,
    frames,
    parse_intent,
    plan_key,
    ticket_of,
)
from targen_async.ledger import Ledger
from targen_async.state import CommitState, Generation

_ROW = re.compile(r"(\d{6,})/(\d{1,2})")
_BLOCK = re.compile(r"x(\d{6,})/")
_SEED_CALL = re.compile(r"s(\d{6,})")


class Recovered(Struct, kw_only=True):
    """A journal's content, answers by offset."""

    opened: Opened | None = None
    task_digest: str = ""
    memos: dict[bytes, int] = field(default_factory=dict)
    """Digest of a request to the offset of its last answer, or of its failure for good."""
    let_go: tuple[int, int] = (0, 0)
    """Answers are missing among them to rows before this slot, and to calls for seeds before this
    one, as a checkpoint held what was made of them."""
    targets: list[Target] = field(default_factory=list)
    checkpoint: CommitState | None = None
    generation: Generation | None = None
    """Why and how the rows were last made anew."""
    generations: list[str] = field(default_factory=list)
    """Why, for each time."""
    swapped: bool = True
    """Do the rows of the last generation stand in their place?"""
    generation_at: int = 0
    """Where the last generation begins in the journal."""
    retry_before: int = 0
    """Failures that stand before this offset are reopened."""

    def start(self) -> CommitState:
        """The state before the first row of the last generation."""
        return self.generation.start() if self.generation else CommitState()

    def lacks(self, state: CommitState) -> bool:
        """Are answers missing that a start from `state` may ask for?"""
        return state.restart_slot < self.let_go[0] or state.seeds.call < self.let_go[1]

    def begin(self, generation: Generation, offset: int) -> None:
        """What a GENERATION record at `offset` means: the run aims at its n from the first slot."""
        self.generation, self.swapped = generation, False
        self.generations.append(generation.why)
        self.targets = [Target(slot=0, n=self.targets[-1].n)]
        self.checkpoint = None
        self.generation_at = offset
        if generation.why == "retry":
            self.retry_before = offset


class _Memos:
    """The answers that a start may ask for. Those to rows that a checkpoint holds are let go, so
    that their number does not grow with the run."""

    def __init__(self, found: Recovered, rows_per_seed: int | None) -> None:
        self._found = found
        self._rows_per_seed = rows_per_seed
        self._slots: list[tuple[int, bytes]] = []
        self._seed_calls: list[tuple[int, bytes]] = []
        """Heaps: the first row slot that an answer is for, or the number of the call for seeds."""

    def add(self, key: str, memo: bytes, offset: int) -> None:
        self._found.memos[memo] = offset
        if self._rows_per_seed is None:
            return
        place = plan_key(key).partition("/")[2]
        if row := _ROW.fullmatch(place):
            heappush(self._slots, (int(row[1]) * self._rows_per_seed + int(row[2]), memo))
        elif block := _BLOCK.match(place):
            heappush(self._slots, (int(block[1]), memo))
        elif call := _SEED_CALL.fullmatch(place):
            heappush(self._seed_calls, (int(call[1]), memo))

    def let_go(self, checkpoint: CommitState) -> None:
        """Forget what lies before the places where a start from this checkpoint begins."""
        if self._rows_per_seed is None:
            return
        slot, call = checkpoint.restart_slot, checkpoint.seeds.call
        for heap, limit in ((self._slots, slot), (self._seed_calls, call)):
            while heap and heap[0][0] < limit:
                self._found.memos.pop(heappop(heap)[1], None)
        before = self._found.let_go
        self._found.let_go = (max(slot, before[0]), max(call, before[1]))


def recover(
    path: Path, journal: Journal, ledger: Ledger, *, rows_per_seed: int | None = None
) -> Recovered:
    """Read the journal once, and cut a torn tail. The ledger is brought up to date.

    With `rows_per_seed` only those answers are kept that a start from the last checkpoint may ask
    for (`Recovered.lacks`). Raises RunStopped when the journal is damaged, UserError when a newer
    version wrote it; either way the file is untouched.
    """
    found = Recovered()
    memos = _Memos(found, rows_per_seed)
    pending: dict[int, Intent] = {}
    end = 0
    dead_memos: set[bytes] = set()
    first = next(frames(path), None)
    if first is not None:
        _check_version(path, first.kind, first.payload)
    for frame in frames(path):
        try:
            _take(frame, found, memos, ledger, pending, dead_memos)
        except (ValueError, LookupError, struct.error, msgspec.MsgspecError) as error:
            raise RunStopped(
                f"{path} is damaged at byte {frame.offset}: the record there is whole and means "
                "nothing; restore the file from a copy, or start a new run in another folder"
            ) from error
        end = frame.end
    journal.cut_torn_tail(end)
    return found


def _check_version(path: Path, kind: int, payload: bytes) -> None:
    try:
        version = msgspec.msgpack.decode(payload)["version"] if kind == Kind.OPENED else None
    except (TypeError, LookupError, ValueError, msgspec.MsgspecError):
        version = None
    if version != VERSION:
        raise UserError(
            f"{path} was written by another version of targen-async (journal format {version}, "
            f"this one reads {VERSION}); nothing was touched. Use that version, or another --out"
        )


def _take(
    frame: Frame,
    found: Recovered,
    memos: _Memos,
    ledger: Ledger,
    pending: dict[int, Intent],
    dead_memos: set[bytes],
) -> None:
    payload = frame.payload
    if frame.kind == Kind.INTENT:
        intent = parse_intent(payload)
        pending[frame.offset] = intent
        ledger.opened(frame.offset, intent)
    elif frame.kind == Kind.ANSWER:
        ticket = ticket_of(payload)
        intent = pending.pop(ticket)
        memos.add(intent.key, intent.memo, frame.offset)
        if intent.memo in dead_memos:
            dead_memos.remove(intent.memo)
            ledger.dead -= 1
        ledger.answered(ticket, body_of(payload))
    elif frame.kind == Kind.VOID:
        ticket = ticket_of(payload)
        pending.pop(ticket, None)
        ledger.voided(ticket)
    elif frame.kind == Kind.DEAD:
        dead = msgspec.msgpack.decode(payload, type=Dead)
        found.memos[dead.memo] = frame.offset
        if dead.kind not in (NO_SCHEMA, NEEDS_CALL) and dead.memo not in dead_memos:
            dead_memos.add(dead.memo)
            ledger.dead += 1
    elif frame.kind == Kind.CHECKPOINT:
        found.checkpoint = msgspec.msgpack.decode(payload, type=CommitState)
        memos.let_go(found.checkpoint)
    elif frame.kind == Kind.TARGET:
        found.targets.append(msgspec.msgpack.decode(payload, type=Target))
    elif frame.kind == Kind.GENERATION:
        generation = msgspec.msgpack.decode(payload, type=Generation)
        found.begin(generation, frame.offset)
    elif frame.kind == Kind.SWAPPED:
        found.swapped = True
    elif frame.kind == Kind.TASK_CHANGED:
        found.task_digest = msgspec.msgpack.decode(payload, type=TaskChanged).task_digest
    elif frame.kind == Kind.OPENED:
        found.opened = msgspec.msgpack.decode(payload, type=Opened)
        found.task_digest = found.opened.task_digest
