"""How much of a declared rate is used, and how much is refused, at 3,000 calls or 300,000 tokens
a minute.

The server counts on arrival, in token buckets whose burst nobody is told of; the client asks
without a pause. The share is what was served of what the limit did allow: its burst once and its
rate all the time. Where the limit is halved or doubled half way through, the 20 s after that are
left out, and the halves are told apart; the first 20 s of such a run as well, as a rate that will
be doubled is declared too high at first. `limits.py` has more regimes, two processes among them.

    python bench/fidelity.py [--only WORD] [--at-once 4] [--seconds 120] [--json FILE]
"""

import argparse
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from asking import Noted, ask
from endpoint import endpoint

RATES = {"requests": 3000.0, "tokens": 300_000.0}
"""A minute."""
BURSTS = {"requests": (50, 3000), "tokens": (5000, 300_000)}
IN_FLIGHT = 256
LATENCY_MS = 200
LEFT_OUT_S = 20.0
STILL_OUT_S = 1.0
"""At the end: what the server let through then is not answered when the client stops."""


@dataclass(frozen=True)
class Run:
    """One line of the table. `change`: factor of the rate from the middle on."""

    binds: str
    burst: int
    headers: bool
    change: float = 1.0

    @property
    def name(self) -> str:
        words = f"{self.binds}, burst {self.burst}, {'headers' if self.headers else 'silent'}"
        return words + (f", rate x {self.change:g}" if self.change != 1 else "")

    @property
    def declared(self) -> float:
        """A rate that is declared is never exceeded, so it is the one that it rises to."""
        return RATES[self.binds] * max(1.0, self.change)


def all_runs() -> list[Run]:
    plain = [Run(b, burst, h) for b in BURSTS for burst in BURSTS[b] for h in (True, False)]
    changes = [
        Run(b, BURSTS[b][0], h, change)
        for b in BURSTS
        for change in (0.5, 2.0)
        for h in (True, False)
    ]
    return plain + changes


async def client(url: str, run: Run, seconds: float) -> Noted:
    luck = random.Random(1)
    # Log-uniform: from some 70 tokens to 2,500, half of the small burst.
    words = [round(20 * 100 ** luck.random()) for _ in range(1009)]

    def text(number: int) -> str:
        return f"{number} " + "word " * (words[number % 1009] if run.binds == "tokens" else 20)

    rates = {f"{run.binds}_per_minute": run.declared}
    return await ask(url, seconds, text, IN_FLIGHT, adaptive=True, **rates)


def measure(run: Run, seconds: float) -> dict[str, object]:
    """The figures of one run: shares and refusals, of each span where the rate changes."""
    seconds *= 1 if run.change == 1 else 2
    limit, burst = ("--rpm", "--burst-requests")
    if run.binds == "tokens":
        limit, burst = ("--tpm", "--burst-tokens")
    flags = ["--latency-ms", LATENCY_MS, limit, RATES[run.binds], burst, run.burst]
    flags += ["--rate-headers"] if run.headers else []
    flags += ["--change-at-s", seconds / 2, "--change-by", run.change] if run.change != 1 else []
    with endpoint(*flags) as url:
        command = [sys.executable, __file__, "--client", url, json.dumps(asdict(run))]
        command += ["--seconds", str(seconds)]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    end = seconds - STILL_OUT_S
    spans = [(0.0, end, 1.0)]
    if run.change != 1:
        after = seconds / 2 + LEFT_OUT_S
        spans = [(LEFT_OUT_S, seconds / 2, 1.0), (after, end, run.change)]
    shares, refusals = [], []
    for since, until, scale in spans:
        allowed = RATES[run.binds] / 60 * scale * (until - since) + (0 if since else run.burst)
        sent = [tokens for sent_s, _, tokens in told["served"] if since <= sent_s < until]
        refused = sum(since <= sent_s < until for sent_s in told["refused"])
        got = len(sent) if run.binds == "requests" else sum(sent)
        shares.append(got / allowed)
        refusals.append(refused / (refused + len(sent)))
    line = " ".join(f"{s:8.4f}" for s in shares), " ".join(f"{r:8.5f}" for r in refusals)
    print(f"{run.name:44} share {line[0]:18} refused {line[1]}", flush=True)
    return {**asdict(run), "name": run.name, "share": shares, "refused": refusals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        url, run = options.client
        noted = uvloop.run(client(url, Run(**json.loads(run)), options.seconds))
        print(json.dumps(asdict(noted)))
        return
    runs = [run for run in all_runs() if options.only in run.name]
    with ThreadPoolExecutor(options.at_once) as pool:
        found = list(pool.map(lambda run: measure(run, options.seconds), runs))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
