"""The house's statics: what imports what, which package is used where, and how big things are."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
from msgspec import Struct

PACKAGE = "targen_async"
ROOT = Path(__file__).resolve().parents[1]
FLOORS: dict[str, int] = {
    module: floor
    for floor, modules in {
        0: "errors records",
        1: "config control journal parse pipeline plan shards stats"
        " layouts splits superglue taskcheck tasklabels taskread tasks taskspec validators words",
        2: "chat chat.adapt chat.cost chat.fallback chat.headers chat.hedge chat.http chat.lease"
        " chat.limit chat.mask chat.meter chat.named chat.post chat.quota chat.refill"
        " chat.refusals chat.reply chat.retry chat.sdk chat.stream chat.thinking chat.wire"
        " distinct ledger lock log metrics presets progress rows rundir sources streak verdicts",
        3: "ask budget commit live points prices settle slots state summary",
        4: "corpus course pilot probe recover stages",
        5: "audit embedded opening reread",
        6: "chains endpoint manifest newtask preview telling",
        7: "accounts engine estimate merge merged outlets pace terminal verify watch",
        8: "flags launch",
        9: f"{PACKAGE} cli",
    }.items()
    for module in modules.split()
}
"""Module to floor, as in docs/architecture.md. A module imports from lower floors and, where
nothing goes round, from its own."""

WINGS = ("analysis", "export", "finetune", "simulator")
"""Side wings: all their modules import floors 0 and 1 and their own wing."""
WING_MAY_IMPORT = 1
MAY_IMPORT_WINGS = 5

LATE = {("tasks", "taskcheck")}
"""Imports inside a function that close a circle: load_task() calls the checker, which is built on
the structs of tasks.py. Floors hold for these too."""

PLACES: dict[str, tuple[str, ...]] = {
    "aiohttp": ("chat/http.py", "chat/post.py"),
    "aiohttp.web": ("simulator/",),
    "anyio": ("",),
    "msgspec": ("",),
    "openai": ("chat/sdk.py",),
    "orjson": ("",),
    "matplotlib": ("finetune/figure.py",),
    "rensa": ("distinct.py", "analysis/duplicates.py"),
    "rich": ("finetune/curve.py", "live.py", "outlets.py", "terminal.py", "watch.py"),
    "tomli_w": ("config.py",),
    "uvloop": ("simulator/",),
    "yarl": ("chat/http.py", "chat/post.py"),
    "datasets": ("export/", "finetune/", "analysis/reading.py"),
    "huggingface_hub": ("export/",),
    "numpy": ("analysis/", "finetune/"),
    "pyarrow": ("export/", "sources.py", "analysis/reading.py", "analysis/report/sample.py"),
    "pycountry": ("analysis/entities.py",),
    "sentence_transformers": ("analysis/embedding.py",),
    "spacy": ("analysis/tagger.py",),
    "umap": ("analysis/projection.py",),
    **dict.fromkeys(("scipy", "sklearn", "threadpoolctl"), ("analysis/",)),
    "transformers": ("finetune/", "analysis/embedding.py"),
    **dict.fromkeys(("torch", "tokenizers", "safetensors", "deepspeed", "peft"), ("finetune/",)),
}
"""Third-party package to the files or folders that may import it; "" is everywhere."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
NO_NAMES = ("base", "experiment", "handler", "helper", "manager", "processor", "util")
"""Words that say nothing: no file, class or function of the library is called so."""


class Import(Struct, frozen=True):
    """One imported name, seen at `file:line`. `late`: inside a function."""

    file: str
    line: int
    name: str
    late: bool


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package below `root` by its name without `targen_async.`."""
    found: dict[str, Path] = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name or PACKAGE] = path
    return found


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file; `from a import b` is a.b, as b may be a module."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    late = {id(node) for function in functions for node in ast.walk(function)}
    file = path.relative_to(root / PACKAGE).as_posix()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, id(node) in late)


def target(name: str, known: dict[str, Path]) -> str | None:
    """The module of ours that an imported name lies in; None for a package of others."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    for end in range(len(parts), 1, -1):
        if (module := ".".join(parts[1:end])) in known:
            return module
    return PACKAGE


def wing(module: str) -> str | None:
    return next((w for w in WINGS if module == w or module.startswith(f"{w}.")), None)


def allowed(importer: str, imported: str) -> bool:
    """Whether the floors let `importer` import `imported`; both stand in the table."""
    home, away = wing(importer), wing(imported)
    if home:
        return away == home or (away is None and FLOORS[imported] <= WING_MAY_IMPORT)
    if away:
        return FLOORS[importer] >= MAY_IMPORT_WINGS
    return FLOORS[imported] <= FLOORS[importer]


def floor_faults(root: Path) -> list[str]:
    """Every module without a floor, every import upwards, every circle."""
    known = modules(root)
    faults = [f"{name} has no floor" for name in known if name not in FLOORS and not wing(name)]
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        for found in imports(path, root):
            if found.name.startswith("."):
                faults.append(f"{found.file}:{found.line} imports relatively")
            imported = target(found.name, known)
            if imported is None or imported == module or f"{imported} has no floor" in faults:
                continue
            if f"{module} has no floor" not in faults and not allowed(module, imported):
                faults.append(f"{found.file}:{found.line} imports {imported}, which is above it")
            if not (found.late and (module, imported) in LATE):
                graph.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append("imports go round: " + " -> ".join(error.args[1]))
    return faults


