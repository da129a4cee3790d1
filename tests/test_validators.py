"""Validators reject what no judge is needed for, and nothing a real row may hold."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.tasks import FieldSpec, load_task
from targen_async.validators import (
    VALIDATED_FIELDS,
    VALIDATORS,
    check_fields,
    label_leak,
)

SUPERGLUE = Path(__file__).resolve().parents[2] / "shared" / "superglue"
ANY = FieldSpec(source="output")
COPA = ("choice1", "choice2")
CB = ("entailment", "contradiction", "neutral")
BOOLQ = ("true", "false")


def _real_rows(folder: str) -> Iterator[dict[str, str]]:
    for file in sorted((SUPERGLUE / folder).glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            yield json.loads(line)


@pytest.mark.parametrize(("name", "folder"), [("copa", "COPA"), ("cb", "CB"), ("boolq", "BoolQ")])
def test_every_real_row_passes_its_tasks_validators(name: str, folder: str) -> None:
    if not SUPERGLUE.is_dir():
        pytest.skip(f"the real rows are not there: {SUPERGLUE}")
    task = load_task(name)
    # Lengths are a choice of what we generate, so only the lengths are left out.
    free = dict.fromkeys(task.fields, ANY)
    refused = []
    count = 0
    for row in _real_rows(folder):
        count += 1
        fields = {field: row[field] for field in task.fields}
        reasons = [check_fields(free, fields), label_leak(fields, tuple(task.labels))]
        reasons += [VALIDATORS[part](fields, "") for part in task.instances.validators]
        refused += [(row["idx"], reason) for reason in reasons if reason]
    assert count > 200
    assert refused == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a is empty"),
        (" \n\t ", "a is empty"),
        ("one", "a has 1 words, not 2 to 4"),
        ("one two three four five", "a has 5 words, not 2 to 4"),
        ("one two\x00", "a has the character U+0000"),
        ("one two\r\n", "a has the character U+000D"),
        ("one \x85two", "a has the character U+0085"),
        ("one \ud800two", "a has the character U+D800"),
        ("one two\ufffd", "a has the character U+FFFD"),
        ("one \u202etwo", "a has the character U+202E"),
        ("one \u2067two", "a has the character U+2067"),
        ("one two", None),
        ("one\ntwo\tthree four", None),
        ("naïve 日本 \u200f😀", None),
    ],
)
def test_fields_are_filled_bounded_and_clean(text: str, reason: str | None) -> None:
    spec = FieldSpec(source="output", words=(2, 4))
    assert check_fields({"a": spec}, {"a": text}) == reason


def test_a_missing_field_counts_as_empty() -> None:
    assert check_fields({"a": ANY, "b": ANY}, {"a": "x"}) == "b is empty"


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (COPA, "Answer: choice1"),
        (COPA, "The roof leaked (choice2)."),
        (COPA, "Choice 1: the roof leaked."),
        (CB, "Label: entailment. She knew it."),
        (CB, 'the label = "neutral"'),
        (CB, "This pair is labelled as neutral."),
        (CB, "the correct label is contradiction"),
        (BOOLQ, "is it open on sundays (answer: false)"),
        (("not_entailment", "entailment"), "label: not entailment"),
    ],
)
def test_a_label_called_a_label_gives_the_row_away(labels: tuple[str, ...], text: str) -> None:
    assert label_leak({"a": "fine", "b": text}, labels)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (BOOLQ, "is it true that a false positive is an error"),
        (BOOLQ, "The answer is true to the spirit of the law, and the label: Columbia, 1957."),
        (CB, "Switzerland stayed neutral; there is a contradiction in that."),
        (CB, "He gave an answer: neutrality was the only way."),
        (COPA, "She had a choice. 1 of them was wrong, the other was her first choice."),
        (COPA, "She made her choice10 years ago."),
        (COPA, "She was choice 1 of the coach."),
        (BOOLQ, "set the flag subclass: true and save"),
    ],
)
def test_ordinary_words_do_not(labels: tuple[str, ...], text: str) -> None:
    assert label_leak({"a": text}, labels) is None


def _copa(premise: str, choice1: str, choice2: str) -> str | None:
    fields = {"premise": premise, "choice1": choice1, "choice2": choice2}
    return VALIDATORS["choices_differ"](fields, "choice1")


def test_choices_differ_in_more_than_case_spaces_and_punctuation() -> None:
    assert (
        _copa("It rained.", "The roof leaked.", "the  roof leaked") == "both choices are the same"
    )
    assert _copa("It rained.", "It rained!", "The sun shone.") == "a choice repeats the premise"
    assert _copa("It rained.", "The sun shone.", "it RAINED") == "a choice repeats the premise"
    assert _copa("It rained.", "The roof leaked.", "The sun shone.") is None
    assert _copa("Which?", "+", "-") is None
    assert _copa("Which?", "...", "!") is None


@given(st.lists(st.text("abcxyz123", min_size=1), min_size=1), st.sampled_from([" ", "  ", ", "]))
def test_a_text_never_differs_from_itself_dressed_up(words: list[str], between: str) -> None:
    fields = {"premise": " ".join(words), "hypothesis": f"“{between.join(words).upper()}.”"}
    assert VALIDATORS["hypothesis_differs"](fields, "neutral")


def test_hypothesis_differs_but_may_stand_in_the_premise() -> None:
    check = VALIDATORS["hypothesis_differs"]
    assert check({"premise": "The shop is shut.", "hypothesis": "the shop is shut"}, "neutral")
    inside = {"premise": "He says the shop is shut.", "hypothesis": "the shop is shut"}
    assert check(inside, "neutral") is None


@pytest.mark.parametrize(
    ("question", "fine"),
    [
        ("is the tower open on sundays", True),
        ("Is the tower open on Sundays?", True),
        ("is it open in the u.s.", True),
        ("is it", False),
        ("is the tower open\non sundays", False),
        ("Here is the question:", False),
    ],
)
def test_a_question_is_one_line_of_three_words_or_more(question: str, fine: bool) -> None:
    assert (VALIDATORS["ends_like_question"]({"question": question}, "true") is None) is fine


def test_a_question_is_not_copied_from_the_passage() -> None:
    check = VALIDATORS["question_not_in_passage"]
    passage = "Visitors ask: is the tower\nopen on Sundays? It is."
    assert check({"passage": passage, "question": "Is the tower open on Sundays?"}, "true")
    assert check({"passage": passage, "question": "is the tower shut on mondays"}, "true") is None


@pytest.mark.parametrize("name", sorted(VALIDATORS))
def test_a_validator_reads_the_fields_it_says_it_reads(name: str) -> None:
    fields = {field: f"some words about {field}" for field in VALIDATED_FIELDS[name]}
    assert VALIDATORS[name](fields, "true") is None
    for lacking in fields:
        with pytest.raises(KeyError):
            VALIDATORS[name]({k: v for k, v in fields.items() if k != lacking}, "true")
