"""Rows that stand in another file are found, by what they share."""

from pathlib import Path

from targen_async.analysis.overlap import measure_overlap
from targen_async.analysis.reading import read_rows
from targen_async.analysis.rows import Row, Rows
from targen_async.export import export_run
from tests.analysis.sets import prose, rows_of, write_lines
from tests.export.runs import disk_row, make_run


def test_leaked_rows_are_found_and_others_are_not() -> None:
    theirs = rows_of(prose(400, 30, seed=1))
    ours = prose(1000, 30, seed=2)
    for place in range(10):
        ours[place] = theirs.texts[place].upper() + "!"
        stretch = " ".join(theirs.texts[20 + place].split()[5:18])
        ours[100 + place] = f"{ours[100 + place]} {stretch} and so on"
        ours[200 + place] = " ".join(["new", *theirs.texts[40 + place].split()[1:]])
    found, places = measure_overlap(rows_of(ours), theirs)
    assert places.tolist() == [*range(10), *range(100, 110), *range(200, 210)]
    assert found.rows == 30
    assert found.by_kind["same_text"] == 10
    assert found.by_kind["13_gram"] == 20
    assert found.listed[0].key == "r0" and found.listed[0].other == "r0"
    assert found.listed[10].how == "13_gram" and found.listed[10].other == "r20"


def test_a_short_row_that_is_nearly_another_is_found() -> None:
    ours = rows_of(["the small dog barked loudly at the passing grey cat"])
    theirs = rows_of(["something else", "the small dog barked loudly at the passing grey cats"])
    found, _ = measure_overlap(ours, theirs)
    assert found.by_kind == {"same_text": 0, "13_gram": 0, "near_duplicate": 1}
    assert found.listed[0].other == "r1"


def test_a_field_that_is_the_same_counts_and_a_short_one_does_not() -> None:
    def one(premise: str, choice: str) -> Rows:
        return Rows([Row(key="k", fields={"p": premise, "c": choice}, label=None)])

    theirs = one("The man went home early.", "It rained.")
    assert (
        measure_overlap(one("Another thing came about there.", "It rained."), theirs)[0].rows == 0
    )
    assert measure_overlap(one("the man went home EARLY", "He slept."), theirs)[0].rows == 1


def test_twelve_words_in_a_row_are_not_enough() -> None:
    words = [f"w{n}" for n in range(13)]
    theirs = rows_of([" ".join(words) + " the end of a text that goes on for a while"])
    ends = (" ".join(f"{side}{n}" for n in range(20)) for side in "xy")
    for count, rows in ((12, 0), (13, 1)):
        text = f"{next(ends)} {' '.join(words[:count])}"
        assert measure_overlap(rows_of([text]), theirs)[0].rows == rows


def test_train_and_validation_exports_share_nothing_unless_they_were_split_row_by_row(
    tmp_path: Path,
) -> None:
    questions = iter(prose(60, 6, seed=3))
    rows = [
        (f"boolq/{n:06d}/{k}", {"passage": text, "question": next(questions)}, ("true", "false")[k])
        for n, text in enumerate(prose(20, 40, seed=4))
        for k in (0, 1)
    ]
    run = make_run(tmp_path / "run", [disk_row(row) for row in rows])
    shares = {"train": 0.5, "validation": 0.5}
    export_run(run, to="jsonl", out=tmp_path / "out", split=shares)
    train, validation = (
        read_rows(tmp_path / "out" / "BoolQ" / f"{name}.jsonl") for name in ("train", "val")
    )
    assert measure_overlap(train, validation)[0].rows == 0
    # Dealt out one by one, questions to one passage come to lie on both sides.
    lines = [dict(row.fields, label=row.label == "true", idx=0) for row in read_rows(run).rows]
    halves = (read_rows(write_lines(tmp_path / f"{half}.jsonl", lines[half::2])) for half in (0, 1))
    found, _ = measure_overlap(*halves)
    assert found.by_kind["same_text"] > 0 and found.share.value > 0.3
