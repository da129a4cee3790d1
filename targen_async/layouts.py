"""What SuperGLUE's ten tasks look like in the official release and on the hub, as a table."""

from collections.abc import Mapping

from msgspec import Struct

from targen_async.errors import UserError


class Layout(Struct, frozen=True, kw_only=True):
    """How one task looks in the official release and on the hub."""

    folder: str
    """In the official release, as in BoolQ/train.jsonl; on the hub it is the task's name."""
    fields: tuple[str, ...]
    """Our fields that the official form has, in its order."""
    labels: Mapping[str, str | int | bool]
    """Our label to the official value. Empty: the label is a text of the row's own."""
    classes: Mapping[str, str]
    """Our label to the name of the hub's ClassLabel, in the hub's order."""
    only_test: bool = False
    """A diagnostic set: one file, called like the folder."""


_NLI = ("entailment", "not_entailment")
_TRUTH = {"true": True, "false": False}
_TRUTH_CLASSES = {"false": "False", "true": "True"}


def _same(*labels: str) -> dict[str, str]:
    return {label: label for label in labels}


LAYOUTS: Mapping[str, Layout] = {
    "axb": Layout(
        folder="AX-b",
        fields=("sentence1", "sentence2"),
        labels=_same(*_NLI),
        classes=_same(*_NLI),
        only_test=True,
    ),
    "axg": Layout(
        folder="AX-g",
        fields=("premise", "hypothesis"),
        labels=_same(*_NLI),
        classes=_same(*_NLI),
        only_test=True,
    ),
    "boolq": Layout(
        folder="BoolQ", fields=("question", "passage"), labels=_TRUTH, classes=_TRUTH_CLASSES
    ),
    "cb": Layout(
        folder="CB",
        fields=("premise", "hypothesis"),
        labels=_same("entailment", "contradiction", "neutral"),
        classes=_same("entailment", "contradiction", "neutral"),
    ),
    "copa": Layout(
        folder="COPA",
        fields=("premise", "choice1", "choice2", "question"),
        labels={"choice1": 0, "choice2": 1},
        classes=_same("choice1", "choice2"),
    ),
    "multirc": Layout(
        folder="MultiRC",
        fields=("paragraph", "question", "answer"),
        labels={"true": 1, "false": 0},
        classes=_TRUTH_CLASSES,
    ),
    "record": Layout(
        folder="ReCoRD", fields=("passage", "query", "entities"), labels={}, classes={}
    ),
    "rte": Layout(
        folder="RTE",
        fields=("premise", "hypothesis"),
        labels=_same(*_NLI),
        classes=_same(*_NLI),
    ),
    "wic": Layout(
        folder="WiC",
        fields=("word", "sentence1", "sentence2"),
        labels=_TRUTH,
        classes=_TRUTH_CLASSES,
    ),
    "wsc": Layout(
        folder="WSC", fields=("text", "span1", "span2"), labels=_TRUTH, classes=_TRUTH_CLASSES
    ),
}


def layout_of(task: str) -> Layout:
    """Raises UserError for a task that is not SuperGLUE's."""
    try:
        return LAYOUTS[task]
    except KeyError:
        raise UserError(
            f"{task!r} is none of SuperGLUE's tasks ({', '.join(LAYOUTS)}) and has no official form"
        ) from None
