"""How much of what an endpoint allows is used, and how much is refused: real HTTP on loopback.

Each run starts the simulator with limits, as a process of its own, and one or two clients that ask
without a pause, in processes of their own as well. The share is what was served of what the limit
that binds did allow: its burst once and its rate all the time. After a change of the limits 20 s
are left out; refusals are given for the whole run and for what comes after its first 20 s. Several
runs go on side by side, as each is mostly waiting.

    python bench/limits.py [--only WORD] [--at-once 6] [--json FILE]
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from targen_async.chat.http import HttpChat
from targen_async.chat.lease import Lease
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Retrying
from targen_async.errors import RateLimited
from targen_async.records import ChatRequest, ChatResult, Message

REQUESTS, TOKENS = 600.0, 200_000.0
LEFT_OUT_S = 20.0
LATENCY_MS = 200
WORDS = {"requests": 40, "tokens": 500}
"""Length of a prompt, so that the one limit binds or the other."""


@dataclass(frozen=True)
class Run:
    """One line of the table.

    `base`: part of the rates that holds at first; `change`: factor from the middle on.
    """

    binds: str
    burst_s: float
    headers: bool
    processes: int = 1
    declared: bool = True
    base: float = 1.0
    change: float | None = None
    seconds: float = 80.0

    @property
    def declared_share(self) -> float:
        """A rate that is declared is never exceeded, so it is the one that it rises to."""
        return self.base * max(self.change or 1.0, 1.0)

    @property
    def name(self) -> str:
        words = [self.binds, f"burst {self.burst_s:g} s", "headers" if self.headers else "silent"]
        words.append(f"{self.processes} process{'es' if self.processes > 1 else ''}")
        words += [] if self.declared else ["undeclared"]
        words += [f"{self.base:g} of the rates"] if self.base != 1 else []
        words += [f"rates x {self.change:g}"] if self.change else []
        return ", ".join(words)


def all_runs() -> list[Run]:
    """Every combination of the plain ones; changes and odd sizes for some."""
    bursts = (1.0, 10.0, 60.0)
    plain = [
        Run(binds, burst_s, headers, processes)
        for binds in WORDS
        for burst_s in bursts
        for headers in (True, False)
        for processes in (1, 2)
    ]
    changes = [
        Run("requests", 10.0, headers, processes, change=change, seconds=300.0)
        for change in (0.5, 2.0)
        for headers in (True, False)
        for processes in (1, 2)
    ]
    slow = [
        Run("requests", 10.0, False, processes, base=0.5, change=2.0, seconds=300.0)
        for processes in (1, 2)
    ]
    odd = [
        Run("requests", 600.0, True),
        Run("requests", 600.0, False),
        Run("requests", 600.0, False, declared=False),
        Run("requests", 10.0, True, declared=False),
        Run("requests", 10.0, False, declared=False),
        Run("requests", 10.0, False, 2, declared=False),
    ]
    return [*changes, *slow, *plain, *odd]


# ---- the clients


class Noting:
    """Remembers when the endpoint served and refused, and how many tokens it counted."""

    def __init__(self, inner: HttpChat) -> None:
        self.inner = inner
        self.served: list[tuple[float, int]] = []
        self.refused: list[float] = []

    async def complete(self, request: ChatRequest) -> ChatResult:
        sent_s = time.monotonic()
        try:
            result = await self.inner.complete(request)
        except RateLimited:
            self.refused.append(sent_s)
            raise
        usage = result.usage
        self.served.append((sent_s, usage.prompt_tokens + usage.completion_tokens if usage else 0))
        return result


async def client(url: str, run: Run) -> None:
    """Ask without a pause until the time is over; print what happened as JSON."""
    start = json.loads(sys.stdin.readline())
    rates = {
        "requests_per_minute": REQUESTS * run.declared_share,
        "tokens_per_minute": TOKENS * run.declared_share,
    }
    lease = Lease(url, "key") if run.processes > 1 else None
    timeouts = {"connect_timeout_s": 10.0, "read_timeout_s": 30.0, "total_timeout_s": 60.0}
    breaker = Breaker(give_up_after_s=600)
    text = "word " * WORDS[run.binds]
    numbers = iter(range(10**9))
    async with HttpChat(url, "key", recorder=None, max_in_flight=64, **timeouts) as http:
        noting = Noting(http)
        limited = Limited(
            noting,
            gate=breaker.check,
            max_in_flight=64,
            adaptive=True,
            lease=lease,
            **(rates if run.declared else {}),
        )
        chat = Retrying(limited, breaker=breaker)

        async def worker() -> None:
            for number in numbers:
                message = Message(role="user", content=f"{number} {text}")
                await chat.complete(
                    ChatRequest(
                        key=f"bench/{number}",
                        model="targen-simulator",
                        messages=(message,),
                        temperature=0.0,
                        max_tokens=100,
                        seed=number,
                    )
                )

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(start + run.seconds - time.monotonic()):
                await asyncio.gather(*(worker() for _ in range(100)))
    if lease is not None:
        lease.release()
    print(json.dumps({"served": noting.served, "refused": noting.refused}))


# ---- one run


@contextmanager
def simulator(run: Run) -> Iterator[str]:
    """Base URL of a simulator with this run's limits."""
    settings = {
        "requests_per_minute": REQUESTS * run.base,
        "tokens_per_minute": TOKENS * run.base,
        "burst_s": run.burst_s,
        "rate_headers": run.headers,
        "latency_ms": LATENCY_MS,
        "latency_sigma": 0.3,
        "limit_changes": [],
    }
    if run.change:
        after = run.base * run.change
        settings["limit_changes"] = [
            {
                "at_s": run.seconds / 2,
                "requests_per_minute": REQUESTS * after,
                "tokens_per_minute": TOKENS * after,
            }
        ]
    command = [sys.executable, "-m", "targen_async.simulator", "--settings", json.dumps(settings)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{json.loads(child.stdout.readline())['port']}/v1"
    finally:
        child.kill()
        child.wait()


def measure(run: Run) -> dict[str, object]:
    """The figures of one run."""
    with simulator(run) as url:
        command = [sys.executable, __file__, "--client", url, json.dumps(asdict(run))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        children = [subprocess.Popen(command, **pipes) for _ in range(run.processes)]
        start = time.monotonic() + 2
        for child in children:
            child.stdin.write(f"{start}\n")
            child.stdin.flush()
        told = [json.loads(child.communicate()[0]) for child in children]
    served = sorted(tuple(each) for one in told for each in one["served"])
    refused = [when for one in told for when in one["refused"]]
    begin = min(served[0][0], *refused) if refused else served[0][0]
    tokens = sum(each for _, each in served) / len(served)
    per_s = min(REQUESTS, TOKENS / tokens) / 60
    end = start + run.seconds - begin
    half = run.seconds / 2
    spans = [(0.0, end, run.base)]
    if run.change:
        after = run.base * run.change
        spans = [(0.0, half, run.base), (half + LEFT_OUT_S, end, after)]
    shares, refusals = [], []
    for since, until, scale in spans:
        allowed = per_s * scale * (until - since + (0 if since else run.burst_s))
        got = sum(since <= when - begin < until for when, _ in served)
        no = sum(since <= when - begin < until for when in refused)
        shares.append(round(got / allowed, 4))
        refusals.append(round(no / (got + no), 5))
    late = sum(when - begin >= LEFT_OUT_S for when in refused)
    settled = round(late / (late + sum(when - begin >= LEFT_OUT_S for when, _ in served)), 5)
    each = [len(one["served"]) for one in told]
    line = f"{run.name:66s} share {shares} refused {refusals}"
    line += "" if run.change else f" (after the start {settled})"
    print(f"{line} served {each}", file=sys.stderr, flush=True)
    found = {"share": shares, "refused": refusals, "served": each}
    if not run.change:
        found["refused_after_the_start"] = settled
    return {**asdict(run), "name": run.name, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.client:
        uvloop.run(client(args.client[0], Run(**json.loads(args.client[1]))))
        return
    runs = [run for run in all_runs() if args.only in run.name]
    with ThreadPoolExecutor(args.at_once) as pool:
        rows = list(pool.map(measure, runs))
    found = {
        "requests_per_minute": REQUESTS,
        "tokens_per_minute": TOKENS,
        "latency_ms": LATENCY_MS,
        "left_out_s": LEFT_OUT_S,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "runs": rows,
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
