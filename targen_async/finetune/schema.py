"""What an example of SuperGLUE's ten tasks is, wherever it was read."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b, sha256
from typing import Any

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.layouts import layout_of
from targen_async.superglue import Idx

ONLY_EVALUATION = ("axb", "axg")
"""Diagnostic sets: no release of them has a train split."""


class Example(Struct, frozen=True, kw_only=True):
    """One example: our fields of the task, our name of its label."""

    task: str
    key: str
    """Names it in messages and files: the key of a run's row, or `cb/validation/3`."""
    fields: Mapping[str, str]
    label: str | None
    """None where the file keeps it back. Of ReCoRD: the first right answer."""
    answers: tuple[str, ...] = ()
    """Of ReCoRD: every right answer. Elsewhere empty."""
    idx: Idx
    """What a submission calls it by; of a run's row, its number."""
    unit: str
    """What a metric counts as one: all answers to a question of MultiRC, the twins of AX-g."""
    spans: Mapping[str, tuple[int, int]] = {}
    """Of wsc and wic: [start, end) of what is asked about, in characters; see `spans_of`."""
    bound: tuple[str, ...] = ()
    """Marks: two examples that share one must not stand in different splits."""


def labels_of(task: str) -> tuple[str, ...]:
    """Our label names in the order of the hub's class ids; empty where the label is open.

    Raises UserError for a task that is not SuperGLUE's.
    """
    return tuple(layout_of(task).classes)


def entities_of(example: Example) -> tuple[str, ...]:
    """The names that an example of ReCoRD chooses from, each once."""
    return tuple(dict.fromkeys(e for e in example.fields["entities"].split("\n") if e.strip()))


def field_fault(task: str, fields: Mapping[str, str]) -> str | None:
    """Why no form can be made of these fields, in a few words; None if one can."""
    if task == "copa" and fields["question"] not in ("cause", "effect"):
        return f"the question is {fields['question']!r}, neither cause nor effect"
    if task == "record" and "@placeholder" not in fields["query"]:
        return "the query has no @placeholder"
    if task == "record" and not fields["entities"].strip():
        return "there are no entities to choose from"
    return None


def short_marks(marks: Iterable[str]) -> tuple[str, ...]:
    """Digests of what binds examples: a passage of ReCoRD binds a hundred thousand of them."""
    return tuple(blake2b(mark.encode(), digest_size=12).hexdigest() for mark in marks)


def check_trainable(task: str) -> None:
    """Raises UserError for a diagnostic set."""
    if task in ONLY_EVALUATION:
        raise UserError(
            f"{task} is a diagnostic set without a train split: it is for evaluation only; "
            "train on rte, whose labels it shares"
        )


def content_digest(examples: Sequence[Example]) -> str:
    """SHA-256 over keys, fields, labels and answers, in order: equal content, equal digest."""
    digest = sha256()
    for one in examples:
        fields = sorted(one.fields.items())
        digest.update(msgspec.json.encode((one.task, one.key, fields, one.label, one.answers)))
    return digest.hexdigest()


def to_dataset(examples: Sequence[Example]) -> Any:  # noqa: ANN401
    """A `datasets.Dataset` of examples of one task: `key`, the fields, and `label` as a ClassLabel
    with the hub's names and ids (-1: kept back); of ReCoRD `answers` in its place.

    Raises UserError where there is no example, where tasks are mixed and where `datasets` is not
    installed.
    """
    datasets = import_datasets()
    tasks = {one.task for one in examples}
    if len(tasks) != 1:
        told = ", ".join(sorted(tasks)) or "no examples"
        raise UserError(f"a data set holds the examples of one task, and here are {told}")
    layout = layout_of(tasks.pop())
    names = tuple(layout.classes)
    columns: dict[str, Any] = {"key": datasets.Value("string")}
    columns |= {field: datasets.Value("string") for field in layout.fields}
    rows: dict[str, list[Any]] = {"key": [one.key for one in examples]}
    rows |= {field: [one.fields[field] for one in examples] for field in layout.fields}
    if names:
        columns["label"] = datasets.ClassLabel(names=list(layout.classes.values()))
        rows["label"] = [-1 if one.label is None else names.index(one.label) for one in examples]
    else:
        columns["answers"] = datasets.List(datasets.Value("string"))
        rows["answers"] = [list(one.answers) for one in examples]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(columns))


def import_datasets() -> Any:  # noqa: ANN401
    """The package `datasets`, loaded late. Raises UserError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "reading from the hub and typed tables need the package `datasets`; "
            "pip install 'targen-async[data]'"
        ) from error
    return datasets
