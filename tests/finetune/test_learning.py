"""Tiny models from random weights learn grammars, and on shuffled labels they do not.

docs/training.md has the whole table; `python -m tests.finetune.learning` makes it.
"""

from math import sqrt
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from tests.finetune.grammars import grammar_run, shuffled_labels
from tests.finetune.learning import RECIPES, TASKS, learn


def marks(family: str, task: str) -> list[pytest.MarkDecorator]:
    if (family, task) == ("encoder", "cb"):
        return []
    return [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"), [pytest.param(*cell, marks=marks(*cell)) for cell in RECIPES]
)
def test_a_grammar_is_learnt_and_shuffled_labels_are_not(
    family: str, task: str, tmp_path: Path
) -> None:
    source = grammar_run(tmp_path / "rows", task, TASKS[task][0])
    found = learn(family, task, source, tmp_path / "out")
    assert found.accuracy.value > 0.9 and found.accuracy.baseline < 0.55
    assert found.seconds < 600

    shuffled = shuffled_labels(tmp_path / "shuffled", source)
    chance = learn(family, task, shuffled, tmp_path / "chance")
    share = 1 / 3 if task == "cb" else 1 / 2
    error = sqrt(share * (1 - share) / chance.items)
    assert abs(chance.accuracy.value - share) < 4 * error
