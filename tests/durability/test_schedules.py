"""Random schedules of everything that can go wrong at once, and what must hold whatever happens.

A schedule is a seed: a task, an endpoint with its own ill luck, perhaps a cap, and a few starts
that end by themselves, by a kill, by a power loss or by Ctrl-C. Then one start on a calm endpoint.
"""

import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import Struct

from targen_async import read_shards
from targen_async.config import Budget, Correction, Prices, RunConfig
from targen_async.control import RunControl
from targen_async.errors import TargenError
from targen_async.ledger import usd_of
from targen_async.manifest import Manifest
from targen_async.records import Usage, add_usage
from targen_async.rundir import shard_name
from targen_async.tasks import load_task
from tests.durability.disk import Disk, Loss, lay_out
from tests.durability.losses import lost_intents
from tests.durability.world import Fates, Killed, Server, configured, faults, run
from tests.running import lines, manifest

TASKS = ("copa", "cb", "boolq", "axg", "multirc")
ENDS = ("itself", "kill", "power", "drain")


PRICES = Prices(usd_per_million_prompt_tokens=1.0, usd_per_million_completion_tokens=4.0)


class Schedule(Struct, frozen=True, kw_only=True):
    """All that is drawn before the first start."""

    seed: int
    config: RunConfig
    fates: Fates
    settings: dict[str, float]
    ends: tuple[tuple[str, float], ...]
    """How each start ends, and after how many (virtual) seconds."""


def drawn(seed: int) -> Schedule:
    luck = random.Random(seed)

    def often(rate: float) -> float:
        return luck.choice([0.0, rate / 4, rate])

    fates = Fates(
        error=often(0.2),
        busy=often(0.2),
        refused=often(0.1),
        reset_before=often(0.1),
        reset_after=often(0.1),
        no_page=often(0.1),
        rejected=often(0.1),
        outages=tuple(
            (at, at + luck.uniform(1, 60)) for at in luck.sample(range(20), luck.choice([0, 0, 1]))
        ),
        denied_after=luck.choice([None, None, None, luck.randint(0, 20)]),
    )
    settings = {
        name: often(rate)
        for name, rate in {
            "malformed": 0.3,
            "missing_ids": 0.3,
            "label_noise": 0.3,
            "refusals": 0.2,
            "truncation": 0.2,
            "hostile": 0.2,
            "corrector_error": 0.2,
        }.items()
    }
    budget = luck.choice(
        [
            *[Budget()] * 3,
            Budget(max_requests=luck.randint(1, 30)),
            Budget(max_tokens=luck.randint(2000, 30_000)),
        ]
    )
    if budget == Budget() and seed % 4 == 0:
        budget = Budget(max_usd=random.Random(f"{seed} usd").uniform(0.003, 0.06))
    config = configured(
        luck.choice(TASKS),
        luck.choice([4, 8, 12]),
        rows_per_shard=luck.choice([3, 10_000]),
        max_in_flight=luck.choice([1, 4, 16]),
        give_up_after_s=luck.choice([5.0, 60.0]),
        budget=budget,
        prices=PRICES if budget.max_usd else Prices(),
        data={
            "contexts": luck.choice([1, 4]),
            "random_seed": luck.randint(0, 3),
            "correction": Correction(
                mode=luck.choice(["blind", "shown", "off"]), votes=luck.choice([1, 3])
            ),
        },
    )
    ends = tuple(
        (luck.choice(ENDS), luck.expovariate(1 / 1.5)) for _ in range(luck.choice([1, 1, 2, 3]))
    )
    return Schedule(seed=seed, config=config, fates=fates, settings=settings, ends=ends)


