"""Do tiny models learn? Three families from random weights on three of the simulator's grammars.

    python -m tests.finetune.learning              # every cell, as a Markdown table
    python -m tests.finetune.learning encoder cb   # one of them

A grammar is the simulator's with its small lexicon: every text is new, its words are not. A tenth
of the rows is held out, with nothing of one premise or text on both sides. Beside it stands what
the recipe reaches on labels that were shuffled, and what the first recipe of a task reaches where
it is shown a part of each row that should not tell the label.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
from msgspec import Struct

from targen_async.finetune.config import TrainConfig
from targen_async.finetune.loop import train
from targen_async.finetune.metrics import Score
from tests.export.runs import make_run
from tests.finetune.grammars import grammar_run, shuffled_labels
from tests.finetune.made import seal
from tests.finetune.training import FAMILIES, settings

Row = dict[str, Any]
TASKS: Mapping[str, tuple[int, Callable[[Row, int], Row], str]] = {
    "cb": (2000, lambda r, n: r | {"premise": f"{n}."}, "hypothesis only"),
    "copa": (8000, lambda r, n: r | {"premise": f"{n}."}, "alternatives only"),
    "axb": (12000, lambda r, n: r | {"premise": f"{n}."}, "hypothesis only"),
    "boolq": (24000, lambda r, n: r | {"passage": f"{n}."}, "question only"),
}
"""Rows, of which equal ones are taken once; the part that should not tell, and its name."""


class Recipe(Struct, frozen=True):
    steps: int
    """Of 32 examples."""
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    vocabulary: int = 600


def t5(steps: int, vocabulary: int = 600) -> Recipe:
    """T5's own optimiser and rate, for random weights (Raffel et al. 2020, section 3.1.2)."""
    return Recipe(steps, "adafactor", 1e-2, vocabulary)


RECIPES: Mapping[tuple[str, str], Recipe] = {
    ("encoder", "cb"): Recipe(200),
    ("encoder", "copa"): Recipe(1200),
    ("encoder", "axb"): Recipe(800),
    ("encoder-decoder", "cb"): t5(400),
    ("encoder-decoder", "axb"): t5(3000),
    ("encoder-decoder", "boolq"): t5(2000, vocabulary=4000),
    ("decoder", "cb"): Recipe(200),
    ("decoder", "copa"): Recipe(1200),
    ("decoder", "axb"): Recipe(600),
}
"""Three tasks of each family."""


class Learnt(Struct, frozen=True, kw_only=True):
    accuracy: Score
    items: int
    seconds: float
    """CPU time of the training, measuring included."""


def learn(family: str, task: str, source: Path, out: Path) -> Learnt:
    """Train by the recipe on the rows of `source` and measure on the tenth that is held out."""
    recipe = RECIPES[family, task]
    raw = settings(
        family,
        source,
        "rte" if task == "axb" else task,
        examples=32,
        steps=recipe.steps,
        optimizer=recipe.optimizer,
    )
    raw["training"]["learning_rate"] = recipe.learning_rate
    raw["model"] |= {"max_source": 256, "max_target": 64, "vocabulary": recipe.vocabulary}
    raw["data"]["held_out"] = 0.1
    began = time.process_time()
    trained = train(msgspec.convert(raw, TrainConfig), out, say=lambda _: None)
    (report,) = trained.reports.values()
    return Learnt(
        accuracy=report.scores[0],
        items=report.items,
        seconds=time.process_time() - began,
    )


def only_a_part(folder: Path, source: Path, task: str) -> Path:
    """The rows of `source` with the part that should not tell, and a number in place of the rest:
    it keeps apart what is held out."""
    lines = (source / "instances-00000.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    part = TASKS[task][1]
    return seal(make_run(folder, [part(row, number) for number, row in enumerate(rows)]))


def main(arguments: list[str]) -> None:
    print("| family | task | held out | accuracy | CPU s | shuffled labels | a part only |")
    print("|---|---|---|---|---|---|---|")
    for task, (rows, _, part) in TASKS.items():
        families = [
            family
            for family in FAMILIES
            if (family, task) in RECIPES and (not arguments or arguments == [family, task])
        ]
        if not families:
            continue
        with tempfile.TemporaryDirectory() as name:
            home = Path(name)
            source = grammar_run(home / "rows", task, rows)
            shuffled = shuffled_labels(home / "shuffled", source)
            for family in families:
                found = learn(family, task, source, home / family)
                chance = learn(family, task, shuffled, home / f"{family}-shuffled").accuracy
                shown = ""
                if family == next(one for one, other in RECIPES if other == task):
                    less = only_a_part(home / "part", source, task)
                    shown = f"{part}: {_told(learn(family, task, less, home / 'less').accuracy)}"
                print(
                    f"| {family} | {task} | {found.items} | {_told(found.accuracy)} | "
                    f"{found.seconds:.0f} | {_told(chance)} | {shown} |",
                    flush=True,
                )


def _told(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
