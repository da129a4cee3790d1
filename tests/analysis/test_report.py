"""report.html as a text, and what it is made from; test_report_page.py opens it in a browser."""

import gzip
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as parquet
import pytest

from targen_async import cli
from targen_async.analysis.analyze import Analysis, RowNote, analyze
from targen_async.analysis.estimate import Estimate
from targen_async.analysis.report import page
from targen_async.analysis.report.page import page_of, write_report
from targen_async.analysis.report.sample import FLAGS, LEAST_SAMPLE, MOST_ROWS, page_rows
from targen_async.analysis.report.source import read_source
from targen_async.analysis.report.verdicts import areas_of, checks_of, number
from targen_async.analysis.report.visible import visible
from targen_async.analysis.rows import Row, Rows
from tests.analysis.sets import hostile, learnable, planted, prose, rows_of, write_lines

MOST_PAGE_BYTES = 8_000_000
Faulty = tuple[Rows, Rows, Analysis, list[RowNote]]


@pytest.fixture(scope="module")
def faulty() -> Faulty:
    """A set with every fault, its evaluation set, and what is found."""
    rows, evaluation = planted(600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)  # As conftest does for each test.
        return rows, evaluation, *analyze(rows, against=evaluation)


def report(rows: Rows, against: Rows | None = None, **options: Any) -> str:
    analysis, notes = analyze(rows, against=against, **options)
    return page_of(analysis, notes, rows, against, None)


def data_of(text: str) -> Any:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# ---- the first screen


def test_every_planted_fault_is_a_check_of_the_first_screen(faulty: Faulty) -> None:
    _, _, analysis, _ = faulty
    told = {check.kind: check.text for check in checks_of(analysis) if check.state == "fault"}
    assert {"label_noise", "near_duplicates", "overlap", "position", "one_field"} <= set(told)
    assert told["overlap"].startswith("18 rows, 3.0%")
    assert told["near_duplicates"].startswith("30 rows, 5.0%")
    assert re.match(r"choice1 is right in (6[6-9]|7[0-4])\.\d%", told["position"])


def test_a_sound_set_has_every_check_clear_or_told_why_not() -> None:
    rows, _ = learnable(400)
    analysis, _ = analyze(rows)
    checks = {check.kind: check for check in checks_of(analysis)}
    assert {check.state for check in checks.values()} == {"clear", "unknown"}
    assert checks["label_noise"].state == "clear"
    assert checks["overlap"].state == "unknown"
    assert "--evaluation" in checks["overlap"].text
    states = [check.state for check in checks.values()]
    assert states == sorted(states), "what was not measured stands last"


def test_a_position_that_cannot_be_told_says_why() -> None:
    pairs = [{"left": text, "right": "another"} for text in prose(20)]
    rows = Rows([Row(key=str(n), fields=pair, label="left") for n, pair in enumerate(pairs)])
    checks = {check.kind: check for check in checks_of(analyze(rows)[0])}
    assert checks["position"].state == "unknown"
    assert checks["position"].text.startswith("all rows have label 'left'")


def test_identical_sets_are_told_as_equal_in_every_area() -> None:
    rows, _ = learnable(300)
    other, _ = learnable(300)
    analysis, _ = analyze(rows, against=other)
    areas = areas_of(analysis)
    assert {area.title for area in areas} >= {"Difficulty", "Variety", "Length", "Labels"}
    assert {area.arrow for area in areas} == {"same"}
    assert [line for area in areas for line in area.lines if line.sure] == []


def test_a_set_beside_its_own_half_has_no_sure_difference_in_its_means() -> None:
    rows, _ = learnable(600)
    analysis, _ = analyze(rows, against=rows.take(range(0, 600, 2)))
    areas = {area.title: area for area in areas_of(analysis)}
    assert areas["Difficulty"].arrow == areas["Length"].arrow == "same"


