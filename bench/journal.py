"""The journal by itself: rows of 1 KB a second, each durable before it is acknowledged.

Many writers each put an intent and an answer of 1 KB into one journal, as a call does, and go on
only when the answer is on the disk. Beside it, in turns: the same with an fsync for each row, which
is what group commit saves.

    python bench/journal.py [--rounds 5] [--rows 50000] [--folder DIR] [--json FILE]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import anyio

from targen_async.journal import Intent, Journal

ROW = b"x" * 1024
MEMO = b"m" * 16
WRITERS = 1024
"""About as many as rows come in during one fsync."""


async def group_commit(path: Path, rows: int) -> None:
    """Write `rows` rows; each writer waits for the disk before its next one."""
    journal = Journal(path)
    numbers = iter(range(rows))

    async def writer() -> None:
        for number in numbers:
            ticket = journal.intent(Intent(MEMO, 1200, 1024, f"winloss/{number:06d}/0"))
            journal.answer(ticket, ROW)
            end = journal.end
            await journal.sync()
            assert journal.synced >= end

    async with anyio.create_task_group() as group:
        for _ in range(WRITERS):
            group.start_soon(writer)
    journal.close()


async def fsync_each(path: Path, rows: int) -> None:
    """The same, one row after another."""
    journal = Journal(path)
    for number in range(rows):
        ticket = journal.intent(Intent(MEMO, 1200, 1024, f"winloss/{number:06d}/0"))
        journal.answer(ticket, ROW)
        await journal.sync()
    journal.close()


def measure(work: object, folder: str, rows: int) -> dict[str, float]:
    """Rows a second and CPU seconds (user and system, the syncing thread's too) per 1,000 rows."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        started, cpu = time.perf_counter(), time.process_time()
        anyio.run(work, Path(place) / "journal", rows, backend_options={"use_uvloop": True})
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return {
        "rows_per_s": rows / wall_s,
        "cpu_s_per_1000": 1000 * cpu_s / rows,
        "cpu_share": cpu_s / wall_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--folder", default=".", help="on the disk to measure")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"group_commit": [], "fsync_each": []}
    for _ in range(options.rounds):
        found["group_commit"].append(measure(group_commit, options.folder, options.rows))
        found["fsync_each"].append(measure(fsync_each, options.folder, options.rows // 100))
    print("rows of 1 KB, durable before acknowledged; median (least-most)")
    for name, rounds in found.items():
        for key in rounds[0]:
            values = [one[key] for one in rounds]
            middle, least, most = statistics.median(values), min(values), max(values)
            print(f"{name:14} {key:16} {middle:10.3f} ({least:.3f}-{most:.3f})")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
