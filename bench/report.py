"""All benchmarks one after another: one table, bench/results/<date>.json and a plot.

    python bench/report.py            # overhead, two peers, fidelity, journal; under 15 minutes
    python bench/report.py --full     # everything, a million rows included; about two hours
    python bench/report.py --only overhead journal
    python bench/report.py --table bench/results/2026-11-24.json    # table and plot once more

The machine should be idle. Ratios are taken within a round and stand noise; seconds do not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from plot import NAMES, draw

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
QUICK = {
    "overhead": ["--clients", "ours", "ours_near", "bare_aiohttp", "openai_sdk", "curator_rows"],
    "fidelity": ["--only", "requests, burst 3000"],
    "journal": [],
}
FULL = {
    "overhead": [
        *("--clients", "ours", "ours_near", "bare_aiohttp", "raw_protocol", "openai_sdk"),
        *("curator_rows", "data_designer_rows", "langchain_calls"),
    ],
    "fidelity": [],
    "journal": [],
    "adaptive": [],
    "makespan": [],
    "memory": [],
}
Line = tuple[str, str, str, bool | None]
"""What is measured, the figure, what is wanted of it, and whether it is met (None: no target)."""


def run(name: str, flags: list[str]) -> Any:  # noqa: ANN401
    """One script's figures; what it prints goes on to the screen."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        print(f"\n== {name} {' '.join(flags)}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), *flags, "--json", file.name]
        subprocess.run(command, check=True)
        return json.loads(Path(file.name).read_bytes())


def machine() -> dict[str, object]:
    packages = ("aiohttp", "orjson", "msgspec", "uvloop")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "packages": {name: version(name) for name in packages},
    }


# ---- the table


def spread(values: list[float], digits: int = 2) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def at_most(what: str, values: list[float], most: float, digits: int = 2) -> Line:
    return what, spread(values, digits), f"at most {most:g}", median(values) <= most


def at_least(what: str, values: list[float], least: float, digits: int = 2) -> Line:
    return what, spread(values, digits), f"at least {least:g}", median(values) >= least


