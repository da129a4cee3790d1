"""Prediction files, and submission files as the benchmark's server takes them."""

from pathlib import Path

import pytest

from targen_async.errors import UserError
from targen_async.finetune.data import load_examples
from targen_async.finetune.predictions import write_predictions, write_submission
from tests.export.runs import lines
from tests.finetune.made import example, write_lines


def test_a_line_tells_what_was_said_and_whether_it_is_right(tmp_path: Path) -> None:
    names = ("the Brook", "Ada Brook")
    examples = [
        example("record", 0, names[0], answers=names),
        example("rte", 1, "entailment"),
        example("rte", 2, None),
    ]
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, examples, ["Brook", None, "entailment"], ["Brook", "hm", "yes"])
    assert lines(path) == [
        {
            "task": "record",
            "key": "record/validation/0",
            "idx": 0,
            "label": "the Brook",
            "prediction": "Brook",
            "right": True,
            "answers": ["the Brook", "Ada Brook"],
            "text": "Brook",
        },
        {
            "task": "rte",
            "key": "rte/validation/1",
            "idx": 1,
            "label": "entailment",
            "prediction": None,
            "right": False,
            "text": "hm",
        },
        {
            "task": "rte",
            "key": "rte/validation/2",
            "idx": 2,
            "label": None,
            "prediction": "entailment",
            "right": None,
            "text": "yes",
        },
    ]


SUBMITTED = {
    "axb": ("AX-b", "entailment", "entailment"),
    "axg": ("AX-g", "not_entailment", "not_entailment"),
    "boolq": ("BoolQ", "true", "true"),
    "cb": ("CB", "neutral", "neutral"),
    "copa": ("COPA", "choice2", 1),
    "rte": ("RTE", "not_entailment", "not_entailment"),
    "wic": ("WiC", "false", "false"),
    "wsc": ("WSC", "true", "True"),
}


@pytest.mark.parametrize("task", SUBMITTED)
def test_a_submission_has_the_servers_words(tmp_path: Path, task: str) -> None:
    name, answer, told = SUBMITTED[task]
    path = write_submission(tmp_path / "sub", [example(task, 7, None)], [answer])
    assert path == tmp_path / "sub" / f"{name}.jsonl"
    assert lines(path) == [{"idx": 7, "label": told}]


def test_the_answers_of_multirc_stand_in_their_passages(tmp_path: Path) -> None:
    questions = [
        {
            "question": "q?",
            "idx": 4,
            "answers": [{"text": "a", "idx": 9}, {"text": "b", "idx": 10}],
        },
        {"question": "r?", "idx": 5, "answers": [{"text": "c", "idx": 11}]},
    ]
    passages = [
        {"idx": 2, "passage": {"text": "T.", "questions": questions[:1]}},
        {"idx": 3, "passage": {"text": "U.", "questions": questions[1:]}},
    ]
    write_lines(tmp_path / "MultiRC" / "test.jsonl", *passages)
    examples = load_examples(tmp_path, "multirc", "test").examples
    path = write_submission(tmp_path / "sub", examples, ["true", "false", "true"])
    first = [{"idx": 9, "label": 1}, {"idx": 10, "label": 0}]
    assert lines(path) == [
        {"idx": 2, "passage": {"questions": [{"idx": 4, "answers": first}]}},
        {"idx": 3, "passage": {"questions": [{"idx": 5, "answers": [{"idx": 11, "label": 1}]}]}},
    ]


def test_record_is_submitted_by_query(tmp_path: Path) -> None:
    one = example("record", 0, None, idx={"passage": 3, "query": 12})
    path = write_submission(tmp_path, [one], ["Ada Brook"])
    assert lines(path) == [{"idx": 12, "label": "Ada Brook"}]


def test_what_cannot_be_submitted_is_told(tmp_path: Path) -> None:
    one = example("rte", 0, None)
    with pytest.raises(UserError, match="rte/validation/0 has no answer among the options"):
        write_submission(tmp_path, [one], [None])
    with pytest.raises(UserError, match="the answers to one task"):
        write_submission(tmp_path, [one, example("cb", 0, None)], ["entailment", "neutral"])
    with pytest.raises(UserError, match="2 answers do not belong to 1 examples"):
        write_predictions(tmp_path / "p", [one], ["entailment"] * 2)
    assert list(tmp_path.iterdir()) == []