def test_arrows_say_which_way_the_data_lie() -> None:
    short, _ = learnable(300)
    noisy, _ = learnable(300, flipped=0.2, seed=1)
    longer = Rows([msgspec.structs.replace(row, fields={"text": row.text + " and so on"})
                   for row in noisy.rows])  # fmt: skip
    analysis, _ = analyze(longer, against=short)
    areas = {area.title: area for area in areas_of(analysis)}
    assert (areas["Length"].arrow, areas["Length"].verdict) == ("up", "longer")
    assert areas["Labels"].verdict == "more wrong labels"
    assert areas["Difficulty"].arrow == "down"
    assert areas["Difficulty"].verdict.startswith("harder by ")
    line = areas["Length"].lines[0]
    assert (line.sure, line.word) == (1, "longer")
    assert re.fullmatch(r"\+3 \(\+[\d.]+ to \+[\d.]+\)", line.apart)


@pytest.mark.parametrize(("errors", "arrow"), [(2.5, "same"), (4.0, "up")])
def test_one_measure_of_many_is_held_against_all_of_them(errors: float, arrow: str) -> None:
    """Of ten 95 % intervals one often leaves out 0 by chance: a lone one at 2.5 standard errors
    is no difference, at 4 it is."""
    rows, _ = learnable(60)
    analysis, _ = analyze(rows, against=rows)
    assert analysis.against is not None
    apart, width = 0.01 * errors, 1.96 * 0.01 / 2**0.5
    here, there = (
        Estimate(value=value, low=value - width, high=value + width, rows=60)
        for value in (0.5 + apart, 0.5)
    )
    data, other = (
        msgspec.structs.replace(
            part, diversity=msgspec.structs.replace(part.diversity, distinct_1=value)
        )
        for part, value in ((analysis.against.data, here), (analysis.against.other, there))
    )
    both = msgspec.structs.replace(analysis.against, data=data, other=other)
    areas = areas_of(msgspec.structs.replace(analysis, against=both))
    assert next(area.arrow for area in areas if area.title == "Variety") == arrow


def test_other_names_than_chance_would_give_are_told() -> None:
    there = rows_of([f"Anna went to France with word{n}" for n in range(80)])
    here = rows_of([f"Anna went to Kenya with word{n}" for n in range(80)])
    analysis, _ = analyze(here, against=there)
    named = next(area for area in areas_of(analysis) if area.title.startswith("Who"))
    assert (named.arrow, named.verdict) == ("apart", "other countries")


def test_numbers_are_short() -> None:
    told = [number(value) for value in (0, 0.12345, -0.00002, 12.345, 999.7, 123456.7)]
    assert told == ["0", "0.123", "0", "12.3", "1,000", "123,457"]
    assert number(-0.0312, percent=True, signed=True) == "\u22123.1 points"
    assert number(0.5, percent=True) == "50.0%"


# ---- hostile texts


def test_nothing_of_a_row_leaves_the_data() -> None:
    rows = hostile(60)
    text = report(rows)
    assert text.count("<script") == text.count("</script>") == 3
    body = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert body is not None
    assert "<" not in body[1]
    assert not set(body[1]) & set("\u202e\u2066\u2028\u2029\x00\ufeff")
    shown = data_of(text)["rows"]["rows"][0]["texts"]
    assert "<script>window.acted = 1</script>" in shown[0]
    assert "\u2039U+202E\u203a" in shown[0]


def test_control_characters_become_signs_and_letters_stay() -> None:
    assert visible("a\u202eb\u2066c\u2028d\x00e\x7ff\U000e0041g") == (
        "a\u2039U+202E\u203ab\u2039U+2066\u203ac\u2039U+2028\u203ad\u2400e\u2421f\u2039U+E0041\u203ag"
    )
    kept = "\u00fc\u00df \u05e9\u05dc\u05d5\u05dd \u0645 \u4f60\u597d\n\t\U0001f469\u200d\U0001f52c"
    assert visible(kept) == kept
    assert visible("\ud800").encode() == "\u2039U+D800\u203a".encode()


