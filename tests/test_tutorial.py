"""docs/tasks.md does what it says: its commands and its files, in order; and its examples."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from targen_async import taskspec
from targen_async.tasks import check_task, load_task
from targen_async.validators import GROUP_VALIDATORS, VALIDATORS
from tests import test_prompts as shipped
from tests.running import rows, targen

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tasks.md"
REFERENCE = ROOT / "prompts" / "README.md"
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/task.toml"))
WORDS_A_MINUTE = 230
"""A reader's pace: Brysbaert 2019 finds 238 words of prose a minute."""
MOST_MINUTES = 9

_FENCE = re.compile(r"(?:^`(\S+)`\n\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OWN = 'targen() { "$PYTHON" -m targen_async.cli "$@"; }\n'


class Block(NamedTuple):
    """A fenced block; `file` is the path that stands above it."""

    file: str
    language: str
    text: str


BLOCKS = [Block(*found) for found in _FENCE.findall(PAGE.read_text("utf-8"))]


def first_part() -> str:
    """What somebody reads who makes the task of the page and nothing else."""
    return PAGE.read_text("utf-8").partition("\n## Other kinds")[0]


def shows(told: str, output: str) -> bool:
    """Is `told` what was printed? `…` is anything in a line, and a line of its own any lines."""
    parts = []
    for line in told.splitlines():
        pattern = r"[^\n]*".join(re.escape(piece) for piece in line.rstrip().split("…"))
        parts.append(r"(?:[^\n]*\n)*" if line == "…" else rf"{pattern} *\n")
    return re.fullmatch("".join(parts), output) is not None


def type_in(commands: str, cwd: Path, code: int) -> str:
    """What the commands print in a shell, one after the other; the last one ends with `code`."""
    clean = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    done = subprocess.run(
        ["bash", "-eu", "-c", _OWN + commands],
        cwd=cwd,
        env=clean | {"PYTHON": sys.executable, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_shows_knows_what_differs() -> None:
    assert shows("a …c\n…\nz\n", "a bbc  \nx\ny\nz\n")
    assert shows("a\n…\n", "a\n")
    for output in ("a bb\nz\n", "b c\nz\n", "a c\nz\ny\n", "a c\nz"):
        assert not shows("a …c\n…\nz\n", output), output


# ---- the page from its beginning to its end


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who did all that the page says, but for what needs a model."""
    cwd = tmp_path_factory.mktemp("reader")
    (cwd / "examples").symlink_to(ROOT / "examples")
    printed, compared, left_out = "", 0, []
    for block, after in zip(BLOCKS, [*BLOCKS[1:], Block("", "", "")], strict=True):
        if block.file:
            # Of the task's own files there is one to replace: `targen new` has made it.
            assert (cwd / block.file).is_file() == block.file.startswith("triage/"), block.file
            (cwd / block.file).write_text(block.text, "utf-8")
        elif block.language == "sh" and "--model" in block.text:
            left_out.append(block.text)
        elif block.language == "sh":
            faults = re.search(r"^\S+:\d+:\d+: ", after.text, re.MULTILINE)
            printed = type_in(block.text, cwd, code=2 if faults else 0)
        elif block.language == "text":
            assert shows(block.text, printed), f"{block.text}\nis not what was printed:\n{printed}"
            compared += 1
    assert len(left_out) == 1
    assert compared >= 5
    return cwd


def test_the_page_leaves_a_sound_task_behind(done: Path) -> None:
    assert check_task(done / "triage") == []
    (new,) = (b.text for b in BLOCKS if b.text.startswith("targen new "))
    asked = new.split("--labels ")[1].strip().split(",")
    assert list(load_task(done / "triage").labels) == asked


def test_the_files_of_the_page_are_those_of_the_example(done: Path) -> None:
    files = {path.name: path.read_text("utf-8") for path in (ROOT / "examples/triage").iterdir()}
    told = {b.file.removeprefix("triage/"): b.text for b in BLOCKS if b.file.startswith("triage/")}
    assert told == files
    assert {path.name: path.read_text("utf-8") for path in (done / "triage").iterdir()} == files


def test_the_first_run_of_the_page_is_balanced_over_labels_and_axis(done: Path) -> None:
    made = rows(done / "runs" / "triage")
    assert set(Counter(row["label"] for row in made).values()) == {6}
    urgency = Counter(row["urgency"] for row in made)
    assert set(urgency) == {"low", "normal", "high"}
    assert all(row["provenance"]["axes"]["urgency"] == row["urgency"] for row in made)


def test_the_own_tickets_of_the_page_are_the_seeds_of_two_rows_each(done: Path) -> None:
    tickets = (done / "my_tickets.txt").read_text("utf-8").splitlines()
    seeds = Counter(row["provenance"]["seed"] for row in rows(done / "runs" / "own"))
    assert seeds == dict.fromkeys(tickets, 2)


def test_the_open_answers_of_the_page_are_what_it_says(done: Path) -> None:
    faq = rows(done / "runs" / "faq")
    assert len(faq) == 20
    assert all(row["label"] in row["passage"] for row in faq)
    responses = rows(done / "runs" / "instructions")
    assert len({row["label"] for row in responses}) == 20
    assert all("response" not in row for row in responses)


def test_the_snippets_of_the_page_stand_in_the_tasks_it_names() -> None:
    snippets = [tomllib.loads(b.text) for b in BLOCKS if b.language == "toml" and not b.file]
    faq, instructions = (
        tomllib.loads((ROOT / "examples" / name / "task.toml").read_text("utf-8"))
        for name in ("faq", "instructions")
    )
    wsc = tomllib.loads((ROOT / "prompts" / "wsc" / "task.toml").read_text("utf-8"))
    extract, free, twins = snippets
    assert extract["answer"] == faq["answer"]
    assert free["answer"] == instructions["answer"]
    assert twins["group"].items() <= wsc["group"].items()
    assert twins["fields"]["text"].items() <= wsc["fields"]["text"].items()


def test_the_page_is_read_in_the_time_it_promises() -> None:
    words = [word for word in first_part().split() if re.search(r"\w", word)]
    assert len(words) / WORDS_A_MINUTE < MOST_MINUTES


# ---- where things go wrong


def edit(name: str, before: str, after: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        assert before in text
        (folder / name).write_text(text.replace(before, after), "utf-8")

    return change


FAULTS = {
    "`the model is never told the label`": edit("instances.txt", "{{ label_meaning }}", "that"),
    "`` `{{` must open a placeholder ``": edit("instances.txt", "{{ tone }}", "{{Tone}}"),
    "`uses {{ context }}, which a seed from a corpus does not have`": edit(
        "instances.txt", "{{ seed }}", "{{ seed }} {{ context }}"
    ),
    "`label … starves`": edit(
        "task.toml", 'writer needs help"', 'writer needs help", words = [2, 9]'
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_is_told_as_the_page_says(tmp_path: Path, fault: str) -> None:
    assert f"\n| {fault} |" in PAGE.read_text("utf-8")
    folder = shutil.copytree(ROOT / "examples" / "triage", tmp_path / "triage")
    FAULTS[fault](folder)
    (tmp_path / "own.txt").write_text("one text of my own\n", "utf-8")
    arguments = ["-n", 1, "--simulate", "--out", tmp_path / "run"]
    corpus = ["--seeds", tmp_path / "own.txt"] if "corpus" in fault else []
    told = targen("generate", folder, *arguments, *corpus)
    assert told.returncode in (1, 2)
    pieces = fault.strip("` ").split("…")
    assert all(piece.strip() in told.stderr for piece in pieces), told.stderr


def test_a_changed_prompt_is_refused_until_it_is_accepted_as_the_page_says(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "examples" / "triage", tmp_path / "triage")
    command = ("generate", folder, "-n", 5, "--simulate", "--quiet", "--out", tmp_path / "run")
    assert targen(*command).returncode == 0
    edit("instances.txt", "Write the ticket. What", "Write it. What")(folder)
    refused = targen(*command)
    assert refused.returncode == 2
    assert "--accept-task-change" in refused.stderr
    assert targen(*command, "--accept-task-change").returncode == 0


# ---- the folders of examples/


def test_the_example_folders_are_those_of_the_page() -> None:
    assert [folder.name for folder in EXAMPLES] == ["faq", "instructions", "triage"]
    for folder in EXAMPLES:
        assert load_task(folder).name == folder.name
        assert f"examples/{folder.name}" in PAGE.read_text("utf-8") or folder.name == "triage"


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
@pytest.mark.parametrize(
    "check",
    [
        shipped.test_a_shipped_task_has_no_fault,
        shipped.test_every_prompt_can_be_read_back,
        shipped.test_templates_name_the_keys_and_the_count_they_ask_for,
        shipped.test_what_changes_from_call_to_call_stands_in_the_last_third,
        shipped.test_there_is_variety_to_draw_from,
    ],
    ids=lambda check: check.__name__.removeprefix("test_"),
)
def test_an_example_is_held_to_what_the_shipped_tasks_are(
    check: Callable[[str], None], folder: Path
) -> None:
    check(str(folder))


def _lines_with_values(text: str) -> dict[str, str]:
    """The lines `name: value` of a prompt."""
    return dict(re.findall(r"^([A-Z][^:\n]*): (.+)$", text, re.MULTILINE))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_the_worked_example_of_an_example_is_a_row_of_it(folder: Path) -> None:
    """With its seed and axes, as they stand above it, it passes every check of the task."""
    task = load_task(folder)
    text = task.template("instances").text
    (outputs,) = shipped._examples(text)
    assert list(outputs) == list(task.instances.outputs)
    given = _lines_with_values(text[text.index("A worked example") : text.index('{"')])
    asked = {shown: name for name, shown in _lines_with_values(text).items() if "{{" in shown}
    fields = {}
    for name, spec in task.fields.items():
        placeholder = "{{ seed }}" if spec.source == "seed" else f"{{{{ {name} }}}}"
        fields[name] = outputs[name] if spec.source == "output" else given[asked[placeholder]]
    label = outputs[task.answer.output] if task.answer else "access"
    assert task.objection(fields, label) is None
    for name, spec in task.fields.items():
        if spec.source == "axis":
            assert fields[name] in task.instances.axes[name]
    assert len(outputs["explanation"].split()) <= 30


@pytest.mark.parametrize("name", ["faq", "instructions"])
def test_an_example_takes_texts_of_ones_own(tmp_path: Path, name: str) -> None:
    texts = [
        f"Visitor number {i} asks: " + f"what does locker {i} cost a day? " * 8 for i in (1, 2)
    ]
    (tmp_path / "own.txt").write_text("\n".join(texts), "utf-8")
    folder, out = ROOT / "examples" / name, tmp_path / "run"
    arguments = ("-n", 4, "--max-rows-per-seed", 2, "--seeds", tmp_path / "own.txt")
    told = targen("generate", folder, *arguments, "--simulate", "--out", out)
    assert told.returncode == 0, told.stderr
    (field,) = (field for field, spec in load_task(folder).fields.items() if spec.source == "seed")
    assert {row[field] for row in rows(out)} == {text.strip() for text in texts}


# ---- the reference


def test_the_reference_explains_every_key_and_every_validator() -> None:
    text = REFERENCE.read_text("utf-8")
    rows_of = set(re.findall(r"^\| `\[?(\w+)\]?` \|", text, re.MULTILINE))
    structs = [
        part
        for part in vars(taskspec).values()
        if isinstance(part, type)
        and issubclass(part, msgspec.Struct)
        and part is not msgspec.Struct
    ]
    keys = {field.name for struct in structs for field in msgspec.structs.fields(struct)}
    tables = set(re.findall(r"`\[(\w+)\]`", " ".join(re.findall(r"^### .+$", text, re.MULTILINE))))
    assert keys - tables - rows_of == set()
    assert {*VALIDATORS, *GROUP_VALIDATORS} <= rows_of


def test_the_defaults_of_the_reference_are_those_of_the_code() -> None:
    told = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([^|]+) \|", REFERENCE.read_text("utf-8"), re.M)
    checked = 0
    for key, stages, shown in told:
        values = re.findall(r"`([^`]+)`|\b(\d+)\b", shown)
        for stage, (quoted, number) in zip(stages.split(", "), values, strict=False):
            struct = getattr(taskspec, f"{stage.capitalize()}Spec", None)
            if struct is None:
                continue
            field = next(f for f in msgspec.structs.fields(struct) if f.name == key)
            want = tomllib.loads(f"x = {quoted or number}")["x"]
            assert msgspec.to_builtins(field.default) == (
                tuple(want) if quoted[:1] == "[" else want
            )
            checked += 1
    assert checked >= 8
