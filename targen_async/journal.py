"""The journal: the only truth of a run, an append-only file of framed records.

Frame: magic `tJ1`, kind (1 byte), payload length (u32), CRC-32 of kind, length and payload (u32),
payload; little-endian. Everything else in a run's folder can be made again from this file.

Three records follow one call: an intent before it is sent, then the raw answer before any parser
sees it, or a void when the server answered with a clean error. An intent with neither is *in
doubt*: the server may have served, and charged for, an answer that never arrived.
"""

import errno
import os
import zlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from struct import Struct as Layout
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec

from targen_async.config import Data
from targen_async.errors import RunStopped, UserError

VERSION = 2
MAGIC = b"tJ1"
_HEADER = Layout("<3sBII")
_INTENT = Layout("<16sIIB")
_ANSWER = Layout("<Q")
_CRC_PREFIX = Layout("<BI")
_CHUNK_BYTES = 1 << 20
_SECTOR = 512
MAX_PAYLOAD_BYTES = 1 << 28
SYNC_INTERVAL_S = 0.05
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Kind(IntEnum):
    OPENED = 1
    TARGET = 2
    INTENT = 3
    ANSWER = 4
    VOID = 5
    DEAD = 6
    CHECKPOINT = 7
    TASK_CHANGED = 8
    GENERATION = 9
    SWAPPED = 10
    ITEMS = 11
    SYNCED = 12


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """First record: which journal this is."""

    version: int
    data: Data
    task_digest: str


class TaskChanged(msgspec.Struct, frozen=True, kw_only=True):
    """From here on the task's prompts are others, with the user's consent."""

    task_digest: str