class History:
    """One schedule as it goes: the folder that counts, and what the endpoint knows."""

    def __init__(self, schedule: Schedule, place: Path) -> None:
        self.schedule = schedule
        self.luck = random.Random(-schedule.seed)
        self.place = place
        self.turn = 0
        self.doubtful = 0
        """Calls whose very intent a power loss took."""
        self.served = 0
        self.usage = Usage()
        self.clean = True
        """Did the last start end by itself?"""
        (place / "0").mkdir()

    @property
    def root(self) -> Path:
        return self.place / str(self.turn)

    @property
    def folder(self) -> Path:
        return self.root / "run"

    def start(self, config: RunConfig, server: Server, end: str, after_s: float) -> Manifest | None:
        """One start; None where it did not come to a manifest."""
        control, disk = RunControl(), None
        if end == "power":
            disk = Disk(self.root, lambda: server.perhaps_served)
        later = self.place / str(self.turn + 1)
        self.clean = end in ("itself", "drain")
        told = None

        def at_kill() -> None:
            later.mkdir()
            if disk is None:
                shutil.copytree(self.folder, later / "run")
            else:
                loss: Loss = self.luck.choice(["dropped", "torn"])
                lay_out(disk, len(disk.log), later, self.luck, loss)
                self.doubtful += lost_intents(self.folder, later / "run")

        try:
            told = run(
                server,
                config,
                self.folder,
                killed=self._moment(end, after_s, control),
                at_kill=at_kill,
                control=control,
                disk=disk,
            )
        except Killed:
            self.turn += 1
        except TargenError as error:
            assert str(error)
            self.clean = True
        self.served += server.perhaps_served
        told_by_it = Usage(
            prompt_tokens=server.prompt_tokens, completion_tokens=server.completion_tokens
        )
        self.usage = add_usage(self.usage, told_by_it)
        return told

    def _moment(
        self, end: str, after_s: float, control: RunControl
    ) -> Callable[[], Awaitable[None]] | None:
        async def moment() -> None:
            await anyio.sleep(after_s)
            if end == "drain":
                control.drain("interrupted")
                await anyio.sleep_forever()

        return None if end == "itself" else moment

    # ---- what must hold

    def check(self, told: Manifest | None) -> None:
        """After any start."""
        if not (self.folder / "manifest.json").exists():
            return
        on_disk = manifest(self.folder)
        found = list(read_shards(self.folder)) if (self.folder / shard_name(0)).exists() else []
        keys = [row.key for row in found]
        assert len(set(keys)) == len(keys), "a row twice"
        if self.clean:
            calls = on_disk["calls"]
            assert self.served <= calls["served"] + calls["in_doubt"] + self.doubtful
            assert faults(self.folder) == []
            assert len(found) == on_disk["delivered"] <= on_disk["n"]
            self._check_records(keys)
        if told is not None:
            assert (told.state == "complete") == (told.delivered == told.n)
            assert told.state == "complete" or told.reason
        cap = self.schedule.config.delivery.budget
        if cap.max_requests is not None:
            assert self.served - self.doubtful <= cap.max_requests
        if cap.max_tokens is not None and not self.doubtful:
            assert self.usage.prompt_tokens + self.usage.completion_tokens <= cap.max_tokens
        if cap.max_usd is not None and not self.doubtful:
            assert usd_of(self.usage, PRICES) <= cap.max_usd

    def _check_records(self, keys: list[str]) -> None:
        """Every planned row below the last one written is a row, or somebody says why not."""
        task = load_task(self.schedule.config.data.task)
        noted = {
            line["key"]
            for name in ("rejected.jsonl", "failures.jsonl")
            for line in lines(self.folder / name)
            if line["stage"] in ("instances", "correction")
        }
        size = task.rows_per_call
        calls = {_call(key, size) for key in keys} | {
            _call(key, size) for key in noted if "/b" not in key
        }
        last = max((call for call in calls), default=None)
        if last is None:
            return
        per_seed = (self.schedule.config.data.rows_per_seed or task.instances.rows_per_seed) // size
        planned = {
            (at // per_seed, at % per_seed) for at in range(last[0] * per_seed + last[1] + 1)
        }
        assert calls == planned, "a row vanished without a word"


def _call(key: str, size: int) -> tuple[int, int]:
    _, seed, number = key.split("/")[:3]
    return int(seed), int(number) // size


def check_schedule(seed: int, place: Path) -> None:
    schedule = drawn(seed)
    history = History(schedule, place)
    settings: dict[str, Any] = {**schedule.settings, "latency_s": 0.2}
    for number, (end, after_s) in enumerate(schedule.ends):
        server = Server(seed * 10 + number, schedule.fates, **settings)
        history.check(history.start(schedule.config, server, end, after_s))
    calm = Server(seed * 10 + 9, Fates(rejected=schedule.fates.rejected), **settings)
    told = history.start(schedule.config, calm, "itself", 0)
    history.check(told)
    if schedule.config.delivery.budget == Budget() and not schedule.fates.rejected:
        assert told is not None and told.state == "complete"


def _tried(seeds: range, place: Path) -> None:
    for seed in seeds:
        folder = place / str(seed)
        folder.mkdir()
        try:
            check_schedule(seed, folder)
        except Exception as error:
            raise AssertionError(f"schedule {seed}: {drawn(seed)}") from error
        shutil.rmtree(folder)


@pytest.mark.parametrize("part", range(6))
def test_300_random_schedules_break_no_promise(tmp_path: Path, part: int) -> None:
    _tried(range(part * 50, part * 50 + 50), tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(20))
def test_10_000_random_schedules_break_no_promise(tmp_path: Path, part: int) -> None:
    _tried(range(1000 + part * 500, 1500 + part * 500), tmp_path)
