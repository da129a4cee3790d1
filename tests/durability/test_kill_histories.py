"""Kill -9 (and SIGTERM) of real processes again and again, at random moments and at bad ones: in a
group commit, in the middle of a write, at the change of shards, while the manifest is replaced, and
while a start goes on from such an end."""

import os
import random
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.durability.forks import Forks, forks
from tests.durability.world import faults
from tests.running import NOISY, Endpoint, manifest, shard_bytes, simulator, wait_for

COMMON = ("--quiet", "--contexts", 6, "--max-in-flight", 16, "--set", "delivery.rows_per_shard=15")
TASKS: dict[str, tuple[object, ...]] = {
    "copa": ("copa", "-n", 60),
    "boolq": ("boolq", "-n", 40, "--votes", 3),
    "axg": ("axg", "-n", 40),
}
BLOWS = (
    {"call": "fdatasync", "name": "journal", "most": 12},
    {"call": "pwrite", "name": "journal", "most": 150, "half": True},
    {"call": "pwrite", "name": "instances-", "most": 12, "half": True},
    {"call": "ftruncate", "name": "instances-", "most": 4},
    {"call": "open", "name": "instances-", "most": 4},
    {"call": "fdatasync", "name": "instances-", "most": 6},
    {"call": "replace", "name": "manifest.json", "most": 2},
    {"call": "fsync", "name": "manifest.json", "most": 2},
    {"call": "replace", "name": "run.toml", "most": 1},
    {"call": "fsync", "name": "run", "most": 6},
)
"""Calls to the system that are bad to die in, and how often a run makes them at most."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with simulator(**NOISY, latency_ms=8, latency_sigma=1.0) as one:
        yield one


@pytest.fixture(scope="module")
def starter() -> Iterator[Forks]:
    with forks() as one:
        yield one


@pytest.fixture(scope="module")
def whole(
    endpoint: Endpoint, starter: Forks, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[bytes, float, int]]:
    """Of each task the rows of an unbroken run, its seconds, and the calls it had served."""
    told = {}
    for name in TASKS:
        out = tmp_path_factory.mktemp("whole") / name
        began = time.monotonic()
        assert starter.wait(starter.start(*_command(name, endpoint, out))) == 0
        seconds = time.monotonic() - began
        told[name] = (shard_bytes(out), seconds, manifest(out)["calls"]["served"])
    return told


def _command(name: str, endpoint: Endpoint, out: Path) -> tuple[object, ...]:
    return ("generate", *TASKS[name], *COMMON, *endpoint.flags, "--out", out)


def ended(starter: Forks, command: tuple[object, ...], span_s: float, luck: random.Random) -> bool:
    """One start that ends in one way or another. True: it was killed."""
    way = luck.choice(["moment", "moment", "term", "blow", "blow", "blow"])
    if way == "blow":
        chosen: dict[str, Any] = luck.choice(BLOWS)
        when = luck.choice(["before", "after", *(["half"] if chosen.get("half") else [])])
        number = luck.randint(1, chosen["most"])
        blow = {"call": chosen["call"], "name": chosen["name"], "number": number, "when": when}
        return starter.wait(starter.start(*command, blow=blow)) == -signal.SIGKILL
    process = starter.start(*command)
    # A quarter of the moments lie in the first fifth: opening and going on from before.
    time.sleep(span_s * (luck.random() * (0.2 if luck.random() < 0.25 else 1.0)))
    os.kill(process, signal.SIGTERM if way == "term" else signal.SIGKILL)
    code = starter.wait(process)
    # Before the command listens to signals, the system's own way is as good.
    assert code in (0, 130, -signal.SIGTERM if way == "term" else -signal.SIGKILL)
    return code == -signal.SIGKILL


def check_history(
    seed: int, endpoint: Endpoint, starter: Forks, whole: dict[str, Any], place: Path
) -> None:
    luck = random.Random(seed)
    name = luck.choice(list(TASKS))
    rows, seconds, unbroken = whole[name]
    wait_for(lambda: not endpoint.stats()["in_flight"])
    reset = urllib.request.Request(f"http://127.0.0.1:{endpoint.port}/stats/reset", method="POST")
    urllib.request.urlopen(reset, timeout=10).close()
    command = _command(name, endpoint, place)
    kills = sum(ended(starter, command, seconds, luck) for _ in range(luck.randint(1, 4)))
    assert starter.wait(starter.start(*command)) == 0
    wait_for(lambda: not endpoint.stats()["in_flight"])
    served, calls = endpoint.stats()["served"], manifest(place)["calls"]
    assert shard_bytes(place) == rows
    assert calls["served"] <= served <= calls["served"] + calls["in_doubt"]
    assert calls["in_doubt"] <= 16 * kills
    assert served <= unbroken + 16 * (kills + 1), "answers in the journal were asked for again"
    assert faults(place) == []


@pytest.mark.parametrize("again", [False, True], ids=["at first", "as it goes on"])
def test_every_bad_moment_is_died_in(
    endpoint: Endpoint, starter: Forks, whole: dict[str, Any], tmp_path: Path, again: bool
) -> None:
    """Chance may miss one: each blow is struck here, in a first start and in one that goes on."""
    for number, one in enumerate(BLOWS):
        place = tmp_path / str(number)
        command = _command("copa", endpoint, place)
        if again:
            first = {"call": "fdatasync", "name": "instances-", "number": 1, "when": "after"}
            assert starter.wait(starter.start(*command, blow=first)) == -signal.SIGKILL
        when = "half" if one.get("half") else "before"
        blow = {"call": one["call"], "name": one["name"], "number": 1, "when": when}
        assert starter.wait(starter.start(*command, blow=blow)) == -signal.SIGKILL, one
        assert starter.wait(starter.start(*command)) == 0, one
        assert shard_bytes(place) == whole["copa"][0], one
        assert faults(place) == [], one


def _tried(
    seeds: range, endpoint: Endpoint, starter: Forks, whole: dict[str, Any], tmp_path: Path
) -> None:
    for seed in seeds:
        place = tmp_path / str(seed)
        try:
            check_history(seed, endpoint, starter, whole, place)
        except AssertionError as error:
            raise AssertionError(f"history {seed}") from error
        shutil.rmtree(place)


def test_20_histories_of_kills_end_in_the_same_rows(
    endpoint: Endpoint, starter: Forks, whole: dict[str, Any], tmp_path: Path
) -> None:
    _tried(range(20), endpoint, starter, whole, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_200_histories_of_kills_end_in_the_same_rows(
    endpoint: Endpoint, starter: Forks, whole: dict[str, Any], tmp_path: Path
) -> None:
    _tried(range(100, 300), endpoint, starter, whole, tmp_path)
