"""Reads the files of a task's folder: their text, and task.toml decoded with every misfit noted.

A broken value is replaced by a stand-in, so that the checks of taskcheck.py can go on and all
faults are found in one go.
"""

import os
import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from inspect import isclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from targen_async.tasks import TASK_FILE, Fault
from targen_async.taskspec import TaskFile, Words
from targen_async.validators import UNFIT

MAX_FILE_BYTES = 1 << 20
MAX_FILES = 1000

TomlPath = tuple[str | int, ...]
Kind = Any
"""A type as an annotation spells it: a class, a union, `Mapping[str, str]`."""


class Report:
    """The faults found so far, and where everything stands in task.toml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Fault] = []
        self.places: dict[TomlPath, tuple[int, int]] = {}
        self.bad: set[TomlPath] = set()

    def add(self, name: str, line: int, column: int, message: str) -> None:
        self.faults.append(Fault(str(self.folder / name), line, column, message))

    def at(self, path: TomlPath, message: str) -> None:
        """A fault at a place of task.toml; silent where that place is known to be broken."""
        if self.is_bad(path):
            return
        known = next((part for part in _ancestry(path) if part in self.places), ())
        line, column = self.places.get(known, (1, 1))
        self.add(TASK_FILE, line, column, f"{'.'.join(map(str, path))}: {message}")

    def break_at(self, path: TomlPath, message: str) -> None:
        """A fault that leaves nothing there to check: whatever else is said of it is silenced."""
        self.at(path, message)
        self.bad.add(path)

    def is_bad(self, path: TomlPath) -> bool:
        return any(part in self.bad for part in _ancestry(path))


def _ancestry(path: TomlPath) -> Iterator[TomlPath]:
    for length in range(len(path), 0, -1):
        yield path[:length]


# Files and their text


def read_files(folder: Path, report: Report) -> Iterator[tuple[str, bytes]]:
    """The bytes of every file under the folder, by its name relative to it."""
    root = folder.resolve()
    seen = 0
    for parent, folders, names in os.walk(folder):
        for entry in (Path(parent, name) for name in (*folders, *names)):
            seen += 1
            if seen > MAX_FILES:
                report.add(".", 1, 1, f"holds more than {MAX_FILES:,} files and folders")
                return
            name = entry.relative_to(folder).as_posix()
            if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(root):
                report.add(name, 1, 1, "is a link that leads out of the task's folder")
            elif entry.is_dir():
                continue
            elif not entry.is_file():
                report.add(name, 1, 1, "is not a regular file")
            elif entry.stat().st_size > MAX_FILE_BYTES:
                report.add(name, 1, 1, f"is larger than {MAX_FILE_BYTES:,} bytes")
            else:
                try:
                    yield name, entry.read_bytes()
                except OSError as error:
                    report.add(name, 1, 1, f"cannot be read: {error.strerror}")


def read_texts(files: Mapping[str, bytes], report: Report) -> Iterator[tuple[str, str]]:
    """The text of task.toml and of the templates, where it is UTF-8."""
    for name, data in files.items():
        if name != TASK_FILE and not name.endswith(".txt"):
            continue
        try:
            # An editor's byte order mark is no part of the text.
            yield name, data.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            line = before.count(b"\n") + 1
            column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
            report.add(name, line, column, "is not UTF-8 here")


# task.toml: syntax, then form


def read_spec(text: str, report: Report) -> TaskFile | None:
    """task.toml decoded, with stand-ins where it is broken; None where it is not TOML."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line, column = str(error), text.count("\n") + 1, len(text) - text.rfind("\n")
        if found := re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message):
            message = message[: found.start()]
            line, column = int(found[1] or line), int(found[2] or column)
        report.add(TASK_FILE, line, column, message)
        return None
    except RecursionError:
        report.add(TASK_FILE, 1, 1, "is nested too deeply")
        return None
    report.places = _Places(text).read()
    spec = _sound(raw, TaskFile, (), report)
    return spec if isinstance(spec, TaskFile) else None


