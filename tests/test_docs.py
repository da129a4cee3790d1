"""The documents are true: commands, settings, the tree, tables, links and versions."""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from targen_async import cli, flags
from targen_async.config import load
from targen_async.launch import config_from_options
from targen_async.manifest import Manifest
from tests.test_floors import FLOORS, PACKAGE, modules, wing

ROOT = Path(__file__).resolve().parents[1]
DOCS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "prompts").rglob("*.md")),
    *sorted((ROOT / "bench").glob("*.md")),
]
PUBLISHED = [
    *DOCS,
    *(ROOT / name for name in ("Makefile", "Dockerfile", "pyproject.toml")),
    *(p for name in ("examples", "runners", "prompts") for p in sorted((ROOT / name).rglob("*"))),
    *sorted((ROOT / "bench").glob("*.py")),
    *sorted((ROOT / PACKAGE).rglob("*.py")),
]
ARCHITECTURE = ROOT / "docs" / "architecture.md"

FENCE = re.compile(r"^```([\w-]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
SHELL = ("", "bash", "console", "sh", "shell")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|TBD|BENCH|WIP)\b")
MACHINE_PATH = re.compile(r"(?<![\w.:/}-])/(?:work|root|home|Users|tmp|mnt)/")


class Command(NamedTuple):
    """A command line of a document, as words."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.words)}"


def told(path: Path) -> str:
    return path.read_text("utf-8")


def blocks(path: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(told(path)):
        if language in languages:
            yield text


def words_of(line: str) -> Iterator[list[str]]:
    """The commands of a shell line: without prompt, comment, variables, pipes and redirections."""
    lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for control, group in groupby(lexer, key=lambda word: set(word) <= set("|&;<>()")):
        words = list(group)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and not control:
            yield words


def commands(path: Path) -> Iterator[Command]:
    """Every command of a document's shell blocks and of its inline code."""
    name = path.relative_to(ROOT).as_posix()
    lines = [
        line
        for block in blocks(path, *SHELL)
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"(\$ )?([A-Z_]+=\S+ )*(targen|make|python|pip|ruff|mypy) ", line + " ")
    ]
    inline = INLINE.findall(FENCE.sub("", told(path)))
    lines += [code for code in inline if re.match(r"(targen|make|python) \S", code)]
    for line in lines:
        yield from (Command(name, tuple(words)) for words in words_of(line))


ALL_COMMANDS = [command for path in DOCS for command in commands(path)]
TARGEN = sorted({c for c in ALL_COMMANDS if c.words[0] == "targen"})
MAKE = sorted({c for c in ALL_COMMANDS if c.words[0] == "make"})
PYTHON = sorted({c for c in ALL_COMMANDS if c.words[0] == "python"})


