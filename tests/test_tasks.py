"""Tasks are loaded whole or refused whole, with every fault of every file."""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async import tasks
from targen_async.errors import UserError
from targen_async.tasks import Fault, Template, check_task, list_tasks, load_task, prompts_root

TOML = """\
name = "mood"
version = 1
description = "Tell whether a review is favourable."

[labels]
good = "pleased"
bad = "displeased"

[fields]
review = { source = "output", words = [1, 50] }
tone = { source = "axis" }

[contexts.axes]
trade = ["shops", "inns"]

[seeds]
per_call = 5

[instances]
distinct_on = ["review"]

[instances.outputs]
review = "the review"
explanation = "why"

[instances.axes]
tone = ["dry", "warm"]
"""
TEMPLATES = {
    "contexts": "Name {{ count }} {{ trade }}.\n",
    "seeds": "Name {{ count }} points of {{context}}.\n",
    "instances": "## what this is\nTurn {{ seed }} into a {{ label }} review.\n",
    "correction": "Judge.\n{{ labels }}\n{{ items }}\n",
}
PLACED = (
    TOML.replace('review = { source = "output", words = [1, 50] }', 'a = { source = "slot" }')
    .replace("[contexts.axes]", 'b = { source = "slot" }\n\n[contexts.axes]', 1)
    .replace('review = "the review"', 'yes = "right"\nno = "wrong"')
    .replace('distinct_on = ["review"]', 'distinct_on = ["yes"]')
    + '\n[placement]\nslots = ["a", "b"]\nright = "yes"\nwrong = ["no"]\n'
)


def _write(
    folder: Path, toml: str = TOML, texts: Mapping[str, str | None] = MappingProxyType({})
) -> Path:
    """A task's folder; None leaves a template out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.toml").write_text(toml, "utf-8")
    for name, text in {**TEMPLATES, **texts}.items():
        if text is not None:
            (folder / f"{name}.txt").write_text(text, "utf-8")
    return folder


def _edit(old: str, new: str, toml: str = TOML) -> str:
    assert toml.count(old) == 1, old
    return toml.replace(old, new)


def _faults(folder: Path) -> list[tuple[str, int, int, str]]:
    found = check_task(folder)
    return [
        (Path(f.path).relative_to(folder).as_posix(), f.line, f.column, f.message) for f in found
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mood"


# Templates


def _template(source: str) -> Template:
    return Template.parse("t.txt", source)


NAMES = st.sampled_from(["seed", "context", "label", "axis_2"])
PIECES = st.lists(st.tuples(NAMES, st.text("|<>.*{(\n", min_size=1, max_size=5)), max_size=6)
VALUES = st.fixed_dictionaries(
    {name: st.text("ab {}\\gé\x00", max_size=8) for name in ["seed", "context", "label", "axis_2"]}
)


@given(st.text("|<>.*", min_size=1), PIECES, VALUES)
def test_match_gets_back_what_render_put_in(
    head: str, pieces: list[tuple[str, str]], values: dict[str, str]
) -> None:
    """For values that hold no part of the template's own text."""
    parts = [f"{{{{ {name} }}}}|{tail}|" for name, tail in pieces]
    template = _template(f"{head}|" + "".join(parts))
    expected = {name: values[name] for name, _ in pieces}
    assert set(template.placeholders) == set(expected)
    plain = {name: value.replace("{", "") for name, value in expected.items()}
    assert template.match(template.render(plain)) == plain


def test_a_placeholder_in_a_value_is_never_expanded() -> None:
    template = _template("{{ seed }} in {{context}}")
    assert template.render({"seed": "{{ context }}", "context": "x"}) == "{{ context }} in x"
    assert template.match("{{ context }} in x") == {"seed": "{{ context }}", "context": "x"}


def test_values_may_hold_what_regular_expressions_read_as_orders() -> None:
    template = _template("a {{ seed }} (b|c)* {{ label }}")
    values = {"seed": r"\1 \g<0> $", "label": "x\ny"}
    assert template.match(template.render(values)) == values


def test_a_repeated_placeholder_must_have_one_value() -> None:
    template = _template("{{ seed }}, once more: {{ seed }}.")
    assert template.placeholders == ("seed",)
    assert template.match("x, once more: x.") == {"seed": "x"}
    assert template.match("x, once more: y.") is None


