"""A run inside a program with an event loop of its own, with progress and a clean stop.

    python examples/async_progress.py runs/progress-example

Ctrl-C stops asking, waits for the calls under way and leaves a run that the same command goes on
with.
"""

import asyncio
import signal
import sys

from targen_async import Data, Delivery, RunConfig, generate
from targen_async.control import RunControl
from targen_async.stats import Stats


async def print_progress(stats: Stats) -> None:
    while True:
        calls = sum(stage.done for stage in stats.stages.values())
        print(f"{stats.delivered} rows, {calls} calls, {stats.in_flight()} in flight", flush=True)
        await asyncio.sleep(0.2)


async def main(out: str) -> int:
    # A simulator that takes its time, so that there is progress to see.
    data = Data(task="cb", simulator={"latency_ms": 150.0})
    config = RunConfig(data=data, delivery=Delivery(n=60))
    control, stats = RunControl(), Stats()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, control.drain, "Ctrl-C")
    progress = asyncio.create_task(print_progress(stats))
    try:
        manifest = await generate(config, out, control=control, stats=stats, say=print)
    finally:
        progress.cancel()
    print(f"{manifest.state}: {manifest.delivered} of {manifest.n} rows in {out}")
    return 0 if manifest.state == "complete" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
