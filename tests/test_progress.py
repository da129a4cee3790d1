"""The figures of a run: what was spent in the last minute is what was spent, and no more."""

import json
import subprocess
from pathlib import Path

from targen_async.chat.cost import LastMinute
from tests.running import command, simulator


def test_a_burst_is_told_as_what_it_was() -> None:
    spent = LastMinute()
    for _ in range(50):
        spent.add(1000.2, 1.0)
    assert spent.per_minute(1000.3) == spent.per_minute(1004.0) == 50
    for second in range(1, 120):
        spent.add(1000.2 + second, 10.0)
    assert spent.per_minute(1119.9) == 600
    assert spent.per_minute(1130.0) == 490
    assert spent.per_minute(1300.0) == 0
    assert LastMinute().per_minute(5.0) == 0


def test_no_more_is_told_than_was_sent(tmp_path: Path) -> None:
    """A server's burst of a minute goes out within seconds: it is no rate of its own."""
    with simulator(latency_ms=100, requests_per_minute=600, burst_s=10) as server:
        words = command("generate", "copa", "-n", 120, *server.flags, "--out", tmp_path / "run")
        done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        served = server.stats()
    ticks = [one for one in told if one["kind"] == "progress" and one["limits"]]
    assert done.returncode == 0 and ticks, done.stderr
    limits = [tick["limits"][0] for tick in ticks if tick["elapsed_s"] < 60]
    most = max(limit["requests_per_minute"] for limit in limits)
    assert 0 < most <= served["served"] + served["rejected_429"]
    tokens = max(limit["tokens_per_minute"] for limit in limits)
    usage = told[-1]["manifest"]["spent"]
    assert 0 < tokens <= usage["prompt_tokens"] + usage["completion_tokens"]
