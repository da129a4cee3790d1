"""A long run with all faults on at low rates: do memory, descriptors and queues stay flat?

The real command works at a steady number of calls a second at the simulator, in processes of
their own on cores of their own, and is looked at every second from outside: anonymous memory
(what the process holds itself; the distinct gate's index is a file and reported apart), open
descriptors, threads, and from its page of metrics what waits in the queues. A figure is flat when
the line through it, after the warm-up, rises by less than its limit over the rest of the run.
Exit code 0: all flat and the pace held.

    python bench/soak.py [--minutes 30] [--calls-per-second 500] [--results bench/results]
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

IN_FLIGHT = 128
EVERY_S = 1.0
WARM_UP = 0.3
"""Share of the run that is left out: pools, caches and windows fill."""
PACE = 0.95
"""Share of the calls a second that must have been kept up."""
FAULTS: dict[str, Any] = {
    "latency_ms": 60,
    "latency_sigma": 0.6,
    "label_noise": 0.02,
    "corrector_error": 0.01,
    "malformed": 0.005,
    "missing_ids": 0.005,
    "refusals": 0.002,
    "truncation": 0.002,
    "free_text": 0.001,
    "hostile": 0.002,
    "error_rate": 0.002,
    "reset_rate": 0.002,
    "stall_rate": 0.0005,
    "stall_s": 4,
}
"""Per call. Every ten minutes nothing is answered for three seconds, besides."""


class Limit(NamedTuple):
    """By how much a figure's line may rise: absolutely, or as a share of its middle."""

    absolute: float
    share: float


FLAT: dict[str, Limit] = {
    "memory_mib": Limit(8, 0.05),
    "descriptors": Limit(8, 0.05),
    "threads": Limit(2, 0.0),
    "queued": Limit(64, 0.25),
    "rows_waiting": Limit(256, 0.25),
}


# ---- the two processes


def pin(pid: int, place: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, {cores[place]})


