"""Open labels: what is a row, which class it belongs to, and what a judge means."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from targen_async.tasks import NO_LABEL, Task, check_task, load_task
from tests.test_tasks import _edit, _write

PASSAGE = "Ada Moss met Bo Lund in Tarn. Bo Lund left for Vell with Cy Oake."
ROW = {
    "passage": PASSAGE,
    "entities": "Vell\nTarn\nBo Lund\nAda Moss\nCy Oake",
    "query": "It was @placeholder who left.",
}


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("Ada Moss", "first"),
        ("Bo Lund", "second"),
        ("Tarn", "third"),
        ("Vell", "fourth or later"),
        ("Cy Oake", "fourth or later"),
    ],
)
def test_the_class_of_a_choice_is_its_place_by_first_mention(answer: str, place: str) -> None:
    """Whatever the order in which the entities are listed."""
    assert load_task("record").class_of(ROW, answer) == place


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Bo", "not among the entities"),
        ("Eve Hall", "not among the entities"),
        ("", "is empty"),
        ("None", "says that there is none"),
        ("Bo\u202eLund", "U+202E"),
    ],
)
def test_an_answer_must_be_one_of_the_choices(answer: str, reason: str) -> None:
    assert reason in str(load_task("record")._answer_objection(ROW, answer))
    assert load_task("record")._answer_objection(ROW, "Bo Lund") is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Bo Lund", "Bo Lund"),
        ("bo lund.", "Bo Lund"),
        ("Cy  Oake", "Cy Oake"),
        ("none", NO_LABEL),
        ("the man who left", NO_LABEL),
    ],
)
def test_a_judge_of_choices_means_one_of_them_or_none(said: str, meant: str) -> None:
    assert load_task("record").reading(ROW, "Bo Lund", said) == meant


def _open(folder: Path, kind: str) -> Task:
    """A tiny task with an answer: a piece of the review, or any text."""
    toml = _edit('[labels]\ngood = "pleased"\nbad = "displeased"\n', "")
    text = 'text = "review"\n' if kind == "extract" else ""
    toml = _edit(
        "[contexts.axes]",
        f'[answer]\nkind = "{kind}"\noutput = "found"\n{text}\n[contexts.axes]',
        toml,
    )
    toml = _edit('explanation = "why"', 'explanation = "why"\nfound = "the answer"', toml)
    _write(
        folder,
        toml,
        {"instances": "{{ seed }} {{ tone }}", "correction": "{{ items }}"},
    )
    assert check_task(folder) == []
    return load_task(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mood"
    made.mkdir()
    return made


def test_an_extracted_answer_stands_in_the_text_and_articles_do_not_count(folder: Path) -> None:
    task = _open(folder, "extract")
    fields: Mapping[str, str] = {"review": "We liked the old mill by the river.", "tone": "dry"}
    assert task._answer_objection(fields, "old mill") is None
    assert "does not stand" in str(task._answer_objection(fields, "new mill"))
    assert task.reading(fields, "old mill", "The old mill") == "old mill"
    assert task.reading(fields, "old mill", "river") == "river"
    assert task.reading(fields, "old mill", "a bridge") == NO_LABEL
    assert task.reading(fields, "old mill", " ") == NO_LABEL
    assert task.classes == ("all",)


def test_a_free_answer_is_good_or_it_is_not(folder: Path) -> None:
    task = _open(folder, "free")
    assert task.reading({}, "any text", "good") == "any text"
    assert task.reading({}, "any text", "none") == NO_LABEL
    assert task.class_of({}, "any text") == "all"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('kind = "extract"', 'kind = "choice"', "answer.choices: is needed"),
        ('kind = "extract"', 'kind = "choice"', "answer.positions: is needed"),
        ('kind = "extract"', 'kind = "free"', "answer.text: has no meaning"),
        ('kind = "extract"', 'kind = "any"', "must be one of choice, extract, free"),
        ('text = "review"', 'text = "revew"', "there is no field 'revew'"),
        ('output = "found"', 'output = "foud"', "there is no output 'foud'"),
        ('output = "found"', 'output = "found"\npositions = ["a", "a"]', "answer.positions"),
        ("[answer]", '[labels]\na = "x"\nb = "y"\n[answer]', "goes with no [labels]"),
    ],
)
def test_a_fault_of_the_answer_is_told(folder: Path, before: str, after: str, words: str) -> None:
    _open(folder, "extract")
    toml = (folder / "task.toml").read_text("utf-8")
    assert before in toml
    (folder / "task.toml").write_text(toml.replace(before, after), "utf-8")
    assert any(words in fault.message for fault in check_task(folder)), check_task(folder)


def test_the_label_has_no_placeholder_where_it_is_open(folder: Path) -> None:
    _open(folder, "free")
    (folder / "correction.txt").write_text("{{ items }} {{ labels }}", "utf-8")
    (fault,) = check_task(folder)
    assert "no placeholder 'labels'" in fault.message
