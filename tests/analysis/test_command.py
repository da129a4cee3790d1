"""`targen analyze`, from files to analysis.json and a summary."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from targen_async import cli
from targen_async.analysis import command
from targen_async.analysis.analyze import (
    VERSION,
    Analysis,
    RowNote,
    analysis_schema,
    analyze,
    read_analysis,
)
from targen_async.analysis.rows import Rows
from targen_async.errors import UserError
from tests.analysis.sets import learnable, prose, rows_of, write_lines
from tests.export.runs import make_task_run


def written(path: Path, rows: Rows) -> Path:
    return write_lines(path, ({"t": row.fields["text"], "y": row.label} for row in rows.rows))


def analysed(*arguments: object) -> None:
    assert cli.main(["analyze", *map(str, arguments), "--text", "t", "--label", "y"]) == 0


def untimed(path: Path) -> str:
    told = json.loads((path / "analysis.json").read_bytes())
    assert set(told["seconds"]) >= {"diversity", "crossfit", "bias"}
    return json.dumps({**told, "seconds": None})


def test_planted_faults_stand_first_and_files_are_the_same_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = learnable(600, flipped=0.1)
    again = [rows.rows[n] for n in range(30)]
    theirs = rows_of(prose(50), ["no", "yes"] * 25)
    leaked = [theirs.rows[n] for n in range(18)]
    data = written(tmp_path / "data.jsonl", Rows([*rows.rows, *again, *leaked]))
    evaluation = written(tmp_path / "eval.jsonl", theirs)
    for out in ("one", "two"):
        analysed(data, "--evaluation", evaluation, "--out", tmp_path / out)
    told = capsys.readouterr().out
    assert "of the labels look wrong" in told
    assert re.search(rf"18 rows, 2\.8% \(1\.\d% to 4\.\d%\), overlap with {evaluation}", told)
    assert re.search(r"30 rows, 4\.6% \(.*\), are near duplicates of others, in 30 clusters", told)
    assert untimed(tmp_path / "one") == untimed(tmp_path / "two")
    assert (tmp_path / "one" / "rows.jsonl").read_bytes() == (
        tmp_path / "two" / "rows.jsonl"
    ).read_bytes()
    found = read_analysis(tmp_path / "one" / "analysis.json")
    assert isinstance(found, Analysis)
    assert {finding.kind for finding in found.findings} == {
        "label_noise",
        "near_duplicates",
        "overlap",
    }
    notes = [
        json.loads(line) for line in (tmp_path / "one" / "rows.jsonl").read_bytes().splitlines()
    ]
    assert len(notes) == 648
    assert notes[600]["cluster"] == notes[0]["cluster"] == "data.jsonl:1"
    assert [note["overlaps"] for note in notes].count(True) == 18
    assert min(note["pvi"] for note in notes) < 0


def test_identical_sets_compare_as_equal() -> None:
    rows, _ = learnable(300)
    other, _ = learnable(300)
    found, _ = analyze(rows, against=other)
    assert found.against is not None
    assert len(found.against.differences) > 15
    for name, apart in found.against.differences.items():
        assert apart.value == 0, name
        assert apart.low is None or apart.low <= 0 <= (apart.high or 0), name
    for divergence in found.against.divergences.values():
        assert divergence is None or divergence.jensen_shannon.value <= divergence.by_chance


def test_sets_of_different_size_are_compared_at_equal_size() -> None:
    rows, _ = learnable(300)
    other, _ = learnable(120, seed=1)
    found, _ = analyze(rows, against=other)
    assert found.against is not None
    assert found.data.rows == 300
    assert (found.against.rows, found.against.data.rows, found.against.other.rows) == (120,) * 3
    assert found.against.data.sampled_from == 300
    half, _ = analyze(other, against=rows)
    assert half.against is not None
    assert half.against.other.sampled_from == 300


def test_a_run_is_called_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_task_run(tmp_path / "run", "rte", 5)
    assert cli.main(["analyze", str(run), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    found = read_analysis(tmp_path / "out" / "analysis.json")
    assert found.simulated
    assert told.startswith("SIMULATED")
    assert found.task == "rte"


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(["one row"], ["yes"]),
        rows_of(prose(30), ["yes"] * 30),
        rows_of(["a", "b"]),
        rows_of(["", ""], ["yes", "no"]),
        rows_of(["x " * 500_000, *prose(20)], ["a", "b", "a"] * 7),
    ],
    ids=["one row", "one label", "no labels", "no words", "1 MB"],
)
def test_odd_sets_have_a_clear_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Rows
) -> None:
    analysed(written(tmp_path / "d.jsonl", rows), "--out", tmp_path / "out")
    told = capsys.readouterr().out
    assert "label noise could not be measured" in told
    assert "no fault found" in told or len(rows) != 1
    assert read_analysis(tmp_path / "out" / "analysis.json").data.rows == len(rows)


def test_mistakes_are_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path / "d.jsonl", rows_of(["a", "c"], ["b", "b"]))
    (tmp_path / "file").write_text("")
    for arguments, told in (
        ([data, "--out", tmp_path / "o"], "--text and --label"),
        ([data, "--out", tmp_path / "o", "--label", "y"], "go with --text"),
        ([data, "--out", tmp_path / "o", "--text", ","], "names no column"),
        ([tmp_path / "none", "--out", tmp_path / "o"], "there is no file"),
        ([data, "--out", tmp_path / "file", "--text", "t"], "cannot write"),
        ([data, "--out", tmp_path / "o", "--text", "t", "--embeddings", tmp_path], "embedding"),
        ([data, "--out", tmp_path / "o", "--random-seed", "-1"], "from 0 to 4294967295, not -1"),
        ([data, "--out", tmp_path / "o", "--random-seed", 2**32], "not 4294967296"),
    ):
        assert cli.main(["analyze", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert told in error and "Traceback" not in error
        assert error.count("\n") == 1


def fields_of(kind: Any, seen: set[Any]) -> set[str]:
    """The names of the fields of a struct and of all it is made of."""
    names: set[str] = set()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
        seen.add(kind)
        for field in msgspec.structs.fields(kind):
            names |= {field.name} | fields_of(field.type, seen)
    for part in get_args(kind):
        names |= fields_of(part, seen)
    return names


def test_every_field_is_explained() -> None:
    text = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text("utf-8")
    told = {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[^\w]+", code)}
    names = fields_of(Analysis, set()) | fields_of(RowNote, set())
    assert len(names) > 80
    assert names - told == set()


SCHEMA = Path(__file__).parents[2] / "docs" / "analysis.schema.json"


def test_the_schema_is_that_of_the_structs_and_a_file_keeps_it(tmp_path: Path) -> None:
    """Where this fails: `python -c "from targen_async.analysis.analyze import analysis_schema;
    print(analysis_schema().decode(), end='')" > docs/analysis.schema.json`."""
    assert SCHEMA.read_bytes() == analysis_schema()
    validator = pytest.importorskip("jsonschema").Draft202012Validator(
        json.loads(analysis_schema())
    )
    data = written(tmp_path / "d.jsonl", learnable(60)[0])
    few = written(tmp_path / "few.jsonl", rows_of(["a b c d e f", "g"], ["yes", "no"]))
    analysed(data, "--against", few, "--evaluation", few, "--out", tmp_path / "o")
    told = json.loads((tmp_path / "o" / "analysis.json").read_bytes())
    validator.validate(told)
    told["data"]["difficulty"]["v_information"]["value"] = "much"
    assert not validator.is_valid(told)


def test_a_file_that_is_no_analysis_of_this_version(tmp_path: Path) -> None:
    path = tmp_path / "o" / "analysis.json"
    analysed(written(tmp_path / "d.jsonl", rows_of(["a", "c"], ["b", "b"])), "--out", path.parent)
    told = json.loads(path.read_bytes())
    assert read_analysis(path).version == told["version"] == VERSION
    for version, why in (
        (VERSION - 1, f"of version {VERSION - 1}, not {VERSION}: analyse the data again"),
        (VERSION + 1, f"of version {VERSION + 1}, not {VERSION}"),
        (None, "is no analysis: Object missing required field `version`"),
    ):
        other = {name: part for name, part in told.items() if name != "version"}
        path.write_text(json.dumps(other if version is None else {**other, "version": version}))
        with pytest.raises(UserError, match=re.escape(why)):
            read_analysis(path)
    path.write_text(json.dumps({"version": VERSION}))
    with pytest.raises(UserError, match="is no analysis: Object missing required field"):
        read_analysis(path)


def test_missing_packages_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("targen_async.analysis.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycountry", None)
    assert cli.main(["analyze", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert "pip install 'targen-async[analysis]'" in told
    assert "pycountry is missing" in told


def test_no_control_letter_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = learnable(100)
    entries = [{"t\x1b[31m": row.fields["text"], "z": "b", "y": row.label} for row in rows.rows]
    data = write_lines(tmp_path / "d.jsonl", entries)
    arguments = ["--text", "t\x1b[31m,z", "--label", "y", "--out", str(tmp_path / "o")]
    assert cli.main(["analyze", str(data), *arguments]) == 0
    told = capsys.readouterr().out
    assert "alone tells the label" in told
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("entry", "texts"),
    [({"t\x1b[31m": "a", "z": "b"}, []), ({"t\x1b[31m": "a", "z": 1}, ["--text", "z"])],
)
def test_no_control_letter_reaches_the_terminal_with_a_mistake(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    entry: dict[str, Any],
    texts: list[str],
) -> None:
    data = write_lines(tmp_path / "d\x1b[31m.jsonl", [entry])
    assert cli.main(["analyze", str(data), *texts, "--out", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert "d\ufffd[31m.jsonl" in told
    assert "\x1b" not in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "d.jsonl"], "cannot write d.jsonl: d.jsonl is no folder"),
        (["--out", "d.jsonl/o"], "d.jsonl is no folder"),
        (["--out", "o", "--entities", "none"], "spaCy"),
        (["--out", "o", "--embeddings", "empty"], "embedding"),
    ],
)
def test_what_would_fail_in_the_end_fails_before_anything_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("something was measured first")

    monkeypatch.setattr("targen_async.analysis.analyze._measure", measured)
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    written(Path("d.jsonl"), rows_of(["a", "c"], ["b", "b"]))
    assert cli.main(["analyze", "d.jsonl", "--text", "t", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not Path("o").exists()


def test_an_interrupted_analysis_says_that_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("targen_async.analysis.analyze.analyze", interrupted)
    data = written(tmp_path / "d.jsonl", rows_of(["a", "c"], ["b", "b"]))
    arguments = ["analyze", str(data), "--text", "t", "--out", str(tmp_path / "o")]
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err == "interrupted; the same command begins anew\n"
    assert not (tmp_path / "o").exists()


def test_labels_by_the_simulator_s_gold_are_told_as_a_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_task_run(tmp_path / "run", "rte", 5)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)

    def told(known: str) -> str:
        command.run(
            parser.parse_args([str(run), "--out", str(tmp_path / "out")]),
            gold=lambda _, fields: "entailment" if known in fields["premise"] else None,
            open_trainer=lambda _: pytest.fail("nobody asked for a model"),
        )
        return capsys.readouterr().out

    # Five rows of ten say so, and the other five are not_entailment.
    assert "by the simulator's gold 50.0% (20.0% to 80.0%) of all labels are right" in told("")
    assert "gold 100.0% (100.0% to 100.0%) of the 5 labels it knows are right" in told("Ada")
