"""What a call costs the client: CPU seconds per 1,000 calls and calls a second, ours and others.

All clients make the same one-call rows against `chat_server.py` on another core, in turns, several
rounds over. The endpoint's latency is such that the ideal rate is the same at any concurrency.
Ratios are taken within a round, as machines are shared; CPU is of the client's process and its
children, without start, imports and a warm-up.

    python bench/overhead.py [--rounds 5] [--clients ours bare_aiohttp] [--json FILE]
    python bench/peers/setup.py    # virtual environments of the other clients
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from endpoint import endpoint, on_client_core, stats

HERE = Path(__file__).resolve().parent
IDEAL_PER_S = 5120
FLOOR = "bare_aiohttp"
CALLS = {
    "ours": 10_000,
    "ours_near": 5_000,
    "bare_aiohttp": 20_000,
    "raw_protocol": 40_000,
    "openai_sdk": 1_500,
    "curator_rows": 1_500,
    "data_designer_rows": 600,
    "langchain_calls": 200,
}
"""So that each takes seconds. `ours_near` looks for near duplicates too, as the default does."""
QUICK = ("ours", "ours_near", "bare_aiohttp", "openai_sdk")
FLAGS = {"ours_near": ["--near", "0.8"]}
SCRIPTS = {"ours_near": "ours"}
SEQUENTIAL = ("langchain_calls",)
"""One call after another, however many might be in flight."""

Figures = dict[str, list[dict[str, float]]]


def interpreter(client: str) -> str | None:
    """The Python of a client's own environment; ours and the floor use this one. None: not made."""
    if client in ("ours", "ours_near", FLOOR, "raw_protocol"):
        return sys.executable
    python = HERE / ".venvs" / client / "bin" / "python"
    return str(python) if python.exists() else None


def measure(client: str, in_flight: int, calls: int) -> dict[str, float]:
    """One client's figures of one round. SystemExit when it made other calls than it says."""
    python = interpreter(client)
    assert python is not None
    script = HERE / "peers" / f"{SCRIPTS.get(client, client)}.py"
    latency_ms = 1000 * in_flight / IDEAL_PER_S
    with endpoint("--latency-ms", latency_ms) as url:
        command = [python, str(script), url, str(calls), str(in_flight), *FLAGS.get(client, [])]
        told: dict[str, Any] = json.loads(on_client_core(command).stdout.splitlines()[-1])
        seen = stats(url)
    # Warm-up included, and what a client asks beside its rows.
    if not calls <= seen["served"] <= 1.2 * calls + 100:
        raise SystemExit(f"{client} had {seen['served']} answers for {calls} calls")
    return {
        "cpu_s_per_1000": 1000 * told["cpu_s"] / told["calls"],
        "calls_per_s": told["calls"] / told["wall_s"],
        "peak_mb": told["peak_mb"],
        "in_flight_seen": seen["most_in_flight"],
        "server_cpu_s_per_1000": 1000 * seen["cpu_s"] / seen["served"],
    }


def compare(clients: list[str], in_flight: int, rounds: int, scale: float) -> Figures:
    """Every client's figures, round by round; the last keys are ratios to the floor's."""
    found: Figures = {client: [] for client in clients}
    for number in range(rounds):
        # Another order each round, so that nobody always comes after the same one.
        for client in clients[number % len(clients) :] + clients[: number % len(clients)]:
            calls = max(50, round(CALLS[client] * scale))
            found[client].append(measure(client, in_flight, calls))
            print(f"round {number + 1} {client} {found[client][-1]}", file=sys.stderr, flush=True)
        if FLOOR in found:
            floor = found[FLOOR][-1]["cpu_s_per_1000"]
            for figures in found.values():
                figures[-1]["times_floor"] = figures[-1]["cpu_s_per_1000"] / floor
    return found


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    least, most = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"


def table(found: Figures, in_flight: int) -> str:
    lines = [
        f"{in_flight} in flight; median (least-most)",
        f"{'client':14} {'CPU s per 1,000 calls':26} {'x bare aiohttp':22} "
        f"{'calls/s':22} {'peak MB':>8}",
    ]
    for client, rows in found.items():
        cells = [
            f"{spread([row['cpu_s_per_1000'] for row in rows], 3):26}",
            f"{spread([row['times_floor'] for row in rows]) if FLOOR in found else '':22}",
            f"{spread([row['calls_per_s'] for row in rows], 0):22}",
            f"{max(row['peak_mb'] for row in rows):8.0f}",
        ]
        lines.append(f"{client:14} " + " ".join(cells))
    return "\n".join(lines)


def growth(narrow: Figures, wide: Figures) -> dict[str, list[float]]:
    """By how much CPU a call grows from the one concurrency to the other, round by round."""
    return {
        client: [
            b["cpu_s_per_1000"] / a["cpu_s_per_1000"]
            for a, b in zip(narrow[client], wide[client], strict=True)
        ]
        for client in wide
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", nargs="+", choices=list(CALLS), default=list(QUICK))
    parser.add_argument("--in-flight", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the calls made")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    clients = [client for client in options.clients if interpreter(client)]
    for client in set(options.clients) - set(clients):
        print(f"{client}: no environment, run bench/peers/setup.py {client}", file=sys.stderr)
    found: dict[int, Figures] = {}
    for in_flight in options.in_flight:
        wide = [client for client in clients if in_flight == 256 or client not in SEQUENTIAL]
        found[in_flight] = compare(wide, in_flight, options.rounds, options.scale)
        print(table(found[in_flight], in_flight), flush=True)
    if {256, 1024} <= found.keys():
        for client, values in growth(found[256], found[1024]).items():
            print(f"{client:14} CPU a call, 1,024 to 256 in flight: x {spread(values)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
