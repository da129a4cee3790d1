"""The official SuperGLUE files, told apart by the keys of an object, as rows."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from targen_async.analysis.rows import Row
from targen_async.errors import UserError
from targen_async.superglue import from_official

Object = Mapping[str, Any]

FORMS: Mapping[str, frozenset[str]] = {
    "copa": frozenset({"premise", "choice1", "choice2", "question"}),
    "wic": frozenset({"word", "sentence1", "sentence2", "start1"}),
    "wsc": frozenset({"text", "target"}),
    "boolq": frozenset({"question", "passage", "idx"}),
    "record": frozenset({"passage", "qas"}),
    "multirc": frozenset({"passage", "idx", "version"}),
    "axb": frozenset({"sentence1", "sentence2", "idx"}),
    "axg": frozenset({"premise", "hypothesis", "idx", "pair_id"}),
    "nli": frozenset({"premise", "hypothesis", "idx"}),
}
"""Form to the keys that tell it: the first whose keys are all there. RTE and CB look alike:
`nli`."""
OPEN = "record"
"""The form whose label is a text of the row's own."""
_OF_CB = ("contradiction", "neutral")


def form_of(entry: Object) -> str | None:
    """Which official file an object is from, or None."""
    return next((name for name, keys in FORMS.items() if keys <= entry.keys()), None)


def task_of(form: str, rows: Iterable[Row]) -> str:
    """The task of a whole file; "" where RTE and CB cannot be told apart, as without labels."""
    if form != "nli":
        return form
    labels = {row.label for row in rows}
    return "cb" if labels & set(_OF_CB) else "rte" if "not_entailment" in labels else ""


def rows_of(form: str, entry: Object, key: str) -> Iterator[Row]:
    """The rows of one object, with the fields and labels of our own tasks, so that both sides of a
    comparison agree. Raises UserError that says what is wrong with it."""
    task = form
    if form == "nli":
        task = "cb" if entry.get("label") in _OF_CB else "rte"
    if missing := FORMS[form] - entry.keys():
        raise UserError(f"it has no {min(missing)!r}, which the rows of {form} have")
    rows = from_official(task, entry)
    for number, (fields, label) in enumerate(rows):
        one = key if form not in ("multirc", "record") else f"{key}/{number}"
        yield Row(key=one, fields=fields, label=label)
