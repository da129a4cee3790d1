"""What a start costs: CPU seconds (user and system) of `import targen_async` and `targen --help`.

Each is a fresh process, in turns with one that does nothing, so that a busy moment hits them alike.
Bytecode is compiled by an unmeasured first round.

    python bench/startup.py [--repeats 10] [--json FILE]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "nothing": [sys.executable, "-c", "pass"],
    "import targen_async": [sys.executable, "-c", "import targen_async"],
    "targen --help": [sys.executable, "-m", "targen_async.cli", "--help"],
}


def cpu_s(command: list[str]) -> float:
    """CPU seconds of one run to its end. CalledProcessError when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each command, `repeats` of each, in turns."""
    for command in COMMANDS.values():
        cpu_s(command)
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            found[name].append(round(cpu_s(command), 4))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU seconds of a start.")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    found = measure(options.repeats)
    print(f"CPU s of a fresh process, median of {options.repeats} (least to most)")
    for name, figures in found.items():
        middle, least, most = statistics.median(figures), min(figures), max(figures)
        print(f"{name:20} {middle:.3f}  ({least:.3f} to {most:.3f})")
    if options.json:
        told = {"python": sys.version.split()[0], "load": os.getloadavg()[0], "cpu_s": found}
        options.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