class Items(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows the call for judgement with this key shows, in the order of their ids.

    Row: its slot, and a digest of all the judge is told of it.
    """

    key: str
    vote: int
    rows: list[tuple[int, bytes]]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """From row slot `slot` on, the run aims at `n` rows."""

    slot: int
    n: int


NO_SCHEMA = "no-schema"
"""Kind of a `Dead` that is no loss: the probe with a schema, where the one without was answered."""
NEEDS_CALL = "needs_call"
"""Kind of a `Dead` that a reparse left: it counts until the rows are next made anew."""
HEDGE = "~hedge"
"""Ends the key of the second copy of a stalled call. Its memo is that of the first."""


class Dead(msgspec.Struct, frozen=True, kw_only=True):
    """A call that ended without an answer for good."""

    memo: bytes
    kind: str
    message: str


class Intent(NamedTuple):
    """What a call would cost at worst, known before it is sent."""

    memo: bytes
    prompt_bytes: int
    max_tokens: int
    key: str


class Frame(NamedTuple):
    offset: int
    kind: int
    payload: bytes

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.offset + _HEADER.size + len(self.payload)


class Journal:
    """Owns the journal file of one run. One writer; reads are by offset.

    `append` is one write(2), so that what it returns from survives kill -9; `synced` tells how far
    the file is safe from power loss. A full disk raises RunStopped after giving up the reserve, so
    that answers already on their way still find room.
    """

    def __init__(self, path: Path, *, reserve_bytes: int = 0) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.end = os.fstat(self._fd).st_size
        self.synced = 0
        self._marked = 0
        """How far the last SYNCED record says that the file was safe."""
        self.full: str | None = None
        """Why nothing more may be sent, once the disk has been full."""
        self._dirty = anyio.Event()
        self._sync_lock = anyio.Lock()
        self._reserve = path.with_name("reserve.bin")
        if reserve_bytes:
            self._make_reserve(reserve_bytes)

    def _make_reserve(self, size: int) -> None:
        try:
            with self._reserve.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            raise UserError(
                f"no room for a run at {self.path.parent}: {size >> 10} KiB could not be reserved "
                f"({os.strerror(error.errno or 0)}); free some space or choose another --out"
            ) from error

    # ---- writing

    def append(self, kind: Kind, payload: bytes) -> int:
        """Write one record and return its offset. Not yet safe from power loss: see `sync`."""
        frame = _framed(kind, payload)
        offset = start = self.end
        if self.synced > self._marked:
            # Of two records that follow a loss of power this tells which was safe before it.
            mark = _framed(Kind.SYNCED, _ANSWER.pack(self.synced))
            self._marked = self.synced
            offset += len(mark)
            frame = mark + frame
        try:
            self._write(frame, start)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            self._on_full(error, frame, start)
        self.end = start + len(frame)
        if not self._dirty.is_set():
            self._dirty.set()
        return offset

    def _write(self, frame: bytes, offset: int) -> None:
        written = os.pwrite(self._fd, frame, offset)
        while written < len(frame):
            written += os.pwrite(self._fd, frame[written:], offset + written)

    def _on_full(self, error: OSError, frame: bytes, offset: int) -> None:
        """Give up the reserve and write once more; a second refusal stops the run."""
        self.full = (
            f"cannot write {self.path}: {os.strerror(error.errno or 0).lower()}; "
            "free some space and start the same command again"
        )
        self._reserve.unlink(missing_ok=True)
        try:
            self._write(frame, offset)
        except OSError as again:
            os.ftruncate(self._fd, offset)
            raise RunStopped(self.full) from again

    def intent(self, intent: Intent) -> int:
        """Record that a call is about to be sent; returns the ticket of its answer or void."""
        if self.full:
            raise RunStopped(self.full)
        key = intent.key.encode()
        head = _INTENT.pack(intent.memo, intent.prompt_bytes, intent.max_tokens, len(key))
        return self.append(Kind.INTENT, head + key)

    def answer(self, ticket: int, body: bytes) -> int:
        """Keep the raw body of an answer, before anything parses it; returns its offset."""
        return self.append(Kind.ANSWER, _ANSWER.pack(ticket) + body)

    def void(self, ticket: int, reason: str) -> None:
        """The attempt was refused cleanly: nothing was served for `ticket`."""
        self.append(Kind.VOID, _ANSWER.pack(ticket) + reason[:200].encode())

    def clear(self) -> None:
        """Begin anew: for a journal that holds no answer."""
        os.ftruncate(self._fd, 0)
        os.fdatasync(self._fd)
        self.end = self.synced = self._marked = 0

    # ---- durability

    async def sync(self) -> None:
        """Return once everything appended before the call is on the disk."""
        goal = self.end
        async with self._sync_lock:
            if self.synced >= goal:
                return
            goal = self.end
            try:
                await anyio.to_thread.run_sync(os.fdatasync, self._fd)
            except OSError as error:
                raise RunStopped(
                    f"cannot write {self.path}: {os.strerror(error.errno or 0).lower()}"
                ) from error
            self.synced = max(self.synced, goal)

    async def keep_synced(self) -> None:
        """Group commit: fsync in a thread at most 100 ms after a write. Runs forever."""
        while True:
            await self._dirty.wait()
            self._dirty = anyio.Event()
            await anyio.sleep(SYNC_INTERVAL_S)
            await self.sync()

    def close(self) -> None:
        os.close(self._fd)
        self._reserve.unlink(missing_ok=True)

    # ---- reading

    def read(self, offset: int) -> Frame:
        """The record at `offset`. Raises RunStopped when it is damaged."""
        frame = _record_at(self._fd, offset)
        if frame is None:
            raise RunStopped(f"{self.path} is damaged at byte {offset}: restore it from a copy")
        return frame

    def read_answer(self, offset: int) -> bytes:
        """The raw body of the answer at `offset`."""
        return self.read(offset).payload[_ANSWER.size :]

    def cut_torn_tail(self, end: int | None = None) -> None:
        """Cut what a kill or a power loss left half-written at the very end.

        `end`: where the last whole record ends, if that is known. Raises RunStopped for damage.
        """
        end = valid_end(self.path, end)
        if end < self.end:
            os.ftruncate(self._fd, end)
            # What is cut must not come back below what is written next.
            os.fdatasync(self._fd)
            self.end = end


def parse_intent(payload: bytes) -> Intent:
    memo, prompt_bytes, max_tokens, key_bytes = _INTENT.unpack_from(payload)
    key = payload[_INTENT.size : _INTENT.size + key_bytes].decode()
    return Intent(memo, prompt_bytes, max_tokens, key)


def plan_key(key: str) -> str:
    """What an intent's key was planned as: without the number of the asking, without the role."""
    return key.partition("@")[0].partition("~")[0]


def ticket_of(payload: bytes) -> int:
    """The intent that an answer or a void belongs to."""
    ticket: int = _ANSWER.unpack_from(payload)[0]
    return ticket


def body_of(payload: bytes) -> bytes:
    """The raw answer in an ANSWER record's payload."""
    return payload[_ANSWER.size :]


def _framed(kind: int, payload: bytes) -> bytes:
    return _HEADER.pack(MAGIC, kind, len(payload), _checksum(kind, payload)) + payload


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_CRC_PREFIX.pack(kind, len(payload))))