def _sound(value: object, kind: Kind, path: TomlPath, report: Report) -> object:
    """`value` as `kind`. Each misfit is reported and replaced, so that the rest can be checked."""
    if isinstance(kind, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    origin: object = get_origin(kind)
    args = get_args(kind)
    is_struct = isclass(kind) and issubclass(kind, Struct)
    if origin is Literal and value not in args:
        report.break_at(path, f"must be one of {', '.join(args)}, not {value!r}")
        return args[0]
    if is_struct and isinstance(value, dict):
        return _sound_struct(value, kind, path, report)
    if origin is Mapping and isinstance(value, dict):
        return {key: _sound(part, args[1], (*path, key), report) for key, part in value.items()}
    if origin is tuple and Ellipsis in args and isinstance(value, list):
        return tuple(_sound(p, args[0], (*path, i), report) for i, p in enumerate(value))
    try:
        sound = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = re.sub(r" - at `\$.*`$", "", str(error))
        report.break_at(path, message[0].lower() + message[1:])
        return _stand_in(kind)
    if isinstance(sound, str) and (unfit := UNFIT.search(sound)):
        report.at(path, f"has the character U+{ord(unfit[0]):04X}")
    return sound


def _sound_struct(value: dict[str, object], kind: Kind, path: TomlPath, report: Report) -> object:
    """The struct of a table: unknown and missing keys are reported."""
    known = {part.name: part for part in msgspec.structs.fields(kind)}
    for key in value:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"
            report.at((*path, key), f"unknown key ({hint})")
    parts: dict[str, object] = {}
    for name, part in known.items():
        if name in value:
            parts[name] = _sound(value[name], part.type, (*path, name), report)
        elif part.required:
            report.break_at((*path, name), "the key is missing")
            parts[name] = _stand_in(part.type)
    return kind(**parts)


def _stand_in(kind: Kind) -> object:
    """Something of the type, for a value that is missing or wrong."""
    if isclass(kind) and issubclass(kind, Struct):
        fields = msgspec.structs.fields(kind)
        return kind(**{f.name: _stand_in(f.type) for f in fields if f.required})
    origin: object = get_origin(kind)
    if origin is Literal:
        return get_args(kind)[0]
    if kind == Words:
        return (1, 1)
    if origin is tuple:
        return ()
    if origin is Mapping:
        return {}
    # Annotated[int, …] keeps its int in __origin__.
    plain: Kind = getattr(kind, "__origin__", kind)
    return plain()


class _Places:
    """Line and column of every key and array value of a text that is known to be good TOML."""

    _BLANK = re.compile(r"(?:\s|#[^\n]*)*")
    _KEY = re.compile(r"[ \t]*(\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*(\.)?")
    _STRING = re.compile(
        r'\"{3}(?:[^\\]|\\.)*?\"{3,5}|\'{3}.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL
    )
    _BARE = re.compile(r"[^,\]}\n#]*")

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 0
        self.lines = [0, *(found.end() for found in re.finditer("\n", text))]
        self.places: dict[TomlPath, tuple[int, int]] = {}

    def read(self) -> dict[TomlPath, tuple[int, int]]:
        table: TomlPath = ()
        while self._next():
            if self._next() == "[":
                self.end += 2 if self.text.startswith("[[", self.end) else 1
                table = self._key(())
                self.end = self.text.index("]", self.end)
                self.end += 2 if self.text.startswith("]]", self.end) else 1
            else:
                self._pair(table)
        return self.places

    def _next(self) -> str:
        """The next character that counts, or nothing at the end."""
        found = self._BLANK.match(self.text, self.end)
        self.end = found.end() if found else self.end
        return self.text[self.end : self.end + 1]

    def _note(self, path: TomlPath) -> None:
        line = bisect_right(self.lines, self.end)
        self.places.setdefault(path, (line, self.end - self.lines[line - 1] + 1))

    def _key(self, path: TomlPath) -> TomlPath:
        """A dotted key; every part of it is a place."""
        dotted = True
        while dotted and (found := self._KEY.match(self.text, self.end)):
            self.end = found.start(1)
            path = (*path, next(iter(tomllib.loads(f"{found[1]}=0"))))
            self._note(path)
            self.end, dotted = found.end(), bool(found[2])
        return path

    def _pair(self, table: TomlPath) -> None:
        path = self._key(table)
        self._next()
        self.end += 1  # the equals sign
        self._value(path)

    def _value(self, path: TomlPath) -> None:
        opening = self._next()
        self._note(path)
        if opening in ("[", "{"):
            self.end += 1
            index = 0
            while (char := self._next()) not in ("]", "}"):
                if char == ",":
                    self.end += 1
                elif opening == "[":
                    self._value((*path, index))
                    index += 1
                else:
                    self._pair(path)
            self.end += 1
        elif found := self._STRING.match(self.text, self.end) or self._BARE.match(
            self.text, self.end
        ):
            self.end = found.end()
