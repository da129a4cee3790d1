"""What is trained on is not measured on, wherever the two come from."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from targen_async.errors import UserError
from targen_async.finetune.config import TrainConfig, check_train_config
from targen_async.finetune.planning import Machine, plan_run
from targen_async.finetune.prepare import Prepared, prepare
from tests.finetune.made import run_of, write_lines


def prepared(train: Path, validation: Path, split: str, task: str = "boolq") -> Prepared:
    raw: dict[str, Any] = {
        "model": {"family": "encoder"},
        "data": {
            "train": [{"task": task, "source": str(train)}],
            "validation": [{"task": task, "source": str(validation), "split": split}],
        },
        "training": {"examples": 2},
    }
    return prepare(msgspec.convert(raw, TrainConfig))


def official(folder: Path, split: str, *rows: tuple[str, str]) -> Path:
    """A BoolQ of passages and questions."""
    lines = [
        {"passage": passage, "question": question, "label": number % 2 == 0, "idx": number}
        for number, (passage, question) in enumerate(rows)
    ]
    write_lines(folder / "BoolQ" / f"{split}.jsonl", *lines)
    return folder


def test_two_splits_of_the_release_may_share_a_passage_and_no_example(tmp_path: Path) -> None:
    """As the real BoolQ and RTE do."""
    made = official(tmp_path, "train", ("Ice is cold.", "is ice cold"), ("Tea.", "is it hot"))
    official(tmp_path, "val", ("Ice is cold.", "is ice water"))
    assert len(prepared(made, made, "validation").validation["boolq"]) == 1
    official(tmp_path, "val", ("Rain.", "is it wet"), ("Tea.", "is it hot"))
    sentence = "boolq/validation/1 is measured on and trained on, as boolq/train/1 of "
    with pytest.raises(UserError, match=re.escape(sentence)):
        prepared(made, made, "validation")


def test_rows_of_a_run_share_nothing_with_what_is_measured(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "boolq")
    with pytest.raises(UserError, match="is measured on and trained on"):
        prepared(run, run, "train")
    passage = next(iter(prepared(run, official(tmp_path, "val", ("A.", "b")), "validation").train))
    beside = official(tmp_path, "val", ("A.", "b"), (passage.fields["passage"].upper(), "is it so"))
    sentence = "boolq/validation/1 is measured on and has a passage, premise, text or seed of "
    with pytest.raises(UserError, match=re.escape(sentence + passage.key)) as told:
        prepared(run, beside, "validation")
    assert str(beside / "BoolQ" / "val.jsonl") in str(told.value) and str(run) in str(told.value)
    official(tmp_path, "train", (passage.fields["passage"], "is it so"))
    with pytest.raises(UserError, match="is measured on and has a passage"):
        prepared(tmp_path, run, "train")


def test_sources_of_equal_sizes_are_as_large_as_the_smallest(tmp_path: Path) -> None:
    rows = [(f"Passage {n}.", f"is it {n}") for n in range(12)]
    many, few = official(tmp_path / "many", "train", *rows), tmp_path / "few"
    official(few, "train", *((f"Text {n}.", f"was it {n}") for n in range(5)))
    sources = [{"task": "boolq", "source": str(folder)} for folder in (many, few)]
    raw: dict[str, Any] = {
        "model": {"family": "encoder"},
        "data": {"train": sources, "equal_sizes": True},
        "training": {"examples": 2},
    }
    config = msgspec.convert(raw, TrainConfig)
    made = prepare(config)
    assert [one["rows"] for one in made.sources] == [5, 5]
    assert len({one.fields["passage"] for one in made.train}) == 10
    assert plan_run(config, Machine()).rows == 10
    assert made.train == prepare(config).train
    raw["data"]["rows"] = 8
    with pytest.raises(UserError, match=r"`data.equal_sizes` and `data.rows` both say how many"):
        check_train_config(msgspec.convert(raw, TrainConfig))