@contextmanager
def simulator(minutes: float, calls_per_s: float) -> Iterator[str]:
    """Base URL of a simulator with the faults, that allows a little more than is asked for."""
    outages = [{"start_s": at * 600 + 300, "duration_s": 3} for at in range(int(minutes / 10) + 1)]
    settings = {
        **FAULTS,
        "outages": outages,
        "requests_per_minute": 60 * calls_per_s * 1.02,
        "burst_s": 2,
    }
    command = [sys.executable, "-m", "targen_async.simulator", "--settings", json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            pin(child.pid, 0)
            assert child.stdout is not None
            yield f"http://127.0.0.1:{json.loads(child.stdout.readline())['port']}/v1"
        finally:
            child.kill()


@contextmanager
def engine(
    url: str, folder: Path, minutes: float, calls_per_s: float
) -> Iterator["subprocess.Popen[bytes]"]:
    """`targen generate` with more rows before it than it can make in the time."""
    rows = int(60 * minutes * calls_per_s) + 1000
    command: list[object] = [
        *(sys.executable, "-m", "targen_async.cli", "generate", "copa", "-n", rows),
        *("--model", "targen-simulator", "--base-url", url, "--out", folder / "run"),
        *("--contexts", max(100, rows // 100), "--max-in-flight", IN_FLIGHT),
        *("--requests-per-minute", 60 * calls_per_s, "--set", "delivery.limits.shared=false"),
        # Templates have finitely many words: near duplicates would soon be all there is.
        *("--set", "data.near_duplicate=1.0", "--set", "delivery.window=4096"),
        *("--set", "delivery.drain_s=5", "--metrics-port", 0, "--log", folder / "log", "--quiet"),
    ]
    with (folder / "stderr").open("wb") as said:
        child = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said)
    try:
        pin(child.pid, -1)
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def metrics_url(log: Path, child: "subprocess.Popen[bytes]") -> str:
    """Where the run says that its metrics are."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        said = log.read_text() if log.exists() else ""
        if found := re.search(r"metrics at (http://[\d.:]+/metrics)", said):
            return found[1]
        time.sleep(0.05)
    raise SystemExit("the run told of no metrics")


# ---- what is seen from outside


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as page:
        return str(page.read().decode())


def total(page: str, name: str) -> float:
    """The sum over all labels of one metric."""
    values = re.findall(rf"^targen_{name}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE)
    return sum(map(float, values))


def status_of(pid: int) -> dict[str, int]:
    """The kernel's figures of a process; memory in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}


def size_mib(folder: Path, pattern: str) -> float:
    found = 0
    for file in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found += file.stat().st_size
    return found / 2**20


def sample(pid: int, url: str, page_url: str, folder: Path) -> dict[str, float]:
    """One look at everything."""
    status = status_of(pid)
    page = fetched(page_url)
    server = json.loads(fetched(url.removesuffix("/v1") + "/stats"))
    return {
        "memory_mib": status["RssAnon"] / 1024,
        "resident_mib": status["VmRSS"] / 1024,
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": status["Threads"],
        "queued": total(page, "queue_items"),
        "rows_waiting": total(page, "rows_waiting"),
        "in_flight": total(page, "in_flight"),
        "rows": total(page, "rows_delivered_total"),
        "served": server["served"],
        "faults": server["errors_5xx"] + server["resets"] + server["stalls"],
        "refused": server["rejected_429"],
        "index_on_disk_mib": size_mib(folder, "distinct.sqlite*"),
        "journal_mib": size_mib(folder, "journal"),
    }


def soak(minutes: float, calls_per_s: float) -> tuple[list[dict[str, float]], int]:
    """A sample a second to the end of the time, and the exit code that a polite stop brings."""
    samples: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory(dir=".", prefix="soak-") as name,
        simulator(minutes, calls_per_s) as url,
        engine(url, folder := Path(name), minutes, calls_per_s) as child,
    ):
        page_url = metrics_url(folder / "log", child)
        started = time.monotonic()
        while (at_s := time.monotonic() - started) < 60 * minutes and child.poll() is None:
            with suppress(OSError):
                samples.append({"at_s": at_s, **sample(child.pid, url, page_url, folder / "run")})
            time.sleep(max(0.0, EVERY_S - (time.monotonic() - started - at_s)))
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
        code = child.wait(60)
        if code != 130:
            print((folder / "stderr").read_text("utf-8", "replace")[-2000:], file=sys.stderr)
    return samples, code


# ---- the verdict


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the line through the points with the least squares; per unit of time."""
    middle, level = fmean(times), fmean(values)
    spread = sum((at - middle) ** 2 for at in times)
    if not spread:
        return 0.0
    return sum((at - middle) * (v - level) for at, v in zip(times, values, strict=True)) / spread


def trend(samples: list[dict[str, float]], name: str) -> dict[str, Any]:
    """How a figure went after the warm-up, and whether that is flat."""
    times = [one["at_s"] for one in samples]
    values = [one[name] for one in samples]
    rise = slope(times, values) * (times[-1] - times[0])
    limit = max(FLAT[name].absolute, FLAT[name].share * median(values))
    return {
        "median": round(median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
        "rise": round(rise, 2),
        "limit": round(limit, 2),
        "flat": rise < limit,
    }


def verdict(samples: list[dict[str, float]], calls_per_s: float, code: int) -> dict[str, Any]:
    """What the samples say."""
    end_s = samples[-1]["at_s"]
    warm = [one for one in samples if one["at_s"] >= WARM_UP * end_s]
    span_s = warm[-1]["at_s"] - warm[0]["at_s"]
    pace = (warm[-1]["served"] - warm[0]["served"]) / span_s
    trends = {name: trend(warm, name) for name in FLAT}
    kept_up = pace >= PACE * calls_per_s
    return {
        "minutes": round(end_s / 60, 2),
        "calls_per_s": round(pace, 1),
        "wanted_calls_per_s": calls_per_s,
        "calls": int(samples[-1]["served"]),
        "rows": int(samples[-1]["rows"]),
        "faults": int(samples[-1]["faults"]),
        "refused": int(samples[-1]["refused"]),
        "index_on_disk_mib": round(samples[-1]["index_on_disk_mib"], 1),
        "journal_mib": round(samples[-1]["journal_mib"], 1),
        "exit_code": code,
        "trends": trends,
        "flat": all(one["flat"] for one in trends.values()),
        "kept_up": kept_up,
        "sound": code == 130 and kept_up and all(one["flat"] for one in trends.values()),
    }


def told(found: dict[str, Any]) -> str:
    """The verdict for a person."""
    pace = f"{found['calls_per_s']:.0f} of {found['wanted_calls_per_s']:.0f}"
    lines = [
        f"{found['minutes']:.1f} minutes, {pace} calls/s, {found['calls']:,} calls, "
        f"{found['rows']:,} rows, {found['faults']:,} faults, {found['refused']:,} refusals; "
        f"index on disk {found['index_on_disk_mib']} MiB, journal {found['journal_mib']} MiB",
        f"{'after the warm-up':18} {'median':>9} {'least':>9} {'most':>9} {'rise':>8} {'limit':>8}",
    ]
    for name, one in found["trends"].items():
        figures = f"{one['median']:9.1f} {one['least']:9.1f} {one['most']:9.1f}"
        word = "flat" if one["flat"] else "RISES"
        lines.append(f"{name:18} {figures} {one['rise']:8.1f} {one['limit']:8.1f}  {word}")
    if not found["kept_up"]:
        lines.append("the pace was not kept up: a faster or idler machine is needed to tell")
    if found["exit_code"] != 130:
        lines.append(f"the run ended by itself, with exit code {found['exit_code']}")
    return "\n".join(lines)


def draw(samples: list[dict[str, float]], found: dict[str, Any], path: Path) -> None:
    """A panel for each figure over time, as a PNG. ImportError where matplotlib is missing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "memory_mib": "anonymous memory, MiB",
        "descriptors": "open descriptors",
        "threads": "threads",
        "queued": "items in all queues",
        "rows_waiting": "rows that wait for one before them",
        "index_on_disk_mib": "index on disk, MiB (it grows)",
    }
    minutes = [one["at_s"] / 60 for one in samples]
    figure, grid = pyplot.subplots(3, 2, figsize=(11, 9), sharex=True, layout="constrained")
    for axes, (name, title) in zip(grid.flat, titles.items(), strict=True):
        axes.plot(minutes, [one[name] for one in samples], color="#44546a", linewidth=0.9)
        axes.axvspan(0, WARM_UP * minutes[-1], color="#a9b4c2", alpha=0.3)
        axes.set_ylim(bottom=0)
        word = {True: ": flat", False: ": RISES", None: ""}
        axes.set_title(title + word[found["trends"].get(name, {}).get("flat")], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("minutes (grey: warm-up)")
    figure.suptitle(
        f"{found['calls_per_s']:.0f} calls/s with all faults on, {found['calls']:,} calls"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--calls-per-second", type=float, default=500.0)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    samples, code = soak(options.minutes, options.calls_per_second)
    if len(samples) < 10:
        raise SystemExit("the run ended before there was anything to see")
    found = verdict(samples, options.calls_per_second, code)
    print(told(found))
    options.results.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    report = {"at": datetime.now(UTC).date().isoformat(), "machine": machine, **found}
    thin = samples[:: max(1, len(samples) // 600)]
    kept = [{name: round(value, 2) for name, value in one.items()} for one in thin]
    data = json.dumps({**report, "samples": kept})
    (options.results / "soak.json").write_text(data + "\n", "utf-8")
    try:
        draw(samples, found, options.results / "soak.png")
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
    return 0 if found["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
