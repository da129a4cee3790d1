"""A disk that forgets: what is done below one folder is written down, and any moment of it can be
laid out again as a power loss would leave it.

The model. An fsync that is complete makes durable what its file held when it began. What came later
is in memory: it may have reached the disk page by page in any order, each page in whole or as far
as a sector of 512 bytes (`scattered`), in the order it was written (`torn`), or not at all
(`dropped`). Names (creating, renaming, deleting) reach the disk in their order, as in a journalled
file system, but only an fsync of a folder says how far; an fsync of a file does not save its name.

SQLite writes past this layer. Its files are copied at every commit, and after a loss they are as
they were at any one of these, with the write-ahead log cut anywhere: without a sync that is all
that SQLite promises.
"""

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from targen_async.distinct import DistinctGate
from targen_async.rundir import INDEX

SECTOR, PAGE = 512, 4096
Loss = Literal["dropped", "torn", "scattered", "kept"]
"""What becomes of what was not synced; `kept`: all is there, as after kill -9."""
LOSSES: tuple[Loss, ...] = ("dropped", "torn", "scattered", "kept")


class Write(NamedTuple):
    node: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    node: int
    size: int


class Sync(NamedTuple):
    """The file is durable as far as `upto`, an index of the log."""

    node: int
    upto: int


class SyncFolder(NamedTuple):
    path: str
    upto: int


class Create(NamedTuple):
    node: int
    path: str


class MakeFolder(NamedTuple):
    path: str


class Rename(NamedTuple):
    before: str
    path: str


class Remove(NamedTuple):
    path: str


class IndexState(NamedTuple):
    """SQLite's files after a commit: the database and its write-ahead log."""

    node: int
    database: bytes
    log: bytes


Change = Create | MakeFolder | Rename | Remove
Operation = Write | Truncate | Sync | SyncFolder | Change | IndexState
Fault = Callable[[str, str], int | None]
"""Is told the name of a call and of its file before it is made. May raise OSError; of a `pwrite` it
may return how many bytes are taken."""


def no_fault(_call: str, _name: str) -> None:
    pass


