"""A start is cheap and drags nothing heavy in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("datasets", "numpy", "openai", "pandas", "scipy", "torch", "transformers")
CPU_LIMIT_S = 0.35
STARTS = {
    "import targen_async": "import targen_async",
    "targen --help": """
import contextlib, io, sys
from targen_async.cli import main
with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
    main(["--help"])
assert "usage: targen" in told.getvalue()
""",
}


@pytest.mark.parametrize("start", STARTS)
def test_nothing_heavy_is_loaded(tmp_path: Path, start: str) -> None:
    """Empty stand-ins lie on the path, so that an import that bears to fail would be seen too."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").touch()
    program = f"import sys\n{STARTS[start]}\nprint(*sorted(sys.modules))"
    # The folder of the checkout is on no path of the child's: the package is the installed one.
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert "targen_async" in loaded
    assert loaded & set(HEAVY) == set()


def test_a_start_takes_little_cpu(tmp_path: Path) -> None:
    """The best of five: what the machine does besides only ever adds."""
    told = tmp_path / "startup.json"
    script = ROOT / "bench" / "startup.py"
    command = [sys.executable, str(script), "--repeats", "5", "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cpu_s = json.loads(told.read_text("utf-8"))["cpu_s"]
    assert set(cpu_s) == {"nothing", *STARTS}
    for start in STARTS:
        assert start in done.stdout
        assert len(cpu_s[start]) == 5
        assert 0 < min(cpu_s[start]) < CPU_LIMIT_S, start
