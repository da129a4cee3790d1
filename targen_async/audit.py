"""What a journal holds, read once and without touching anything: for those who check a run."""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from targen_async.chat.wire import decode_completion
from targen_async.errors import ChatError, ParseError, RunStopped
from targen_async.journal import (
    Frame,
    Items,
    Journal,
    Kind,
    Opened,
    TaskChanged,
    body_of,
    frames,
    parse_intent,
    plan_key,
    ticket_of,
    valid_end,
)
from targen_async.ledger import Ledger, Role, Totals
from targen_async.parse import answer_text, list_form, read, read_list, verdicts_form
from targen_async.records import ChatResult, StageName
from targen_async.stages import item_ids
from targen_async.state import CommitState, Generation

_LIST = re.compile(r".*/([cs])\d{4,}")
_ROW = re.compile(r"(?:.*/)?(\d{6,})/(\d{1,2})")
_BLOCK = re.compile(r".*/x\d{6,}/v\d+[.01]*")
_HEADER_BYTES = 12
_PLACES = 100
"""Most rows of a seed."""
_FORMS = {"c": list_form("contexts"), "s": list_form("seeds")}
_VERDICTS = verdicts_form(())
"""Whatever the labels of the task are."""


class ReadOnlyJournal(Journal):
    """A journal to read from: nothing is made, written or removed, not even by closing it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)


class Standing(Struct, frozen=True, kw_only=True):
    """What a journal says of the rows that stand in their place."""

    totals: Totals
    by_role: dict[Role, Totals]
    checkpoint: CommitState | None
    raises: int
    """How often n was raised."""
    task_digest: str
    generations: int


def number_of(key: str) -> int | None:
    """A number for a row's key that ascends as the keys do; None: it is no row's key."""
    found = _ROW.fullmatch(key)
    return int(found[1]) * _PLACES + int(found[2]) if found else None


def place_of(number: int) -> tuple[int, int]:
    """(number of the seed, place within the seed) of a row's number."""
    return divmod(number, _PLACES)