def package_faults(root: Path) -> list[str]:
    """Every third-party import that is out of its place."""
    faults: list[str] = []
    for path in modules(root).values():
        for found in imports(path, root):
            top = found.name.split(".")[0]
            if top in sys.stdlib_module_names or top in (PACKAGE, ""):
                continue
            fitting = [p for p in PLACES if found.name == p or found.name.startswith(f"{p}.")]
            if not fitting:
                faults.append(f"{found.file}:{found.line} imports {top}, which has no place")
            elif not any(found.file.startswith(p) for p in PLACES[max(fitting, key=len)]):
                faults.append(f"{found.file}:{found.line} is no place for {max(fitting, key=len)}")
    return faults


def size_faults(root: Path) -> list[str]:
    """Every file and function that is too long, or called by a word that says nothing."""
    faults: list[str] = []
    for path in modules(root).values():
        file, text = path.relative_to(root / PACKAGE).as_posix(), path.read_text("utf-8")
        if (length := len(text.splitlines())) > MAX_FILE_LINES:
            faults.append(f"{file} has {length} lines")
        names = [(file, path.stem)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.append((f"{file}:{node.lineno}", node.name))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if (length := (node.end_lineno or first) - first + 1) > MAX_FUNCTION_LINES:
                    faults.append(f"{file}:{node.lineno} {node.name}() has {length} lines")
        faults += [
            f"{place} is called {name}"
            for place, name in names
            if any(word in name.lower() for word in NO_NAMES)
        ]
    return faults


def test_every_module_imports_from_lower_floors_and_nothing_goes_round() -> None:
    assert floor_faults(ROOT) == []


def test_every_third_party_package_is_used_in_its_place_only() -> None:
    assert package_faults(ROOT) == []


def test_files_and_functions_are_short_and_their_names_say_something() -> None:
    assert size_faults(ROOT) == []


def test_the_tables_name_nothing_that_is_gone() -> None:
    known = modules(ROOT)
    assert set(FLOORS) <= set(known)
    assert all((ROOT / PACKAGE / name / "__init__.py").is_file() for name in WINGS)
    late = {
        (module, target(found.name, known))
        for module, path in known.items()
        for found in imports(path, ROOT)
        if found.late
    }
    assert late >= LATE


def test_nothing_is_imported_by_a_computed_name() -> None:
    """What these tests cannot see."""
    for path in modules(ROOT).values():
        names = {
            getattr(node, "id", getattr(node, "attr", ""))
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        }
        assert not names & {"import_module", "__import__"}, path


BAD: dict[str, tuple[dict[str, str], str]] = {
    "upwards": (
        {"records.py": "from targen_async.commit import Committer", "commit.py": ""},
        "records.py:1 imports commit, which is above it",
    ),
    "upwards and late": (
        {"plan.py": "def f():\n    import targen_async.cli", "cli.py": ""},
        "plan.py:2 imports cli, which is above it",
    ),
    "a module taken from its package": (
        {"chat/__init__.py": "", "chat/http.py": "from targen_async import cli", "cli.py": ""},
        "chat/http.py:1 imports cli, which is above it",
    ),
    "a wing into the core": (
        {"simulator/__init__.py": "import targen_async.chat.wire", "chat/wire.py": ""},
        "simulator/__init__.py:1 imports chat.wire, which is above it",
    ),
    "the core into a wing": (
        {"ask.py": "from targen_async.simulator import gold", "simulator/__init__.py": ""},
        "ask.py:1 imports simulator, which is above it",
    ),
    "a new file": ({"novelty.py": ""}, "novelty has no floor"),
    "relative": (
        {"rows.py": "from .records import Row", "records.py": ""},
        "rows.py:1 imports relatively",
    ),
    "a circle": (
        {
            "plan.py": "import targen_async.parse",
            "parse.py": "def f():\n    from targen_async.plan import g",
        },
        "imports go round: ",
    ),
    "aiohttp's client": ({"ask.py": "import aiohttp"}, "ask.py:1 is no place for aiohttp"),
    "aiohttp's server": (
        {"chat/http.py": "from aiohttp import web"},
        "chat/http.py:1 is no place for aiohttp.web",
    ),
    "aiohttp's client in the wing": (
        {"simulator/server.py": "from aiohttp import ClientSession"},
        "simulator/server.py:1 is no place for aiohttp",
    ),
    "torch": ({"cli.py": "def f():\n    import torch.nn"}, "cli.py:2 is no place for torch"),
    "unheard of": ({"cli.py": "import click"}, "cli.py:1 imports click, which has no place"),
    "a long file": ({"plan.py": "\n" * 401}, "plan.py has 401 lines"),
    "a long function": (
        {"plan.py": "def f():\n" + "    a = 1\n" * 60},
        "plan.py:1 f() has 61 lines",
    ),
    "a word": ({"utils.py": ""}, "utils.py is called utils"),
    "a word in a class": ({"plan.py": "class PlanManager: ..."}, "plan.py:1 is called PlanManager"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_breach_is_told(tmp_path: Path, case: str) -> None:
    files, told = BAD[case]
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    faults = chain(floor_faults(tmp_path), package_faults(tmp_path), size_faults(tmp_path))
    assert any(fault.startswith(told) for fault in faults)
