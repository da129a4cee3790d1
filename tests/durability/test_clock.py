"""The clock on the wall may jump, as it does when a machine is woken or its time is set: nothing
that waits, and nothing that is written, goes by it."""

import ast
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import targen_async
from targen_async.chat.reply import Reply
from targen_async.records import ChatRequest
from tests.chat.virtual_time import now
from tests.durability.world import Fates, Server, configured, faults, run
from tests.running import shard_bytes

MAY_READ_IT = {
    "chat/reply.py": "Retry-After as a date",
    "log.py": "the time of an event, for people",
    "progress.py": "the time of a tick, for people",
    "summary.py": "the date of a summary",
    "watch.py": "how old files are that another process wrote",
    "simulator/server.py": "`created` of a completion",
}


def test_the_wall_clock_is_read_for_people_and_for_dates_only() -> None:
    package = Path(targen_async.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "datetime.now"))
        or (isinstance(node, ast.ImportFrom) and node.module == "time")
    }
    assert found == set(MAY_READ_IT)


class Timed(Server):
    """Knows when each call came in."""

    def __init__(self) -> None:
        super().__init__(1, Fates(error=0.1, busy=0.2, refused=0.05, outages=((1, 1.3),)))
        self.came: list[float] = []

    async def reply(self, request: ChatRequest, ticket: int) -> Reply:
        self.came.append(now())
        return await super().reply(request, ticket)


def test_a_wall_clock_that_jumps_changes_neither_rows_nor_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, luck = configured("copa", 16), random.Random(3)
    steady, jumping = Timed(), Timed()
    # Back-off is drawn, and here both runs draw alike.
    alike = SimpleNamespace(Random=lambda: random.Random(7))
    monkeypatch.setattr("targen_async.chat.retry.random", alike)
    run(steady, config, tmp_path / "steady")
    monkeypatch.setattr(time, "time", lambda: luck.uniform(0, 4e9))
    run(jumping, config, tmp_path / "jumping")
    assert jumping.came == steady.came
    assert shard_bytes(tmp_path / "jumping") == shard_bytes(tmp_path / "steady")
    assert faults(tmp_path / "jumping") == []