def test_match_refuses_another_prompt() -> None:
    assert _template("Name {{ count }}.").match("Name 3. And more") is None


def test_a_value_is_needed_for_every_placeholder_and_more_do_no_harm() -> None:
    template = _template("{{ seed }}")
    assert template.render({"seed": "x", "label": "y"}) == "x"
    with pytest.raises(KeyError, match="seed"):
        template.render({"label": "y"})


def test_comments_line_ends_and_blanks_at_the_end_are_not_sent() -> None:
    plain = _template("Write.\n\n# kept\nNow ## kept: {{ seed }}")
    dressed = _template(
        "## one\nWrite.\r\n\r\n# kept\r\n## two\n##\nNow ## kept: {{ seed }} \r\n\n"
    )
    assert dressed.text == plain.text == "Write.\n\n# kept\nNow ## kept: {{ seed }}"
    assert dressed.digest == plain.digest
    assert re.fullmatch("[0-9a-f]{16}", plain.digest)
    assert _template("Write!").digest != plain.digest


# Loading


def test_a_task_is_what_its_files_say(folder: Path) -> None:
    task = load_task(_write(folder))
    assert (task.name, task.version, task.system) == ("mood", 1, "")
    assert list(task.labels.items()) == [("good", "pleased"), ("bad", "displeased")]
    assert task.fields["review"].words == (1, 50)
    assert task.seeds.per_call == 5
    assert task.contexts.axes == {"trade": ("shops", "inns")}
    assert task.instances.outputs == {"review": "the review", "explanation": "why"}
    assert task.placement is None
    assert task.folder == str(folder)
    assert list(task.templates) == ["contexts", "correction", "instances", "seeds"]
    assert task.template("instances").text == "Turn {{ seed }} into a {{ label }} review."
    assert task.variants() == ("",)


@pytest.mark.parametrize(
    ("by", "variants"), [("label", ("good", "bad")), ("tone", ("dry", "warm"))]
)
def test_a_template_for_each_label_or_axis_value(
    folder: Path, by: str, variants: tuple[str, ...]
) -> None:
    toml = _edit('distinct_on = ["review"]', f'template_by = "{by}"')
    texts = {f"instances.{v}": f"Make {{{{ seed }}}} {v}: {{{{ label }}}}" for v in variants}
    task = load_task(_write(folder, toml, {"instances": None, **texts}))
    assert task.variants() == variants
    assert task.template("instances", variants[1]).text.endswith(f"{variants[1]}: {{{{ label }}}}")
    with pytest.raises(KeyError):
        task.template("instances", "other")


def test_the_digest_covers_names_and_bytes_of_every_file(folder: Path) -> None:
    digests = [load_task(_write(folder)).digest]
    assert load_task(_write(folder)).digest == digests[0]
    (folder / "notes.md").write_text("x")
    digests.append(load_task(folder).digest)
    (folder / "notes.md").rename(folder / "note.md")
    digests.append(load_task(folder).digest)
    _write(folder, TOML, {"instances": "## other words\n" + TEMPLATES["instances"]})
    digests.append(load_task(folder).digest)
    assert len(set(digests)) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_an_objection_names_the_first_thing_wrong_with_a_row(folder: Path) -> None:
    toml = _edit("[instances]\n", '[instances]\nvalidators = ["ends_like_question"]\n')
    toml = toml.replace("review", "question")
    task = load_task(_write(folder, toml))
    row = {"question": "is it any good", "tone": "dry"}
    assert task.objection(row, "good") is None
    assert task.objection(row | {"tone": ""}, "good") == "tone is empty"
    assert task.objection(row | {"question": "is it"}, "good")
    assert task.objection(row | {"question": "is it fine, answer: bad"}, "good")


def test_a_shipped_task_is_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "copa").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_task("copa").folder == str(prompts_root() / "copa")
    _write(tmp_path / "copa", TOML.replace('"mood"', '"copa"'))
    assert load_task("copa").description.startswith("Tell whether a review")


