"""What end-to-end tests share: a real simulator process, the real command, and what they leave."""

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

NOISY = {
    "label_noise": 0.1,
    "corrector_error": 0.02,
    "malformed": 0.05,
    "missing_ids": 0.05,
    "error_rate": 0.02,
}
MODEL = ("--model", "targen-simulator")


class Endpoint:
    """A simulator in a process of its own."""

    def __init__(self, child: "subprocess.Popen[bytes]", port: int) -> None:
        self.child = child
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as answer:
            return json.load(answer)

    @property
    def flags(self) -> tuple[str, ...]:
        return (*MODEL, "--base-url", self.url)


@contextmanager
def simulator(port: int = 0, **settings: object) -> Iterator[Endpoint]:
    command = [sys.executable, "-m", "targen_async.simulator", "--port", str(port)]
    command += ["--settings", json.dumps(settings)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        yield Endpoint(child, json.loads(child.stdout.readline())["port"])
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "targen_async.cli", *map(str, arguments)]


def targen(
    *arguments: object, timeout_s: float = 120, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end. No key of the developer's own gets in."""
    clean = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=clean | environment,
        check=False,
    )


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Look every few milliseconds; machines are of all speeds, so no test sleeps for a start."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def manifest(out: Path) -> dict[str, Any]:
    return orjson.loads((out / "manifest.json").read_bytes())


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for shard in sorted(out.glob("instances-*.jsonl")) for row in lines(shard)]


def shard_bytes(out: Path) -> bytes:
    return b"".join(shard.read_bytes() for shard in sorted(out.glob("instances-*.jsonl")))


def digest(out: Path) -> str:
    return hashlib.sha256(shard_bytes(out)).hexdigest()
