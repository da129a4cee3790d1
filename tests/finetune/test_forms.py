"""Every task in every family: what a model sees, and that its answer is read back."""

from pathlib import Path

import pytest

from targen_async.errors import UserError
from targen_async.finetune.forms import FORMS, Family, form_digest, pose, pose_pairs, read_answer
from targen_async.finetune.instructions import (
    Instruction,
    instruction_digest,
    pose_instructed,
    take_demonstrations,
)
from targen_async.finetune.posed import Posed
from targen_async.finetune.schema import Example
from targen_async.layouts import LAYOUTS
from tests.finetune.made import TASKS, example, examples_of, real

TEXT_FAMILIES: tuple[Family, ...] = ("encoder-decoder", "decoder")


def one(task: str, label: str | None = None, **fields: str) -> Example:
    made = example(task, 0, label)
    spans = {}
    if task == "wsc":
        spans = {n: _span(fields["text"], fields[n]) for n in ("span1", "span2")}
    elif task == "wic":
        names = ("sentence1", "sentence2")
        spans = {n: _span(fields[n], fields["word"]) for n in names}
    return example(task, 0, label, fields={**made.fields, **fields}, spans=spans)


def _span(text: str, part: str) -> tuple[int, int]:
    return text.index(part), text.index(part) + len(part)


WIC = one("wic", "false", word="bank", sentence1="The bank paid.", sentence2="A bank of mud.")
WSC = one("wsc", "true", text="Tom saw Jim as he ran.", span1="Tom", span2="he")
RECORD = example(
    "record",
    0,
    "Ada Brook",
    fields={
        "passage": "Ada Brook left.\n@highlight\nBrook sold it\n@highlight\nMarsh paid",
        "query": "@placeholder went away",
        "entities": "Ada Brook\nBrook\nMarsh",
    },
    answers=("Ada Brook", "Brook"),
)
COPA = one(
    "copa",
    "choice2",
    premise="The man fell.",
    choice1="He slept.",
    choice2="The ice was slick.",
    question="cause",
)


def test_there_is_a_form_for_every_task() -> None:
    assert sorted(FORMS) == TASKS


# ---- round trips


@pytest.mark.parametrize("task", TASKS)
def test_what_is_right_is_read_back_as_the_label(tmp_path: Path, task: str) -> None:
    for found in examples_of(tmp_path / "run", task):
        _check_round_trip(found)


@pytest.mark.parametrize(
    ("task", "split"),
    [
        ("axg", "test"),
        ("boolq", "validation"),
        ("cb", "train"),
        ("copa", "train"),
        ("record", "validation"),
        ("rte", "validation"),
        ("wic", "train"),
        ("wsc", "train"),
    ],
)
def test_so_it_is_of_the_real_rows(task: str, split: str) -> None:
    for found in real(task, split):
        _check_round_trip(found)


def _check_round_trip(found: Example) -> None:
    expected = set(found.answers) or {found.label}
    pairs = pose_pairs(found)
    assert {pairs.options[n] for n in pairs.right} == expected
    assert pairs.compared == (found.task in ("copa", "record"))
    forms = [pose(found, "encoder-decoder"), pose(found, "decoder")]
    forms.append(pose_instructed(found, Instruction(task=found.task)))
    # What completes a prompt brings its own blank.
    assert not any(form.source.endswith(" ") for form in forms[1:])
    for form in forms:
        assert {form.options[n] for n in form.right} == expected
        assert len(form.choices) == len(form.options)
        for n in form.right:
            said = form.choices[n]
            assert read_answer(form, said) == form.options[n]
            assert read_answer(form, f" {said}\n") == form.options[n]


def test_what_a_model_may_write() -> None:
    form = pose(one("cb", "neutral"), "encoder-decoder")
    assert read_answer(form, "Entailment.") == "entailment"
    assert read_answer(form, "entail") is None
    assert read_answer(form, "") is None
    cased = Posed(source="", choices=("US", "us"), options=("US", "us"), right=())
    assert [read_answer(cased, text) for text in ("us", "US", "Us.")] == ["us", "US", "US"]


def test_a_label_kept_back_has_no_right_option() -> None:
    hidden = one("rte", None)
    assert pose_pairs(hidden).right == pose(hidden, "decoder").right == ()


# ---- encoder-decoders: T5's formats, written out by hand from its code


T5 = [
    (one("boolq", "true", passage="It rains.", question="is it dry"), "False"),
    (one("cb", "contradiction", premise="P.", hypothesis="h"), "entailment"),
    (COPA, "choice1"),
    (one("multirc", "true", paragraph="<b>S 1:</b>A.<br>B.", question="q?", answer="a"), "False"),
    (RECORD, "Ada Brook"),
    (one("rte", "entailment", premise="P.", hypothesis="h"), "entailment"),
    (WIC, "False"),
    (WSC, "False"),
    (one("axb", "entailment", sentence1="A.", sentence2="B."), "entailment"),
    (one("axg", "entailment", premise="A.", hypothesis="B."), "entailment"),
]
SOURCES = [
    "boolq passage: It rains. question: is it dry",
    "cb hypothesis: h premise: P.",
    "copa choice1: He slept. choice2: The ice was slick. premise: The man fell. question: cause",
    "multirc question: q? answer: a paragraph: S 1:A. B.",
    "record query: @placeholder went away entities: Ada Brook, Brook, Marsh passage: "
    "Ada Brook left. Brook sold it. Marsh paid",
    "rte hypothesis: h premise: P.",
    "wic sentence1: The bank paid. sentence2: A bank of mud. word: bank",
    "wsc text: * Tom * saw Jim as # he # ran.",
    "rte hypothesis: B. premise: A.",
    "rte hypothesis: B. premise: A.",
]


