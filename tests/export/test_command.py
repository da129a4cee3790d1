"""`targen export` as it is called, and what it says where a package is missing."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from targen_async.errors import UserError
from targen_async.export import export_run
from targen_async.export.command import add_arguments, run
from tests.export.runs import make_task_run

HIDE = """
import builtins
real = builtins.__import__
def without(name, *rest):
    if name.split(".")[0] in ("datasets", "huggingface_hub", "pyarrow"):
        raise ImportError(f"No module named {name!r}", name=name)
    return real(name, *rest)
builtins.__import__ = without
"""


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(part) for part in arguments]))


def test_it_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_task_run(tmp_path / "run", "boolq", times=6)
    assert call(str(folder), "--to", "jsonl", "--split", "train=0.5,validation=0.5") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"SIMULATED boolq: 18 rows (train 9, validation 9) in {tmp_path}/run-jsonl/",
        "  BoolQ/train.jsonl",
        "  BoolQ/val.jsonl",
        "  README.md",
        "  keys.jsonl",
    ]


def test_private_without_push_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--private"):
        call(str(make_task_run(tmp_path / "run", "cb")), "--to", "flat", "--private")


def test_a_form_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no form 'xml'"):
        export_run(make_task_run(tmp_path / "run", "cb"), to="xml")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["jsonl", "csv", "flat"])
def test_plain_forms_need_no_further_package(form: str, tmp_path: Path) -> None:
    folder = make_task_run(tmp_path / "run", "wsc")
    code = f"{HIDE}\nfrom pathlib import Path\nfrom targen_async.export import export_run\n"
    code += f"export_run(Path({str(folder)!r}), to={form!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / f"run-{form}" / "README.md").is_file()


@pytest.mark.parametrize("options", ["to='parquet'", "to='datasets'", "to='csv', push='me/set'"])
def test_a_missing_package_is_named_with_its_mend(options: str, tmp_path: Path) -> None:
    folder = make_task_run(tmp_path / "run", "wsc")
    code = f"""{HIDE}
from pathlib import Path
from targen_async.errors import UserError
from targen_async.export import export_run
try:
    export_run(Path({str(folder)!r}), {options})
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'targen-async[data]'" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
