"""Tasks: a folder of plain text that says what to generate. Checked whole, before a cent is spent.

A task folder holds `task.toml` and one `.txt` a prompt template (`contexts.txt`, `seeds.txt`,
`instances.txt` or `instances.<variant>.txt`, `correction.txt`). Templates know `{{ name }}` and
nothing else; their lines that begin with `##` are comments and are never sent.
"""

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Self

from msgspec import Struct

from targen_async.errors import UserError
from targen_async.records import StageName
from targen_async.taskspec import (
    AnswerSpec,
    ContextsSpec,
    CorrectionSpec,
    FieldSpec,
    GroupSpec,
    InstancesSpec,
    Placement,
    SeedsSpec,
    TaskFile,
)
from targen_async.validators import (
    GROUP_VALIDATORS,
    UNFIT,
    VALIDATORS,
    bare,
    check_fields,
    label_leak,
)

TASK_FILE = "task.toml"
STAGES: tuple[StageName, ...] = ("contexts", "seeds", "instances", "correction")
PLACEHOLDER = re.compile(r"\{\{[ \t]*([a-z][a-z0-9_]*)[ \t]*\}\}")
COMMENT = "##"
ANY_LENGTH = (1, 1000)
"""Words of a text that fills no field."""
ALL = "all"
"""The one quota class of a task whose labels are not balanced."""
NO_LABEL = "none"
"""What a judge says when no label of the task fits."""
GOOD = "good"
"""What a judge says of a free answer that is right."""


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
        parts = [*_parts(self.text)]
        parts[1::2] = [values[name] for name in parts[1::2]]
        return "".join(parts)

    def match(self, text: str) -> dict[str, str] | None:
        """The values that render to `text`, or None if none do.

        Where several do, the earlier placeholders get the shorter values.
        """
        found = _pattern(self.text).fullmatch(text)
        return found.groupdict() if found else None


@lru_cache(maxsize=256)
def _parts(text: str) -> list[str]:
    """A template's plain texts, and between each two of them the name of a placeholder."""
    return PLACEHOLDER.split(text)


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
    answer: AnswerSpec | None
    fields: Mapping[str, FieldSpec]
    placement: Placement | None
    group: GroupSpec | None
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

    @property
    def rows_per_call(self) -> int:
        """How many rows one instance call writes."""
        return self.group.size if self.group else 1

    @property
    def classes(self) -> tuple[str, ...]:
        """What quotas are kept over: labels, positions of the answer, or just `ALL`."""
        if self.answer is None:
            return tuple(self.labels)
        return self.answer.positions or (ALL,)

    @property
    def corpus_words(self) -> tuple[int, int]:
        """Least and most words of a seed that a corpus gives: as many as its field takes."""
        bounds = (f.words for f in self.fields.values() if f.source == "seed" and f.words)
        return next(bounds, ANY_LENGTH)

    def class_of(self, fields: Mapping[str, str], label: str) -> str:
        """The quota class of a row. ValueError where the answer is none of the choices."""
        answer = self.answer
        if answer is None:
            return label
        if not answer.positions:
            return ALL
        text = fields[answer.text]
        choices = sorted(dict.fromkeys(fields[answer.choices].split("\n")), key=text.find)
        return answer.positions[min(choices.index(label), len(answer.positions) - 1)]

    def objection(self, fields: Mapping[str, str], label: str) -> str | None:
        """Why these fields are no row of the task with that label, in a few words; None if fine."""
        named = (VALIDATORS[name](fields, label) for name in self.instances.validators)
        return (
            check_fields(self.fields, fields)
            or label_leak(fields, tuple(self.labels))
            or self._answer_objection(fields, label)
            or next((reason for reason in named if reason), None)
        )

    def _answer_objection(self, fields: Mapping[str, str], label: str) -> str | None:
        answer = self.answer
        if answer is None:
            return None
        if not label.strip():
            return "the answer is empty"
        if unfit := UNFIT.search(label):
            return f"the answer has the character U+{ord(unfit[0]):04X}"
        if label.casefold() == NO_LABEL:
            return f"the answer is {label!r}, which says that there is none"
        if answer.kind == "choice" and label not in fields[answer.choices].split("\n"):
            return f"the answer is not among the {answer.choices}"
        if answer.kind != "free" and label not in fields[answer.text]:
            return f"the answer does not stand in the {answer.text}"
        return None

    def group_objection(self, members: Sequence[Mapping[str, str]]) -> str | None:
        """Why the rows of one call do not go together; None if they do."""
        if self.group is None:
            return None
        named = (GROUP_VALIDATORS[name](members) for name in self.group.validators)
        return next((reason for reason in named if reason), None)

    def reading(self, fields: Mapping[str, str], planned: str, said: str) -> str:
        """The label that a judge means by `said`, or `NO_LABEL` where it is none of the row's."""
        answer = self.answer
        if answer is None:
            return said
        if answer.kind == "free":
            return planned if said == GOOD else NO_LABEL
        if answer_form(said) == answer_form(planned):
            return planned
        if answer.kind == "choice":
            same = (c for c in fields[answer.choices].split("\n") if bare(c) == bare(said))
            return next(same, NO_LABEL)
        return said.strip() if said.strip() and said.strip() in fields[answer.text] else NO_LABEL


def answer_form(text: str) -> str:
    """What counts as the same answer: case, articles, punctuation and spacing do not.

    The normalisation of SQuAD's evaluation (Rajpurkar et al. 2016).
    """
    return bare(" ".join(w for w in text.split() if w.casefold() not in ("a", "an", "the")))


def variants(labels: Mapping[str, str], instances: InstancesSpec) -> tuple[str, ...]:
    """What `template_by` ranges over; ("",) where one template serves all."""
    if instances.template_by is None:
        return ("",)
    if instances.template_by == "label":
        return tuple(labels)
    return tuple(instances.axes.get(instances.template_by, ()))


def placeholders(stage: StageName, spec: TaskFile) -> tuple[str, ...]:
    """The names a template of the stage may use: the fixed ones, then the stage's axes.

    An instance is written to a seed of a context, so its templates may use their axes too.
    """
    axes = [*getattr(spec, stage).axes]
    if stage == "instances":
        axes += [*spec.seeds.axes, *spec.contexts.axes]
    return (*fixed_placeholders(stage, spec), *dict.fromkeys(axes))


def fixed_placeholders(stage: StageName, spec: TaskFile | Task) -> tuple[str, ...]:
    """The placeholders that are no axis."""
    if stage == "contexts":
        return ("description", "count")
    if stage == "seeds":
        return ("description", "count", "context")
    if stage == "correction":
        return ("description", "items", *(("labels",) if spec.answer is None else ()))
    told: tuple[str, ...] = ()
    if spec.answer is not None:
        told = ("position",) if spec.answer.positions else ()
    elif not (spec.group and spec.group.labels):
        told = ("label", "label_meaning")
    return ("description", "seed", "context", *told)


def needed_placeholders(stage: StageName, spec: TaskFile) -> tuple[str, ...]:
    """What a stage's templates cannot do without."""
    if stage == "contexts":
        return ("count",)
    if stage == "seeds":
        return ("count", "context")
    if stage == "correction":
        return ("items", "labels") if spec.answer is None else ("items",)
    position = spec.answer is not None and bool(spec.answer.positions)
    return ("seed", "position") if position else ("seed",)


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