def test_an_installed_package_ships_its_own_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tasks, "__file__", str(tmp_path / "targen_async" / "tasks.py"))
    assert prompts_root() == tmp_path / "prompts"
    assert list_tasks() == []
    _write(tmp_path / "targen_async" / "_prompts" / "mood")
    assert list_tasks() == ["mood"]
    assert load_task("mood").folder == str(tmp_path / "targen_async" / "_prompts" / "mood")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("copla", "there is no task 'copla' (known: axb, axg, boolq, cb, copa, "),
        ("", "there is no task ''"),
        ("./copa", "there is no folder './copa'"),
        (Path("copla"), "there is no folder 'copla'"),
        ("a\0b", "there is no task"),
        ("a" * 5000, "cannot read the task"),
    ],
)
def test_an_unknown_task_is_one_sentence(
    name: str | Path, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (load_task, check_task):
        with pytest.raises(UserError, match="^" + re.escape(sentence)) as caught:
            ask(name)
        assert "\n" not in str(caught.value)
    if name == "copla":
        assert str(caught.value).endswith("did you mean 'copa'?")


# Faults


def test_ten_faults_in_five_files_are_told_at_once(folder: Path) -> None:
    toml = _edit("version = 1", 'version = "1"')
    toml = _edit("per_call = 5", "per_cal = 5", toml)
    toml = _edit('good = "pleased"', 'none = "pleased"', toml)
    toml = _edit('["review"]', '[\n  "review",\n  "reviw",\n]', toml)
    toml = _edit('["dry", "warm"]', '["dry", "dry"]', toml)
    _write(
        folder,
        toml,
        {
            "contexts": "Name {{ count }} {{ trad }}: {{ trade }}",
            "seeds": "Name {{ count }}\n## {{ nothing }}\npoints of {{ context }",
            "correction": None,
        },
    )
    (folder / "old.txt").write_text("x")
    assert [(name, line, column) for name, line, column, _ in _faults(folder)] == [
        ("contexts.txt", 1, 18),
        ("correction.txt", 1, 1),
        ("old.txt", 1, 1),
        ("seeds.txt", 1, 1),  # context is never used ...
        ("seeds.txt", 3, 11),  # ... because of this
        ("task.toml", 2, 1),
        ("task.toml", 6, 1),
        ("task.toml", 17, 1),
        ("task.toml", 22, 3),
        ("task.toml", 30, 16),
    ]
    with pytest.raises(UserError) as caught:
        load_task(folder)
    told = str(caught.value)
    assert "has 10 faults:" in told
    assert all(str(fault) in told for fault in check_task(folder))


def test_a_fault_reads_like_a_compilers() -> None:
    assert str(Fault("a/task.toml", 3, 14, "is odd")) == "a/task.toml:3:14: is odd"


def _one(toml: str, line: int, column: int, words: str) -> tuple[str, int, int, str]:
    return toml, line, column, words


ONE_FAULT = [
    _one(_edit("version = 1", "version = "), 2, 11, "invalid value"),
    _one(_edit("version = 1\n", ""), 1, 1, "version: the key is missing"),
    _one(_edit("version = 1", "version = 0"), 2, 1, "expected `int` >= 1"),
    _one(_edit("version = 1", "version = 1\ncolour = 1"), 3, 1, "colour: unknown key (known: name"),
    _one(_edit('description = "Tell', 'descripton = "Tell'), 3, 1, "did you mean `description`?"),
    _one(_edit('name = "mood"', 'name = "moods"'), 1, 1, "but the folder is called 'mood'"),
    _one(_edit('"Tell', r'"\u202eTell'), 3, 1, "has the character U+202E"),
    _one(_edit('bad = "displeased"\n', ""), 5, 2, "two labels or more"),
    _one(_edit('bad = "dis', '"Good" = "dis'), 7, 1, "differs only in capital letters"),
    _one(_edit('bad = "dis', '" bad" = "dis'), 7, 1, "without blanks around"),
    _one(_edit('bad = "displeased"', "bad = 3"), 7, 1, "labels.bad: expected `str`, got `int`"),
    _one(_edit('"axis" }', '"axis" }\nlabel = { source = "seed" }'), 12, 1, "the name is taken"),
    _one(_edit('"axis" }', '"axis" }\nid = { source = "seed" }'), 12, 1, "the name is taken"),
    _one(_edit('"axis" }', '"axis" }\nSeed = { source = "seed" }'), 12, 1, "small letters"),
    _one(_edit('"axis" }', '"axis" }\nx = { source = "output" }'), 12, 7, "there is no output 'x'"),
    _one(
        _edit('"axis" }', '"axis" }\nx = { source = "axis" }'),
        12,
        7,
        "no instances or seeds axis 'x'",
    ),
    _one(_edit('"axis" }', '"axis" }\nx = { source = "slot" }'), 12, 7, "no slot of [placement]"),
    _one(
        _edit('"axis" }', '"axis" }\nx = { sorce = "seed" }'), 12, 1, "source: the key is missing"
    ),
    _one(_edit('source = "axis"', 'source = "axes"'), 11, 10, "one of seed, output, slot, axis"),
    _one(_edit("words = [1, 50]", "words = [9, 5]"), 10, 31, "the least, 9, is more than"),
    _one(_edit("words = [1, 50]", "words = [9]"), 10, 31, "length 2"),
    _one(_edit("per_call = 5", "words = [9, 5]"), 17, 1, "the least, 9, is more than"),
    _one(_edit("per_call = 5", "per_call = 2.5"), 17, 1, "expected `int`, got `float`"),
    _one(_edit('["review"]', '["seed"]'), 20, 16, "there is no output 'seed'"),
    _one(
        _edit('["review"]', '["review"]\nvalidators = ["x"]'), 21, 15, "no validator 'x' (known: ch"
    ),
    _one(
        _edit('["review"]', '["review"]\nvalidators = ["ends_like_question"]'),
        *(21, 15, "fields the task does not have: question"),
    ),
    _one(_edit('["review"]', '["review"]\ntemplate_by = "mood"'), 21, 1, "neither `label` nor an"),
    _one(_edit('= "why"', '= "why"\nextra = "x"'), 25, 1, "feeds no field and no placement"),
    _one(_edit('["shops", "inns"]', "[]"), 14, 1, "an axis needs a value or more"),
    _one(_edit('["shops", "inns"]', '["a", " "]'), 14, 15, "the value is empty"),
    _one(_edit('["shops", "inns"]', '["a",\n "a"]'), 15, 2, "'a' is there twice"),
    _one(_edit('["shops", "inns"]', '["a"]\ncount = ["b"]'), 15, 1, "placeholder {{ count }}"),
    _one(
        _edit('["shops", "inns"]', '["a"]\nera = ["b"]'), 15, 1, "no contexts template uses {{ era"
    ),
    _one(TOML + '\n[correction]\nshow = ["x"]\n', 30, 9, "there is no field 'x'"),
    _one(TOML + "\n[placement.x]\n", 29, 12, "unknown key"),
    _one(_edit('slots = ["a", "b"]', 'slots = ["a"]', PLACED), 13, 7, "no slot of [placement]"),
    _one(_edit('right = "yes"', 'right = "yess"', PLACED), 34, 1, "there is no output 'yess'"),
    _one(_edit('wrong = ["no"]', 'wrong = ["yes"]', PLACED), 35, 10, "'yes' is named twice"),
    _one(_edit('wrong = ["no"]', "wrong = []", PLACED), 35, 1, "has 0 outputs, but 2 slots"),
    _one(_edit('slots = ["a", "b"]', 'slots = ["a", "tone"]', PLACED), 33, 15, 'source = "slot"'),
]


@pytest.mark.parametrize(("toml", "line", "column", "words"), ONE_FAULT)
def test_a_fault_of_task_toml_is_told_with_its_place(
    folder: Path, toml: str, line: int, column: int, words: str
) -> None:
    faults = _faults(_write(folder, toml))
    told = [fault[1:3] for fault in faults if words.casefold() in fault[3].casefold()]
    assert told == [(line, column)], faults


def test_the_texts_these_faults_are_planted_in_are_sound(folder: Path) -> None:
    assert _faults(_write(folder)) == []
    assert _faults(_write(folder, PLACED)) == []


@pytest.mark.parametrize(
    ("key", "text", "line", "column", "words"),
    [
        (
            "contexts",
            "x\n{{ count }} {{trade}} {{ seed }}",
            2,
            23,
            "known: description, count, trade",
        ),
        ("contexts", "## c\n{{ count }} {{ trade }} {{ trad }}", 2, 25, "did you mean trade?"),
        ("contexts", "{{ trade }}", 1, 1, "{{ count }} is never used, but contexts need it"),
        ("seeds", "{{ count }}", 1, 1, "{{ context }} is never used"),
        ("instances", "{{ label }}", 1, 1, "{{ seed }} is never used"),
        ("correction", "{{ items }}", 1, 1, "{{ labels }} is never used"),
        ("correction", "{{ labels }}", 1, 1, "{{ items }} is never used"),
        ("correction", "## {{ items }}\n{{ labels }}", 1, 1, "{{ items }} is never used"),
        ("correction", "{{ labels }}{{ items }} {{ Seed }}", 1, 25, "must open a placeholder"),
        ("correction", "{{ labels }}{{ items }} {{\nseed }}", 1, 25, "must open a placeholder"),
        ("correction", "{{ labels }}{{ items }} {{{ items }}}", 1, 25, "must open a placeholder"),
        ("correction", "{{ labels }}\n{{ items }}\x07", 2, 12, "has the character U+0007"),
        ("correction", None, 1, 1, "there is no such file"),
        ("other", "x", 1, 1, "no stage uses this file (used: contexts.txt"),
        ("instances.good", "{{ seed }}", 1, 1, "no stage uses this file"),
    ],
)
def test_a_fault_of_a_template_is_told_with_its_place(
    folder: Path, key: str, text: str | None, line: int, column: int, words: str
) -> None:
    faults = _faults(_write(folder, TOML, {key: text}))
    assert [fault[:3] for fault in faults if words in fault[3]] == [(f"{key}.txt", line, column)]


def test_a_model_that_is_never_told_the_label_is_a_fault(folder: Path) -> None:
    faults = _faults(_write(folder, TOML, {"instances": "{{ seed }} {{ tone }}"}))
    assert [fault[1] for fault in faults] == [19]
    assert "never told the label" in faults[0][3]


@pytest.mark.parametrize("value", ["very warm", "warm/cold", "x" * 60, "wärm"])
def test_a_variant_must_be_usable_in_a_schemas_name(folder: Path, value: str) -> None:
    toml = _edit('distinct_on = ["review"]', 'template_by = "tone"')
    faults = _faults(_write(folder, _edit('"warm"', f'"{value}"', toml)))
    assert ("task.toml", 27, 16) in [
        fault[:3] for fault in faults if "names a template" in fault[3]
    ]


BY_TONE = _edit('distinct_on = ["review"]', 'template_by = "tone"')
NO_OUTPUTS = _edit('[instances.outputs]\nreview = "the review"\nexplanation = "why"\n', "")
NO_LABELS = _edit('[labels]\ngood = "pleased"\nbad = "displeased"\n', "labels = 3\n")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (NO_OUTPUTS, "instances.outputs: the key is missing"),
        (NO_LABELS, "labels: expected `object`, got `int`"),
        (
            _edit('{ source = "output", words', '{ source = "model", words'),
            "fields.review.source: ",
        ),
        (
            _edit('[contexts.axes]\ntrade = ["shops", "inns"]', "[contexts]\naxes = 3"),
            "contexts.axes: ",
        ),
    ],
)
def test_one_mistake_is_not_told_twice(folder: Path, toml: str, message: str) -> None:
    """What is broken is not also reported as too few, unknown or unused."""
    (fault,) = _faults(_write(folder, toml))
    assert fault[3].startswith(message)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (_edit('distinct_on = ["review"]', "template_by = 3"), "expected `str`"),
        (_edit('distinct_on = ["review"]', 'template_by = "tune"'), "'tune' is neither"),
        (BY_TONE.replace('["dry", "warm"]', '["dry", 3]'), "instances.axes.tone.1: expected"),
        (BY_TONE.replace('["dry", "warm"]', "3"), "instances.axes.tone: expected"),
    ],
)
def test_templates_are_not_blamed_while_it_is_unknown_which_are_used(
    folder: Path, toml: str, words: str
) -> None:
    text = "{{ seed }} {{ label }}"
    texts = {"instances": None, "instances.dry": text, "instances.warm": text}
    (fault,) = _faults(_write(folder, toml, texts))
    assert words in fault[3]


