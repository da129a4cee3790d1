"""The embedded simulator: a child process that stands in for an endpoint."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from subprocess import DEVNULL, PIPE
from typing import Any

import anyio
import msgspec
import orjson
from anyio.abc import Process

from targen_async.errors import RunStopped, UserError
from targen_async.simulator.settings import SimulatorSettings

_START_TIMEOUT_S = 30.0


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises UserError that names the key when the simulator would refuse these settings."""
    try:
        msgspec.convert(settings, SimulatorSettings)
    except msgspec.ValidationError as error:
        raise UserError(f"`data.simulator`: {error}") from error


@asynccontextmanager
async def embedded_simulator(settings: Mapping[str, Any]) -> AsyncIterator[str]:
    """Run a simulator on a free port of this machine; yields its base URL.

    The child ends with this process, however that ends: it watches its standard input.
    """
    command = [sys.executable, "-m", "targen_async.simulator", "--port", "0"]
    command += ["--exit-with-parent", "--settings", orjson.dumps(settings).decode()]
    async with await anyio.open_process(
        command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
    ) as child:
        try:
            yield f"http://127.0.0.1:{await _port(child)}/v1"
        finally:
            child.kill()


async def _port(child: Process) -> int:
    """The port that the child prints once it listens. Raises RunStopped when it does not."""
    line = b""
    try:
        with anyio.fail_after(_START_TIMEOUT_S):
            while child.stdout is not None and not line.endswith(b"\n"):
                line += await child.stdout.receive()
    except TimeoutError as error:
        raise RunStopped(
            f"the embedded simulator was not ready within {_START_TIMEOUT_S:.0f} s"
        ) from error
    except anyio.EndOfStream as error:
        raise RunStopped("the embedded simulator ended before it was ready") from error
    port: int = orjson.loads(line)["port"]
    return port