class Audit:
    """One pass over a journal. Texts are known by their hashes, answers by their offsets."""

    def __init__(self, journal: ReadOnlyJournal, *, bound: bool) -> None:
        self.journal = journal
        self.faults: list[str] = []
        self.torn = False
        """Is it whole but for a tail that a kill left behind?"""
        self.damaged = False
        self.opened: Opened | None = None
        self.answers = 0
        self.contexts: set[int] = set()
        self.seeds: dict[int, tuple[int, int]] = {}
        """Hash of a seed's text to (offset of the answer, position in it)."""
        self.swapped = True
        self.generation: Generation | None = None
        self._votes: set[int] = set()
        self._bound = bound
        self._last: dict[int, int] = {}
        """Number of a row to the offset of the newest answer to its instance call."""
        self._before: dict[int, int] = {}
        """Offset of such an answer to that of the one before it."""
        self._ledger = Ledger(journal)
        self._pending: dict[int, str] = {}
        self._shown: dict[str, Items] = {}
        self._checkpoint: CommitState | None = None
        self._targets = 0
        self._digest = self._old_digest = ""
        self._generations = 0
        self._kept: Standing | None = None
        """What stood when a generation began that does not stand in its place yet."""

    def read(self) -> None:
        """Go through the journal; `faults` has a line for everything that is not as it should."""
        end = 0
        for frame in frames(self.journal.path):
            try:
                self._take(frame)
            except (ValueError, KeyError, struct.error, msgspec.MsgspecError):
                self.faults.append(f"journal:byte {frame.offset}: this record cannot be understood")
            end = frame.offset + _HEADER_BYTES + len(frame.payload)
        size = self.journal.path.stat().st_size
        if end < size:
            self._tell_end(end, size)
        if self.opened is None and not self.faults:
            self.faults.append("journal: it does not begin as a journal does")

    def _tell_end(self, end: int, size: int) -> None:
        try:
            valid_end(self.journal.path)
        except RunStopped:
            self.damaged = True
            self.faults.append(
                f"journal:byte {end}: damaged, and intact records follow; restore it from a copy"
            )
            return
        self.torn = True
        self.faults.append(
            f"journal:byte {end}: the last {size - end} bytes are no whole record; the next start "
            "cuts them off"
        )

    @property
    def standing(self) -> Standing:
        return self._kept or self._now(self._digest)

    def _now(self, digest: str) -> Standing:
        return Standing(
            totals=self._ledger.totals(),
            by_role=self._ledger.by_role(),
            checkpoint=self._checkpoint,
            raises=max(0, self._targets - 1),
            task_digest=digest,
            generations=self._generations,
        )

    # ---- what rows are checked against

    def answers_of(self, number: int) -> Iterator[int]:
        """Offsets of the answers to the instance call that writes this row first, newest first."""
        offset = self._last.get(number)
        while offset is not None:
            yield offset
            offset = self._before.get(offset)

    def holds_text(self, stage: StageName, text: str) -> bool:
        """Is this text of a context or a seed in a stored answer?"""
        return hash(text.strip()) in (self.contexts if stage == "contexts" else self.seeds)

    def voted(self, slot: int, label: str, explanation: str, model: str) -> bool:
        """Did a judge say so, and of this row (where votes are bound to their rows)?"""
        return hash((slot if self._bound else -1, label, explanation, model)) in self._votes

    # ---- reading

    def _take(self, frame: Frame) -> None:
        payload = frame.payload
        if frame.kind == Kind.INTENT:
            intent = parse_intent(payload)
            self._pending[frame.offset] = plan_key(intent.key)
            self._ledger.opened(frame.offset, intent)
        elif frame.kind == Kind.ANSWER:
            self._answer(frame)
        elif frame.kind == Kind.VOID:
            self._pending.pop(ticket_of(payload), None)
            self._ledger.voided(ticket_of(payload))
        elif frame.kind == Kind.ITEMS:
            items = msgspec.msgpack.decode(payload, type=Items)
            self._shown[items.key] = items
        elif frame.kind == Kind.CHECKPOINT:
            self._checkpoint = msgspec.msgpack.decode(payload, type=CommitState)
        elif frame.kind == Kind.TARGET:
            self._targets += 1
        elif frame.kind == Kind.TASK_CHANGED:
            self._old_digest = self._digest
            self._digest = msgspec.msgpack.decode(payload, type=TaskChanged).task_digest
        elif frame.kind == Kind.GENERATION:
            self._begin(msgspec.msgpack.decode(payload, type=Generation))
        elif frame.kind == Kind.SWAPPED:
            self.swapped, self._kept = True, None
        elif frame.kind == Kind.OPENED:
            self.opened = msgspec.msgpack.decode(payload, type=Opened)
            self._digest = self.opened.task_digest

    def _begin(self, generation: Generation) -> None:
        if self.swapped:
            self._kept = self._now(self._old_digest if generation.why == "task" else self._digest)
        self.generation, self.swapped = generation, False
        self._generations += 1
        self._checkpoint, self._targets = None, 1

    def _answer(self, frame: Frame) -> None:
        ticket = ticket_of(frame.payload)
        key = self._pending.pop(ticket, None)
        if key is None:
            self.faults.append(f"journal:byte {frame.offset}: an answer to no call")
            return
        self.answers += 1
        self._ledger.answered(ticket, body_of(frame.payload))
        try:
            result = decode_completion(body_of(frame.payload), key, frame.offset, model=self._judge)
        except (ParseError, ChatError):
            return
        try:
            self._sort(key, result)
        except ParseError:
            return  # It was of no use to the run either.

    @property
    def _judge(self) -> str:
        data = self.opened.data if self.opened else None
        return (data.correction.model or data.model) if data else ""

    def _sort(self, key: str, result: ChatResult) -> None:
        """Keep what rows can be made of."""
        if (number := number_of(key)) is not None:
            if number in self._last:
                self._before[result.offset] = self._last[number]
            self._last[number] = result.offset
        elif found := _LIST.fullmatch(key):
            texts = read_list(answer_text(result), _FORMS[found[1]])
            for position, text in enumerate(texts):
                if found[1] == "c":
                    self.contexts.add(hash(text.strip()))
                else:
                    self.seeds.setdefault(hash(text.strip()), (result.offset, position))
        elif _BLOCK.fullmatch(key):
            self._count_votes(key, result)

    def _count_votes(self, key: str, result: ChatResult) -> None:
        items = self._shown.get(key)
        if items is None or self.opened is None:
            return
        ids = item_ids(self.opened.data.random_seed, key, len(items.rows))
        slots = {id_: slot for id_, (slot, _) in zip(ids, items.rows, strict=True)}
        for said in read(answer_text(result), _VERDICTS).items:
            if said.id in slots:
                slot = slots[said.id] if self._bound else -1
                self._votes.add(hash((slot, said.label, said.explanation, result.model)))
