"""A run's folder: run.toml, the lock, shards, rejected.jsonl, failures.jsonl, manifest.json.

All but run.toml is a function of the journal: files are cut back to a checkpoint and written on,
or made again from the first record.
"""

import errno
import os
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import orjson
from msgspec import Struct, field

from targen_async import config as configuration
from targen_async.config import RunConfig
from targen_async.errors import RunStopped, UserError
from targen_async.journal import DISK_FULL
from targen_async.lock import LOCK

JOURNAL = "journal"
MANIFEST = "manifest.json"
RUN_TOML = "run.toml"
REJECTED = "rejected.jsonl"
FAILURES = "failures.jsonl"
INDEX = "distinct.sqlite"
SEEDS = "seeds.jsonl"
NEXT = "next"
"""Where a new generation of the line files is made; it moves up when it is complete."""


def shard_name(index: int) -> str:
    return f"instances-{index:05d}.jsonl"


class ShardSeal(Struct, frozen=True, kw_only=True):
    """One shard as it should be found on disk."""

    name: str
    rows: int
    bytes: int
    sha256: str


class FilesState(Struct, frozen=True, kw_only=True):
    """The written files at a checkpoint."""

    shards: list[ShardSeal] = field(default_factory=list)
    rejected_bytes: int = 0
    failures_bytes: int = 0


def open_folder(folder: Path) -> None:
    """Make the folder, or say in one sentence why it cannot be used."""
    if folder.is_dir():
        _refuse_orphans(folder)
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / LOCK
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise UserError(f"cannot write to {folder}: {reason}; choose another --out") from error
    for place in made:
        # One that may be written and not listed cannot be opened to be synced.
        if os.access(place.parent, os.R_OK):
            sync_folder(place.parent)
    strangers = [
        entry.name
        for entry in folder.iterdir()
        if not entry.name.startswith((".", "instances-")) and entry.name not in _OURS
    ]
    if strangers and not (folder / RUN_TOML).exists():
        raise UserError(
            f"{folder} is not empty and not a run (it holds {strangers[0]}); choose another --out"
        )


def _refuse_orphans(folder: Path) -> None:
    """Rows without the journal they were made from cannot be gone on with, only overwritten."""
    journal = folder / JOURNAL
    if journal.is_file() and journal.stat().st_size:
        return
    for path in sorted(folder.glob("*.jsonl")):
        if path.name != SEEDS and path.stat().st_size:
            if (folder / MANIFEST).exists() and "sources" in read_manifest(folder):
                raise UserError(f"{folder} is a merged set, not a run; choose another --out")
            raise UserError(
                f"{folder} holds rows ({path.name}) but its journal is missing or empty: nothing "
                "was touched; restore the journal, or choose another --out"
            )


_OURS = {
    JOURNAL,
    MANIFEST,
    RUN_TOML,
    REJECTED,
    FAILURES,
    INDEX,
    SEEDS,
    NEXT,
    LOCK,
    "reserve.bin",
} | {
    INDEX + "-wal",
    INDEX + "-shm",
    INDEX + "-journal",
}


def write_config(folder: Path, config: RunConfig) -> None:
    """Write run.toml: for people, and for a start without flags. The journal knows better."""
    text = configuration.dump(configuration.anchored(config))
    write_atomically(folder / RUN_TOML, text.encode())


