"""What `import targen_async` promises: the names of the documents, no more and no fewer."""

import ast
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import targen_async

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = [*sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "runners").glob("*.py"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")

PROMISED = {
    # what a run is asked for
    "Data",
    "Delivery",
    "RunConfig",
    "Task",
    "list_tasks",
    "load_task",
    # a run
    "Manifest",
    "RunControl",
    "Stats",
    "generate",
    "generate_sync",
    # what it leaves
    "Instance",
    "Provenance",
    "read_shards",
    # what it raises
    "RunStopped",
    "TargenError",
    "UserError",
}
"""Taking a name away breaks somebody's program; one more has to be documented."""


def python_blocks() -> Iterator[tuple[str, str]]:
    for path in DOCS:
        for language, text in FENCE.findall(path.read_text("utf-8")):
            if language == "python":
                yield path.name, text
    for path in PROGRAMS:
        yield path.name, path.read_text("utf-8")


def imported_names() -> Iterator[tuple[str, str]]:
    """Every X of `from targen_async import X` in the documents, examples and launch points."""
    for place, text in python_blocks():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "targen_async":
                yield from ((place, alias.name) for alias in node.names)


def test_the_public_names_are_those_promised() -> None:
    assert set(targen_async.__all__) == PROMISED
    assert list(targen_async.__all__) == sorted(targen_async.__all__)
    assert set(targen_async.__all__) <= set(dir(targen_async))
    assert all(hasattr(targen_async, name) for name in targen_async.__all__)


def test_no_document_imports_what_is_not_promised() -> None:
    found = set(imported_names())
    assert {name for _, name in found} - PROMISED == set()
    assert "README.md" in {place for place, _ in found}


def test_every_public_name_stands_in_a_document_or_an_example() -> None:
    words: set[str] = set()
    for path in DOCS:
        text = path.read_text("utf-8")
        for _, block in FENCE.findall(text):
            words.update(re.findall(r"\w+", block))
        for code in CODE.findall(FENCE.sub("", text)):
            words.update(re.findall(r"\w+", code))
    words |= {name for _, name in imported_names()}
    assert PROMISED - words == set()


def documented(name: str) -> Iterator[tuple[str, Any]]:
    """The thing of that name and, for a class, its own public methods."""
    thing = getattr(targen_async, name)
    yield name, thing
    if inspect.isclass(thing):
        for part, member in vars(thing).items():
            method = isinstance(member, classmethod | staticmethod | types.FunctionType | property)
            if method and not part.startswith("_"):
                yield f"{name}.{part}", member


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_every_public_thing_says_what_it_is(name: str) -> None:
    bare = [place for place, thing in documented(name) if not vars_doc(thing)]
    assert bare == []


def vars_doc(thing: Any) -> str:
    """Its own docstring, not one that it inherits."""
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    return (own or "").strip()


def test_generate_and_its_sync_wrapper_are_typed() -> None:
    for function in (targen_async.generate, targen_async.generate_sync, targen_async.read_shards):
        hints = get_type_hints(function)
        assert "return" in hints
        parameters = inspect.signature(function).parameters
        assert set(parameters) <= set(hints)
        assert Any not in {part for hint in hints.values() for part in (hint, *get_args(hint))}
