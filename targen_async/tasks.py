"""Tasks: a folder of plain text that says what to generate. Checked whole, before a cent is spent.

A task folder holds `task.toml` and one `.txt` a prompt template (`contexts.txt`, `seeds.txt`,
`instances.txt` or `instances.<variant>.txt`, `correction.txt`). Templates know `{{ name }}` and
nothing else; their lines that begin with `##` are comments and are never sent.
"""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Self

from msgspec import Meta, Struct, field

from targen_async.errors import UserError
from targen_async.records import StageName
from targen_async.validators import VALIDATORS, check_fields, label_leak

TASK_FILE = "task.toml"
STAGES: tuple[StageName, ...] = ("contexts", "seeds", "instances", "correction")
PLACEHOLDER = re.compile(r"\{\{[ \t]*([a-z][a-z0-9_]*)[ \t]*\}\}")
COMMENT = "##"

Text = Annotated[str, Meta(min_length=1)]
Words = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=1)]]
"""Least and most words a text may have, both inclusive."""
Axes = Mapping[str, tuple[str, ...]]
"""Attribute name to its values. Every value gets the same share of the calls."""


class FieldSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field of a row."""

    source: Literal["seed", "output", "slot", "axis"]
    """`seed`: the seed's text. `output`: the model's output of that name. `slot`: filled by
    [placement]. `axis`: the value of the instances axis of that name."""
    about: str = ""
    words: Words | None = None


class Placement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A label that is a position: the model returns the right and the wrong text, code places them.

    `slots[i]` is the field that holds the right text when the label is the i-th of [labels].
    """

    slots: tuple[str, ...]
    right: str
    wrong: tuple[str, ...]


class ContextsSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    per_call: Annotated[int, Meta(ge=1)] = 10
    max_tokens: Annotated[int, Meta(ge=16)] = 1024
    words: Words = (1, 40)
    axes: Axes = field(default_factory=dict)


class SeedsSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["word", "sentence", "passage", "pair"] = "sentence"
    per_call: Annotated[int, Meta(ge=1)] = 10
    max_tokens: Annotated[int, Meta(ge=16)] = 2048
    words: Words = (1, 60)
    axes: Axes = field(default_factory=dict)


class InstancesSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    outputs: Mapping[str, str]
    """Output name to what it holds. `explanation` is shown to a `shown` judge and kept in the
    provenance; every other output must feed a field or the placement."""
    template_by: str | None = None
    """`label` or the name of an instances axis: which `instances.<value>.txt` is used."""
    rows_per_seed: Annotated[int, Meta(ge=1, le=100)] = 1
    max_tokens: Annotated[int, Meta(ge=16)] = 1024
    distinct_on: tuple[str, ...] = ()
    """Outputs (never the seed) that are compared between rows."""
    validators: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)


class CorrectionSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    per_call: Annotated[int, Meta(ge=1, le=100)] = 10
    max_tokens_per_item: Annotated[int, Meta(ge=16)] = 160
    show: tuple[str, ...] = ()
    """Fields the judge sees; all of them where empty."""
    axes: Axes = field(default_factory=dict)


class TaskFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """task.toml as it is written."""

    name: Text
    version: Annotated[int, Meta(ge=1)]
    description: Text
    system: str = ""
    """The system message of every call; none is sent where empty."""
    labels: Mapping[str, Text]
    """Label to its meaning, in the order the judge reads them."""
    fields: Mapping[str, FieldSpec]
    placement: Placement | None = None
    contexts: ContextsSpec = field(default_factory=ContextsSpec)
    seeds: SeedsSpec = field(default_factory=SeedsSpec)
    instances: InstancesSpec
    correction: CorrectionSpec = field(default_factory=CorrectionSpec)


class Fault(Struct, frozen=True, order=True):
    """A mistake in a task's file. `line` and `column` count from 1."""

    path: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.message}"


class Template(Struct, frozen=True, kw_only=True):
    """A prompt with `{{ name }}` placeholders. `text` is what is sent: comments are gone."""

    path: str
    text: str
    placeholders: tuple[str, ...]
    """Each name once, in the order of appearance."""
    digest: str
    """First 16 hex digits of the SHA-256 of `text`."""

    @classmethod
    def parse(cls, path: str, source: str) -> Self:
        """The template of a file's text. Line ends become \\n: what is sent is alike everywhere."""
        lines = source.replace("\r\n", "\n").split("\n")
        text = "\n".join(line for line in lines if not line.startswith(COMMENT)).rstrip()
        return cls(
            path=path,
            text=text,
            placeholders=tuple(dict.fromkeys(PLACEHOLDER.findall(text))),
            digest=sha256(text.encode()).hexdigest()[:16],
        )

    def render(self, values: Mapping[str, str]) -> str:
        """The prompt. One pass: a `{{ name }}` inside a value stays as it is.

        KeyError if a placeholder has no value; values without a placeholder are left out.
        """
        return PLACEHOLDER.sub(lambda found: values[found[1]], self.text)

    def match(self, text: str) -> dict[str, str] | None:
        """The values that render to `text`, or None if none do.

        Where several do, the earlier placeholders get the shorter values.
        """
        found = _pattern(self.text).fullmatch(text)
        return found.groupdict() if found else None


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    """The inverse of a template: one group a placeholder, later occurrences refer back to it."""
    seen: set[str] = set()
    parts: list[str] = []
    for index, part in enumerate(PLACEHOLDER.split(text)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>.*?)")
            seen.add(part)
    return re.compile("".join(parts), re.DOTALL)


