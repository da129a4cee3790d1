"""Real processes that start at once: a parent that has everything loaded forks for each command.

Run as a script it reads one JSON request a line and answers each with one line:
{"start": [arguments], "blow": {…}} with the child's process id, {"wait": id} with its exit code, as
`os.waitstatus_to_exitcode` gives it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Forks:
    """Starts commands of `targen` as processes of their own."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self._child = child

    def _asked(self, request: dict[str, Any]) -> int:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return int(self._child.stdout.readline())

    def start(self, *arguments: object, blow: dict[str, Any] | None = None) -> int:
        """The process id. `blow`: kill -9 at the `number`-th of a `call` on a file whose name
        begins with `name`: before it, after it, or (`half`) when half of a write is done."""
        return self._asked({"start": [str(one) for one in arguments], "blow": blow})

    def wait(self, process: int) -> int:
        return self._asked({"wait": process})


@contextmanager
def forks() -> Iterator[Forks]:
    command = [sys.executable, "-m", "tests.durability.forks"]
    clean = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean
    )
    try:
        yield Forks(child)
    finally:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()
        child.wait(20)
        child.stdout.close()


def _blow_up(call: str, name: str, number: int, when: str) -> None:
    """Have this process killed at a certain call to the system."""
    real, seen = getattr(os, call), 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(what: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal seen
        path = Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else Path(what)
        if not path.name.lstrip(".").startswith(name):
            return real(what, *arguments, **options)
        seen += 1
        if seen == number and when == "before":
            die()
        if seen == number and when == "half":
            data = arguments[0]
            real(what, data[: len(data) // 2], *arguments[1:])
            die()
        done = real(what, *arguments, **options)
        if seen == number:
            die()
        return done

    setattr(os, call, counted)


def _serve() -> None:
    from targen_async import cli, engine, launch  # noqa: F401
    from targen_async.chat import http  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nothing, fd)
        if request["blow"]:
            _blow_up(**request["blow"])
        code = 70
        try:
            code = cli.main(request["start"])
        finally:
            os._exit(code)


if __name__ == "__main__":
    _serve()
