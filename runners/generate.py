"""A run from a configuration file: for schedulers, where a started job has no terminal.

    python runners/generate.py --config runners/configs/copa.toml --out runs/copa

The same command goes on with a run that was stopped: put it into a job that is started again.
SIGTERM and SIGINT wait for the calls under way. Exit codes: 0 all rows are there, 1 not yet, 2 a
mistake in the input or a wrong key.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from targen_async import TargenError, UserError, generate
from targen_async.config import load
from targen_async.control import RunControl
from targen_async.errors import Denied


async def run(config_file: Path, out: Path) -> int:
    """Returns 0 when all rows are there and 1 when the run was stopped."""
    control = RunControl()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, control.drain, f"stopped by {number.name}")
    manifest = await generate(load(config_file, {}), out, control=control, say=print)
    print(f"{manifest.state}: {manifest.delivered} of {manifest.n} rows in {out}")
    return 0 if manifest.state == "complete" else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the data set of a configuration file.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        return asyncio.run(run(options.config, options.out))
    except TargenError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        wrong_key = isinstance(error, Denied) and error.user_fault
        return 2 if wrong_key or isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main())