def test_the_policy_names_the_hash_of_each_script_and_nothing_else() -> None:
    text = report(rows_of(["a b", "c d"]))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    told = html.unescape(policy[1])
    parts = dict(part.strip().split(" ", 1) for part in told.split(";"))
    assert parts["default-src"] == "'none'"
    assert "unsafe" not in parts["script-src"]
    assert parts["script-src"].count("sha256-") == 2
    assert "connect-src" not in parts


def test_the_bundle_is_the_one_that_is_named_and_holds_no_end_of_a_script() -> None:
    folder = Path(page.__file__).parent
    bundle = gzip.decompress((folder / "vega.js.gz").read_bytes()).decode()
    licence = (folder / "vega.LICENSE").read_text("utf-8")
    assert "</script" not in bundle.lower() and "<!--" not in bundle
    for version in ("6.2.0", "6.4.1"):
        assert f'"{version}"' in bundle
        assert version in licence
    assert "--" not in licence, "it stands in a comment"
    assert len((folder / "vega.js.gz").read_bytes()) < 400_000


# ---- rows


def made_notes(rows: Rows, **changes: Any) -> list[RowNote]:
    blank = dict.fromkeys(RowNote.__struct_fields__)
    told = {**blank, "content": "", "overlaps": False, **changes}
    return [RowNote(**{**told, "key": row.key}) for row in rows.rows]


def test_more_rows_than_fit_show_every_flag_and_a_sample_within_the_size() -> None:
    small, _ = learnable(200)
    analysis, _ = analyze(small)
    words = prose(2_000, words=60)
    rows = Rows(
        [
            Row(key=f"row{n}", fields={"text": f"{n} {words[n % 2000]}"}, label="yes")
            for n in range(100_000)
        ]
    )
    pvi = np.random.default_rng(0).normal(1, 1, 100_000).tolist()
    notes = [
        msgspec.structs.replace(
            note,
            pvi=pvi[n],
            cluster=f"row{n // 4 * 4}" if n < 8_000 else None,
            overlaps=n % 1_000 == 7,
        )
        for n, note in enumerate(made_notes(rows))
    ]
    found = page_rows(analysis, rows, notes)
    assert len(found.rows) == MOST_ROWS
    assert found.flagged["overlap"] == found.shown["overlap"] == 100
    assert found.flagged["duplicate"] == 8_000
    assert 1_000 < found.shown["duplicate"] < 8_000
    assert 1_000 < found.shown["lowest"] <= found.flagged["lowest"] == 5_000
    plain = [row for row in found.rows if not row.flags]
    assert len(plain) >= LEAST_SAMPLE * 0.8
    text = page_of(analysis, notes, rows, None, None)
    assert len(text.encode()) < MOST_PAGE_BYTES / 2


@pytest.mark.parametrize("letter", ["<", "\u4f60", "\u202e"])
def test_the_page_stays_small_whatever_the_rows_are_made_of(letter: str) -> None:
    small, _ = learnable(40)
    analysis, _ = analyze(small)
    rows = Rows(
        [
            Row(key=f"{n}{letter * 300}", fields={"a": letter * 3_000, "b": letter}, label=letter)
            for n in range(6_000)
        ]
    )
    text = page_of(analysis, made_notes(rows), rows, None, None)
    assert len(text.encode()) < MOST_PAGE_BYTES
    shown = data_of(text)["rows"]
    assert len(shown["rows"]) == MOST_ROWS
    assert "more letters)" in shown["rows"][0]["texts"][0]