def test_an_editors_byte_order_mark_is_no_part_of_the_text(folder: Path) -> None:
    _write(folder, "\ufeff" + TOML, {"seeds": "\ufeff" + TEMPLATES["seeds"]})
    assert load_task(folder).template("seeds").text.startswith("Name")


def _links_out(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("{{ labels }} {{ items }}")
    (folder / "correction.txt").unlink()
    (folder / "correction.txt").symlink_to(folder.parent / "secret.txt")


def _folder_links_out(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent)


def _too_large(folder: Path) -> None:
    (folder / "correction.txt").write_bytes(b"x" * ((1 << 20) + 1))


def _latin(folder: Path) -> None:
    (folder / "correction.txt").write_bytes("ok\nnaïve {{ labels".encode("latin-1"))


def _loops(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_links_out, ("correction.txt", 1, 1, "is a link that leads out of the task's folder")),
        (_folder_links_out, ("more", 1, 1, "is a link that leads out of the task's folder")),
        (_too_large, ("correction.txt", 1, 1, "is larger than 1,048,576 bytes")),
        (_latin, ("correction.txt", 2, 3, "is not UTF-8 here")),
        (_loops, ("loop", 1, 1, "is not a regular file")),
    ],
)
def test_a_file_that_cannot_be_used_is_one_fault(
    folder: Path, spoil: Callable[[Path], None], fault: tuple[str, int, int, str]
) -> None:
    spoil(_write(folder))
    assert _faults(folder) == [fault]


