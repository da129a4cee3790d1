"""`targen new`: what it writes is sound and generates, and nothing that is there is touched."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from targen_async.errors import UserError
from targen_async.newtask import STARTER, begin_task, next_steps
from targen_async.tasks import COMMENT, check_task, list_tasks, load_task
from tests.running import manifest, rows, targen

FILES = {"task.toml", "contexts.txt", "seeds.txt", "instances.txt", "correction.txt"}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_starter_is_a_sound_task_with_a_comment_on_everything() -> None:
    assert check_task(STARTER) == []
    assert {path.name for path in STARTER.iterdir()} == FILES
    lines = (STARTER / "task.toml").read_text("utf-8").splitlines()
    for above, line in pairwise(lines):
        # The axes of a stage are explained where the first ones stand.
        if line.startswith("[") and not line.endswith("axes]"):
            assert above.startswith("# "), line
    for path in STARTER.glob("*.txt"):
        text = path.read_text("utf-8")
        assert text.startswith(f"{COMMENT} Step ")
        assert re.search(rf"^{COMMENT} .*\bChange: ", text, re.MULTILINE), path


@pytest.mark.parametrize("name", ["triage", "a", "task_2", "x" * 32])
def test_a_new_task_has_no_fault_and_carries_its_name(tmp_path: Path, name: str) -> None:
    folder = begin_task(name, into=tmp_path / "deep" / "er")
    assert folder == tmp_path / "deep" / "er" / name
    assert set(contents(folder)) == FILES
    assert check_task(folder) == []
    assert load_task(folder).name == name
    assert list(load_task(folder).labels) == list(load_task(STARTER).labels)


@pytest.mark.parametrize(
    "labels",
    [
        ["billing", "access", "bug"],
        ["yes", "no"],
        ["1", "2"],
        [
            "very good",
            'so-"so"',
            "back\\slash",
            "größer als",
            "\N{GRINNING FACE}",
            "a=b",
            "#x",
            "[y]",
        ],
    ],
    ids=lambda labels: labels[0],
)
def test_the_labels_are_those_that_were_asked_for(tmp_path: Path, labels: list[str]) -> None:
    task = load_task(begin_task("mine", labels, tmp_path))
    assert list(task.labels) == labels
    assert len(set(task.labels.values())) == len(labels)
    for label, meaning in task.labels.items():
        assert label in meaning


@pytest.mark.parametrize(
    "name",
    [
        "",
        "My Task",
        "9lives",
        "_x",
        "x-y",
        "x" * 33,
        "naïve",
        "../up",
        "a/b",
        "x.y",
        "a\n",
        "A",
        ".",
    ],
)
def test_a_bad_name_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name of a task") as refused:
        begin_task(name, into=tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_better_name_is_told_and_is_one(tmp_path: Path) -> None:
    for name in ("My Task", "9 lives!", "_x-", "Ünder", "y" * 40, "x" * 31 + "-_y"):
        with pytest.raises(UserError) as refused:
            begin_task(name, into=tmp_path)
        told = re.search(r"how about (\S+)\?$", str(refused.value))
        assert told is not None, name
        assert begin_task(told[1], into=tmp_path / name).is_dir()


@pytest.mark.parametrize("name", list_tasks())
def test_the_name_of_a_built_in_task_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="built in"):
        begin_task(name, into=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["only"], "two labels"),
        (["a", ""], "is no label"),
        (["a", " b"], "is no label"),
        (["a", "b\tc"], "is no label"),
        (["a", "None"], "no label fits"),
        (["a", "b", "A"], "there twice"),
    ],
)
def test_a_bad_label_is_refused(tmp_path: Path, labels: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        begin_task("mine", labels, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    begin_task("mine", into=tmp_path)
    (tmp_path / "mine" / "task.toml").write_text("mine", "utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("of mine", "utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    for name in ("mine", "empty", "file", "link"):
        with pytest.raises(UserError, match="is there already"):
            begin_task(name, ["a", "b"], tmp_path)
    with pytest.raises(UserError, match="cannot make"):
        begin_task("fresh", into=tmp_path / "file")
    assert contents(tmp_path) == before
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_the_command_says_what_to_do_next_and_all_of_it_works(tmp_path: Path) -> None:
    done = targen("new", "mine", "--labels", "yes, no ,later", "--into", tmp_path / "my folder")
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "my folder" / "mine"
    assert done.stdout == next_steps(folder) + "\n"
    steps = re.findall(r"^  targen (.+)$", done.stdout, re.MULTILINE)
    assert [step.split()[0] for step in steps] == ["check", "render", "generate"]
    for step in steps:
        # The run goes beside the folder and not where the tests run.
        words = [word.replace("runs/", f"{tmp_path}/runs/") for word in shlex.split(step)]
        told = targen(*words)
        assert told.returncode == 0, told.stderr
    assert manifest(tmp_path / "runs" / "mine")["balance"] == {"yes": 10, "no": 10, "later": 10}
    assert all(row["text"] and row["tone"] for row in rows(tmp_path / "runs" / "mine"))


def test_the_command_without_labels_generates_too(tmp_path: Path) -> None:
    assert targen("new", "plain", "--into", tmp_path).returncode == 0
    done = targen("generate", tmp_path / "plain", "-n", 20, "--simulate", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    spec = tomllib.loads((tmp_path / "plain" / "task.toml").read_text("utf-8"))
    assert manifest(tmp_path / "run")["balance"] == dict.fromkeys(spec["labels"], 10)


@pytest.mark.parametrize(
    "arguments", [("new", "Bad Name"), ("new", "copa"), ("new", "mine", "--labels", "a,,b")]
)
def test_a_mistake_ends_the_command_with_2_and_one_line(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = targen(*arguments, "--into", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