def test_flags_name_the_rows_that_the_measures_name(faulty: Faulty) -> None:
    rows, evaluation, analysis, notes = faulty
    found = page_rows(analysis, rows, notes)
    assert set(found.shown) == set(FLAGS)
    assert found.shown == found.flagged
    by_flag = {flag: {row.key for row in found.rows if flag in row.flags} for flag in FLAGS}
    assert by_flag["overlap"] == {note.key for note in notes if note.overlaps}
    assert by_flag["duplicate"] == {note.key for note in notes if note.cluster is not None}
    lowest = [row.pvi for row in found.rows if "lowest" in row.flags]
    assert 30 < len(lowest) <= 100
    assert all(pvi is not None and pvi < 0 for pvi in lowest)
    assert all(row.likely not in (None, row.label) for row in found.rows if "suspect" in row.flags)
    leaked = next(row for row in found.rows if "overlap" in row.flags)
    assert leaked.overlap is not None
    assert evaluation.name in leaked.overlap


def test_all_rows_are_in_parquet(tmp_path: Path, faulty: Faulty) -> None:
    rows, _, analysis, notes = faulty
    write_report(analysis, notes, rows, None, tmp_path, None)
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(table) == 600
    assert table[7]["key"] == rows.rows[7].key
    assert table[7]["fields"] == dict(rows.rows[7].fields)
    assert table[7]["pvi"] == notes[7].pvi
    assert {"label", "label_before_correction", "cluster", "overlaps"} <= set(table[7])


# ---- the run


def test_a_run_tells_what_it_cost_and_what_failed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main(["generate", "rte", "-n", "6", "--simulate", "--quiet", "--out", str(run)]) == 0
    failure = {
        "key": "rte/1",
        "stage": "seeds",
        "kind": "malformed",
        "message": "<b>",
        "attempts": 2,
    }
    (run / "failures.jsonl").write_text(json.dumps({**failure, "text": "said"}) + "\n")
    assert cli.main(["analyze", str(run), "--out", str(tmp_path / "out")]) == 0
    told = data_of((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert told["run"]["delivered"] == 6
    assert told["run"]["calls"]["served"] > 6
    assert told["run"]["spent"]["completion_tokens"] > 0
    assert told["run"]["failures"] == [failure]
    assert told["analysis"]["simulated"]


def test_a_folder_without_a_manifest_that_is_known_has_no_run(tmp_path: Path) -> None:
    assert read_source(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"state": "complete"}')
    assert read_source(tmp_path) is None


# ---- the command


def test_the_same_command_twice_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, evaluation = planted(100)
    entries = [{**row.fields, "y": row.label} for row in rows.rows]
    data = write_lines(tmp_path / "data.jsonl", entries)
    other = write_lines(
        tmp_path / "other.jsonl", [{**row.fields, "y": row.label} for row in evaluation.rows]
    )
    for out in ("one", "two"):
        arguments = ["analyze", data, "--against", other, "--out", tmp_path / out]
        columns = ["--text", "premise,choice1,choice2", "--label", "y"]
        assert cli.main([*map(str, arguments), *columns]) == 0
    assert f"{tmp_path / 'two' / 'report.html'}" in capsys.readouterr().out
    for name in ("report.html", "rows.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "analysis.json",
        "report.html",
        "rows.jsonl",
        "rows.parquet",
    ]


def test_everything_the_scripts_read_of_the_analysis_is_a_field_of_it(faulty: Faulty) -> None:
    """A field that is renamed would only leave its picture out."""
    rows, evaluation, analysis, notes = faulty
    told = data_of(page_of(analysis, notes, rows, evaluation, None))
    assert told["title"] == "What 600 rows of made are worth"
    for one in (told["analysis"]["data"], told["analysis"]["against"]["other"]):
        assert {"histogram", "by_label", "v_information", "model"} <= set(one["difficulty"])
        assert {"shares", "noise", "correction", "votes", "simulator_gold"} <= set(one["labels"])
        assert {"gender_by_label", "gender_by_occupation", "names", "countries"} <= set(one["bias"])
        assert {"label_only", "position", "length", "one_field"} <= set(one["artefacts"])
        assert {"shares", "longest_is_right"} <= set(one["artefacts"]["position"])
