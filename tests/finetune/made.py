"""Folders and examples for tests of finetune/."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from targen_async.finetune.data import load_examples
from targen_async.finetune.schema import Example
from targen_async.layouts import LAYOUTS
from tests.export.runs import make_task_run

REAL = Path(__file__).resolve().parents[3] / "shared" / "superglue"
TASKS = sorted(LAYOUTS)
PLAIN = [task for task in TASKS if task not in ("multirc", "record")]


def real(task: str, split: str) -> list[Example]:
    """The real rows of a split; the test is skipped where they are not there."""
    folder = REAL / LAYOUTS[task].folder
    if not folder.is_dir():
        pytest.skip(f"the real SuperGLUE rows are not there: {folder}")
    return load_examples(REAL, task, split).examples  # type: ignore[arg-type]


def seal(folder: Path, **facts: Any) -> Path:
    """The manifest of a made run names its shards, as that of a real one does."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["shards"] = [
        {
            "name": shard.name,
            "rows": len(content.splitlines()),
            "bytes": len(content),
            "sha256": sha256(content).hexdigest(),
        }
        for shard in sorted(folder.glob("instances-*.jsonl"))
        for content in [shard.read_bytes()]
    ]
    path.write_text(json.dumps({**manifest, **facts}), "utf-8")
    return folder


def run_of(folder: Path, task: str, times: int = 1) -> Path:
    return seal(make_task_run(folder, task, times))


def examples_of(folder: Path, task: str, times: int = 1) -> list[Example]:
    return load_examples(run_of(folder, task, times), task, "train").examples


def write_lines(path: Path, *values: Any) -> Path:
    """A JSONL file; a string is a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = (value if isinstance(value, str) else json.dumps(value) for value in values)
    path.write_text("".join(line + "\n" for line in told), "utf-8")
    return path


def example(task: str, number: int, label: str | None, **changes: Any) -> Example:
    """An example whose fields say little."""
    fields = {name: f"{name} {number}" for name in LAYOUTS[task].fields}
    values = {"task": task, "key": f"{task}/validation/{number}", "fields": fields, "label": label}
    values |= {"idx": number, "unit": str(number), **changes}
    return Example(**values)
