"""The adaptive limit against the best fixed number in flight, at a server of limited capacity.

The server answers in 500 ms while at most C calls are in flight, in proportion slower above that,
and with 503 past 2C: so C in flight are best, and the client is not told. It is asked without a
pause, with the adaptive limit and with each of a few fixed numbers; throughput and the 99th
percentile of latency are of the second half of the time, once the limit has settled.

    python bench/adaptive.py [--capacity 8 64 512] [--seconds 60] [--json FILE]
"""

import argparse
import json
import sys
from pathlib import Path

import uvloop
from asking import ask
from endpoint import endpoint, on_client_core

LATENCY_MS = 500
FIXED = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Of C."""
TEXT = "word " * 200


async def client(url: str, in_flight: int, seconds: float, *, adaptive: bool) -> dict[str, float]:
    """What one limit achieves."""
    noted = await ask(url, seconds, lambda _number: TEXT, in_flight, adaptive=adaptive)
    late = sorted(
        done_s - sent_s for sent_s, done_s, _ in noted.served if seconds / 2 <= done_s <= seconds
    )
    return {
        "per_s": len(late) / (seconds / 2),
        "p99_s": late[int(0.99 * len(late))] if late else float("inf"),
        "refused": len(noted.refused) / (len(noted.refused) + len(noted.served)),
        "settled_at": noted.most_in_flight,
    }


def measure(capacity: int, in_flight: int, seconds: float, *, adaptive: bool) -> dict[str, float]:
    """One run in a process of its own."""
    with endpoint("--latency-ms", LATENCY_MS, "--capacity", capacity) as url:
        command = [sys.executable, __file__, "--client", url, str(in_flight), str(seconds)]
        done = on_client_core([*command, "1" if adaptive else "0"])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(capacity: int, seconds: float) -> dict[str, object]:
    """The adaptive limit, allowed four times the capacity, beside fixed numbers."""
    numbers = [round(share * capacity) for share in FIXED]
    fixed = {one: measure(capacity, one, seconds / 2, adaptive=False) for one in numbers}
    most = max(each["per_s"] for each in fixed.values())
    # The fewest in flight that serve as many: more only wait longer.
    best = min(number for number, each in fixed.items() if each["per_s"] >= 0.99 * most)
    free = measure(capacity, 4 * capacity, seconds, adaptive=True)
    return {
        "capacity": capacity,
        "adaptive": free,
        "fixed": fixed,
        "best_fixed": best,
        "throughput": free["per_s"] / fixed[best]["per_s"],
        "p99": free["p99_s"] / fixed[best]["p99_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capacity", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        url, in_flight, seconds, adaptive = options.client
        work = client(url, int(in_flight), float(seconds), adaptive=adaptive == "1")
        print(json.dumps(uvloop.run(work)))
        return
    found = [compare(capacity, options.seconds) for capacity in options.capacity]
    print(f"{'C':>5} {'best fixed':>11} {'x throughput':>13} {'x p99':>7} {'settled at':>11} 503s")
    for one in found:
        free = one["adaptive"]
        print(
            f"{one['capacity']:>5} {one['best_fixed']:>11} {one['throughput']:>13.3f} "
            f"{one['p99']:>7.2f} {free['settled_at']:>11.0f} {100 * free['refused']:.2f} %"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