def check_arguments(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse as the command would, and read the configuration as `generate` would."""
    monkeypatch.setattr(sys, "argv", ["targen", *arguments])
    try:
        options = cli._parser(arguments).parse_args(arguments)
    except SystemExit as error:
        assert error.code == 0, f"targen {' '.join(arguments)} is not understood"
        return
    if arguments[0] == "generate" and options.task is not None:
        if options.config is not None:
            options.config = ROOT / options.config
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        config_from_options(options, flags.NAMES)


def test_the_readme_shows_the_main_commands() -> None:
    shown = {c.words[:2] for c in TARGEN if c.place == "README.md"}
    assert {("targen", name) for name in ("generate", "show", "status", "tasks", "check")} <= shown
    made = {c.words[:2] for c in MAKE if c.place == "README.md"}
    assert {("make", "demo"), ("make", "test")} <= made


@pytest.mark.parametrize("command", TARGEN, ids=str)
def test_a_targen_command_is_understood(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = tuple(word for word in command.words[1:] if word not in ("…", "..."))
    if len(command.words) > 2 or arguments[0] in ("tasks", "check"):
        check_arguments(arguments, monkeypatch)
    else:
        # Inline code that only names a command.
        check_arguments((arguments[0], "--help"), monkeypatch)


def test_the_examples_of_the_help_are_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = re.findall(r"^ +targen (.+?)(?:   .*)?$", flags.EXAMPLES, re.MULTILINE)
    assert len(shown) >= 3
    for line in shown:
        check_arguments(tuple(line.split()), monkeypatch)


@pytest.mark.parametrize("command", MAKE, ids=str)
def test_a_make_target_exists(command: Command) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", told(ROOT / "Makefile"), re.MULTILINE))
    wanted = {word for word in command.words[1:] if "=" not in word and word != "…"}
    assert wanted <= targets


@pytest.mark.parametrize("command", PYTHON, ids=str)
def test_a_python_command_names_a_file_that_is_there(command: Command) -> None:
    script = next(word for word in command.words[1:] if word.endswith(".py") or word == "-m")
    assert script == "-m" or (ROOT / script).is_file()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_of_code_are_sound(path: Path) -> None:
    for text in blocks(path, "json"):
        json.loads(text)
    for text in blocks(path, "python"):
        compile(text, str(path), "exec")
    for text in blocks(path, "toml"):
        tomllib.loads(text)


def test_the_settings_of_the_readme_are_settings() -> None:
    shown = [raw for text in blocks(ROOT / "README.md", "toml") if (raw := tomllib.loads(text))]
    assert shown
    for raw in shown:
        load(None, list(raw.items()))


# ---- the tree of docs/architecture.md


class Entry(NamedTuple):
    """A path of the tree and the words beside it."""

    path: str
    about: str


_NAME = re.compile(r"(?:[\w*-]*\.)*[\w*-]+(?:\.\w+|/)|LICENSE|Makefile|Dockerfile")


def tree() -> list[Entry]:
    """The entries of the tree. Names stand side by side with at most three blanks between."""
    block = next(text for text in blocks(ARCHITECTURE, "", "text") if f"\n{PACKAGE}/" in text)
    parents: list[tuple[int, str]] = []
    entries: list[Entry] = []
    for line in filter(str.strip, block.splitlines()):
        indent = len(line) - len(line.lstrip())
        names: list[str] = []
        rest = line[indent:]
        while found := _NAME.match(rest):
            gap = len(rest[found.end() :]) - len(rest[found.end() :].lstrip())
            names.append(found[0])
            rest = rest[found.end() :].lstrip()
            if gap > 3:
                break
        parents = [(depth, name) for depth, name in parents if depth < indent]
        above = "".join(name for _, name in parents)
        entries += [Entry(above + name, rest) for name in names]
        if names and names[0].endswith("/"):
            parents.append((indent, names[0]))
    return entries


def test_every_path_of_the_tree_is_there() -> None:
    entries = tree()
    assert len(entries) > 30
    missing = [entry.path for entry in entries if not any(ROOT.glob(entry.path.rstrip("/")))]
    assert missing == []


def test_every_module_stands_in_the_tree() -> None:
    entries = {entry.path: entry.about for entry in tree()}
    for module, path in modules(ROOT).items():
        file = path.relative_to(ROOT)
        if file.name in ("__init__.py", "__main__.py") or wing(module):
            continue
        folder = f"{file.parent.as_posix()}/"
        beside = re.findall(r"\w+", entries.get(folder, "")) if "." in module else []
        assert file.as_posix() in entries or file.stem in beside, module


def test_everything_at_the_top_stands_in_the_tree() -> None:
    shown = {entry.path for entry in tree()}
    top = {path.name for path in ROOT.glob("*.md")} | {"pyproject.toml", "Makefile", "Dockerfile"}
    folders = {f"{name}/" for name in ("bench", "docs", "examples", "prompts", "runners", "tests")}
    assert top | folders | {f"{PACKAGE}/"} <= shown


def test_the_floors_of_the_tree_are_those_that_are_tested() -> None:
    told_floors: dict[str, str] = {}
    for entry in tree():
        if entry.path.startswith(f"{PACKAGE}/") and entry.path != f"{PACKAGE}/":
            name = entry.path.removeprefix(f"{PACKAGE}/").removesuffix(".py").strip("/")
            told_floors[name.replace("/", ".")] = entry.about.split()[0].strip("[]")
    assert {"records", "journal", "engine", "chat", "simulator"} <= set(told_floors)
    for name, floor in told_floors.items():
        if wing(name):
            assert floor == "*", name
            continue
        inside = [module for module in FLOORS if module == name or module.startswith(f"{name}.")]
        assert {str(FLOORS[module]) for module in inside} == {floor}, name


# ---- the folder of a run


def test_every_field_of_the_manifest_is_explained() -> None:
    text = told(ROOT / "docs" / "run-folder.md")
    section = text.partition("## manifest.json")[2].partition("\n## ")[0]
    explained = {name.partition(".")[0] for name in INLINE.findall(section)}
    plain = {"format", "task", "task_version", "model"}
    """Fields that say what they are; those of a row are explained further up."""
    assert set(Manifest.__struct_fields__) - explained - plain == set()


# ---- all of them


def slugs(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = FENCE.sub("", told(path))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    text = INLINE.sub("", FENCE.sub("", told(path)))
    for link in LINK.findall(text):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        aim = (path.parent / name).resolve() if name else path
        assert aim.exists(), link
        assert aim.is_relative_to(ROOT), link
        assert not anchor or anchor in slugs(aim), link


def test_nothing_unfinished_and_no_path_of_our_machines() -> None:
    found = []
    for path in PUBLISHED:
        if not path.is_file() or path.suffix == ".pyc":
            continue
        for number, line in enumerate(told(path).splitlines(), 1):
            if UNFINISHED.search(line) or MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_the_changelog_begins_with_the_version_that_is_built() -> None:
    project = tomllib.loads(told(ROOT / "pyproject.toml"))["project"]
    newest = re.search(r"^## \[?v?(\d[^\s\]]*)", told(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")), ids=lambda path: path.stem
)
def test_a_decision_is_numbered_and_fits_a_page(path: Path) -> None:
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+", path.stem)
    assert len(told(path).splitlines()) <= 60
    same = list(path.parent.glob(f"{path.stem[:4]}-*.md"))
    assert same == [path]
