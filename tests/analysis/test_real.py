"""On the real SuperGLUE files: simulated runs beside them, and parts of one file beside each other.

Where the files are not there these tests are skipped.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targen_async import cli
from targen_async.analysis.analyze import analyze, read_analysis
from targen_async.analysis.reading import read_rows
from targen_async.analysis.report.verdicts import areas_of
from tests.analysis.test_report import data_of

REAL = Path(__file__).resolve().parents[3] / "shared" / "superglue"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real SuperGLUE rows in {REAL}"),
]

FIELDS = {
    "copa": ("premise", "choice1", "choice2", "question"),
    "rte": ("premise", "hypothesis"),
    "boolq": ("passage", "question"),
}
ROWS = 1_000
Entries = Sequence[Mapping[str, Any]]


def lines(path: Path) -> Entries:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def texts(entries: Entries, task: str) -> list[list[str]]:
    """The words of each row, by the rule that docs/analysis.md gives."""
    joined = ["\n".join(str(entry[name]) for name in FIELDS[task]) for entry in entries]
    return [re.findall(r"\w+(?:['\u2019]\w+)*", text.lower()) for text in joined]


def distinct(rows: Sequence[Sequence[str]], order: int) -> float:
    grams = [tuple(row[at : at + order]) for row in rows for at in range(len(row) - order + 1)]
    return len(set(grams)) / len(grams)


@pytest.mark.parametrize("task", FIELDS)
def test_simulated_rows_beside_the_real_ones(task: str, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "report"
    arguments = ["generate", task, "-n", str(ROWS), "--simulate", "--quiet", "--out", str(run)]
    assert cli.main(arguments) == 0
    [path] = (REAL / {"copa": "COPA", "rte": "RTE", "boolq": "BoolQ"}[task]).glob("train.jsonl")
    assert cli.main(["analyze", str(run), "--against", str(path), "--out", str(out)]) == 0
    told = data_of((out / "report.html").read_text("utf-8"))
    found = read_analysis(out / "analysis.json")
    made, real = lines(run / "instances-00000.jsonl"), lines(path)
    assert told["title"] == f"What 1,000 rows of {task} are worth"
    assert told["analysis"]["simulated"] and found.simulated
    assert len(told["rows"]["rows"]) == ROWS
    assert {area["title"] for area in told["areas"]} >= {"Difficulty", "Variety", "Length"}

    assert found.against is not None
    other, size = found.against.other, min(len(real), ROWS)
    assert (found.data.rows, other.sampled_from, found.against.rows) == (ROWS, len(real), size)
    words = texts(made, task)
    own = found.data.diversity
    assert own.words_per_row.value == pytest.approx(np.mean([len(row) for row in words]), abs=1e-5)
    for estimate, order in ((own.distinct_1, 1), (own.distinct_3, 3)):
        assert estimate is not None
        assert estimate.value == pytest.approx(distinct(words, order), abs=1e-5)
    labels = Counter(entry["label"] for entry in made)
    assert found.data.labels.shares == {label: labels[label] / ROWS for label in sorted(labels)}
    assert found.data.artefacts.label_only is not None
    assert found.data.artefacts.label_only.value == max(labels.values()) / ROWS
    gold = found.data.labels.simulator_gold
    assert gold is not None and gold.correct is not None
    assert gold.correct.value > 0.95

    # Of the real file a sample is measured: its interval holds what the whole file has.
    share = max(Counter(str(entry["label"]) for entry in real).values()) / len(real)
    length = float(np.mean([len(row) for row in texts(real, task)]))
    for estimate, whole in (
        (other.artefacts.label_only, share),
        (other.diversity.words_per_row, length),
    ):
        assert estimate is not None and estimate.low is not None and estimate.high is not None
        assert estimate.low <= whole <= estimate.high


def test_parts_of_one_file_differ_in_one_area_of_twenty() -> None:
    """Disjoint parts of 150 rows. Held each for itself at 95 %, the measures of an area told a
    difference in one of four."""
    told = []
    for name in ("RTE", "BoolQ", "WiC"):
        rows = read_rows(REAL / name / "train.jsonl", None)
        order = np.random.default_rng(0).permutation(len(rows))[: 4 * 300].reshape(4, 2, 150)
        for here, there in order:
            analysis, _ = analyze(rows.take(here), against=rows.take(there))
            told += [area.arrow != "same" for area in areas_of(analysis)]
    assert len(told) >= 55
    assert sum(told) <= len(told) / 10
