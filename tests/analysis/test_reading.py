"""Data sets of every kind come in as rows; what is wrong is told with its file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from targen_async.analysis.crossfit import Unfit
from targen_async.analysis.labels import measure_labels
from targen_async.analysis.reading import Columns, read_rows, read_sets
from targen_async.errors import UserError
from targen_async.export import Form, export_run
from tests.analysis.sets import write_lines
from tests.export.runs import ROWS, make_task_run

SPAN = {"span1_index": 0, "span1_text": "Mark", "span2_index": 5, "span2_text": "He"}
OFFICIAL: dict[str, tuple[dict[str, Any], list[tuple[dict[str, str], str]]]] = {
    "copa": (
        {
            "premise": "P.",
            "choice1": "A.",
            "choice2": "B.",
            "question": "cause",
            "label": 1,
            "idx": 0,
        },
        [({"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "cause"}, "choice2")],
    ),
    "boolq": (
        {"question": "is it", "passage": "It is.", "idx": 0, "label": True},
        [({"passage": "It is.", "question": "is it"}, "true")],
    ),
    "rte": (
        {"premise": "P.", "hypothesis": "H.", "label": "entailment", "idx": 3},
        [({"premise": "P.", "hypothesis": "H."}, "entailment")],
    ),
    "wic": (
        {"word": "run", "sentence1": "I run.", "sentence2": "A run.", "idx": 0, "label": False}
        | {"start1": 2, "end1": 5, "start2": 2, "end2": 5, "version": 1.1},
        [({"word": "run", "sentence1": "I run.", "sentence2": "A run."}, "false")],
    ),
    "wsc": (
        {"text": "Mark sat. He rose.", "target": SPAN, "idx": 0, "label": True},
        [({"text": "Mark sat. He rose.", "span1": "Mark", "span2": "He"}, "true")],
    ),
    "axb": (
        {"sentence1": "A.", "sentence2": "B.", "idx": 1, "label": "not_entailment", "logic": "x"},
        [({"sentence1": "A.", "sentence2": "B.", "phenomenon": "x"}, "not_entailment")],
    ),
    "multirc": (
        {
            "idx": 0,
            "version": 1.1,
            "passage": {
                "text": "P.",
                "questions": [
                    {
                        "question": "Q?",
                        "answers": [{"text": "a", "label": 1}, {"text": "b", "label": 0}],
                    }
                ],
            },
        },
        [
            ({"paragraph": "P.", "question": "Q?", "answer": "a"}, "true"),
            ({"paragraph": "P.", "question": "Q?", "answer": "b"}, "false"),
        ],
    ),
    "record": (
        {
            "source": "s",
            "idx": 0,
            "passage": {
                "text": "Ada met Tom.",
                "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}],
            },
            "qas": [
                {"query": "@placeholder met", "answers": [{"start": 0, "end": 2, "text": "Ada"}]}
            ],
        },
        [({"passage": "Ada met Tom.", "query": "@placeholder met", "entities": "Ada\nTom"}, "Ada")],
    ),
}


@pytest.mark.parametrize("task", OFFICIAL)
def test_an_official_file_is_told_by_its_keys(tmp_path: Path, task: str) -> None:
    entry, wanted = OFFICIAL[task]
    rows = read_rows(write_lines(tmp_path / "train.jsonl", [entry]))
    assert [(dict(row.fields), row.label) for row in rows.rows] == wanted
    assert rows.open_labels == (task == "record")


@pytest.mark.parametrize(
    ("label", "more", "task"),
    [
        ("contradiction", {}, "cb"),
        ("not_entailment", {}, "rte"),
        ("not_entailment", {"pair_id": 551646}, "axg"),
        (None, {}, ""),
    ],
)
def test_files_of_premise_and_hypothesis_are_told_apart(
    tmp_path: Path, label: str | None, more: dict[str, Any], task: str
) -> None:
    """By their labels, and AX-g by its pairs; RTE and CB without labels look alike."""
    entry = {"premise": "P.", "hypothesis": "H.", "idx": 3, **more}
    entries = [{**entry, "label": "entailment"}, {**entry, "label": label}] if label else [entry]
    rows = read_rows(write_lines(tmp_path / "d.jsonl", entries))
    assert (rows.task, rows.fields) == (task, ("premise", "hypothesis"))
    assert [row.label for row in rows.rows] == (["entailment", label] if label else [None])


def test_labels_of_the_rows_own_are_told_in_any_file(tmp_path: Path) -> None:
    """As in a run: more than fifty different ones are answers."""
    entries = [{"q": f"What is {n}?", "a": f"It is {n % 400}."} for n in range(4000)]
    columns = Columns(texts=("q",), label="a")
    rows = read_rows(write_lines(tmp_path / "open.jsonl", entries), columns)
    assert rows.open_labels
    assert measure_labels(rows, Unfit(reason="")).shares == {}
    fixed = write_lines(tmp_path / "fixed.jsonl", [{**e, "a": e["q"][-2]} for e in entries])
    assert not read_rows(fixed, columns).open_labels


def test_a_row_without_a_label_is_read(tmp_path: Path) -> None:
    entry = {name: value for name, value in OFFICIAL["rte"][0].items() if name != "label"}
    assert read_rows(write_lines(tmp_path / "test.jsonl", [entry])).rows[0].label is None


def test_a_run_is_read_with_what_its_rows_tell(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "rte")
    rows = read_rows(run)
    assert rows.task == "rte"
    assert [(row.key, dict(row.fields), row.label) for row in rows.rows] == list(ROWS["rte"])
    shard = read_rows(run / "instances-00000.jsonl")
    assert shard.rows == rows.rows
    assert shard.task == "rte"


def test_columns_of_a_user_s_own_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"q": "Who?", "a": "I.", "ok": True, "n": 7}])
    (row,) = read_rows(path, Columns(texts=("q", "a"), label="ok", key="n")).rows
    assert (row.key, dict(row.fields), row.label) == ("7", {"q": "Who?", "a": "I."}, "true")


def test_parquet_and_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"t": datasets.Value("string"), "y": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"t": ["a b", "c d"], "y": [1, -1]}, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "d.parquet"))
    columns = Columns(texts=("t",), label="y")
    assert [row.label for row in read_rows(tmp_path / "saved", columns).rows] == ["yes", None]
    assert [row.label for row in read_rows(tmp_path / "d.parquet", columns).rows] == ["yes", None]


def test_parquet_of_others_has_labels_as_they_stand(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"t": ["a b", "c d"], "y": [1, None]})
    parquet.write_table(table, tmp_path / "d.parquet")
    columns = Columns(texts=("t",), label="y")
    assert [row.label for row in read_rows(tmp_path / "d.parquet", columns).rows] == ["1", None]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "datasets"])
@pytest.mark.parametrize("task", ["rte", "copa", "boolq"])
def test_an_export_is_read_as_the_run_it_was_made_of(tmp_path: Path, form: Form, task: str) -> None:
    if form != "jsonl":
        pytest.importorskip("datasets")
    run = make_task_run(tmp_path / "run", task, times=3)
    made = export_run(run, to=form, out=tmp_path / "out")
    files = {"jsonl": "**/*.jsonl", "parquet": "**/*.parquet", "datasets": "**/state.json"}
    paths = [p for p in (tmp_path / "out").glob(files[form]) if p.name != "keys.jsonl"]
    assert len(paths) == 1, made.files
    wanted = read_rows(run)
    columns = None if form == "jsonl" else Columns(texts=wanted.fields, label="label")
    found = read_rows(paths[0].parent if form == "datasets" else paths[0], columns)
    if form == "jsonl":
        assert [row.label for row in found.rows] == [row.label for row in wanted.rows]
    assert len(set(found.labels)) == len(set(wanted.labels))
    assert [dict(row.fields) for row in found.rows] == [dict(row.fields) for row in wanted.rows]


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_a_damaged_file_is_told(tmp_path: Path, form: str) -> None:
    """Its head and its foot are intact."""
    table = pytest.importorskip("pyarrow").table({"t": [f"text {n} {n**5}" for n in range(5000)]})
    if form == "parquet":
        path = damaged = tmp_path / "d.parquet"
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
        start, end = 2000, 60000
    else:
        path = tmp_path / "saved"
        dataset = pytest.importorskip("datasets").Dataset(table)
        dataset.save_to_disk(str(path))
        damaged = next(path.glob("*.arrow"))
        start, end = -40000, -20000
    content = bytearray(damaged.read_bytes())
    content[start:end] = b"\xff" * (end - start)
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as") as error:
        read_rows(path, Columns(texts=("t",)))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


GOOD = json.dumps(OFFICIAL["rte"][0]).encode() + b"\n"
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no rows"),
    "blank": (b"\n \n", "holds no rows"),
    "cut off": (GOOD + GOOD[:20], "d.jsonl:2: this is no JSON"),
    "Latin-1": (GOOD + GOOD.replace(b"P.", b"\xe9."), "d.jsonl:2: this is not UTF-8"),
    "a list": (GOOD + b"[1]\n", "d.jsonl:2: this is no JSON object"),
    "a missing column": (
        GOOD + b'{"premise": "P.", "label": "entailment"}\n',
        "d.jsonl:2: it has no 'hypothesis'",
    ),
    "a number for a text": (
        GOOD.replace(b'"H."', b"7"),
        "d.jsonl:1: this is no object of RTE: 'hypothesis' is no text",
    ),
    "a number for a label": (
        GOOD.replace(b'"entailment"', b"0"),
        "d.jsonl:1: 0 is no label of RTE",
    ),
    "not known": (b'{"x": "a", "y": 1}\n', "--text and --label (columns: x, y)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told_in_one_sentence(tmp_path: Path, case: str) -> None:
    content, told = BAD[case]
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("x", "z"), "d.jsonl:1: there is no column 'z' (columns: x, y)"),
        (("y",), "d.jsonl:1: the column 'y' holds no text but 1"),
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, texts: tuple[str, ...], told: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"x": "a", "y": 1}])
    with pytest.raises(UserError) as error:
        read_rows(path, Columns(texts=texts))
    assert told in str(error.value)


def test_columns_that_no_file_has_are_told(tmp_path: Path) -> None:
    """Not so those of one file beside others with fields of their own."""
    official = write_lines(tmp_path / "rte.jsonl", [OFFICIAL["rte"][0]])
    run = make_task_run(tmp_path / "run", "rte")
    own = write_lines(tmp_path / "own.jsonl", [{"a": "A.", "hypothesis": "H.", "y": 1}])
    for texts, label, missing in (
        (("hypotesis",), None, "hypotesis"),
        (("premise", "hypotesis"), None, "hypotesis"),
        (("premise", "hypothesis"), "gold", "gold"),
    ):
        for path in (official, run):
            with pytest.raises(UserError, match=rf"{path.name}: there is no column '{missing}' \("):
                read_sets([path], Columns(texts=texts, label=label), pytest.fail)
    said: list[str] = []
    columns = Columns(texts=("a", "hypothesis"), label="y")
    found = read_sets([run, own, official], columns, said.append)
    assert [rows.fields[0] for rows in found] == ["premise", "a", "premise"]
    assert said == [
        f"{path} is read by its own fields (premise, hypothesis), not by --text"
        for path in (run, official)
    ]
    both = Columns(texts=("premise", "hypothesis"), label="label")
    assert len(read_sets([run, official], both, pytest.fail)) == 2


def test_a_path_that_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "d.txt").write_text("a")
    (tmp_path / "d.parquet").write_text("a")
    for path, told in (
        (tmp_path / "none", "there is no file or folder"),
        (tmp_path, "name a file in it, such as"),
        (tmp_path / "d.txt", "ends in none of .jsonl"),
        (tmp_path / "d.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(UserError, match=told):
            read_rows(path)