def clients(found: dict[str, Any]) -> str:
    """What each client costs, as Markdown."""
    rows = [
        "| client | in flight | CPU s per 1,000 calls | x bare aiohttp | calls/s | peak MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for width, figures in found.items():
        for client in sorted(figures, key=list(NAMES).index):
            rounds = figures[client]
            cells = (
                NAMES[client],
                f"{int(width):,}",
                spread([one["cpu_s_per_1000"] for one in rounds], 3),
                spread([one["times_floor"] for one in rounds]),
                spread([one["calls_per_s"] for one in rounds], 0),
                f"{max(one['peak_mb'] for one in rounds):.0f}",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def overhead_lines(found: dict[str, Any]) -> list[Line]:
    lines: list[Line] = []
    narrow = found["256"]
    ours = [one["cpu_s_per_1000"] for one in narrow["ours"]]
    lines.append(
        at_most("ours to bare aiohttp, CPU a call", [o["times_floor"] for o in narrow["ours"]], 2.0)
    )
    peers = narrow.keys() - {"ours", "ours_near", "bare_aiohttp", "raw_protocol"}
    for client in sorted(peers, key=list(NAMES).index):
        theirs = [one["cpu_s_per_1000"] for one in narrow[client]]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        lines.append(at_most(f"ours to {NAMES[client]}, CPU a call", ratios, 0.2, 3))
    if "1024" in found:
        growth = {
            client: [
                b["cpu_s_per_1000"] / a["cpu_s_per_1000"]
                for a, b in zip(narrow[client], found["1024"][client], strict=True)
            ]
            for client in ("ours", "bare_aiohttp")
        }
        ratios = [a / b for a, b in zip(growth["ours"], growth["bare_aiohttp"], strict=True)]
        lines.append(at_most("growth to 1,024 in flight, ours to bare aiohttp", ratios, 1.1))
    return lines


def fidelity_lines(found: list[dict[str, Any]]) -> list[Line]:
    lines: list[Line] = []
    for one in found:
        share, refused = (0.99, 0.001) if one["headers"] else (0.97, 0.01)
        lines.append(
            (
                f"{one['name']}: share of what was allowed",
                " and ".join(f"{value:.3f}" for value in one["share"]),
                f"at least {share:g}",
                min(one["share"]) >= share,
            )
        )
        lines.append(
            (
                f"{one['name']}: refused",
                " and ".join(f"{100 * value:.2f} %" for value in one["refused"]),
                f"at most {100 * refused:g} %",
                max(one["refused"]) <= refused,
            )
        )
    return lines


def journal_lines(found: dict[str, Any], overhead: dict[str, Any] | None) -> list[Line]:
    group = found["group_commit"]
    cpu = [one["cpu_s_per_1000"] for one in group]
    lines = [
        at_least("journal, rows of 1 KB/s", [one["rows_per_s"] for one in group], 10_000, 0),
        ("journal, CPU s per 1,000 rows", spread(cpu, 4), "", None),
    ]
    if overhead:
        call = median([one["cpu_s_per_1000"] for one in overhead["256"]["ours"]])
        share = f"{100 * median(cpu) / call:.1f} %"
        lines.append(("journal, share of the engine's CPU", share, "", None))
    return lines


def adaptive_lines(found: list[dict[str, Any]]) -> list[Line]:
    lines: list[Line] = []
    for one in found:
        name = f"adaptive limit, C = {one['capacity']}, to the best fixed"
        lines.append(at_least(f"{name}: throughput", [one["throughput"]], 0.9))
        lines.append(at_most(f"{name}: 99th percentile", [one["p99"]], 2.0))
    return lines


def makespan_lines(found: list[dict[str, Any]]) -> list[Line]:
    lines: list[Line] = []
    for one in found:
        bound, tail = (1.05, 5) if one["rows"] >= 40_000 else (1.20, 10)
        name = f"four steps, {one['rows']:,} rows"
        lines.append(at_most(f"{name}: time to the bound", [one["times_bound"]], bound, 3))
        lines.append(at_most(f"{name}: tail, % of the whole", [100 * one["tail"]], tail, 1))
    return lines


def memory_lines(found: list[dict[str, Any]]) -> list[Line]:
    lines: list[Line] = []
    for one in found:
        name = f"{one['rows']:,} rows"
        lines.append((f"{name}: peak MB", f"{one['fresh']['peak_mb']:.0f}", "", None))
        lines.append((f"{name}: resumed, peak MB", f"{one['resumed']['peak_mb']:.0f}", "", None))
        start_s = [one["resumed"]["first_call_s"]]
        lines.append(at_most(f"{name}: resumed, first call after s", start_s, 20, 1))
        lines.append((f"{name}: gate on disk MB", f"{one['gate_on_disk_mb']:.0f}", "", None))
    few, many = found[0], found[-1]
    more = max(many[kind]["peak_mb"] - few["fresh"]["peak_mb"] for kind in ("fresh", "resumed"))
    lines.append(at_most(f"{many['rows']:,} rows: MB more than {few['rows']:,}", [more], 64, 0))
    return lines


def lines_of(found: dict[str, Any]) -> list[Line]:
    lines: list[Line] = []
    if "overhead" in found:
        lines += overhead_lines(found["overhead"])
    if "journal" in found:
        lines += journal_lines(found["journal"], found.get("overhead"))
    for name, make in (
        ("fidelity", fidelity_lines),
        ("adaptive", adaptive_lines),
        ("makespan", makespan_lines),
        ("memory", memory_lines),
    ):
        if name in found:
            lines += make(found[name])
    return lines


def table(found: dict[str, Any]) -> str:
    """Markdown, with the targets that are missed said so."""
    rows = [clients(found["overhead"]), ""] if "overhead" in found else []
    rows += ["| what | median (least-most) | wanted | |", "| --- | --- | --- | --- |"]
    words = {True: "met", False: "MISSED", None: ""}
    rows += [f"| {a} | {b} | {c} | {words[met]} |" for a, b, c, met in lines_of(found)]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(FULL), help="of what would be run")
    parser.add_argument("--table", type=Path, metavar="FILE", help="run nothing")
    options = parser.parse_args()
    if options.table:
        found, path = json.loads(options.table.read_bytes()), options.table
    else:
        found = {"machine": machine()}
        now = datetime.now(UTC)
        path = RESULTS / f"{now:%Y-%m-%d}{'' if options.full else '-quick'}.json"
        RESULTS.mkdir(exist_ok=True)
        for name, flags in (FULL if options.full else QUICK).items():
            if options.only is None or name in options.only:
                found[name] = run(name, flags)
                # After each, so that hours are not lost to the last one.
                path.write_text(json.dumps(found) + "\n", "utf-8")
    print("\n" + table(found))
    draw(found, path.with_suffix(".png"))
    print(f"\n{path}\n{path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
