"""What a user installs: the built wheel, in an environment of its own, outside the checkout."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "targen_async"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MOST_DEPENDENCIES = 10
NOT_IN_THE_CORE = {"datasets", "openai", "pandas", "scipy", "torch", "transformers"}
PART_OF = {"yarl": "aiohttp", "umap": "umap-learn"}
"""Imported by another name than is declared: aiohttp's own type of an address, and what is not
installed here and has another name as a module."""
SHIPPED_WITHOUT_PYTHON = {
    "targen_async/py.typed",
    "targen_async/_prompts/copa/task.toml",
    "targen_async/analysis/report/page.html",
    "targen_async/analysis/report/vega.js.gz",
}


def names_of(requirements: list[str]) -> set[str]:
    """The packages of requirements like `aiohttp>=3.11`, without those of extras."""
    core = (line for line in requirements if "extra ==" not in line)
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in core}


def imported_packages() -> set[str]:
    """The top-level modules of others that the library imports."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"targen_async"}


def test_the_core_has_few_dependencies_and_none_that_is_heavy() -> None:
    declared = names_of(PYPROJECT["project"]["dependencies"])
    assert 0 < len(declared) <= MOST_DEPENDENCIES
    assert declared & NOT_IN_THE_CORE == set()


def test_what_is_declared_is_imported_and_the_other_way_round() -> None:
    declared = names_of(PYPROJECT["project"]["dependencies"])
    extras = PYPROJECT["project"]["optional-dependencies"]
    optional = set().union(*(names_of(lines) for name, lines in extras.items() if name != "dev"))
    providers = metadata.packages_distributions()
    imported = {
        PART_OF.get(name, providers.get(name, [name])[0].lower().replace("_", "-"))
        for name in imported_packages()
    }
    assert declared - imported == set()
    assert imported - declared - optional == set()


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `python -m build` builds it; in isolation only where hatchling is missing."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out)]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-isolation")
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_its_prompts_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    own = {name for name in names if ".dist-info/" not in name}
    assert own >= SHIPPED_WITHOUT_PYTHON
    library = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    prompts = {
        "targen_async/_prompts/" + path.relative_to(ROOT / "prompts").as_posix()
        for path in (ROOT / "prompts").rglob("*")
        if path.is_file()
    }
    assert own == library | prompts
    assert not any("test" in name for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_asks_for_what_pyproject_declares(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        told = HeaderParser().parsestr(archive.read(name).decode())
    requires = told.get_all("Requires-Dist") or []
    assert names_of(requires) == names_of(PYPROJECT["project"]["dependencies"])
    assert told["Version"] == PYPROJECT["project"]["version"]
    assert set(told.get_all("Provides-Extra") or []) == set(
        PYPROJECT["project"]["optional-dependencies"]
    )


class Installed:
    """An environment that holds the wheel; commands run in a folder outside the checkout."""

    def __init__(self, home: Path, cwd: Path) -> None:
        self.bin = home / "bin"
        self.cwd = cwd
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OPENAI_API_KEY")
        self.environment = {n: v for n, v in os.environ.items() if n not in hidden}

    def __call__(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    place = tmp_path_factory.mktemp("installed")
    cwd = place / "cwd"
    cwd.mkdir()
    venv.create(place / "venv", with_pip=True)
    there = Installed(place / "venv", cwd)
    there("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    yield there


@pytest.mark.slow
def test_the_installed_wheel_generates_outside_the_checkout(installed: Installed) -> None:
    told = installed("targen", "generate", "copa", "-n", "20", "--out", "run", "--simulate")
    assert "20 of 20 rows" in told
    assert (installed.cwd / "run" / "manifest.json").is_file()
    program = """
import json, targen_async
rows = list(targen_async.read_shards("run"))
print(json.dumps([targen_async.__file__, [row.label for row in rows], rows[0].task]))
"""
    file, labels, task = json.loads(installed("python", "-c", program))
    assert not Path(file).is_relative_to(ROOT)
    assert Path(file).is_relative_to(installed.bin.parent)
    assert len(labels) == 20
    assert labels.count("choice1") == 10
    assert task == "copa"


@pytest.mark.slow
def test_the_installed_command_knows_and_checks_its_tasks(installed: Installed) -> None:
    shipped = sorted(file.parent.name for file in (ROOT / "prompts").glob("*/task.toml"))
    told = installed("targen", "tasks").splitlines()
    assert [line.split()[0] for line in told if line[:1].strip()] == shipped
    assert installed("targen", "check").splitlines() == [f"{name}: no faults" for name in shipped]
    version = PYPROJECT["project"]["version"]
    assert installed("targen", "--version").strip() == f"targen-async {version}"


# ---- the image, which is not built here


def dockerfile() -> list[list[str]]:
    """Its instructions, split into words; continued lines are one."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return [words for words in lines if words]


def test_everything_the_image_copies_is_there_and_let_through() -> None:
    kept = [
        line[1:].strip("/")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    sources = [
        source.strip("/")
        for words in dockerfile()
        if words[0] == "COPY" and not words[1].startswith("--from")
        for source in words[1:-1]
    ]
    assert "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source


def test_the_image_has_both_targets_and_does_not_run_as_root() -> None:
    instructions = dockerfile()
    starts = [i for i, words in enumerate(instructions) if words[0] == "FROM"]
    targets = {
        instructions[start][-1]: instructions[start:end]
        for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True)
    }
    assert {"generate", "train"} <= set(targets)
    for name in ("generate", "train"):
        users = [words[1] for words in targets[name] if words[0] == "USER"]
        assert users and users[-1] not in ("root", "0"), name
    assert ["ENTRYPOINT", '["targen"]'] in targets["generate"]
    assert ["VOLUME", "/data"] in targets["generate"]
