"""Rows that an analysis found unlikely are left out, and a stale analysis is told."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from targen_async import cli
from targen_async.records import row_digest
from targen_async.shards import read_shards
from tests.export.runs import make_task_run


def analysis(run: Path, folder: Path, pvi: Sequence[float | None]) -> Path:
    """rows.jsonl as `targen analyze` writes it, with these values row by row."""
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps({"key": r.key, "content": row_digest(r.fields, r.label), "pvi": v, "x": 0.5})
        for r, v in zip(read_shards(run), pvi, strict=False)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def export(run: Path, out: Path, *more: object) -> int:
    return cli.main(["export", str(run), "--to", "flat", "--out", str(out), *map(str, more)])


def test_rows_with_a_low_pvi_or_none_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_task_run(tmp_path / "run", "cb", times=2)
    found = analysis(run, tmp_path / "a", [0.7, -0.2, 0.0, None, 1.2, -3.0])
    assert export(run, tmp_path / "out", "--min-pvi", 0, "--analysis", found) == 0
    left_out = "2 rows with a PVI under 0 bits, 1 without one"
    assert f"left out: {left_out}" in capsys.readouterr().out
    rows = list(read_shards(run))
    keys = [json.loads(line) for line in (tmp_path / "out/keys.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in keys] == [rows[n].key for n in (0, 2, 4)]
    assert len((tmp_path / "out" / "train.jsonl").read_text().splitlines()) == 3
    assert f"Left out by `targen analyze`: {left_out}." in (tmp_path / "out/README.md").read_text()


def test_what_does_not_fit_together_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_task_run(tmp_path / "run", "cb")
    good = analysis(run, tmp_path / "good", [1.0, 1.0, 1.0])
    stale = analysis(run, tmp_path / "stale", [1.0, 1.0, 1.0])
    path = stale / "rows.jsonl"
    path.write_text(path.read_text().replace('"content": "', '"content": "0', 1))
    broken = analysis(run, tmp_path / "broken", [1.0, 1.0, 1.0])
    (broken / "rows.jsonl").write_bytes(b'{"key": "\xff"}\n')
    unknown = analysis(run, tmp_path / "unknown", [None, None, None])
    few = analysis(run, tmp_path / "few", [1.0])
    first, second = (row.key for row in list(read_shards(run))[:2])
    for folder, told in (
        (tmp_path / "none", "rows.jsonl cannot be read (no such file"),
        (stale, f"the row {first} is not as it was analysed in"),
        (few, f"the row {second} is not in"),
        (broken, "rows.jsonl:1: this is no line of an analysis"),
        (unknown, "leaves no row: no row has a PVI"),
    ):
        assert export(run, tmp_path / "out", "--min-pvi", 0.5, "--analysis", folder) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out", "--min-pvi", 2, "--analysis", good) == 2
    assert "the highest PVI is 1" in capsys.readouterr().err
    assert export(run, tmp_path / "out", "--min-pvi", 0.5) == 2
    assert "go together" in capsys.readouterr().err


def test_what_analyze_writes_is_what_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    run = make_task_run(tmp_path / "run", "rte", times=30)
    assert cli.main(["analyze", str(run), "--out", str(tmp_path / "a")]) == 0
    assert export(run, tmp_path / "out", "--min-pvi", -20, "--analysis", tmp_path / "a") == 0
    assert "left out: 0 rows with a PVI under -20 bits, 0 without one" in capsys.readouterr().out
