"""`python -m targen_async.simulator`: prints `{"port": N}` when it listens."""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import threading

from targen_async.errors import UserError
from targen_async.simulator import server
from targen_async.simulator.settings import SimulatorSettings, add_arguments, settings_from


async def _serve(settings: SimulatorSettings, host: str, port: int, with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(
        server.serve(
            settings, host, port, lambda bound: print(json.dumps({"port": bound}), flush=True)
        )
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    if with_parent:

        def wait_for_end() -> None:
            sys.stdin.buffer.read()
            # The loop may have ended by itself.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(serving.cancel)

        threading.Thread(target=wait_for_end, daemon=True).start()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main() -> int:
    """Parses the flags and serves until SIGINT, SIGTERM or, if asked, the end of stdin."""
    parser = argparse.ArgumentParser(
        prog="python -m targen_async.simulator",
        description="An OpenAI-compatible server that stands in for a language model.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default: 0)")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="exit when stdin reaches its end"
    )
    add_arguments(parser)
    namespace = parser.parse_args()
    try:
        settings = settings_from(namespace)
        server.run(_serve(settings, namespace.host, namespace.port, namespace.exit_with_parent))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
