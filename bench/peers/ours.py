"""The whole engine: one-call rows from plan to shard, journal and group commit included.

`--near` gives `data.near_duplicate`: at 1 only equal rows are refused, below it near duplicates are
looked for too. `--set KEY=VALUE` changes any other setting, as in `targen generate`.
"""

import argparse
import json
import tempfile
from pathlib import Path

from workload import MODEL, TASK, measure, tell

from targen_async import generate_sync
from targen_async.config import RunConfig, load

ROWS_PER_SEED = 100
SEEDS_PER_CONTEXT = 10


def config(url: str, rows: int, in_flight: int, near: float, more: list[str]) -> RunConfig:
    """A hundred rows a seed, so that one call in a thousand is not for a row."""
    contexts = -(-rows // (ROWS_PER_SEED * SEEDS_PER_CONTEXT)) + 1
    values = {
        "data.task": str(TASK),
        "data.model": MODEL,
        "data.contexts": contexts,
        "data.rows_per_seed": ROWS_PER_SEED,
        "data.near_duplicate": near,
        "data.correction.mode": "off",
        "delivery.n": rows,
        "delivery.base_url": url,
        "delivery.limits.max_in_flight": in_flight,
    }
    for text in more:
        key, _, value = text.partition("=")
        values[key] = json.loads(value)
    return load(None, values)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("rows", type=int)
    parser.add_argument("in_flight", type=int)
    parser.add_argument("--near", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:

        def run(rows: int) -> None:
            made = config(options.url, rows, options.in_flight, options.near, options.set)
            manifest = generate_sync(made, Path(folder) / str(rows))
            if manifest.state != "complete":
                raise SystemExit(f"the run is {manifest.state}: {manifest.reason}")

        tell(measure(options.rows, run))


if __name__ == "__main__":
    main()
