"""Memory at 10,000 and at 1,000,000 rows, and what a resumed run with that many rows costs.

One-call rows, each different. The peak is the process's greatest resident set; the distinct gate's
state is on disk and reported apart. The resumed run finds all rows there and is asked for a hundred
more: how long until the endpoint gets its first call, and the peak again.

    python bench/memory.py [--rows 10000 1000000] [--json FILE]
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

from endpoint import endpoint, on_client_core, stats

from targen_async import generate_sync

HERE = Path(__file__).resolve().parent
MORE = 100
IN_FLIGHT = 256


def client(url: str, rows: int, contexts: int, out: str, near: float) -> dict[str, float]:
    """Make the rows in this process."""
    sys.path.insert(0, str(HERE / "peers"))
    from ours import config
    from workload import cpu_s, peak_mb

    made = config(url, rows, IN_FLIGHT, near, [f"data.contexts={contexts}"])
    manifest = generate_sync(made, out)
    if manifest.state != "complete":
        raise SystemExit(f"the run is {manifest.state}: {manifest.reason}")
    return {"peak_mb": peak_mb(), "cpu_s": cpu_s()}


def generate(url: str, rows: int, contexts: int, out: Path, near: float) -> dict[str, float]:
    """Make rows in a process of its own; its peak memory, CPU and time."""
    started = time.perf_counter()
    wanted = [url, str(rows), str(contexts), str(out), str(near)]
    done = on_client_core([sys.executable, __file__, "--client", *wanted])
    found: dict[str, float] = json.loads(done.stdout)
    return {**found, "wall_s": time.perf_counter() - started}


def first_call(url: str, since: float, found: list[float]) -> None:
    """Note when the endpoint has had a call."""
    while not stats(url)["served"]:
        time.sleep(0.05)
    found.append(time.perf_counter() - since)


def measure(rows: int, near: float) -> dict[str, object]:
    """A run of so many rows, then the same folder with a few more."""
    contexts = rows // 1000 + 10
    with tempfile.TemporaryDirectory(dir=".") as folder:
        out = Path(folder) / "run"
        with endpoint() as url:
            fresh = generate(url, rows, contexts, out, near)
        sizes = {file.name: file.stat().st_size / 2**20 for file in out.iterdir()}
        begun: list[float] = []
        # The address is of [delivery]: it may change.
        with endpoint() as url:
            watch = threading.Thread(target=first_call, args=(url, time.perf_counter(), begun))
            watch.start()
            resumed = generate(url, rows + MORE, contexts, out, near)
            watch.join()
    return {
        "rows": rows,
        "fresh": fresh,
        "resumed": {**resumed, "first_call_s": begun[0]},
        "gate_on_disk_mb": sum(size for name, size in sizes.items() if "sqlite" in name),
        "journal_mb": sizes.get("journal", 0.0),
        "files_mb": sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument(
        "--near", type=float, default=1.0, help="near_duplicate; 1: equal rows only"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        url, rows, contexts, out, near = options.client
        print(json.dumps(client(url, int(rows), int(contexts), out, float(near))))
        return
    found = [measure(rows, options.near) for rows in options.rows]
    print(
        f"{'rows':>9} {'peak MB':>8} {'resumed':>8} {'first call after s':>19} "
        f"{'rows/s':>7} {'gate on disk MB':>16} {'journal MB':>11}"
    )
    for one in found:
        print(
            f"{one['rows']:>9} {one['fresh']['peak_mb']:>8.1f} {one['resumed']['peak_mb']:>8.1f} "
            f"{one['resumed']['first_call_s']:>19.2f} "
            f"{one['rows'] / one['fresh']['wall_s']:>7.0f} {one['gate_on_disk_mb']:>16.1f} "
            f"{one['journal_mb']:>11.1f}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
