"""Faults that are planted in a set are each told on the first screen, and nothing else is."""

import json
from pathlib import Path

import numpy as np
import pytest

from targen_async import cli
from targen_async.analysis.analyze import analyze, read_analysis
from targen_async.analysis.artefacts import OneField
from targen_async.analysis.labels import Noise
from targen_async.analysis.rows import Row, Rows
from tests.analysis.sets import prose, write_lines

CHOICES = ("choice1", "choice2")


def nli(count: int, *, told: bool, seed: int = 0) -> list[dict[str, str]]:
    """Premise, hypothesis, label; `told`: words of the hypothesis tell the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for text in prose(count, 40, seed):
        words, label = text.split(), int(rng.integers(2))
        cues = [f"{'np'[label] if told else 'q'}{n}" for n in rng.integers(0, 15, 6)]
        hypothesis = " ".join([*words[26:], *cues])
        rows.append({"premise": " ".join(words[:26]), "hypothesis": hypothesis})
        rows[-1]["label"] = ("no", "yes")[label]
    return rows


def copa(count: int, first: float, seed: int = 0) -> list[dict[str, str]]:
    """`first`: how often the first choice is right."""
    texts = iter(prose(3 * count, 9, seed))
    return [
        {"premise": next(texts), "choice1": next(texts), "choice2": next(texts)}
        | {"label": CHOICES[int(number % 10 >= 10 * first)]}
        for number in range(count)
    ]


def flip(rows: list[dict[str, str]], share: float) -> set[int]:
    """Turns labels round; the places."""
    count = round(len(rows) * share)
    places = set(np.random.default_rng(9).permutation(len(rows))[:count].tolist())
    for place in places:
        rows[place]["label"] = {"no": "yes", "yes": "no"}[rows[place]["label"]]
    return places


def first_screen(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, str]],
    *more: str,
) -> list[str]:
    """What the command prints before the table, finding by finding."""
    data = write_lines(tmp_path / "data.jsonl", rows)
    columns = ["--text", ",".join(name for name in rows[0] if name != "label"), "--label", "label"]
    assert cli.main(["analyze", str(data), *columns, *more, "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    assert "<script" not in printed
    return [line[2:] for line in printed.splitlines()[:12] if line.startswith("! ")]


def test_flipped_labels_copies_leaks_and_an_artefact_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation, rows = nli(300, told=True, seed=5), nli(1400, told=True)
    flipped = flip(rows, 0.10)
    copies = [dict(row, premise="other " + row["premise"]) for row in rows[:75]]
    data = [*rows, *copies, *(dict(row) for row in evaluation[:45])]
    held_out = write_lines(tmp_path / "evaluation.jsonl", evaluation)
    told = first_screen(tmp_path, capsys, data, "--evaluation", str(held_out))
    found = read_analysis(tmp_path / "o" / "analysis.json")
    kinds = [finding.kind for finding in found.findings]
    assert kinds == ["label_noise", "overlap", "near_duplicates", "one_field"]
    assert told == [finding.text for finding in found.findings]
    assert "45 rows, 3.0%" in told[1] and "75 rows, 4.9%" in told[2]
    assert told[3].startswith("hypothesis alone tells the label")
    # Copies of flipped rows are flipped too.
    wrong = flipped | {1400 + place for place in flipped if place < 75}
    noise = found.data.labels.noise
    assert isinstance(noise, Noise)
    assert noise.share.value == pytest.approx(len(wrong) / len(data), abs=0.03)
    notes = [json.loads(line) for line in (tmp_path / "o" / "rows.jsonl").read_bytes().splitlines()]
    lowest = sorted(range(len(notes)), key=lambda place: notes[place]["pvi"])[: len(notes) // 5]
    assert len(wrong & set(lowest)) >= 0.7 * len(wrong)
    suspected = {place for place, note in enumerate(notes) if note["likely"] is not None}
    assert len(suspected & wrong) >= 0.7 * len(suspected)


def test_a_position_bias_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = first_screen(tmp_path, capsys, copa(800, first=0.7))
    assert len(told) == 1
    assert told[0].startswith("choice1 is right in 70.0%")


def test_a_position_that_is_always_right_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = first_screen(tmp_path, capsys, copa(60, first=1.0))
    assert [line.partition(" of the rows")[0] for line in told] == [
        "choice1 is right in 100.0% (100.0% to 100.0%)"
    ]


def test_a_sound_set_has_no_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = write_lines(tmp_path / "evaluation.jsonl", nli(200, told=False, seed=8))
    assert first_screen(tmp_path, capsys, copa(800, first=0.5)) == []
    more = ("--evaluation", str(held_out))
    assert first_screen(tmp_path, capsys, nli(800, told=False), *more) == []


def rows_of(entries: list[dict[str, str]]) -> Rows:
    return Rows(
        [
            Row(
                key=str(number),
                fields={name: text for name, text in entry.items() if name != "label"},
                label=entry["label"],
            )
            for number, entry in enumerate(entries)
        ]
    )


def test_a_set_does_not_differ_from_its_own_half() -> None:
    entries = nli(600, told=True)
    flip(entries, 0.1)
    for number, entry in enumerate(entries):
        person = ("She", "He", "They")[number % 3]
        entry["premise"] += f" {person} saw {('France', 'Kenya', 'Peru')[number % 7 % 3]}."
    rows = rows_of(entries)
    found, _ = analyze(rows, against=rows.take(range(0, 600, 2)))
    assert found.against is not None
    assert {name.partition(".")[0] for name in found.against.differences} == {
        "diversity",
        "duplicates",
        "difficulty",
        "labels",
        "bias",
        "artefacts",
    }
    assert len(found.against.differences) > 25
    for name, apart in found.against.differences.items():
        assert apart.low is None or apart.low <= 0 <= (apart.high or 0), (name, apart)
    for kind, divergence in found.against.divergences.items():
        assert divergence is None or divergence.jensen_shannon.value <= divergence.by_chance, kind


def test_label_quality_and_leaks_are_compared() -> None:
    """All that a page tells of a difference stands in the record."""
    noisy = nli(600, told=True)
    flip(noisy, 0.15)
    found, _ = analyze(rows_of(noisy), against=rows_of(nli(600, told=True, seed=4)))
    assert found.against is not None
    apart = found.against.differences
    assert apart["labels.noise.share"].value == pytest.approx(0.15, abs=0.03)
    assert apart["artefacts.one_field.hypothesis.gain"].value < -0.1
    assert apart["artefacts.one_field.hypothesis.accuracy"].value < -0.1
    assert {"artefacts.length.premise.gain", "artefacts.label_only"} <= set(apart)
    found, _ = analyze(rows_of(copa(400, first=0.7)), against=rows_of(copa(400, first=0.5)))
    assert found.against is not None
    apart = found.against.differences
    assert apart["artefacts.position.choice1"].value == pytest.approx(0.2)
    assert "artefacts.position.longest_is_right" in apart


def test_another_kind_of_set_differs() -> None:
    """That intervals cover 0 says nothing where they cover everything."""
    other = rows_of(nli(400, told=False, seed=3))
    found, _ = analyze(rows_of(nli(400, told=True)), against=other)
    assert found.against is not None
    sure = [
        name
        for name, apart in found.against.differences.items()
        if apart.low is not None and apart.high is not None and apart.low * apart.high > 0
    ]
    assert "difficulty.v_information" in sure and "difficulty.accuracy" in sure


def test_one_field_alone_is_the_baseline_of_the_literature() -> None:
    """Hypothesis-only accuracy: what the cues give, and for the premise what guessing gives."""
    found, _ = analyze(rows_of(nli(600, told=True)))
    one = found.data.artefacts.one_field
    assert isinstance(one["hypothesis"], OneField) and isinstance(one["premise"], OneField)
    assert one["hypothesis"].accuracy.value > 0.9
    assert one["premise"].gain.low is not None and one["premise"].gain.low < 0.02
