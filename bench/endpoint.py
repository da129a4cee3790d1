"""The endpoint of the benchmarks as a child process, and what it has seen."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]
SCRIPT = Path(__file__).with_name("chat_server.py")


@contextmanager
def endpoint(*flags: object) -> Iterator[str]:
    """Base URL of a server with these flags, pinned to a core of its own where there are two."""
    command = [sys.executable, str(SCRIPT), "--core", str(SERVER_CORE), *map(str, flags)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{json.loads(child.stdout.readline())['port']}/v1"
    finally:
        child.kill()
        child.wait()


def stats(url: str) -> dict[str, Any]:
    """The endpoint's counters."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats") as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def on_client_core(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a client to its end on the client's core. SystemExit with its words when it fails."""
    pinned = ["taskset", "-c", str(CLIENT_CORE), *command]
    done = subprocess.run(pinned, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done