@pytest.mark.parametrize("number", range(len(T5)), ids=[found.task for found, _ in T5])
def test_t5_reads_what_it_was_trained_on(number: int) -> None:
    found, first = T5[number]
    form = pose(found, "encoder-decoder")
    assert form.source == SOURCES[number]
    assert form.choices[0] == first


# ---- encoders and decoders


def test_encoders_see_what_is_asked_about() -> None:
    assert pose_pairs(WIC).texts == (("The * bank * paid.", "A * bank * of mud."),)
    assert pose_pairs(WSC).texts == (("* Tom * saw Jim as # he # ran.", "Tom"),)
    first = "The man fell. What was the cause of this?"
    assert pose_pairs(COPA).texts == ((first, "He slept."), (first, "The ice was slick."))
    passage = "Ada Brook left. Brook sold it. Marsh paid"
    assert pose_pairs(RECORD).texts == (
        (passage, "Ada Brook went away"),
        (passage, "Brook went away"),
        (passage, "Marsh went away"),
    )
    assert pose_pairs(RECORD).right == (0, 1)


def test_decoders_complete_a_prompt() -> None:
    copa = pose(COPA, "decoder")
    assert (copa.source, copa.choices) == (
        "The man fell because",
        ("He slept.", "The ice was slick."),
    )
    rte = pose(one("rte", "entailment", premise="P.", hypothesis="H."), "decoder")
    assert rte.source == "P.\nquestion: H. true or false?\nanswer:"
    assert rte.choices == ("true", "false")
    assert [pose(found, "decoder").by_length for found in (COPA, RECORD, WIC)] == [
        True,
        True,
        False,
    ]


LONG = ["axb", "axg", "boolq", "cb", "multirc", "record", "rte"]


@pytest.mark.parametrize("task", TASKS)
def test_a_form_says_what_may_be_shortened(tmp_path: Path, task: str) -> None:
    (found, *_) = examples_of(tmp_path / "run", task)
    first = {"axb": "sentence1", "axg": "premise", "cb": "premise", "rte": "premise"}
    name = first.get(task, "paragraph" if task == "multirc" else "passage")
    forms = [pose(found, "encoder-decoder"), pose(found, "decoder")]
    forms.append(pose_instructed(found, Instruction(task=task)))
    for form in forms:
        if task not in LONG:
            assert form.cut is None
            continue
        assert form.cut
        start, end = form.cut
        assert form.source[start:end] == found.fields[name]
    pairs = pose_pairs(found)
    if task in LONG:
        assert pairs.texts[0][pairs.longer] == found.fields[name]


def test_of_an_instruction_the_instance_is_shortened_and_no_example(tmp_path: Path) -> None:
    train = [
        example("boolq", n, label, fields={"passage": "It rains.", "question": "does it"})
        for n, label in enumerate(("true", "false", "true"))
    ]
    instruction, rest = take_demonstrations(train, 1, 0)
    form = pose_instructed(rest[0], instruction)
    assert form.cut
    assert form.source.index("Now complete") < form.cut[0]


def test_another_form_has_another_digest() -> None:
    digests = {form_digest(task, family) for task in TASKS for family in TEXT_FAMILIES}
    # T5 puts AX-b and AX-g as RTE, and the probe's fields tell them apart only in AX-b.
    assert len(digests) >= len(TASKS) * 2 - 3
    assert form_digest("cb", "encoder") == form_digest("cb", "encoder")


# ---- instructions

TRAIN = [
    example("cb", n, LAYOUTS["cb"].labels and ("entailment", "contradiction", "neutral")[n % 3])
    for n in range(30)
]


def test_an_instruction_shows_examples_of_every_label_from_the_training_set() -> None:
    instruction, rest = take_demonstrations(TRAIN, 2, 7)
    shown = [found.label for found in instruction.demonstrations]
    assert shown == ["entailment", "contradiction", "neutral"] * 2
    keys = {found.key for found in instruction.demonstrations}
    assert not keys & {found.key for found in rest}
    assert len(rest) == 24
    text = pose_instructed(rest[0], instruction).source
    assert text.startswith("Definition: Tell whether the author of the premise is committed")
    assert "Answer with one of: entailment, contradiction, neutral." in text
    assert text.count("Positive Example") == 6
    assert text.endswith(
        f"Now complete the following example-\nInput: premise: {rest[0].fields['premise']}\n"
        f"hypothesis: {rest[0].fields['hypothesis']}\nOutput:"
    )
    assert take_demonstrations(TRAIN, 2, 7) == (instruction, rest)
    assert take_demonstrations(TRAIN, 2, 8)[0] != instruction


def test_the_template_is_the_same_whatever_it_is_filled_with() -> None:
    first, second = (take_demonstrations(TRAIN, 1, seed)[0] for seed in (1, 2))
    assert first.template_digest == second.template_digest
    assert first.digest != second.digest
    assert instruction_digest([first, second]) == instruction_digest([second, first])
    bare = {Instruction(task=task).digest for task in TASKS}
    assert len(bare) == len(TASKS) - 1  # AX-g is RTE in other words.


def test_an_instruction_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match="wants 11 examples of entailment, and the training set ha"):
        take_demonstrations(TRAIN, 11, 0)
    with pytest.raises(UserError, match="the training set of one task"):
        take_demonstrations([*TRAIN, WIC], 1, 0)
    with pytest.raises(UserError, match="the instruction of cb does not fit wic"):
        pose_instructed(WIC, Instruction(task="cb"))


def test_an_open_label_is_shown_too(tmp_path: Path) -> None:
    found = examples_of(tmp_path / "run", "record")
    instruction, rest = take_demonstrations(found, 1, 0)
    (shown,) = instruction.demonstrations
    assert f"Output: {shown.label}" in pose_instructed(rest[0], instruction).source
