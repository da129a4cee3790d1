"""The data card: its header is what the hub reads, its numbers are the run's."""

from pathlib import Path
from typing import Any

import pytest

from targen_async.export import export_run
from targen_async.export.card import safe
from tests.export.runs import ROWS, disk_row, make_run, make_task_run

yaml = pytest.importorskip("yaml", reason="reads the card's header with PyYAML: targen-async[data]")


def card_of(run: Path, **options: Any) -> tuple[dict[str, Any], str]:
    made = export_run(run, to=options.pop("to", "jsonl"), out=run.parent / "card", **options)
    text = (made.folder / "README.md").read_text("utf-8")
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def real_rows(task: str, **changes: Any) -> list[dict[str, Any]]:
    more = {"simulated": False, "model": "gpt-x", **changes}
    return [disk_row(row, **more) for row in ROWS[task]]


def test_the_header_says_what_the_hub_asks_for(tmp_path: Path) -> None:
    header, _ = card_of(make_task_run(tmp_path / "run", "copa"), to="parquet")
    assert header["license"] == "other"
    assert header["task_categories"] == ["multiple-choice"]
    assert header["size_categories"] == ["n<1K"]
    assert header["tags"] == ["synthetic", "targen", "simulated"]
    assert header["language"] == ["en"]
    names = {"0": "choice1", "1": "choice2"}
    label = {"name": "label", "dtype": {"class_label": {"names": names}}}
    assert header["dataset_info"]["features"][-1] == label
    [config] = header["configs"]
    path = "data/train-00000-of-00001.parquet"
    assert config["data_files"] == [{"split": "train", "path": path}]


def test_simulated_rows_are_called_so(tmp_path: Path) -> None:
    _, body = card_of(make_task_run(tmp_path / "run", "cb"))
    assert "**SIMULATED.** No language model wrote these rows" in body


def test_real_rows_are_not_called_simulated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", real_rows("cb"), simulated=False, model="gpt-x")
    header, body = card_of(run)
    assert "simulated" not in header["tags"]
    assert "SIMULATED" not in body
    assert "gpt-x (3)" in body
    assert "a-judge (3)" in body


def test_a_mixture_says_how_many_are_simulated(tmp_path: Path) -> None:
    rows = real_rows("cb")
    rows[0] = disk_row(ROWS["cb"][0])
    header, body = card_of(make_run(tmp_path / "run", rows, simulated=True))
    assert "**1 of the 3 rows are SIMULATED**" in body
    assert "simulated" in header["tags"]


def test_numbers_are_the_manifests_and_the_rows(tmp_path: Path) -> None:
    rows = real_rows("cb")
    rows[1]["label_before_correction"] = "neutral"
    rows[2]["provenance"]["votes"] = []
    rows[2]["provenance"]["seed_source"] = "corpus"
    run = make_run(
        tmp_path / "run",
        rows,
        simulated=False,
        state="stopped",
        n=9,
        corpus={"sha256": "ef" * 32, "usable": 77},
        transitions={"neutral": {"contradiction": 1, "neutral": 1, "drop": 4}},
        rejected={"instances invalid": 6},
        failed={"instances truncated": 2},
        spent={"prompt_tokens": 1234, "completion_tokens": 567, "usd": 0.4321},
    )
    _, body = card_of(run, split={"train": 0.7, "test": 0.3})
    for told in (
        "| train | 2 | `CB/train.jsonl` |",
        "| test | 1 | `CB/test.jsonl` |",
        "| split | entailment | contradiction | neutral |",
        "Judged: 2 of 3 rows. Label changed: 1.",
        "| neutral | 1 | 1 | 4 |",
        "instances invalid (6), failed instances truncated (2)",
        "41 calls answered; 1234 prompt and 567 completion tokens (0.4321 US dollars)",
        "of which 89 and 12 bought no row",
        "state: stopped; 9 rows were asked for",
        f"1 of the rows build on texts of a corpus (77 usable texts, SHA-256 `{'ef' * 32}`)",
        "keep the corpus's own licence",
        "temperature 1.0, random_seed 7",
        "no row of SuperGLUE is in it",
    ):
        assert told in body, told


def test_open_labels_are_counted(tmp_path: Path) -> None:
    header, body = card_of(make_task_run(tmp_path / "run", "record"))
    assert "3 different ones" in body
    assert header["task_categories"] == ["question-answering"]


def test_names_of_others_are_no_html_and_no_markdown(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>|[a](http://b)\n# c `d` \u2028---"
    rows = [disk_row((f"own/{n:06d}/0", {"t": bad}, bad), model=bad) for n in range(2)]
    for row in rows:
        row["provenance"]["votes"][0]["model"] = bad
    header, body = card_of(
        make_run(
            tmp_path / "run",
            rows,
            balance=(bad, "b"),
            model=bad,
            transitions={bad: {bad: 1}},
            rejected={bad: 1},
            versions={bad: bad},
        ),
        to="csv",
    )
    assert "<img" not in body
    assert "[a](http" not in body
    assert "\n# c" not in body
    assert "\u2028" not in body
    label = header["dataset_info"]["features"][-1]
    assert label["dtype"]["class_label"]["names"]["0"] == bad
    rows_of_table = [line for line in body.splitlines() if line.startswith("| train")]
    assert all(line.replace("\\|", "").count("|") == 4 for line in rows_of_table)


def test_names_stay_readable() -> None:
    assert safe("not_entailment") == "not_entailment"
    assert safe("gpt-4o-mini") == "gpt-4o-mini"
    assert safe("a <b> & *c*") == "a &lt;b&gt; &amp; \\*c\\*"


def test_a_cost_that_is_not_known_is_told_as_what_it_may_be_at_most(tmp_path: Path) -> None:
    spent = {"prompt_tokens": 1234, "completion_tokens": 567, "usd": None}
    _, body = card_of(
        make_run(tmp_path / "one" / "run", real_rows("cb"), spent=spent, usd_at_most=0.5)
    )
    assert "tokens (at most 0.5000 US dollars: not every answer was counted)" in body
    _, body = card_of(make_run(tmp_path / "two" / "run", real_rows("cb"), spent=spent))
    assert "tokens (prices were not configured)" in body
