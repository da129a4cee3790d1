"""Every form of every task, read back with the readers people use."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from targen_async.errors import UserError
from targen_async.export import FORMS, Form, export_run
from targen_async.layouts import LAYOUTS
from tests.export.readers import READERS, hub_rows
from tests.export.runs import ROWS, back, disk_row, lines, make_run, make_task_run, provenance

datasets = pytest.importorskip("datasets", reason="reads exports with datasets: targen-async[data]")

HALF = {"train": 0.5, "test": 0.5}

S, I32 = datasets.Value("string"), datasets.Value("int32")
NLI = datasets.ClassLabel(names=["entailment", "not_entailment"])
TRUTH = datasets.ClassLabel(names=["False", "True"])
HUB: dict[str, dict[str, Any]] = {
    "axb": {"sentence1": S, "sentence2": S, "idx": I32, "label": NLI},
    "axg": {"premise": S, "hypothesis": S, "idx": I32, "label": NLI},
    "boolq": {"question": S, "passage": S, "idx": I32, "label": TRUTH},
    "cb": {
        "premise": S,
        "hypothesis": S,
        "idx": I32,
        "label": datasets.ClassLabel(names=["entailment", "contradiction", "neutral"]),
    },
    "copa": {
        "premise": S,
        "choice1": S,
        "choice2": S,
        "question": S,
        "idx": I32,
        "label": datasets.ClassLabel(names=["choice1", "choice2"]),
    },
    "multirc": {
        "paragraph": S,
        "question": S,
        "answer": S,
        "idx": {"paragraph": I32, "question": I32, "answer": I32},
        "label": TRUTH,
    },
    "record": {
        "passage": S,
        "query": S,
        "entities": datasets.Sequence(S),
        "entity_spans": datasets.Sequence({"text": S, "start": I32, "end": I32}),
        "answers": datasets.Sequence(S),
        "idx": {"passage": I32, "query": I32},
    },
    "rte": {"premise": S, "hypothesis": S, "idx": I32, "label": NLI},
    "wic": {
        "word": S,
        "sentence1": S,
        "sentence2": S,
        "start1": I32,
        "start2": I32,
        "end1": I32,
        "end2": I32,
        "idx": I32,
        "label": TRUTH,
    },
    "wsc": {
        "text": S,
        "span1_index": I32,
        "span2_index": I32,
        "span1_text": S,
        "span2_text": S,
        "idx": I32,
        "label": TRUTH,
    },
}
"""The features of `aps/super_glue`, in its order."""


def read(folder: Path, form: Form) -> Any:
    if form == "datasets":
        return datasets.load_from_disk(str(folder))
    return load(str(folder), folder)


def load(name: str, folder: Path, **options: Any) -> Any:
    """With a cache beside the folder: its keys are names and whole seconds, which tests share."""
    return datasets.load_dataset(name, cache_dir=str(folder.parent / "cache"), **options)


@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("form", ["datasets", "parquet"])
def test_tables_have_the_hubs_features_and_the_official_files_rows(
    task: str, form: Form, tmp_path: Path
) -> None:
    run = make_task_run(tmp_path / "run", task)
    made = export_run(run, to=form)
    official = export_run(run, to="jsonl")
    split = "test" if task in ("axb", "axg") else "train"
    assert made.rows == official.rows == {split: len(ROWS[task])}
    table = read(made.folder, form)[split]
    assert table.features == datasets.Features(HUB[task])
    assert list(table.features) == list(HUB[task])
    layout = LAYOUTS[task]
    [path] = [name for name in official.files if name.startswith(layout.folder)]
    wanted = hub_rows(task, official.folder / path)
    found = list(table)
    for value in found:
        if "label" in value:
            value["label"] = table.features["label"].int2str(value["label"])
    for value in (*wanted, *found):
        if task == "record":
            value["entities"] = sorted(value["entities"])

    def kept(rows: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps({k: value[k] for k in HUB[task]}) for value in rows)

    assert kept(found) == kept(wanted)


@pytest.mark.parametrize("task", LAYOUTS)
def test_official_files_are_called_and_read_as_in_the_release(task: str, tmp_path: Path) -> None:
    layout = LAYOUTS[task]
    run = make_task_run(tmp_path / "run", task, times=4)
    whole = export_run(run, to="jsonl", out=tmp_path / "whole")
    name = f"{layout.folder}/{layout.folder if layout.only_test else 'train'}.jsonl"
    assert set(whole.files) == {name, "README.md", "keys.jsonl"}
    shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
    made = export_run(run, to="jsonl", out=tmp_path / "parts", split=shares)
    names = [f"{layout.folder}/{part}.jsonl" for part in ("train", "val", "test")]
    assert {*names, "README.md", "keys.jsonl"} == set(made.files)
    counts = [len(READERS[task](made.folder / name)) for name in names]
    assert counts == list(made.rows.values())
    assert sum(counts) == len(back(run))
    loaded = read(made.folder, "jsonl")
    assert set(loaded) == set(shares)
    by_loader = load("json", made.folder, data_files=str(made.folder / names[0]))
    assert by_loader["train"].num_rows == loaded["train"].num_rows


@pytest.mark.parametrize("task", LAYOUTS)
def test_csv_loads_with_labels_in_the_hubs_order(task: str, tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", task)
    table = read(export_run(run, to="csv").folder, "csv")
    table = next(iter(table.values()))
    wanted = read(export_run(run, to="parquet").folder, "parquet")
    wanted = next(iter(wanted.values()))
    assert table.column_names == wanted.column_names
    for name, feature in wanted.features.items():
        values = table[name][:]
        if isinstance(feature, datasets.Value | datasets.ClassLabel):
            assert table.features[name] == feature
        else:
            values = [json.loads(value) for value in values]
        assert values == wanted[name][:]


@pytest.mark.parametrize("form", FORMS)
def test_every_row_can_be_traced_by_its_key(form: Form, tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "boolq", times=6)
    made = export_run(run, to=form, split=HALF, random_seed=3)
    keys = {(k["split"], k["idx"]): k["key"] for k in lines(made.folder / "keys.jsonl")}
    rows = {row.key: row for row in back(run)}
    assert set(keys.values()) == set(rows)
    for split, table in read(made.folder, form).items():
        assert [n for name, n in keys if name == split] == list(range(table.num_rows))
        for number, value in enumerate(table):
            row = rows[keys[split, value.get("idx", number)]]
            text = value.get("question") or value["input"]
            assert row.fields["question"] in text


@pytest.mark.parametrize("task", ["multirc", "record"])
def test_nested_rows_are_traced_by_nested_numbers(task: str, tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", task)
    made = export_run(run, to="parquet")
    keys = {json.dumps(k["idx"]): k["key"] for k in lines(made.folder / "keys.jsonl")}
    rows = {row.key: row for row in back(run)}
    for value in read(made.folder, "parquet")["train"]:
        row = rows[keys[json.dumps(value["idx"])]]
        text = "answer" if task == "multirc" else "query"
        assert row.fields[text] == value[text]


def test_flat_rows_say_every_field_and_the_label(tmp_path: Path) -> None:
    made = export_run(make_task_run(tmp_path / "run", "copa"), to="flat")
    assert lines(made.folder / "train.jsonl")[1] == {
        "input": "premise: The glass number 1 fell.\nchoice1: It broke.\nchoice2: It rained.\n"
        "question: effect",
        "output": "choice2",
    }


# ---- tasks of the user's own


def own_rows(labels: list[str]) -> list[dict[str, Any]]:
    return [
        disk_row((f"mood/{n:06d}/0", {"text": f"Text {n}.", "idx": str(n)}, label))
        for n, label in enumerate(labels)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_task_of_ones_own_has_its_fields_and_labels_in_order(form: Form, tmp_path: Path) -> None:
    labels = ["sad", "glad", "sad"]
    run = make_run(tmp_path / "run", own_rows(labels), balance=("sad", "glad", "angry"))
    made = export_run(run, to=form)
    table = read(made.folder, form)["train"]
    if form == "flat":
        assert table["output"][:] == labels
        return
    assert table.column_names == ["text", "idx", "label"]
    assert table["text"][0] == "Text 0."
    if form == "jsonl":
        assert table["label"][:] == labels
    else:
        assert table.features["label"].names == ["sad", "glad", "angry"]
        assert table.features["idx"] == S
        assert table["label"][:] == [0, 1, 0]


def test_open_labels_are_texts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", own_rows(["NA", "None", "007"]), balance=("all",))
    for form in ("parquet", "csv", "datasets"):
        table = read(export_run(run, to=form).folder, form)["train"]
        assert table.features["label"] == S
        assert table["label"][:] == ["NA", "None", "007"]


def test_a_namesake_of_a_superglue_task_keeps_its_own_form(tmp_path: Path) -> None:
    rows = [disk_row(("copa/000000/0", {"sentence": "A."}, "choice1"))]
    made = export_run(make_run(tmp_path / "run", rows), to="jsonl")
    assert lines(made.folder / "train.jsonl") == [{"sentence": "A.", "label": "choice1"}]


def test_so_does_one_with_other_labels(tmp_path: Path) -> None:
    rows = [disk_row(("rte/000000/0", {"premise": "A.", "hypothesis": "B."}, "yes"))]
    made = export_run(make_run(tmp_path / "run", rows, balance=("yes", "no")), to="jsonl")
    assert lines(made.folder / "train.jsonl")[0]["label"] == "yes"


# ---- hostile texts


HOSTILE = [
    "line\nbreak\r\nand\rreturn",
    "\u2028separators\u2029and\u0085next line",
    'quotes " and "" and \\" and ,;\t|',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1)",
    "-2+3",
    "<script>alert(1)</script> </td> ``` ---",
    "None",
    "NA",
    "null",
    "123",
    "true",
    "\U0001f600 \u202eback\u202c \u00e9",
    "  spaces around  ",
    "---\nlicense: mit\n---",
]


@pytest.mark.parametrize("form", FORMS)
def test_hostile_texts_come_back_letter_by_letter(form: Form, tmp_path: Path) -> None:
    rows = [
        disk_row((f"rte/{n:06d}/0", {"premise": text, "hypothesis": f"h{n} {text}"}, "entailment"))
        for n, text in enumerate(HOSTILE)
    ]
    made = export_run(make_run(tmp_path / "run", rows), to=form)
    table = read(made.folder, form)["train"]
    if form == "flat":
        flat = [f"premise: {text}\nhypothesis: h{n} {text}" for n, text in enumerate(HOSTILE)]
        assert table["input"][:] == flat
        return
    assert table["premise"][:] == HOSTILE
    if form == "csv":
        with (made.folder / "train.csv").open(encoding="utf-8", newline="") as file:
            assert [row["premise"] for row in csv.DictReader(file)] == HOSTILE
        card = (made.folder / "README.md").read_text("utf-8")
        assert "5 cells begin like a spreadsheet's formula" in card
    if form == "jsonl":
        text = (made.folder / "RTE/train.jsonl").read_text("utf-8")
        assert len(text.splitlines()) == len(HOSTILE)


# ---- the folder


def test_the_folder_must_be_new_or_empty(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "cb")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        export_run(run, to="flat", out=full)
    with pytest.raises(UserError, match="is a file"):
        export_run(run, to="flat", out=full / "mine")
    with pytest.raises(UserError, match="not empty"):
        export_run(run, to="flat", out=run)
    assert sorted(p.name for p in full.iterdir()) == ["mine"]
    empty = tmp_path / "a" / "b"
    empty.mkdir(parents=True)
    assert export_run(run, to="flat", out=empty).folder == empty
    assert empty.stat().st_mode == run.stat().st_mode
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    fields = {
        "word": "go",
        "sentence1": "No such.",
        "sentence2": "Nor here.",
        "part_of_speech": "v",
    }
    run = make_run(tmp_path / "run", [disk_row(("wic/000000/0", fields, "true"))])
    with pytest.raises(UserError, match="wic/000000/0: 'go' does not stand in sentence1"):
        export_run(run, to="jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_same_export_twice_is_the_same(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "boolq", times=8)
    for form in FORMS:
        one, two = (
            export_run(run, to=form, out=tmp_path / f"{form}{n}", split=HALF) for n in (1, 2)
        )
        for name in one.files:
            if not name.endswith("state.json"):  # it holds a random fingerprint
                assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: (run / "manifest.json").unlink(), "makes it again"),
        (lambda run: (run / "manifest.json").write_text("{"), "no manifest"),
        (lambda run: (run / "manifest.json").write_text("[]"), "no manifest"),
        (lambda run: (run / "instances-00000.jsonl").unlink(), "holds no run"),
        (lambda run: (run / "instances-00000.jsonl").write_text(""), "no rows yet"),
        (lambda run: (run / "instances-00000.jsonl").write_text("{}\n"), "no row of a run"),
    ],
)
def test_a_folder_that_is_no_run_is_told(spoil: Any, told: str, tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "cb")
    spoil(run)
    with pytest.raises(UserError, match=told):
        export_run(run, to="jsonl")


def test_rows_of_another_form_are_told(tmp_path: Path) -> None:
    rows = own_rows(["sad", "glad"])
    del rows[1]["idx"]
    with pytest.raises(UserError, match="mood/000001/0 is of another task or form"):
        export_run(make_run(tmp_path / "run", rows, balance=("sad", "glad")), to="jsonl")


def test_provenance_stays_out_of_every_form(tmp_path: Path) -> None:
    rows = [
        {**disk_row(row), "provenance": provenance(explanation="SECRET-EXPLANATION")}
        for row in ROWS["cb"]
    ]
    run = make_run(tmp_path / "run", rows)
    for form in FORMS:
        made = export_run(run, to=form)
        for name in made.files:
            assert b"SECRET-EXPLANATION" not in (made.folder / name).read_bytes()
