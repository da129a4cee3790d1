"""Examples are the same wherever they are read; what cannot be used is told by file and line."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from targen_async.errors import UserError
from targen_async.export import export_run
from targen_async.finetune.data import (
    Part,
    equal_sizes,
    load_examples,
    mix_examples,
    sample_examples,
    split_examples,
)
from targen_async.finetune.official import read_hub
from targen_async.finetune.schema import Example, content_digest, labels_of, to_dataset
from targen_async.layouts import LAYOUTS
from tests.export.runs import back, make_task_run
from tests.finetune.made import (
    TASKS,
    example,
    examples_of,
    real,
    run_of,
    seal,
    write_lines,
)
from tests.running import manifest, targen


def test_none_of_it_loads_torch_or_datasets() -> None:
    names = "batches data forms instructions metrics predictions"
    code = "import sys\n" + "".join(
        f"import targen_async.finetune.{name}\n" for name in names.split()
    )
    code += "sys.exit(bool({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- a run


@pytest.mark.parametrize("task", TASKS)
def test_the_rows_of_a_run_are_examples(tmp_path: Path, task: str) -> None:
    folder = run_of(tmp_path / "run", task)
    loaded = load_examples(folder, task, "train")
    assert loaded.simulated
    assert loaded.manifest_sha256 and len(loaded.manifest_sha256) == 64
    for one, row in zip(loaded.examples, back(folder), strict=True):
        assert (one.key, one.label) == (row.key, row.label)
        assert one.fields == {name: row.fields[name] for name in LAYOUTS[task].fields}
        assert one.answers == ((row.label,) if task == "record" else ())


@pytest.mark.parametrize(("task", "sizes"), [("multirc", {4, 8}), ("axg", {2}), ("wsc", {1})])
def test_what_a_metric_counts_as_one_is_told(tmp_path: Path, task: str, sizes: set[int]) -> None:
    """All answers to a question, both twins; in any other task every row by itself."""
    run = run_of(tmp_path / "run", task)
    export_run(run, to="jsonl", out=tmp_path / "official")
    split = "test" if task == "axg" else "train"
    for source, name in ((run, "train"), (tmp_path / "official", split)):
        found = load_examples(source, task, name).examples  # type: ignore[arg-type]
        assert set(Counter(one.unit for one in found).values()) == sizes


def test_a_real_run_of_the_command_is_read(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = targen("generate", "copa", "-n", "24", "--out", out, "--simulate", "--json")
    assert done.returncode == 0, done.stderr
    loaded = load_examples(out, "copa", "train")
    assert len(loaded.examples) == manifest(out)["delivered"] == 24
    assert set(Counter(one.label for one in loaded.examples).values()) == {12}


def test_a_shard_that_was_changed_is_refused_by_name(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", "cb")
    shard = folder / "instances-00000.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"entailment", b"Entailment", 1))
    with pytest.raises(UserError, match=r"instances-00000\.jsonl is not the file that manifest"):
        load_examples(folder, "cb", "train")


def test_an_empty_shard_a_missing_shard_and_an_empty_run(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", "cb")
    (folder / "instances-00000.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"instances-00000\.jsonl is empty, and manifest\.json"):
        load_examples(folder, "cb", "train")
    (folder / "instances-00000.jsonl").unlink()
    with pytest.raises(UserError, match=r"instances-00000\.jsonl cannot be read"):
        load_examples(folder, "cb", "train")
    seal(folder)
    with pytest.raises(UserError, match="the run has no rows"):
        load_examples(folder, "cb", "train")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"label": "entailment"', '"label": "maybe"', r":1: the label 'maybe' is none of cb's"),
        ('"hypothesis"', '"conclusion"', r":1: the row has no field 'hypothesis'"),
        ('"task": "cb"', '"task": "rte"', r":1: the row is of task rte, not of cb"),
        ('{"key"', '{key"', r":1: this is no row of a run"),
    ],
)
def test_a_bad_line_is_told_by_file_and_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    folder = make_task_run(tmp_path / "run", "cb")
    shard = folder / "instances-00000.jsonl"
    text = shard.read_text("utf-8")
    assert old in text.splitlines()[0]
    shard.write_text(text.replace(old, new, 1), "utf-8")
    seal(folder)
    with pytest.raises(UserError, match=rf"instances-00000\.jsonl{told}"):
        load_examples(folder, "cb", "train")


def test_what_a_run_cannot_give(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", "cb")
    with pytest.raises(UserError, match="holds rows of cb, not of rte"):
        load_examples(folder, "rte", "train")
    with pytest.raises(UserError, match="is a run and has no split 'validation'"):
        load_examples(folder, "cb", "validation")
    seal(folder, state="running")
    with pytest.raises(UserError, match="its rows may still change"):
        load_examples(folder, "cb", "train")
    with pytest.raises(UserError, match="is none of SuperGLUE's tasks"):
        load_examples(folder, "qa", "train")


# ---- official files and the hub


@pytest.mark.parametrize("task", TASKS)
def test_official_files_give_the_same_examples(tmp_path: Path, task: str) -> None:
    run = run_of(tmp_path / "run", task)
    export_run(run, to="jsonl", out=tmp_path / "official")
    split = "test" if LAYOUTS[task].only_test else "train"
    official = load_examples(tmp_path / "official", task, split).examples  # type: ignore[arg-type]
    mine = load_examples(run, task, "train").examples
    # Rows of one passage stand together in the official form, so the order may differ.
    assert sorted((sorted(o.fields.items()), o.label) for o in official) == sorted(
        (sorted(m.fields.items()), m.label) for m in mine
    )
    assert {len(m.spans) for m in mine} == {len(o.spans) for o in official}


@pytest.mark.parametrize("task", TASKS)
def test_the_hubs_tables_give_the_same_examples(tmp_path: Path, task: str) -> None:
    pytest.importorskip("datasets", reason="reads the hub's tables: targen-async[data]")
    run = run_of(tmp_path / "run", task)
    made = export_run(run, to="parquet", out=tmp_path / "parquet")
    name = "wsc.fixed" if task == "wsc" else task
    split = "test" if LAYOUTS[task].only_test else "train"
    hub = tmp_path / "hub"
    (hub / name).mkdir(parents=True)
    shutil.copy(next(made.folder.glob("data/*.parquet")), hub / name / f"{split}-0.parquet")
    files = [{"split": split, "path": f"{name}/{split}-0.parquet"}]
    config = json.dumps([{"config_name": name, "data_files": files}])
    (hub / "README.md").write_text(f"---\nconfigs: {config}\n---\n", "utf-8")
    found = list(read_hub(task, split, str(hub)))
    mine = load_examples(run, task, "train").examples
    assert [(f.fields, f.label, f.answers) for f in found] == [
        (m.fields, m.label, m.answers) for m in mine
    ]
    assert [f.spans for f in found] == [m.spans for m in mine]


def test_a_hub_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="reads the hub's tables: targen-async[data]")
    with pytest.raises(UserError, match=r"\(cb, train\) cannot be loaded: [^\n]+$"):
        list(read_hub("cb", "train", str(tmp_path / "none")))


CB = {"premise": "Ada knows it rains.", "hypothesis": "it rains", "label": "entailment", "idx": 0}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{'premise'}", r"train\.jsonl:2: this is no JSON"),
        ("[1]", r"train\.jsonl:2: this is no JSON object"),
        ({**CB, "label": "maybe"}, r"train\.jsonl:2: 'maybe' is no label of CB"),
        ({"premise": "A.", "label": "neutral", "idx": 1}, r"train\.jsonl:2: this is no object of"),
        ({k: v for k, v in CB.items() if k != "idx"}, r"train\.jsonl:2: this is no object of CB"),
        ({**CB, "label": None}, r"train\.jsonl:2: it has no label, and train needs one"),
    ],
)
def test_a_bad_official_line_is_told(tmp_path: Path, line: object, told: str) -> None:
    write_lines(tmp_path / "CB" / "train.jsonl", CB, line)
    with pytest.raises(UserError, match=told):
        load_examples(tmp_path, "cb", "train")


def test_what_an_official_folder_cannot_give(tmp_path: Path) -> None:
    write_lines(tmp_path / "CB" / "train.jsonl")
    with pytest.raises(UserError, match=r"train\.jsonl is empty"):
        load_examples(tmp_path, "cb", "train")
    with pytest.raises(UserError, match=r"there is no .*val\.jsonl .*has train\.jsonl"):
        load_examples(tmp_path, "cb", "validation")
    with pytest.raises(UserError, match="there is no folder"):
        load_examples(tmp_path / "none", "cb", "train")
    copa = {"premise": "A.", "choice1": "B.", "choice2": "C.", "question": "why", "label": 0}
    write_lines(tmp_path / "COPA" / "train.jsonl", {**copa, "idx": 0})
    with pytest.raises(UserError, match=r":1: the question is 'why', neither cause nor effect"):
        load_examples(tmp_path, "copa", "train")


def test_labels_may_be_kept_back_in_the_test_split(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "CB" / "test.jsonl", {**CB, "label": None})
    (found,) = load_examples(path.parents[1], "cb", "test").examples
    assert found.label is None


@pytest.mark.parametrize("task", ["axb", "axg"])
def test_a_diagnostic_set_is_for_evaluation_only(tmp_path: Path, task: str) -> None:
    export_run(run_of(tmp_path / "run", task), to="jsonl", out=tmp_path / "official")
    for source in (tmp_path / "official", "aps/super_glue"):
        with pytest.raises(UserError, match="for evaluation only; train on rte"):
            load_examples(source, task, "train")
    assert load_examples(tmp_path / "official", task, "validation").examples


def test_record_keeps_every_right_answer(tmp_path: Path) -> None:
    text = "Ada Brook sold the mill. Brook left."
    spans = [{"start": 0, "end": 8}, {"start": 25, "end": 29}]
    told = [{**spans[0], "text": "Ada Brook"}, {**spans[1], "text": "Brook"}]
    query = {"query": "@placeholder sold it.", "answers": told, "idx": 7}
    value = {"passage": {"text": text, "entities": spans}, "qas": [query], "idx": 3}
    write_lines(tmp_path / "ReCoRD" / "val.jsonl", value)
    (found,) = load_examples(tmp_path, "record", "validation").examples
    assert found.answers == ("Ada Brook", "Brook")
    assert found.idx == {"passage": 3, "query": 7}


def test_the_pronoun_of_wsc_is_the_one_its_index_says(tmp_path: Path) -> None:
    target = {"span1_text": "Tom", "span1_index": 0, "span2_text": "he", "span2_index": 5}
    value = {"text": "Tom said he left, but he did not.", "target": target, "label": True}
    write_lines(tmp_path / "WSC" / "train.jsonl", {**value, "idx": 0})
    (found,) = load_examples(tmp_path, "wsc", "train").examples
    assert found.spans == {"span1": (0, 3), "span2": (22, 24)}


REAL_ROWS = {
    ("axg", "test"): {"entailment": 178, "not_entailment": 178},
    ("boolq", "validation"): {"true": 2033, "false": 1237},
    ("cb", "train"): {"contradiction": 119, "entailment": 115, "neutral": 16},
    ("cb", "validation"): {"contradiction": 28, "entailment": 23, "neutral": 5},
    ("copa", "train"): {"choice1": 195, "choice2": 205},
    ("rte", "validation"): {"entailment": 146, "not_entailment": 131},
    ("wic", "train"): {"true": 2714, "false": 2714},
    ("wsc", "train"): {"false": 295, "true": 259},
}


@pytest.mark.parametrize(("task", "split"), REAL_ROWS)
def test_the_real_files_are_read_whole(task: str, split: str) -> None:
    found = real(task, split)
    assert Counter(one.label for one in found) == REAL_ROWS[task, split]
    if task in ("wic", "wsc"):
        assert all(len(one.spans) == 2 for one in found)


# ---- features


@pytest.mark.parametrize("task", TASKS)
def test_a_table_has_the_hubs_classes(tmp_path: Path, task: str) -> None:
    datasets = pytest.importorskip("datasets", reason="makes a table: targen-async[data]")
    found = examples_of(tmp_path / "run", task)
    table = to_dataset(found)
    assert len(table) == len(found)
    if task == "record":
        assert table[0]["answers"] == list(found[0].answers)
        return
    feature = table.features["label"]
    assert isinstance(feature, datasets.ClassLabel)
    assert feature.names == list(LAYOUTS[task].classes.values())
    ids = [labels_of(task).index(one.label or "") for one in found]
    assert table["label"][:] == ids


def test_a_table_of_two_tasks_is_refused() -> None:
    pytest.importorskip("datasets", reason="makes a table: targen-async[data]")
    with pytest.raises(UserError, match="one task, and here are cb, rte"):
        to_dataset([example("cb", 0, "neutral"), example("rte", 1, "entailment")])


# ---- cuts, splits, mixtures

MANY = [example("rte", n, ("entailment", "not_entailment")[n % 2]) for n in range(40)]


def test_a_smaller_cut_is_the_beginning_of_a_larger_one() -> None:
    assert sample_examples(MANY, 10, 3) == sample_examples(MANY, 20, 3)[:10]
    assert sample_examples(MANY, 10, 3) != sample_examples(MANY, 10, 4)
    with pytest.raises(UserError, match="41 examples are wanted, and there are 40"):
        sample_examples(MANY, 41, 0)


def test_sets_are_cut_to_the_smallest() -> None:
    first, second = equal_sizes([MANY, MANY[:7]], 1)
    assert len({one.key for one in first}) == len({one.key for one in second}) == 7
    assert first == sample_examples(MANY, 7, 1)


def _seed(one: Example) -> str:
    return one.key.rpartition("/")[0]


def _longest_text(one: Example) -> str:
    return max(one.fields.values(), key=len)


@pytest.mark.parametrize("task", ["multirc", "wsc", "axg", "record"])
def test_splits_share_no_seed_text_or_passage(tmp_path: Path, task: str) -> None:
    found = examples_of(tmp_path / "run", task, times=20)
    parts = split_examples(found, {"train": 0.8, "validation": 0.2}, 5)
    assert sum(map(len, parts.values())) == len(found)
    for mark in (_seed, _longest_text):
        train, held_out = ({mark(one) for one in parts[name]} for name in parts)
        assert not train & held_out
    again = split_examples(list(reversed(found)), {"train": 0.8, "validation": 0.2}, 5)
    assert {one.key for one in again["train"]} == {one.key for one in parts["train"]}


def test_a_tenth_of_real_wic_is_held_out_with_words_of_its_own() -> None:
    parts = split_examples(real("wic", "train"), {"train": 0.9, "validation": 0.1}, 0)
    assert abs(len(parts["validation"]) - 542.8) < 1
    words = {name: {one.fields["word"].lower() for one in held} for name, held in parts.items()}
    assert not words["train"] & words["validation"]
    counts = Counter(one.label for one in parts["validation"])
    assert abs(counts["true"] - counts["false"]) <= 20


def test_a_mixture_keeps_its_weights_and_repeats_fairly() -> None:
    parts = [Part(name="a", examples=MANY, weight=3)]
    mixed = mix_examples([parts[0]], 0)
    assert sorted(one.key for one in mixed) == sorted(one.key for one in MANY)
    few = [example("cb", n, "neutral") for n in range(4)]
    mixed = mix_examples([parts[0], Part(name="b", examples=few, weight=1)], 0, rows=42)
    counts = Counter(one.task for one in mixed)
    assert sorted(counts.values()) in ([10, 32], [11, 31])
    assert set(Counter(one.key for one in mixed if one.task == "cb").values()) <= {2, 3}
    assert max(Counter(one.key for one in mixed if one.task == "rte").values()) == 1
    assert mixed == mix_examples([parts[0], Part(name="b", examples=few, weight=1)], 0, rows=42)
    with pytest.raises(UserError, match="the weight of b is 0 and has to be above 0"):
        mix_examples([parts[0], Part(name="b", examples=few, weight=0)], 0, rows=10)
    with pytest.raises(UserError, match="b has no examples to mix"):
        mix_examples([parts[0], Part(name="b", examples=[])], 0)


def test_the_digest_is_of_the_content() -> None:
    assert content_digest(MANY) == content_digest(list(MANY))
    assert content_digest(MANY) != content_digest(MANY[1:])
