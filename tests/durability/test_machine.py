"""A run's folder in the hands of chance: started, stopped, killed, cut off from power, broken into,
asked for more; whatever the order, the next sound start mends it, and verify says what is wrong."""

import random
import shutil
import tempfile
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from targen_async import read_shards
from targen_async.control import RunControl
from targen_async.rundir import FAILURES, INDEX, MANIFEST, REJECTED
from tests.durability.disk import Disk, lay_out
from tests.durability.losses import known_memos, lost_intents
from tests.durability.world import Fates, Killed, Server, configured, faults, run
from tests.running import manifest, shard_bytes

FATES = Fates(error=0.05, refused=0.03, reset_after=0.03, reset_before=0.03)
SETTINGS = {"malformed": 0.15, "label_noise": 0.1, "missing_ids": 0.1, "refusals": 0.05}


class Folder(RuleBasedStateMachine):
    """`known`: what the journal has answers to; no start may ask for it again, but a retry may."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="folder-"))
        self.turn = 0
        self.starts = 0
        self.n = 8
        self.raised = False
        """Was n raised since the rows were last made anew? Then some stand behind later ones."""
        self.served = 0
        self.doubtful = 0
        self.broken: str | None = None
        """The file that somebody has laid hands on since the last start."""
        self.complete = False
        self.settled = True
        """Did the last start end by itself?"""
        (self.place / "0").mkdir()

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @property
    def root(self) -> Path:
        return self.place / str(self.turn)

    @property
    def folder(self) -> Path:
        return self.root / "run"

    @property
    def begun(self) -> bool:
        return (self.folder / "journal").exists() and bool(known_memos(self.folder)[0])

    def start(self, end: str, after_s: float, again: str | None = None) -> None:
        self.starts += 1
        server = Server(self.starts, FATES, latency_s=0.1, **SETTINGS)
        control = RunControl()
        disk = Disk(self.root, lambda: None) if end == "power" else None
        config = configured("cb", self.n, rows_per_shard=5, max_in_flight=6)
        known = known_memos(self.folder)[0] if self.folder.exists() else set()
        later = self.place / str(self.turn + 1)

        def at_kill() -> None:
            later.mkdir()
            if disk is None:
                shutil.copytree(self.folder, later / "run")
                return
            luck = random.Random(self.starts)
            lay_out(disk, len(disk.log), later, luck, luck.choice(["dropped", "torn"]))
            self.doubtful += lost_intents(self.folder, later / "run")

        async def moment() -> None:
            await anyio.sleep(after_s)
            if end == "drain":
                control.drain("interrupted")
                await anyio.sleep_forever()

        self.settled = end in ("itself", "drain")
        try:
            told = run(
                server,
                config,
                self.folder,
                killed=None if end == "itself" else moment,
                at_kill=at_kill,
                control=control,
                disk=disk,
                again=again,
            )
            self.complete = told.state == "complete"
            if end == "itself" and again != "reparse":
                assert self.complete and told.delivered == self.n
        except Killed:
            self.turn += 1
            self.complete = False
        self.served += server.perhaps_served
        assert not known & set(server.sent), "an answer that the journal held was asked for again"
        self.broken = None

    # ---- what may happen

    @rule()
    def goes_to_its_end(self) -> None:
        self.start("itself", 0)

    @rule(end=st.sampled_from(["kill", "power", "drain"]), after_s=st.floats(0, 3))
    def is_ended(self, end: str, after_s: float) -> None:
        self.start(end, after_s)

    @precondition(lambda self: self.n < 24)
    @rule(more=st.integers(1, 6))
    def more_is_wanted(self, more: int) -> None:
        self.n += more
        self.complete = False
        self.raised = True
        self.start("itself", 0)

    @rule(end=st.sampled_from(["itself", "kill", "power"]), after_s=st.floats(0, 0.3))
    def is_read_again(self, end: str, after_s: float) -> None:
        if not self.complete or self.broken:
            return
        before = shard_bytes(self.folder)
        self.start(end, after_s, again="reparse")
        while not self.settled or (self.folder / "next").exists():
            self.start("itself", 0, again="reparse")
        if not self.raised:
            assert shard_bytes(self.folder) == before, "the same answers, other rows"
        assert shard_bytes(self.folder).count(b"\n") == self.n
        self.raised = False

    @rule(which=st.integers(0, 9), how=st.sampled_from(["delete", "edit", "cut", "swap"]))
    def a_shard_is_broken(self, which: int, how: str) -> None:
        shards = sorted(self.folder.glob("instances-*"))
        if self.broken or not shards:
            return
        shard = shards[which % len(shards)]
        lines = shard.read_bytes().splitlines(keepends=True)
        if how == "delete":
            shard.unlink()
        elif not lines:
            return
        elif how == "cut":
            shard.write_bytes(b"".join(lines)[: -len(lines[-1]) // 2])
        elif how == "edit":
            at = which % len(lines)
            lines[at] = lines[at].replace(b'"premise":"', b'"premise":"Not so: ', 1)
            shard.write_bytes(b"".join(lines))
        elif len(lines) > 1:
            lines[0], lines[1] = lines[1], lines[0]
            shard.write_bytes(b"".join(lines))
        else:
            return
        self.broken = shard.name

    @rule(name=st.sampled_from([REJECTED, FAILURES, INDEX, MANIFEST, f"{INDEX}-wal"]))
    def a_file_goes(self, name: str) -> None:
        if not self.begun:
            return
        (self.folder / name).unlink(missing_ok=True)
        self.broken = self.broken or name
        self.settled = False

    @rule(end=st.binary(max_size=40))
    def the_journal_has_a_torn_end(self, end: bytes) -> None:
        if not self.begun:
            return
        with (self.folder / "journal").open("ab") as file:
            file.write(b"tJ1\x04" + end)
        self.settled = False

    # ---- what must hold

    @invariant()
    def verify_names_the_shard(self) -> None:
        if self.broken and self.broken.startswith("instances") and self.settled:
            assert any(self.broken in fault for fault in faults(self.folder)), self.broken

    @invariant()
    def what_ended_by_itself_is_sound(self) -> None:
        if not self.settled or self.broken or not self.begun:
            return
        assert faults(self.folder) == []
        calls = manifest(self.folder)["calls"]
        assert self.served <= calls["served"] + calls["in_doubt"] + self.doubtful

    @invariant()
    def rows_stand_once(self) -> None:
        if self.broken or not list(self.folder.glob("instances-*")):
            return
        keys = [row.key for row in read_shards(self.folder)]
        assert len(set(keys)) == len(keys)


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Folder,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            # A failing history is short enough to be read as it is; shrinking takes minutes.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_folder_in_the_hands_of_chance() -> None:
    _run(12, 10)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_folder_in_the_hands_of_chance_for_long() -> None:
    _run(400, 25)
