"""What the engine costs: rows a second and CPU a call, beside bare aiohttp, against the simulator.

Server and client run on different cores. The simulator composes text, so rows a second say as much
about it as about the engine; CPU a call is the engine's own. The fixed cost of a start is taken out
by comparing a short run with a long one. Everything is measured in turns in one run of this
script; the ratio is what to trust on a shared machine.

    python bench/engine.py [--repeats 5] [--rows 3000] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec
import orjson
import uvloop

from targen_async import load_task, read_shards
from targen_async.chat.wire import encode_request
from targen_async.parse import outputs_form
from targen_async.records import ChatRequest, Message

IN_FLIGHT = 256
SHORT_ROWS = 300
SERVER_CORE, CLIENT_CORE = {0}, {1}


class Reply(msgspec.Struct):
    choices: list[msgspec.Raw]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def simulator() -> Iterator[tuple[int, str]]:
    """(pid, base URL) of a simulator on its own core."""
    child = subprocess.Popen(
        [sys.executable, "-m", "targen_async.simulator", "--port", "0"], stdout=subprocess.PIPE
    )
    try:
        pin(child.pid, SERVER_CORE)
        assert child.stdout is not None
        port = json.loads(child.stdout.readline())["port"]
        yield child.pid, f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()


def pin(pid: int, cores: set[int]) -> None:
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(pid, cores)


def served(url: str) -> int:
    with urllib.request.urlopen(f"{url}/stats") as answer:
        return int(json.load(answer)["served"])


def engine(url: str, rows: int, out: Path) -> tuple[float, float, int]:
    """(CPU seconds, wall seconds, calls) of one `targen generate` in a process of its own."""
    before = served(url)
    started = time.perf_counter()
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "targen_async.cli", "generate", "copa", "-n", str(rows)),
            *("--model", "targen-simulator", "--base-url", f"{url}/v1", "--out", str(out)),
            *("--max-in-flight", str(IN_FLIGHT), "--contexts", "40", "--quiet"),
        ],
        stdout=subprocess.DEVNULL,
    )
    pin(child.pid, CLIENT_CORE)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"targen generate failed with {child.returncode}")
    wall = time.perf_counter() - started
    return usage.ru_utime + usage.ru_stime, wall, served(url) - before


def bodies(out: Path) -> list[bytes]:
    """The instance calls of a finished run, as they were sent."""
    task = load_task("copa")
    form = outputs_form(tuple(task.instances.outputs))
    made: list[bytes] = []
    for number, row in enumerate(read_shards(out)):
        origin = row.provenance
        variant = row.fields["question"]
        values = {"description": task.description, "seed": origin.seed, "context": origin.context}
        text = task.template("instances", variant).render({**values, **origin.axes})
        request = ChatRequest(
            key=row.key,
            model="targen-simulator",
            messages=(
                Message(role="system", content=task.system),
                Message(role="user", content=text),
            ),
            temperature=1.0,
            max_tokens=task.instances.max_tokens,
            seed=number,
            schema_name=f"copa-instances-{variant}",
            json_schema=form.schema,
        )
        made.append(encode_request(request))
    return made


def bare(url: str, made: list[bytes]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of aiohttp with orjson and msgspec, nothing else, in a child."""
    script = (
        "import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='bare')"
    )
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(orjson.dumps([body.decode() for body in made]))
        file.flush()
        child = subprocess.run(
            [sys.executable, "-c", script, __file__, f"{url}/v1/chat/completions", file.name],
            capture_output=True,
            check=True,
        )
    cpu, wall = orjson.loads(child.stdout)
    return cpu, wall


async def bare_main(url: str, made: list[dict[str, object]]) -> tuple[float, float]:
    decoder = msgspec.json.Decoder(Reply)
    waiting = iter(made)
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def worker() -> None:
            for body in waiting:
                async with session.post(url, data=orjson.dumps(body)) as response:
                    decoder.decode(await response.read())

        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return time.process_time() - cpu, time.perf_counter() - started


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, list[float]] = {
        "engine_cpu_ms_per_call": [],
        "bare_cpu_ms_per_call": [],
        "ratio": [],
        "engine_rows_per_s": [],
        "engine_calls_per_s": [],
        "bare_calls_per_s": [],
        "simulator_answers_per_cpu_s": [],
    }
    with simulator() as (pid, url), tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            short = engine(url, SHORT_ROWS, Path(folder) / f"short{turn}")
            simulated = cpu_seconds(pid)
            long = engine(url, options.rows, Path(folder) / f"long{turn}")
            simulated = cpu_seconds(pid) - simulated
            made = bodies(Path(folder) / f"long{turn}")
            cpu, wall = bare(url, made)
            engine_ms = 1000 * (long[0] - short[0]) / (long[2] - short[2])
            bare_ms = 1000 * cpu / len(made)
            figures["engine_cpu_ms_per_call"].append(engine_ms)
            figures["bare_cpu_ms_per_call"].append(bare_ms)
            figures["ratio"].append(engine_ms / bare_ms)
            figures["engine_rows_per_s"].append(options.rows / long[1])
            figures["engine_calls_per_s"].append(long[2] / long[1])
            figures["bare_calls_per_s"].append(len(made) / wall)
            figures["simulator_answers_per_cpu_s"].append(long[2] / simulated)
    print(f"copa, {options.rows} rows, {IN_FLIGHT} in flight, simulated endpoint, no latency")
    print(f"median of {options.repeats} (lowest-highest)")
    for name, values in figures.items():
        print(f"  {name:30} {spread(values)}")
    if options.json:
        machine = {"python": platform.python_version(), "cores": os.cpu_count()}
        options.json.write_bytes(
            orjson.dumps({"machine": machine, "figures": figures}, option=orjson.OPT_INDENT_2)
        )


if __name__ == "__main__":
    main()
elif __name__ == "bare":
    pin(0, CLIENT_CORE)
    requests = [orjson.loads(body) for body in orjson.loads(Path(sys.argv[2]).read_bytes())]
    print(json.dumps(uvloop.run(bare_main(sys.argv[1], requests))))