class Disk:
    """Writes down what is done below `root`, a folder that exists and is safe itself.

    `stamp` is called with each operation; what it returns is kept beside it.
    """

    def __init__(self, root: Path, stamp: Callable[[], Any] = lambda: None) -> None:
        self.root = str(root)
        self.log: list[Operation] = []
        self.stamps: list[Any] = []
        self.fault: Fault = no_fault
        self._stamp = stamp
        self._nodes = 0
        self._names: dict[str, int] = {}
        self._files: dict[int, int] = {}
        """Descriptor to node."""
        self._folders: dict[int, str] = {}
        self._streams: dict[int, str] = {}
        """Node to path, of files that are written through a buffer: their bytes are read back."""
        self._gates: dict[int, Path] = {}
        self._covers: int | None = None
        for path in sorted(root.rglob("*")):
            if path.is_dir():
                self._add(MakeFolder(str(path)))
            elif path.name == INDEX:
                self._keep_index(path)
            elif not path.name.startswith(INDEX):
                node = self._create(str(path))
                self._add(Write(node, 0, path.read_bytes()))
                self._add(Sync(node, len(self.log)))
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            self._add(SyncFolder(str(folder), len(self.log)))

    @contextmanager
    def covering(self, upto: int) -> Iterator[None]:
        """What is synced meanwhile is durable as far as `upto`: when the fsync began."""
        self._covers = upto
        try:
            yield
        finally:
            self._covers = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Everything that this process does below the root meanwhile is seen."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (
                *("open", "close", "pwrite", "ftruncate", "fsync", "fdatasync"),
                *("replace", "rename", "unlink", "mkdir", "rmdir", "posix_fallocate"),
            ):
                patch.setattr(os, name, _bound(getattr(self, f"_{name}"), getattr(os, name)))
            patch.setattr(io, "open", _bound(self._stream, io.open))
            opened, save, close = DistinctGate.__init__, DistinctGate.save, DistinctGate.close

            def begin(gate: DistinctGate, path: Path, *rest: Any) -> None:
                opened(gate, path, *rest)
                self._gates[id(gate)] = path

            def seen(real: Callable[..., None]) -> Callable[..., None]:
                def call(gate: DistinctGate, *arguments: Any) -> None:
                    self.fault(real.__name__, INDEX)
                    real(gate, *arguments)
                    self._keep_index(self._gates[id(gate)])

                return call

            patch.setattr(DistinctGate, "__init__", begin)
            patch.setattr(DistinctGate, "save", seen(save))
            patch.setattr(DistinctGate, "close", seen(close))
            yield

    # ---- what is written down

    def _add(self, operation: Operation) -> None:
        self.log.append(operation)
        self.stamps.append(self._stamp())

    def _create(self, path: str) -> int:
        self._nodes += 1
        self._names[path] = self._nodes
        self._add(Create(self._nodes, path))
        return self._nodes

    def _keep_index(self, path: Path) -> None:
        node = self._names.get(str(path)) or self._create(str(path))
        log = path.with_name(f"{path.name}-wal")
        written = log.read_bytes() if log.exists() else b""
        self._add(IndexState(node, path.read_bytes(), written))

    def _ours(self, path: Any) -> str | None:
        """The path, where it is below the root and is not SQLite's."""
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        inside = isinstance(text, str) and text.startswith(self.root)
        return text if inside and f"{INDEX}-" not in text else None

    def _told(self, call: str, path: str) -> int | None:
        return self.fault(call, Path(path).name)

    def _name(self, node: int) -> str:
        return next((path for path, one in self._names.items() if one == node), "deleted")

    # ---- the calls

    def _open(self, real: Any, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        ours = self._ours(path)
        if ours is None:
            return int(real(path, flags, *rest, **options))
        self._told("open", ours)
        fd = int(real(path, flags, *rest, **options))
        if Path(ours).is_dir():
            self._folders[fd] = ours
        elif flags & (os.O_WRONLY | os.O_RDWR):
            node = self._names.get(ours) or self._create(ours)
            self._files[fd] = node
            if flags & os.O_TRUNC:
                self._add(Truncate(node, 0))
        return fd

    def _stream(self, real: Any, path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        ours = self._ours(path)
        if ours is None or "w" not in mode:
            return real(path, mode, *rest, **options)
        self._told("open", ours)
        file = real(path, mode, *rest, **options)
        node = self._names.get(ours) or self._create(ours)
        self._add(Truncate(node, 0))
        self._files[file.fileno()] = node
        self._streams[node] = ours
        return file

    def _read_back(self, node: int) -> None:
        """Write down what a buffered file holds by now."""
        path = self._streams.get(node)
        if path is not None and Path(path).name != "reserve.bin":
            self._add(Write(node, 0, Path(path).read_bytes()))

    def _close(self, real: Any, fd: int) -> None:
        self._files.pop(fd, None)
        self._folders.pop(fd, None)
        real(fd)

    def _pwrite(self, real: Any, fd: int, data: Any, offset: int) -> int:
        node = self._files.get(fd)
        if node is None:
            return int(real(fd, data, offset))
        taken = self._told("pwrite", self._name(node))
        data = bytes(data)[:taken]
        written = int(real(fd, data, offset))
        self._add(Write(node, offset, data[:written]))
        return written

    def _ftruncate(self, real: Any, fd: int, size: int) -> None:
        node = self._files.get(fd)
        if node is not None:
            self._told("ftruncate", self._name(node))
        real(fd, size)
        if node is not None:
            self._add(Truncate(node, size))

    def _fsync(self, real: Any, fd: int) -> None:
        """Not waited for: what the machine's own disk does is another matter."""
        upto = len(self.log) if self._covers is None else self._covers
        if fd in self._folders:
            self._told("fsync", self._folders[fd])
            self._add(SyncFolder(self._folders[fd], upto))
        elif (node := self._files.get(fd)) is not None:
            self._told("fsync", self._name(node))
            if node in self._streams:
                self._read_back(node)
                upto = len(self.log)
            self._add(Sync(node, upto))
        else:
            real(fd)

    _fdatasync = _fsync

    def _replace(self, real: Any, before: Any, after: Any, **options: Any) -> None:
        old, new = self._ours(before), self._ours(after)
        if old is None or new is None:
            real(before, after, **options)
            return
        self._told("replace", new)
        node = self._names[old]
        if node in self._streams:
            self._read_back(node)
            del self._streams[node]
        real(before, after, **options)
        del self._names[old]
        self._names[new] = node
        self._add(Rename(old, new))

    _rename = _replace

    def _unlink(self, real: Any, path: Any, **options: Any) -> None:
        ours = self._ours(path)
        if ours is not None:
            self._told("unlink", ours)
        real(path, **options)
        if ours is not None and self._names.pop(ours, None) is not None:
            self._add(Remove(ours))

    def _mkdir(self, real: Any, path: Any, *rest: Any, **options: Any) -> None:
        ours = self._ours(path)
        if ours is not None:
            self._told("mkdir", ours)
        real(path, *rest, **options)
        if ours is not None:
            self._add(MakeFolder(ours))

    def _rmdir(self, real: Any, path: Any, **options: Any) -> None:
        ours = self._ours(path)
        if ours is not None:
            self._told("rmdir", ours)
        real(path, **options)
        if ours is not None:
            self._add(Remove(ours))

    def _posix_fallocate(self, real: Any, fd: int, offset: int, size: int) -> None:
        node = self._files.get(fd)
        if node is not None:
            self._told("posix_fallocate", self._name(node))
        real(fd, offset, size)


def _bound(seen: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return seen(real, *arguments, **options)

    return call


# ---- after the loss


def lay_out(disk: Disk, upto: int, target: Path, luck: random.Random, loss: Loss) -> None:
    """Make in the empty folder `target` what the disk holds if power fails before operation `upto`
    of its log."""
    log = disk.log[:upto]
    names, folders = _names_left(log, luck, loss)
    for folder in sorted(folders):
        (target / os.path.relpath(folder, disk.root)).mkdir(exist_ok=True)
    nodes = set(names.values())
    safe = dict.fromkeys(nodes, 0)
    touched: dict[int, list[tuple[int, Write | Truncate]]] = {node: [] for node in nodes}
    states: dict[int, list[IndexState]] = {}
    for at, operation in enumerate(log):
        if isinstance(operation, IndexState):
            states.setdefault(operation.node, []).append(operation)
        elif isinstance(operation, Write | Truncate) and operation.node in nodes:
            touched[operation.node].append((at, operation))
        elif isinstance(operation, Sync) and operation.node in nodes:
            safe[operation.node] = max(safe[operation.node], operation.upto)
    for path, node in names.items():
        place = target / os.path.relpath(path, disk.root)
        if node in states:
            _lay_out_index(place, states[node], luck, loss)
            continue
        before = [operation for at, operation in touched[node] if at < safe[node]]
        after = [operation for at, operation in touched[node] if at >= safe[node]]
        place.write_bytes(_content_left(before, after, luck, loss))


def _names_left(
    log: list[Operation], luck: random.Random, loss: Loss
) -> tuple[dict[str, int], set[str]]:
    changes = [(at, one) for at, one in enumerate(log) if isinstance(one, Change)]
    safe = 0
    for one in log:
        if isinstance(one, SyncFolder):
            for number, (at, change) in enumerate(changes):
                if at < one.upto and one.path in _parents(change):
                    safe = max(safe, number + 1)
    left = {"dropped": safe, "kept": len(changes)}.get(loss, luck.randint(safe, len(changes)))
    names: dict[str, int] = {}
    folders: set[str] = set()
    for _, change in changes[:left]:
        if isinstance(change, Create):
            names[change.path] = change.node
        elif isinstance(change, MakeFolder):
            folders.add(change.path)
        elif isinstance(change, Rename):
            names[change.path] = names.pop(change.before)
        else:
            names.pop(change.path, None)
            folders.discard(change.path)
    return names, folders


def _parents(change: Change) -> set[str]:
    paths = [change.path, *([change.before] if isinstance(change, Rename) else [])]
    return {str(Path(path).parent) for path in paths}


def _applied(data: bytearray, operation: Write | Truncate) -> None:
    size = operation.size if isinstance(operation, Truncate) else operation.offset
    if len(data) < size:
        data.extend(bytes(size - len(data)))
    if isinstance(operation, Truncate):
        del data[size:]
    else:
        data[size : size + len(operation.data)] = operation.data


def _content_left(
    before: list[Write | Truncate], after: list[Write | Truncate], luck: random.Random, loss: Loss
) -> bytes:
    data = bytearray()
    for operation in before:
        _applied(data, operation)
    if loss == "dropped" or not after:
        return bytes(data)
    if loss == "scattered":
        return _scattered(data, after, luck)
    whole = len(after) if loss == "kept" else luck.randint(0, len(after))
    for operation in after[:whole]:
        _applied(data, operation)
    if whole < len(after) and isinstance(last := after[whole], Write):
        end = luck.randint(last.offset, last.offset + len(last.data)) // SECTOR * SECTOR
        if end > last.offset:
            _applied(data, last._replace(data=last.data[: end - last.offset]))
    return bytes(data)


def _scattered(safe: bytearray, after: list[Write | Truncate], luck: random.Random) -> bytes:
    """Each page that was written since is there, or as it was, or new as far as some sector."""
    final = bytearray(safe)
    pages: set[int] = set()
    shrunk = False
    for operation in after:
        shrunk |= isinstance(operation, Truncate) and operation.size < len(safe)
        _applied(final, operation)
        if isinstance(operation, Write) and operation.data:
            last = operation.offset + len(operation.data) - 1
            pages.update(range(operation.offset // PAGE, last // PAGE + 1))
    kept = {page: luck.choice([0, PAGE, luck.randrange(0, PAGE, SECTOR)]) for page in pages}
    size = max((min(page * PAGE + PAGE, len(final)) for page in kept if kept[page]), default=0)
    if not (shrunk and luck.random() < 0.5):
        size = max(size, len(safe))
    data = safe[:size] + bytes(max(0, size - len(safe)))
    for page, count in kept.items():
        start, end = page * PAGE, min(page * PAGE + count, size, len(final))
        if end > start:
            data[start:end] = final[start:end]
    return bytes(data)


def _lay_out_index(place: Path, states: list[IndexState], luck: random.Random, loss: Loss) -> None:
    state = states[-1] if loss == "kept" else luck.choice(states)
    log = state.log
    if loss != "kept" and luck.random() < 0.5:
        log = log[: luck.randint(0, len(log)) // SECTOR * SECTOR]
    place.write_bytes(state.database)
    place.with_name(f"{place.name}-wal").write_bytes(log)
