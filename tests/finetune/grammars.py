"""Runs of rows that the simulator's grammars of few words make, for models that learn."""

import json
import random
from pathlib import Path

from targen_async.simulator import SimulatorSettings
from tests.export.runs import disk_row, make_run
from tests.finetune.made import seal
from tests.simulator.asking import make_rows

SMALL = SimulatorSettings(lexicon="small")


def grammar_run(folder: Path, task: str, rows: int) -> Path:
    """Different rows with true labels. AX-b has no train split: its rows are put as those of RTE,
    whose labels it shares and whose answers a model gives to it."""
    name = "rte" if task == "axb" else task
    made, seen = [], set()
    for number, row in enumerate(make_rows(task, rows, SMALL)):
        fields = row.fields
        if task == "axb":
            fields = {"premise": fields["sentence1"], "hypothesis": fields["sentence2"]}
        text = json.dumps(fields, sort_keys=True)
        if text not in seen:
            seen.add(text)
            made.append(disk_row((f"{name}/{number:06d}/0", fields, row.label)))
    return seal(make_run(folder, made))


def shuffled_labels(folder: Path, source: Path) -> Path:
    """The same rows with each other's labels."""
    lines = (source / "instances-00000.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    labels = [row["label"] for row in rows]
    random.Random(5).shuffle(labels)
    return seal(make_run(folder, [row | {"label": x} for row, x in zip(rows, labels, strict=True)]))
