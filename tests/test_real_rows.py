"""What our checks refuse of the real SuperGLUE rows, counted: docs/decisions/0007 explains each."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from targen_async.superglue import LAYOUTS, from_official
from targen_async.tasks import Task, load_task
from targen_async.validators import GROUP_VALIDATORS, VALIDATORS, check_fields, label_leak
from targen_async.words import find_word

SUPERGLUE = Path(__file__).resolve().parents[2] / "shared" / "superglue"

NOT_OFFICIAL = {"wic": {"part_of_speech": "noun"}}
"""Fields of ours that no official file has."""

ROWS = {
    "axg": 356,
    "boolq": 5203,
    "cb": 306,
    "copa": 400,
    "record": 64,
    "rte": 2767,
    "wic": 5428,
    "wsc": 554,
}
REFUSED = {
    "boolq": {"passage: words": 490, "question: words": 1},
    "cb": {"premise: words": 8},
    "rte": {"premise: characters": 2, "hypothesis_differs": 1},
    "wic": {"sentences_differ": 3},
    "wsc": {"span2_once": 124},
}
"""Task to what refuses how many of its rows; a row may be refused for several reasons."""


def _objects(task: str) -> Iterator[dict[str, Any]]:
    """The official objects of a task's files; the test is skipped where the files are not there."""
    folder = SUPERGLUE / LAYOUTS[task].folder
    if not folder.is_dir():
        pytest.skip(f"the real rows are not there: {folder}")
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            yield json.loads(line)


def _rows(task: str) -> Iterator[tuple[dict[str, str], str]]:
    for value in _objects(task):
        for fields, label in from_official(task, value):
            assert label is not None
            yield {**fields, **NOT_OFFICIAL.get(task, {})}, label


def _refusals(task: Task, fields: Mapping[str, str], label: str) -> list[str]:
    """Every check that refuses the row, not only the first."""
    found = [name for name in task.instances.validators if VALIDATORS[name](fields, label)]
    for name, spec in task.fields.items():
        if reason := check_fields({name: spec}, fields):
            found.append(f"{name}: {'words' if ' words, not ' in reason else 'characters'}")
    if label_leak(fields, tuple(task.labels)):
        found.append("label_leak")
    return found


@pytest.mark.parametrize("name", sorted(ROWS))
def test_real_rows_pass_but_for_those_that_are_counted(name: str) -> None:
    task = load_task(name)
    refused: Counter[str] = Counter()
    count = 0
    for fields, label in _rows(name):
        count += 1
        refusals = _refusals(task, fields, label)
        refused.update(refusals)
        # What a run asks of a row is this one call: it knows no check that is not counted here.
        assert (task.objection(fields, label) is None) is (not refusals), fields
    assert (count, dict(refused)) == (ROWS[name], REFUSED.get(name, {}))


def test_no_validator_of_a_task_goes_untried() -> None:
    tried = {name for task in ROWS for name in load_task(task).instances.validators}
    assert tried == set(VALIDATORS)


def test_words_are_found_where_the_official_spans_are() -> None:
    found = other = 0
    for row in _objects("wic"):
        for number in ("1", "2"):
            span = (row[f"start{number}"], row[f"end{number}"])
            same = find_word(row["word"], row[f"sentence{number}"]) == span
            found, other = found + same, other + (not same)
    # "Paul laughed a cheerful laugh", meant is the verb; and a span that is wrong as published.
    assert (found, other) == (10854, 2)


def test_neighbours_of_axg_are_twins() -> None:
    task = load_task("axg")
    rows = list(_rows("axg"))
    twins = list(zip(rows[::2], rows[1::2], strict=True))
    assert len(twins) == 178
    for (first, label), (second, twin_label) in twins:
        assert (first["hypothesis"], label) == (second["hypothesis"], twin_label)
        assert task.group_objection([first, second]) is None
    strangers = [(a[0], b[0]) for a, b in zip(rows[1::2], rows[2::2], strict=False)]
    assert [pair for pair in strangers if task.group_objection(pair) is None] == []


def test_many_texts_of_wsc_are_twins() -> None:
    texts = sorted({row["text"] for row in _objects("wsc")})
    check = GROUP_VALIDATORS["twins_change_one_word"]
    twins = [pair for pair in combinations(texts, 2) if not check([{"text": t} for t in pair])]
    assert (len(texts), len(twins)) == (279, 89)