def _record_at(fd: int, offset: int) -> Frame | None:
    head = os.pread(fd, _HEADER.size, offset)
    if len(head) == _HEADER.size:
        magic, kind, length, crc = _HEADER.unpack(head)
        if magic == MAGIC and length <= MAX_PAYLOAD_BYTES:
            payload = os.pread(fd, length, offset + _HEADER.size)
            if len(payload) == length and crc == _checksum(kind, payload):
                return Frame(offset, kind, payload)
    return None


def frames(path: Path) -> Iterator[Frame]:
    """Every whole record of a journal in order; ends silently at the first that is not."""
    with path.open("rb") as file:
        offset = 0
        buffer = b""
        position = 0
        while True:
            while len(buffer) - position >= _HEADER.size:
                magic, kind, length, crc = _HEADER.unpack_from(buffer, position)
                stop = position + _HEADER.size + length
                if magic != MAGIC or length > MAX_PAYLOAD_BYTES:
                    return
                if stop > len(buffer):
                    break
                payload = buffer[position + _HEADER.size : stop]
                if crc != _checksum(kind, payload):
                    return
                yield Frame(offset, kind, payload)
                offset += stop - position
                position = stop
            chunk = file.read(_CHUNK_BYTES)
            if not chunk:
                return
            buffer = buffer[position:] + chunk
            position = 0


def valid_end(path: Path, known: int | None = None) -> int:
    """Where the last whole record ends that was not lost with the power; `known` is where somebody
    found it to end.

    Raises RunStopped when a whole record follows the unreadable place and this is not what a loss
    of power leaves: that is damage, not a torn tail, and cutting it would throw paid answers away.
    """
    end = known
    if end is None:
        end = max((frame.end for frame in frames(path)), default=0)
    size = path.stat().st_size
    if end < size and _is_damaged(path, end, size):
        raise RunStopped(
            f"{path} is damaged at byte {end} and intact records follow: nothing was touched; "
            "restore the file from a copy, or start a new run in another folder"
        )
    return end


def _is_damaged(path: Path, start: int, size: int) -> bool:
    """Do intact records follow the unreadable place at `start` that do not belong to a lost tail?

    Pages that were not synced reach the disk in any order. Where one did not and a later one did,
    there is a hole of zeros up to the end of a sector, and no record behind it says that `start`
    was synced.
    """
    with path.open("rb") as file:
        fd = file.fileno()
        first: int | None = None
        for frame in _records_behind(fd, start, size):
            first = frame.offset if first is None else first
            if frame.kind == Kind.SYNCED and ticket_of(frame.payload) > start:
                return True
        return first is not None and not _has_hole(fd, start, first)


def _records_behind(fd: int, start: int, size: int) -> Iterator[Frame]:
    """The intact records behind `start`: at every place that bears the magic one may begin."""
    at = start + 1
    while at < size:
        chunk = os.pread(fd, _CHUNK_BYTES, at)
        position = chunk.find(MAGIC)
        while position != -1:
            frame = _record_at(fd, at + position)
            if frame is not None and frame.kind <= max(Kind):
                yield frame
            position = chunk.find(MAGIC, position + 1)
        # The magic may lie across the end of a chunk.
        at += max(len(chunk) - len(MAGIC) + 1, 1)


def _has_hole(fd: int, start: int, end: int) -> bool:
    """Is there a sector between the two, or what lies there of its first, of nothing but zeros?"""
    while (edge := (start // _SECTOR + 1) * _SECTOR) <= end:
        if not any(os.pread(fd, edge - start, start)):
            return True
        start = edge
    return False
