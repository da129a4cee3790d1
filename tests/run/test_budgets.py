"""The real command under a cap: faults, votes and kill -9, and the server's own count."""

import json
import random
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_stops import serving
from tests.running import NOISY, Endpoint, command, manifest, simulator, targen

PROMPT_USD, COMPLETION_USD = 2.0, 8.0
PRICES = (
    "--set",
    f"delivery.prices.usd_per_million_prompt_tokens={PROMPT_USD}",
    "--set",
    f"delivery.prices.usd_per_million_completion_tokens={COMPLETION_USD}",
)
FAULTS: dict[str, Any] = {
    **NOISY,
    "reset_rate": 0.08,
    "error_rate": 0.1,
    "truncation": 0.03,
    "latency_ms": 30,
    "latency_sigma": 0.7,
}


def counted(endpoint: Endpoint, cap: str) -> float:
    """What the server has served, in the unit of the cap, once nothing is in flight."""
    told = endpoint.stats()
    for _ in range(200):
        if not told["in_flight"]:
            break
        time.sleep(0.05)
        told = endpoint.stats()
    prompt, completion = told["prompt_tokens"], told["completion_tokens"]
    usd = (prompt * PROMPT_USD + completion * COMPLETION_USD) / 1e6
    return {"tokens": prompt + completion, "usd": usd, "requests": told["served"]}[cap]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "task", "cap", "amount"),
    [
        (1, "copa", "tokens", 60_000),
        (2, "rte", "tokens", 9_000),
        (3, "cb", "usd", 0.25),
        (4, "axg", "requests", 60),
    ],
)
def test_the_cap_holds_through_faults_votes_and_kills(
    tmp_path: Path, seed: int, task: str, cap: str, amount: float
) -> None:
    moments = random.Random(seed)
    with simulator(**FAULTS, random_seed=seed) as endpoint:
        flags = (task, "-n", 200, "--votes", 3, "--contexts", 10, "--quiet", *endpoint.flags)
        flags += (
            *PRICES,
            "--max-in-flight",
            16,
            "--set",
            f"delivery.budget.max_{cap}={amount}",
            "--out",
            tmp_path / "run",
        )
        for _ in range(3):
            run = subprocess.Popen(
                command("generate", *flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                run.wait(moments.uniform(0.8, 1.8))
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                run.wait()
            assert counted(endpoint, cap) <= amount
        end = targen("generate", *flags)
        assert end.returncode == 1
        assert "the budget of" in end.stderr and f"raise --max-{cap}" in end.stderr
        used = counted(endpoint, cap)
        assert 0 < used <= amount
        again = targen("generate", *flags)
        assert (again.returncode, counted(endpoint, cap)) == (1, used), "it asks nothing more"


def test_a_run_that_stopped_at_its_cap_goes_on_when_that_is_raised(tmp_path: Path) -> None:
    with simulator() as endpoint:
        flags = ("copa", "-n", 40, "--contexts", 10, "--quiet", *endpoint.flags)
        flags += ("--max-in-flight", 4, "--out", tmp_path / "run")
        stopped = targen("generate", *flags, "--set", "delivery.budget.max_tokens=20000")
        assert stopped.returncode == 1
        assert "raise --max-tokens and start the same command again" in stopped.stderr
        told = manifest(tmp_path / "run")
        assert told["state"] == "stopped" and "the budget of 20,000 tokens" in told["reason"]
        used = counted(endpoint, "tokens")
        assert 0.6 * 20_000 < used <= 20_000, "what is there is used"
        done = targen("generate", *flags, "--set", "delivery.budget.max_tokens=500000")
        assert done.returncode == 0, done.stderr
        assert manifest(tmp_path / "run")["calls"]["served"] == endpoint.stats()["served"]


def test_a_cap_in_dollars_without_a_price_is_a_mistake_and_leaves_nothing(tmp_path: Path) -> None:
    with simulator() as endpoint:
        flags = ("copa", *endpoint.flags, "--out", tmp_path / "run")
        flags += ("--set", "delivery.budget.max_usd=1")
        done = targen("generate", *flags)
        assert done.returncode == 2
        assert "`max_usd` cannot bind: what 'targen-simulator' costs is not known" in done.stderr
        assert endpoint.stats()["served"] == 0
    assert not (tmp_path / "run").exists()


# ---- an endpoint that does not count


def uncounted(endpoint: Endpoint, *, every: int) -> Callable[[dict[str, Any]], tuple[int, bytes]]:
    """The simulator's answers, with usage left out of every so manieth."""
    served = 0

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        nonlocal served
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{endpoint.url}/chat/completions", data)
        with urllib.request.urlopen(request, timeout=30) as reply:
            told = json.load(reply)
        served += 1
        if served % every == 0:
            del told["usage"]
        return 200, json.dumps(told).encode()

    return answer


def test_what_was_not_counted_costs_at_most_what_the_budget_charges(tmp_path: Path) -> None:
    """And not $0.0000."""
    out = tmp_path / "run"
    flags = ("copa", "-n", 20, "--contexts", 10, "--model", "targen-simulator", *PRICES)
    with simulator() as endpoint, serving(uncounted(endpoint, every=1)) as (url, _):
        done = targen("generate", *flags, "--base-url", url, "--out", out, "--max-usd", 0.2)
    spent = re.search(r"the budget of \$0.20? is used up: \$([\d.]+) spent", done.stderr)
    assert done.returncode == 1 and spent is not None, done.stderr
    told = manifest(out)
    assert told["usd_at_most"] == pytest.approx(float(spent[1]), rel=1e-3)
    assert told["spent"]["usd"] is told["wasted"]["usd"] is None
    for text in (done.stdout, targen("status", out).stdout):
        if "cost " in text:
            most = f"{told['usd_at_most']:.4f}"
            assert f"not known, as answers came without a count of tokens; at most ${most}" in text
    assert "cost " in targen("status", out).stdout
    assert targen("verify", out).returncode == 0


def test_one_answer_without_a_count_is_enough_for_a_cost_that_is_not_known(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("copa", "-n", 20, "--contexts", 10, "--model", "targen-simulator", *PRICES, "--json")
    with simulator() as endpoint, serving(uncounted(endpoint, every=9)) as (url, _):
        done = targen("generate", *flags, "--base-url", url, "--out", out)
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    told = end["manifest"]
    assert 0 < told["calls"]["served_without_usage"] < told["calls"]["served"]
    assert told["spent"]["usd"] is None and told["spent"]["prompt_tokens"] > 0
    counted_usd = (
        told["spent"]["prompt_tokens"] * PROMPT_USD
        + told["spent"]["completion_tokens"] * COMPLETION_USD
    ) / 1e6
    assert told["usd_at_most"] > counted_usd
    assert f"at most ${told['usd_at_most']:.4f}" in targen("status", out).stdout
    assert targen("verify", out).returncode == 0
    # Where all was counted, there is nothing to be in two minds about.
    with simulator() as endpoint:
        done = targen("generate", *flags, "--base-url", endpoint.url, "--out", tmp_path / "two")
    told = json.loads(done.stdout.splitlines()[-1])["manifest"]
    assert told["spent"]["usd"] == pytest.approx(told["usd_at_most"])