def test_a_link_inside_the_folder_is_a_file_like_any_other(folder: Path) -> None:
    _write(folder)
    (folder / "seeds.txt").rename(folder / "seeds.old")
    (folder / "seeds.txt").symlink_to("seeds.old")
    assert _faults(folder) == []


def test_broken_toml_does_not_hide_the_faults_of_the_templates(folder: Path) -> None:
    faults = _faults(_write(folder, TOML + "[[", {"seeds": "{{ count }} {{ context }} {{ }}"}))
    assert [fault[:3] for fault in faults] == [("seeds.txt", 1, 27), ("task.toml", 28, 3)]


def test_toml_nested_without_end_is_a_fault(folder: Path) -> None:
    faults = _faults(_write(folder, "a = " + "[" * 100_000))
    assert ("task.toml", 1, 1, "is nested too deeply") in faults


def test_a_folder_of_too_many_files_is_not_read_through(folder: Path) -> None:
    _write(folder)
    for number in range(1200):
        (folder / f"note{number}").touch()
    assert any("holds more than 1,000 files" in fault[3] for fault in _faults(folder))


SCRAPS = st.sampled_from(
    [
        *("[", "]", "{", "}", "=", '"', "{{", "}}", "0", "-1", "#", ",", "../..", "1e999"),
        *("\n", "\r", "\x00", "\u202e", "é", "'''", "1979-05-27", "a.b.c.d = 1"),
        *("{{ seed }}", "[[labels]]", "[group]", "[answer]", "[instances]", "size = 0"),
        *('name = "../../etc"', 'kind = "choice"', "words = [2, 1]"),
    ]
)