def read_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`. Raises UserError where there is none."""
    path = folder / RUN_TOML
    try:
        return configuration.decode(tomllib.loads(path.read_text("utf-8")), str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} holds no run (there is no {RUN_TOML} in it)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content: readers see the old or the new one, also after power loss."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise _stopped(path, error) from error


def write_headed(
    path: Path, lines: Iterable[bytes], head: Callable[[], bytes], head_bytes: int
) -> None:
    """Replace a file by `lines` below a first line of at most `head_bytes`, known after them."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            file.write(b" " * head_bytes + b"\n")
            file.writelines(lines)
            file.seek(0)
            file.write(head())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise _stopped(path, error) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make new and renamed files in a folder survive power loss."""
    with stopping(folder):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def stopping(path: Path) -> Iterator[None]:
    """RunStopped, with the path, for what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise _stopped(path, error) from error


def _stopped(path: Path, error: OSError) -> RunStopped:
    mend = "free some space and start" if error.errno == errno.ENOSPC else "mend it and start"
    return RunStopped(
        f"cannot write {path}: {os.strerror(error.errno or 0).lower()}; "
        f"{mend} the same command again"
    )


class Appender:
    """An append-only file that is first cut back to a known size, and hashes what it holds."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.digest = sha256()
        self.pending: list[bytes] = []
        with stopping(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, size)
        read = 0
        while chunk := os.pread(self._fd, 1 << 20, read):
            self.digest.update(chunk)
            read += len(chunk)

    def add(self, line: bytes) -> None:
        self.pending.append(line)

    def flush(self) -> None:
        """Write what was added. Raises RunStopped when the disk does not take it."""
        if not self.pending:
            return
        data = b"".join(self.pending)
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self.size + written)
        except OSError as error:
            raise _stopped(self.path, error) from error
        self.pending.clear()
        self.digest.update(data)
        self.size += len(data)

    def sync(self) -> None:
        with stopping(self.path):
            os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def files_stand(folder: Path, state: FilesState) -> bool:
    """Do the files begin with what the checkpoint says? Reads them and touches nothing."""
    sizes = {REJECTED: state.rejected_bytes, FAILURES: state.failures_bytes}
    for name, size in sizes.items():
        path = folder / name
        if size and not (path.is_file() and path.stat().st_size >= size):
            return False
    return all(_shard_stands(folder / seal.name, seal) for seal in state.shards)


def _shard_stands(path: Path, seal: ShardSeal) -> bool:
    if not path.is_file() or path.stat().st_size < seal.bytes:
        return seal.bytes == 0
    digest = sha256()
    left = seal.bytes
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest() == seal.sha256


class Files:
    """The three kinds of line files of a run, positioned at a checkpoint. One writer."""

    def __init__(self, folder: Path, state: FilesState, rows_per_shard: int) -> None:
        self.folder = folder
        self.rows_per_shard = rows_per_shard
        self._rows_pending: deque[bytes] = deque()
        self.sealed = list(state.shards[:-1])
        last = state.shards[-1] if state.shards else None
        self.rows = last.rows if last else 0
        self.shard = Appender(folder / shard_name(len(self.sealed)), last.bytes if last else 0)
        for stray in folder.glob("instances-*.jsonl"):
            if stray.name > self.shard.path.name:
                stray.unlink()
        self.rejected = Appender(folder / REJECTED, state.rejected_bytes)
        self.failures = Appender(folder / FAILURES, state.failures_bytes)
        sync_folder(folder)

    def add_row(self, line: bytes) -> None:
        """Keep a row for the next `flush`: nothing is written before its answers are safe."""
        self._rows_pending.append(line)

    def _write_rows(self) -> None:
        while self._rows_pending:
            if self.rows >= self.rows_per_shard:
                self._begin_shard()
            # Taken one by one: where a new shard cannot be begun, what is left is written later.
            self.shard.add(self._rows_pending.popleft())
            self.rows += 1

    def _begin_shard(self) -> None:
        self.shard.flush()
        self.shard.sync()
        following = Appender(self.folder / shard_name(len(self.sealed) + 1), 0)
        self.sealed.append(self._seal())
        self.shard.close()
        self.shard = following
        self.rows = 0
        sync_folder(self.folder)

    def _seal(self) -> ShardSeal:
        return ShardSeal(
            name=self.shard.path.name,
            rows=self.rows,
            bytes=self.shard.size,
            sha256=self.shard.digest.hexdigest(),
        )

    @property
    def pending(self) -> bool:
        """Are there lines that are not written yet?"""
        appenders = (self.shard, self.rejected, self.failures)
        return bool(self._rows_pending) or any(appender.pending for appender in appenders)

    def flush(self) -> None:
        """Write all that was added. Raises RunStopped when the disk does not take it."""
        self._write_rows()
        for appender in (self.shard, self.rejected, self.failures):
            appender.flush()

    def sync(self) -> None:
        """fsync all three; blocks, so it belongs in a thread."""
        for appender in (self.shard, self.rejected, self.failures):
            appender.sync()

    def state(self) -> FilesState:
        """What a checkpoint must know; call it after `flush`."""
        return FilesState(
            shards=[*self.sealed, self._seal()],
            rejected_bytes=self.rejected.size,
            failures_bytes=self.failures.size,
        )

    def close(self) -> None:
        for appender in (self.shard, self.rejected, self.failures):
            appender.close()


def finish_swap(folder: Path) -> None:
    """Put a complete generation in the place of the one before. Done again it does the rest."""
    new = folder / NEXT
    if not new.is_dir():
        return
    if (new / MANIFEST).exists():
        for name in (INDEX, INDEX + "-wal", INDEX + "-shm"):
            if (new / INDEX).exists():
                (folder / name).unlink(missing_ok=True)
        shards = {shard["name"] for shard in read_manifest(new)["shards"]}
        for old in folder.glob("instances-*.jsonl"):
            if old.name not in shards:
                old.unlink()
    # The manifest goes last: while it is here, the rest may still have to be moved.
    for path in sorted(new.iterdir(), key=lambda path: path.name == MANIFEST):
        path.replace(folder / path.name)
    sync_folder(folder)
    new.rmdir()


def to_line(value: Any) -> bytes:  # noqa: ANN401
    """One JSON line. Keys keep their order, so equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def write_manifest(folder: Path, manifest: Struct | dict[str, Any]) -> None:
    data = orjson.dumps(msgspec.to_builtins(manifest), option=orjson.OPT_INDENT_2)
    write_atomically(folder / MANIFEST, data + b"\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a run. Raises UserError where there is none or it is not JSON."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = orjson.loads(path.read_bytes())
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise UserError(f"{folder} holds no run that can be read ({MANIFEST}: {reason})") from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not (isinstance(manifest, dict) and "delivered" in manifest):
        raise UserError(f"{path} is no manifest of a run")
    return manifest