class Task(Struct, frozen=True, kw_only=True):
    """A loaded task. `load_task` makes it; every file of it has been found right."""

    name: str
    version: int
    description: str
    system: str
    labels: Mapping[str, str]
    fields: Mapping[str, FieldSpec]
    placement: Placement | None
    contexts: ContextsSpec
    seeds: SeedsSpec
    instances: InstancesSpec
    correction: CorrectionSpec
    templates: Mapping[str, Template]
    """`contexts`, `seeds`, `instances` or `instances.<variant>`, `correction`."""
    digest: str
    """SHA-256 over the name and bytes of every file of the folder."""
    folder: str

    def template(self, stage: StageName, variant: str = "") -> Template:
        """The template of a stage. KeyError for a variant the task does not have."""
        return self.templates[f"{stage}.{variant}" if variant else stage]

    def variants(self) -> tuple[str, ...]:
        """Which instance templates there are: labels, values of an axis, or ("",) for just one."""
        return variants(self.labels, self.instances)

    def objection(self, fields: Mapping[str, str], label: str) -> str | None:
        """Why these fields are no row of the task with that label, in a few words; None if fine."""
        named = (VALIDATORS[name](fields, label) for name in self.instances.validators)
        return (
            check_fields(self.fields, fields)
            or label_leak(fields, tuple(self.labels))
            or next((reason for reason in named if reason), None)
        )


def variants(labels: Mapping[str, str], instances: InstancesSpec) -> tuple[str, ...]:
    """What `template_by` ranges over; ("",) where one template serves all."""
    if instances.template_by is None:
        return ("",)
    if instances.template_by == "label":
        return tuple(labels)
    return tuple(instances.axes.get(instances.template_by, ()))


def placeholders(stage: StageName, spec: TaskFile) -> tuple[str, ...]:
    """The names a template of the stage may use: the fixed ones, then the stage's axes."""
    return (*FIXED_PLACEHOLDERS[stage], *getattr(spec, stage).axes)


FIXED_PLACEHOLDERS: Mapping[StageName, tuple[str, ...]] = {
    "contexts": ("description", "count"),
    "seeds": ("description", "count", "context"),
    "instances": ("description", "seed", "context", "label", "label_meaning"),
    "correction": ("description", "items", "labels"),
}
NEEDED_PLACEHOLDERS: Mapping[StageName, tuple[str, ...]] = {
    "contexts": ("count",),
    "seeds": ("count", "context"),
    "instances": ("seed",),
    "correction": ("items", "labels"),
}


def prompts_root() -> Path:
    """The folder of the shipped tasks: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_prompts"
    return installed if installed.is_dir() else package.parent / "prompts"


def list_tasks() -> list[str]:
    """The names of the shipped tasks, sorted."""
    return sorted(file.parent.name for file in prompts_root().glob(f"*/{TASK_FILE}"))


def check_task(name_or_path: str | Path) -> list[Fault]:
    """Every fault of every file of a task, sorted by file and line; none for a sound task.

    Raises UserError if there is no such task or folder.
    """
    return _read(name_or_path)[1]


def load_task(name_or_path: str | Path) -> Task:
    """A shipped task by its name, or any by its folder. Raises UserError that lists every fault."""
    task, faults = _read(name_or_path)
    if task is None:
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise UserError(f"the task {str(name_or_path)!r} has {count}:{lines}")
    return task


def _read(name_or_path: str | Path) -> tuple[Task | None, list[Fault]]:
    # Imported here because the checker is built on the structs above.
    from targen_async.taskcheck import read_task

    try:
        return read_task(_folder(name_or_path))
    except OSError as error:
        raise UserError(f"cannot read the task {str(name_or_path)!r}: {error.strerror}") from error


def _folder(name_or_path: str | Path) -> Path:
    """A name with a separator, or a folder that holds a task, is a folder; else it is shipped."""
    text, path = str(name_or_path), Path(name_or_path)
    if (path / TASK_FILE).is_file() and text:
        return path
    if text in list_tasks():
        return prompts_root() / text
    if path.is_dir() and text:
        return path
    if isinstance(name_or_path, Path) or any(sep in text for sep in (os.sep, os.altsep) if sep):
        raise UserError(f"there is no folder {text!r} to read a task from")
    close = get_close_matches(text, list_tasks(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"there is no task {text!r} (known: {', '.join(list_tasks())}){hint}")
