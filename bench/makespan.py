"""How long the four-step pipeline takes against the least it could, with latency of a long tail.

The real engine, the real clock; with --virtual the schedule alone, as if no code took time
(`virtual.py`), the same on every machine. The endpoint's latency is log-normal (median 300 ms,
sigma 1: the mean is 495 ms, one call in a thousand takes over 6.6 s). No schedule can be faster
than the mean latency of all calls that are needed divided by the calls in flight, nor than the
longest chain of calls that wait for one another; second copies of stalled calls are not needed,
and cut such chains, so there the first bound is what counts. The tail is from 99 % of the calls
answered to the end (rows are delivered in order, so theirs would look better than it is).

    python bench/makespan.py [--rows 10000 40000] [--virtual] [--random-seed N]
                             [--set KEY=VALUE ...] [--json FILE]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from endpoint import CLIENT_CORE, endpoint, stats
from virtual import VirtualEndpoint
from virtual import run as run_virtually

from targen_async import generate
from targen_async.config import RunConfig, load
from targen_async.stats import Stats

HERE = Path(__file__).resolve().parent
IN_FLIGHT = 256
MEDIAN_MS, SIGMA = 300, 1.0
SEEDS_PER_CONTEXT = 10
LOOK_S = 0.05
VIRTUAL = "virtual"


def config(url: str, rows: int, more: list[str]) -> RunConfig:
    """One row a seed and ten seeds a context's call, rows judged by tens: 1.2 calls a row."""
    values = {
        "data.task": str(HERE / "winloss"),
        "data.model": "bench",
        "data.contexts": 40,
        "data.rows_per_seed": 1,
        "data.seeds_per_context": SEEDS_PER_CONTEXT,
        "delivery.n": rows,
        "delivery.base_url": url,
        "delivery.limits.max_in_flight": IN_FLIGHT,
    }
    for text in more:
        key, _, value = text.partition("=")
        values[key] = json.loads(value)
    return load(None, values)


async def run(url: str, rows: int, more: list[str]) -> dict[str, object]:
    """One run's times; its line tells (seconds, calls answered, rows delivered, in flight)."""
    seen, line, now = Stats(), [(0.0, 0, 0, 0)], asyncio.get_running_loop().time

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            since = round(now() - started, 3)
            done = sum(stage.done for stage in seen.stages.values())
            line.append((since, done, seen.delivered, seen.in_flight()))

    with tempfile.TemporaryDirectory(dir=".") as folder:
        started = now()
        looking = asyncio.create_task(look())
        manifest = await generate(config(url, rows, more), Path(folder) / "run", stats=seen)
        wall_s = now() - started
        looking.cancel()
    if manifest.state != "complete":
        raise SystemExit(f"the run is {manifest.state}: {manifest.reason}")
    calls = max(done for _, done, _, _ in line)
    nearly = next(when for when, done, _, _ in line if done >= 0.99 * calls)
    return {
        "wall_s": wall_s,
        "tail": (wall_s - nearly) / wall_s,
        "hedged": manifest.calls.hedged,
        "line": line[::4],
    }


def virtually(rows: int, more: list[str], random_seed: int) -> dict[str, object]:
    """The same in virtual time, and what the endpoint saw."""
    asked = VirtualEndpoint(MEDIAN_MS, SIGMA, random_seed=random_seed)
    told = run_virtually(asked, lambda: run("http://127.0.0.1:9/v1", rows, more))
    latencies = asked.latencies
    seen = {"latency_sum_s": sum(latencies), "latency_max_s": max(latencies)}
    return {**told, "seen": {**seen, "steps": {"all": len(latencies)}}}


def client(options: argparse.Namespace, url: str, rows: int) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--client", url, "--rows", str(rows)]
    command += ["--random-seed", str(options.random_seed)]
    for text in options.set:
        command += ["--set", text]
    pinned = ["taskset", "-c", str(CLIENT_CORE), *command]
    told: dict[str, Any] = json.loads(
        subprocess.run(pinned, stdout=subprocess.PIPE, check=True).stdout
    )
    return told


def measure(options: argparse.Namespace, rows: int) -> dict[str, object]:
    """The figures of one run."""
    if options.virtual:
        told = client(options, VIRTUAL, rows)
        seen = told.pop("seen")
    else:
        flags = ("--latency-ms", MEDIAN_MS, "--sigma", SIGMA, "--random-seed", options.random_seed)
        with endpoint(*flags) as url:
            told = client(options, url, rows)
            seen = stats(url)
    sent = sum(seen["steps"].values())
    calls, mean_s = sent - told["hedged"], seen["latency_sum_s"] / sent
    bound_s = calls * mean_s / IN_FLIGHT
    if not told["hedged"]:
        bound_s = max(bound_s, seen["latency_max_s"])
    return {
        "rows": rows,
        "calls": calls,
        "calls_per_row": calls / rows,
        "mean_latency_s": mean_s,
        "longest_call_s": seen["latency_max_s"],
        "bound_s": bound_s,
        "times_bound": told["wall_s"] / bound_s,
        **told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--virtual", action="store_true", help="in virtual time")
    parser.add_argument("--random-seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client == VIRTUAL:
        print(json.dumps(virtually(options.rows[0], options.set, options.random_seed)))
        return
    if options.client:
        print(json.dumps(uvloop.run(run(options.client, options.rows[0], options.set))))
        return
    found = [measure(options, rows) for rows in options.rows]
    print("four steps, log-normal latency (300 ms, sigma 1), 256 in flight")
    print(
        f"{'rows':>8} {'calls':>8} {'bound s':>9} {'took s':>9} {'x bound':>8} {'tail %':>7} "
        f"{'sent twice':>11}"
    )
    for one in found:
        print(
            f"{one['rows']:>8} {one['calls']:>8} {one['bound_s']:>9.1f} {one['wall_s']:>9.1f} "
            f"{one['times_bound']:>8.3f} {100 * one['tail']:>7.1f} {one['hedged']:>11}"
        )
    if options.json:
        options.json.write_text(json.dumps(found) + "\n", "utf-8")


if __name__ == "__main__":
    main()
