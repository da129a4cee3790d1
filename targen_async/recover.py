"""Reading a journal at a start: what is known, what was spent, where to go on."""

import struct
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
    Journal,
    Kind,
    Opened,
    Target,
    TaskChanged,
    body_of,
    frames,
    parse_intent,
    ticket_of,
)
from targen_async.ledger import Ledger
from targen_async.state import CommitState, Generation


class Recovered(Struct, kw_only=True):
    """A journal's content, answers by offset."""

    opened: Opened | None = None
    task_digest: str = ""
    memos: dict[bytes, int] = field(default_factory=dict)
    """Digest of a request to the offset of its last answer, or of its failure for good."""
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

    def begin(self, generation: Generation, offset: int) -> None:
        """What a GENERATION record at `offset` means: the run aims at its n from the first slot."""
        self.generation, self.swapped = generation, False
        self.generations.append(generation.why)
        self.targets = [Target(slot=0, n=self.targets[-1].n)]
        self.checkpoint = None
        self.generation_at = offset
        if generation.why == "retry":
            self.retry_before = offset


def recover(path: Path, journal: Journal, ledger: Ledger) -> Recovered:
    """Cut a torn tail, then read the journal once. The ledger is brought up to date.

    Raises RunStopped when the journal is damaged, UserError when a newer version wrote it; either
    way the file is untouched.
    """
    found = Recovered()
    pending: dict[int, bytes] = {}
    dead_memos: set[bytes] = set()
    first = next(frames(path), None)
    if first is not None:
        _check_version(path, first.kind, first.payload)
    journal.cut_torn_tail()
    for frame in frames(path):
        try:
            _take(frame, found, ledger, pending, dead_memos)
        except (ValueError, LookupError, struct.error, msgspec.MsgspecError) as error:
            raise RunStopped(
                f"{path} is damaged at byte {frame.offset}: the record there is whole and means "
                "nothing; restore the file from a copy, or start a new run in another folder"
            ) from error
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
    ledger: Ledger,
    pending: dict[int, bytes],
    dead_memos: set[bytes],
) -> None:
    payload = frame.payload
    if frame.kind == Kind.INTENT:
        intent = parse_intent(payload)
        pending[frame.offset] = intent.memo
        ledger.opened(frame.offset, intent)
    elif frame.kind == Kind.ANSWER:
        ticket = ticket_of(payload)
        memo = pending.pop(ticket)
        found.memos[memo] = frame.offset
        if memo in dead_memos:
            dead_memos.remove(memo)
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
