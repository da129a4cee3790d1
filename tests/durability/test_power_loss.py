"""Power that fails at any moment: what was acknowledged is there, nothing torn is served, and the
next start goes on from it."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from targen_async import UserError, read_shards
from targen_async.config import RunConfig
from targen_async.errors import TargenError
from targen_async.journal import SYNC_INTERVAL_S
from tests.chat.virtual_time import now
from tests.durability.disk import (
    LOSSES,
    Disk,
    IndexState,
    Loss,
    MakeFolder,
    Sync,
    SyncFolder,
    Write,
    lay_out,
)
from tests.durability.losses import intents_written, journal_node, known_memos
from tests.durability.world import FSYNC_S, Fates, Server, configured, faults, run
from tests.running import manifest, shard_bytes

NOISE: dict[str, Any] = {"malformed": 0.1, "label_noise": 0.1, "missing_ids": 0.1}
FATES = Fates(error=0.05, busy=0.03, reset_before=0.03, reset_after=0.03, refused=0.02)
LATEST_SYNC_S = SYNC_INTERVAL_S + 2 * FSYNC_S[1] + 0.001
"""An fsync may have to wait for the one before it."""


class Stamp(NamedTuple):
    at_s: float
    sent: int
    """Calls that the endpoint served, or may yet: it has them."""


class Recorded(NamedTuple):
    """A run, and everything its disk was told."""

    config: RunConfig
    disk: Disk
    whole: bytes
    """Its shards at the end."""


def server(seed: int, fates: Fates | None = FATES) -> Server:
    return Server(seed, fates, latency_s=0.1, **NOISE)


def record(config: RunConfig, root: Path, endpoint: Server, **options: Any) -> Disk:
    disk = Disk(root, lambda: Stamp(_now_s(), endpoint.perhaps_served))
    run(endpoint, config, root / "run", disk=disk, **options)
    return disk


def _now_s() -> float:
    try:
        return now()
    except RuntimeError:
        return 0.0


@pytest.fixture(scope="module", params=["copa", "cb", "axg"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three shapes: rows by themselves, several of a seed, twins; each in several shards."""
    root = tmp_path_factory.mktemp("disk")
    config = configured(request.param, 24, rows_per_shard=7)
    disk = record(config, root, server(1))
    return Recorded(config, disk, shard_bytes(root / "run"))


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for one folder after another."""
    place = tmp_path_factory.mktemp("left")
    yield place
    shutil.rmtree(place)


def after_loss(disk: Disk, upto: int, place: Path, luck: random.Random, loss: Loss) -> Path:
    shutil.rmtree(place)
    place.mkdir()
    lay_out(disk, upto, place, luck, loss)
    return place / "run"


def moments(disk: Disk, count: int | None, luck: random.Random) -> list[int]:
    """Numbers of operations before which power fails: all, or some of each part of the run."""
    every = range(1, len(disk.log) + 1)
    if count is None:
        return list(every)
    step = len(every) / count
    some = [every[int((place + luck.random()) * step)] for place in range(count)]
    # Where the index is ahead of the journal: its commit is there, its checkpoint may be lost.
    saved = [at + 1 for at, one in enumerate(disk.log) if isinstance(one, IndexState)]
    return sorted({*some, *(at + 2 for at in saved if at + 2 <= len(every))})


def check_rows(folder: Path, whole: bytes) -> None:
    """Whatever is served before the next start is a row of the run, in its place."""
    lines = whole.splitlines(keepends=True)
    count = 0
    try:
        for row in read_shards(folder):
            assert f'"key":"{row.key}"'.encode() in lines[count]
            assert all(text.encode() in lines[count] for text in row.fields.values())
            count += 1
    except UserError as error:
        assert "holds no run" in str(error) or "this is no row" in str(error), error


def check_resume(one: Recorded, upto: int, folder: Path, loss: Loss) -> None:
    """The next start ends as if nothing had been; nothing is paid twice that the journal holds."""
    check_rows(folder, one.whole)
    known, held = known_memos(folder)
    doubtful = intents_written(one.disk, upto) - len(held)
    endpoint = server(2)
    run(endpoint, one.config, folder)
    assert shard_bytes(folder) == one.whole
    assert not known & set(endpoint.sent), "an answer that the journal held was asked for again"
    calls = manifest(folder)["calls"]
    before = one.disk.stamps[upto - 1].sent
    assert before + endpoint.served <= calls["served"] + calls["in_doubt"] + doubtful
    if loss == "kept":
        assert doubtful == 0
    assert faults(folder) == []


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_goes_on_from_what_any_moment_left(
    recorded: Recorded, fresh: Path, loss: Loss
) -> None:
    _every_moment(recorded, fresh, loss, 24 if loss == "scattered" else 8)


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_goes_on_from_what_every_moment_left(
    recorded: Recorded, fresh: Path, loss: Loss
) -> None:
    _every_moment(recorded, fresh, loss, None)


def _every_moment(recorded: Recorded, fresh: Path, loss: Loss, count: int | None) -> None:
    luck = random.Random(f"{recorded.config.data.task} {loss}")
    for upto in moments(recorded.disk, count, luck):
        folder = after_loss(recorded.disk, upto, fresh, luck, loss)
        try:
            check_resume(recorded, upto, folder, loss)
        except (AssertionError, TargenError) as error:
            raise AssertionError(f"power lost before operation {upto}, {loss}") from error


@pytest.mark.parametrize("loss", ["dropped", "torn"])
def test_what_was_acknowledged_is_there_without_a_call(
    recorded: Recorded, fresh: Path, loss: Loss
) -> None:
    """Rows that stood in a shard, or that the manifest counted, come out of the journal alone."""
    luck = random.Random(f"{recorded.config.data.task} {loss} alone")
    for upto in moments(recorded.disk, 8, luck):
        folder = after_loss(recorded.disk, upto, fresh, luck, loss)
        seen = shard_bytes(folder).count(b"\n") if folder.exists() else 0
        counted = manifest(folder)["delivered"] if (folder / "manifest.json").exists() else 0
        endpoint = server(2)
        endpoint.away = True
        config = configured(recorded.config.data.task, 24, rows_per_shard=7, give_up_after_s=9.0)
        try:
            run(endpoint, config, folder)
        except TargenError as error:
            assert "cannot be reached" in str(error) or "served nothing" in str(error), error
        there = shard_bytes(folder)
        assert recorded.whole.startswith(there), upto
        assert there.count(b"\n") >= max(seen, counted), upto


def test_what_is_in_the_journal_is_on_the_disk_within_100_ms(recorded: Recorded) -> None:
    disk, stamps = recorded.disk, recorded.disk.stamps
    journal = journal_node(disk)
    for at, one in enumerate(disk.log):
        if isinstance(one, Write) and one.node == journal:
            safe = (
                when
                for when, later in enumerate(disk.log)
                if isinstance(later, Sync) and later.node == journal and later.upto > at
            )
            when = next(safe, None)
            assert when is not None, "the run ended and left it in memory"
            assert stamps[when].at_s - stamps[at].at_s <= LATEST_SYNC_S


def test_the_name_of_a_new_folder_is_on_the_disk_before_anything_in_it(tmp_path: Path) -> None:
    """An fsync of what is in a folder says nothing of the folder's own name, nor of those above."""
    endpoint, disk = server(1, Fates()), Disk(tmp_path)
    run(endpoint, configured("copa", 4), tmp_path / "lab" / "run", disk=disk)
    first = next(at for at, one in enumerate(disk.log) if isinstance(one, Sync))
    made = {one.path: at for at, one in enumerate(disk.log) if isinstance(one, MakeFolder)}
    assert set(made) == {str(tmp_path / "lab"), str(tmp_path / "lab" / "run")}
    for path, at in made.items():
        safe = [one for one in disk.log[at:first] if isinstance(one, SyncFolder)]
        assert any(one.path == str(Path(path).parent) and one.upto > at for one in safe), path


def test_a_run_that_ended_needs_no_more_than_what_is_synced(
    recorded: Recorded, fresh: Path
) -> None:
    """After exit 0 nothing is left in memory: the folder verifies as it stands."""
    for loss in ("dropped", "torn"):
        luck = random.Random(loss)
        folder = after_loss(recorded.disk, len(recorded.disk.log), fresh, luck, loss)
        assert shard_bytes(folder) == recorded.whole
        assert manifest(folder)["state"] == "complete"
        assert faults(folder) == []
