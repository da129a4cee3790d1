"""Which logit of an encoder stands for which label: one head for all tasks of a run.

Every label of a task has a logit of its own, named `cb/entailment`; a task whose options are texts
of their own has one, named `copa/score`. The names stand in the model's config as `id2label`, so a
saved model says itself what it was trained for.
"""

from collections.abc import Iterable, Mapping, Sequence

from targen_async.errors import UserError
from targen_async.finetune.schema import labels_of

_COMPARED = ("copa", "record")
_SCORE = "score"
_LENT: Mapping[str, str] = {"axb": "rte", "axg": "rte"}
"""Diagnostic sets are read by the head of the task whose labels they share."""


def logit_names(tasks: Iterable[str]) -> tuple[str, ...]:
    """The names of a head for these tasks, in the tasks' order."""
    names: list[str] = []
    for task in dict.fromkeys(tasks):
        labels = (_SCORE,) if task in _COMPARED else labels_of(task)
        names += [f"{task}/{label}" for label in labels]
    return tuple(names)


def logits_of(names: Sequence[str], task: str) -> tuple[int, ...]:
    """The logits of a task's options among a head's names; one, where the options are compared.

    Raises UserError where the head was not made for the task.
    """
    told = _LENT.get(task, task) if not any(n.startswith(f"{task}/") for n in names) else task
    wanted = logit_names([told])
    try:
        return tuple(names.index(name) for name in wanted)
    except ValueError:
        known = ", ".join(sorted({name.partition("/")[0] for name in names if "/" in name}))
        raise UserError(
            f"this encoder has no head for {task} (it has one for: {known or 'no task of ours'})"
        ) from None