@given(name=st.sampled_from(["task.toml", *(f"{name}.txt" for name in TEMPLATES)]), data=st.data())
def test_no_folder_whatever_stands_in_it_brings_more_than_faults(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Pieces cut out and put in anywhere: the checker reports, and never breaks down."""
    folder = _write(tmp_path_factory.mktemp("task") / "mood")
    text = (folder / name).read_text("utf-8")
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        text = text[:start] + data.draw(SCRAPS) + text[end:]
    (folder / name).write_text(text, "utf-8", newline="")
    found = check_task(folder)
    assert all(fault.line >= 1 and fault.column >= 1 and fault.message for fault in found)
    if not found:
        load_task(folder)


def test_a_folder_without_a_task_is_one_fault(tmp_path: Path) -> None:
    assert _faults(tmp_path) == [("task.toml", 1, 1, "there is no such file")]


@pytest.mark.parametrize(
    ("toml", "line", "column"),
    [
        ("[seeds]\n# x = 1\n  x = 1", 3, 3),
        ("seeds.x = 1", 1, 7),
        ('seeds = { "kind" = "word", \'x\' = [1, {y = "}"}], per_call = 1 }', 1, 28),
        ("[ seeds ]\nkind = '''\n[a]\nx = 1'''\nx = 1", 5, 1),
        ('[seeds]\nkind = """a\\"""" # """\nx = """"""', 3, 1),
        ('[seeds.axes]\na = [ # [x\n "]", "x = 1"\n]\n[seeds.x]\ny = 1979-05-27', 5, 8),
    ],
)
def test_a_key_is_found_in_any_way_toml_lets_it_be_written(
    folder: Path, toml: str, line: int, column: int
) -> None:
    tomllib.loads(toml)
    faults = _faults(_write(folder, toml))
    assert ("task.toml", line, column) in [f[:3] for f in faults if "seeds.x: unknown" in f[3]]
