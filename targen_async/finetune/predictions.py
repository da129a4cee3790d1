"""What a model answered, as files: one line an example, and SuperGLUE's submission files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from targen_async.errors import UserError
from targen_async.finetune.metrics import Answers, normal_answer
from targen_async.finetune.schema import Example
from targen_async.layouts import layout_of

_WORDS: Mapping[str, Mapping[str, str]] = {
    "boolq": {"true": "true", "false": "false"},
    "wic": {"true": "true", "false": "false"},
    "wsc": {"true": "True", "false": "False"},
}
"""The benchmark's server wants JSON booleans as these texts."""


def write_predictions(
    path: Path, examples: Sequence[Example], answers: Answers, texts: Sequence[str] = ()
) -> None:
    """JSONL: task, key, idx, label, prediction (null: outside the options) and whether it is right
    (null: the label is kept back); `text` is what a model wrote, where it wrote."""
    _check_same(examples, answers)
    with path.open("wb") as file:
        for number, (one, answer) in enumerate(zip(examples, answers, strict=True)):
            line: dict[str, Any] = {"task": one.task, "key": one.key, "idx": one.idx}
            line |= {"label": one.label, "prediction": answer, "right": _is_right(one, answer)}
            if one.answers:
                line["answers"] = list(one.answers)
            if texts:
                line["text"] = texts[number]
            file.write(orjson.dumps(line) + b"\n")


def _is_right(example: Example, answer: str | None) -> bool | None:
    if example.label is None:
        return None
    if example.answers and answer is not None:
        return normal_answer(answer) in map(normal_answer, example.answers)
    return answer == example.label


def write_submission(folder: Path, examples: Sequence[Example], answers: Answers) -> Path:
    """The file of one task as super.gluebenchmark.com takes it, e.g. `BoolQ.jsonl`; its path.

    Raises UserError where tasks are mixed, and for an answer outside the options: a submission has
    to have one for every item.
    """
    _check_same(examples, answers)
    tasks = {one.task for one in examples}
    if len(tasks) != 1:
        raise UserError("a submission file holds the answers to one task")
    task = tasks.pop()
    said: list[str] = []
    for one, answer in zip(examples, answers, strict=True):
        if answer is None:
            raise UserError(
                f"{one.key} has no answer among the options, and a submission needs one: rank the "
                "options by likelihood"
            )
        said.append(answer)
    layout = layout_of(task)
    path = folder / f"{layout.folder}.jsonl"
    lines = _multirc(examples, said) if task == "multirc" else _plain(task, examples, said)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def _plain(task: str, examples: Sequence[Example], answers: Sequence[str]) -> list[dict[str, Any]]:
    names: Mapping[str, Any] = _WORDS.get(task) or layout_of(task).labels
    lines = []
    for one, answer in zip(examples, answers, strict=True):
        idx = one.idx["query"] if isinstance(one.idx, dict) else one.idx
        lines.append({"idx": idx, "label": names[answer] if names else answer})
    return lines


def _multirc(examples: Sequence[Example], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Paragraphs, their questions, the answers to them: in the order of the examples."""
    labels = layout_of("multirc").labels
    found: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for one, answer in zip(examples, answers, strict=True):
        if not isinstance(one.idx, dict):
            raise UserError(f"{one.key} is a row of a run, which no submission takes")
        questions = found.setdefault(one.idx["paragraph"], {})
        told = {"idx": one.idx["answer"], "label": labels[answer]}
        questions.setdefault(one.idx["question"], []).append(told)
    return [
        {
            "idx": paragraph,
            "passage": {
                "questions": [{"idx": q, "answers": told} for q, told in questions.items()]
            },
        }
        for paragraph, questions in found.items()
    ]


def _check_same(examples: Sequence[Example], answers: Answers) -> None:
    if len(examples) != len(answers):
        raise UserError(f"{len(answers)} answers do not belong to {len(examples)} examples")
