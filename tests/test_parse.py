"""What models write instead of what was asked for, and what becomes of it."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.errors import ParseError
from targen_async.parse import (
    answer_text,
    declines,
    list_form,
    outputs_form,
    read,
    read_verdicts,
    verdicts_form,
)
from targen_async.records import ChatResult

TEXTS = list_form("seeds")
ROW = outputs_form(("right", "wrong"))
VERDICTS = verdicts_form(("true", "false"))


def result(text: str, **changes: object) -> ChatResult:
    whole = {"finish_reason": "stop", "model": "m", "usage": None, "key": "k"} | changes
    return ChatResult(text=text, **whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        '{"right": "a", "wrong": "b"}',
        '{"right": "a" ,\r \t\n "wrong": "b"}   ',
        '```json\n{"right": "a", "wrong": "b"}\n```',
        'Sure! Here it is:\n{"right": "a", "wrong": "b"}\nAnything else?',
        '{"right": "a", "wrong": "b", "extra": [1, {"deep": null}]}',
        '{"right": "x", "right": "a", "wrong": "b"}',
        "**Right**: a\n- wrong: b",
    ],
)
def test_an_instance_is_read_from_what_models_wrap_it_in(text: str) -> None:
    value = read(text, ROW)
    assert (value.right, value.wrong) == ("a", "b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I am sorry, I cannot do that.",
        '{"right": "a"}',
        '{"right": "a", "wrong": 3}',
        '{"right": "a", "wrong": null}',
        '{"right": "a", "wrong": "b',
        '["a", "b"]',
        "[" * 100_000,
        '{"right": ' + "[" * 100_000,
        '{"right": "a", "wrong": NaN}',
        "\x00\x01",
    ],
)
def test_anything_else_is_a_parse_error_and_nothing_worse(text: str) -> None:
    with pytest.raises(ParseError):
        read(text, ROW)


@given(st.text())
def test_no_text_at_all_breaks_the_reader(text: str) -> None:
    for form in (TEXTS, ROW, VERDICTS):
        try:
            read(text, form)
        except ParseError as error:
            assert error.kind == "malformed"


def test_lone_surrogates_become_replacement_characters() -> None:
    value = read('{"right": "\\ud83d!", "wrong": "b"}', ROW)
    assert value.right == "\ufffd!"
    value.right.encode()


def test_a_list_in_words() -> None:
    text = "Here are three:\n1. One thing.\n2) Another - with a dash\n* A third\n\nEnjoy!"
    assert read(text, TEXTS).seeds == ["One thing.", "Another - with a dash", "A third"]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"finish_reason": "length"}, "truncated"),
        ({"finish_reason": "content_filter"}, "refused"),
        ({"refusal": "I cannot help with that."}, "refused"),
        ({"finish_reason": "oversized"}, "oversized"),
        ({"text": " \n"}, "empty"),
    ],
)
def test_trap_9_what_did_not_end_well_is_never_success(
    changes: dict[str, object], kind: str
) -> None:
    good = '{"right": "a", "wrong": "b"}'
    with pytest.raises(ParseError) as caught:
        answer_text(result(**({"text": good} | changes)))
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that request.",
        "I\u2019m really sorry, but I can\u2019t assist with that.",
        "Sorry, I can't help with that.",
        "I cannot assist with generating this content.",
        "As an AI language model, I am unable to produce that.",
        "I am unable to write such texts.",
        "**I won't write that.** Here is why: 1. It is unkind.",
        "Unfortunately, I'm not able to do this.",
        "I must decline.",
        "I apologize, but no.",
    ],
)
def test_refusals_in_words_are_known(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize(
    "text",
    ["", "Sure! Here you are:", "Here is what I came up with", '{"right": "I cannot swim.', "1. I"],
)
def test_other_words_are_no_refusal(text: str) -> None:
    assert not declines(text)


def verdicts(*items: tuple[str, str]) -> str:
    return json.dumps(
        {"items": [{"id": id_, "explanation": "e", "label": label} for id_, label in items]}
    )


def test_verdicts_are_matched_by_id_not_by_place() -> None:
    read_back = read_verdicts(verdicts(("b", "false"), ("a", "none")), VERDICTS, ["a", "b"])
    assert {id_: verdict.label for id_, verdict in read_back.items()} == {"a": "none", "b": "false"}


@pytest.mark.parametrize(
    "items",
    [
        [("a", "true")],
        [("a", "true"), ("a", "true")],
        [("a", "true"), ("c", "true")],
        [("a", "true"), ("b", "true"), ("c", "true")],
        [],
    ],
)
def test_trap_13_a_missing_doubled_or_unknown_id_is_misaligned(
    items: list[tuple[str, str]],
) -> None:
    with pytest.raises(ParseError) as caught:
        read_verdicts(verdicts(*items), VERDICTS, ["a", "b"])
    assert caught.value.kind == "misaligned"


def test_a_label_the_task_does_not_have_is_malformed() -> None:
    with pytest.raises(ParseError, match="maybe"):
        read_verdicts(verdicts(("a", "maybe")), VERDICTS, ["a"])


@pytest.mark.parametrize("form", [TEXTS, ROW, VERDICTS])
def test_schemas_are_what_strict_mode_wants(form: object) -> None:
    """OpenAI's strict mode: every object closed, every property required, no references."""
    schema = json.loads(json.dumps(form.schema))  # type: ignore[attr-defined]
    jsonschema.Draft202012Validator.check_schema(schema)

    def walk(node: object) -> None:
        if isinstance(node, dict):
            assert "$ref" not in node
            if node.get("type") == "object":
                assert node["additionalProperties"] is False
                assert sorted(node["required"]) == sorted(node["properties"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema)


@given(st.fixed_dictionaries({"right": st.text(), "wrong": st.text()}))
def test_what_satisfies_the_schema_is_read_back_unchanged(row: dict[str, str]) -> None:
    jsonschema.validate(row, ROW.schema)
    value = read(json.dumps(row), ROW)
    assert {"right": value.right, "wrong": value.wrong} == row
