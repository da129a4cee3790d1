"""Second copies of stalled calls, in virtual time: when they are sent, and what is written down."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from targen_async.budget import _STAKE, Budgeted, Purse, _Stake
from targen_async.chat import Recorder
from targen_async.chat.hedge import MOST, Hedged
from targen_async.chat.limit import Limited
from targen_async.chat.wire import decode_completion
from targen_async.config import Budget, Data
from targen_async.errors import RateLimited, RunStopped, ServerFault
from targen_async.journal import HEDGE, VERSION, Journal, Kind, Opened, frames, parse_intent
from targen_async.ledger import Ledger, worst_of
from targen_async.records import ChatRequest, ChatResult
from targen_async.recover import recover
from tests.chat import virtual_time
from tests.chat.helpers import answer_bytes, request
from tests.chat.virtual_time import now

IN_FLIGHT = 32
KNOWN = 60
"""Quick answers after which a stage's latency is known."""

Fate = float | Exception
"""Seconds until the answer comes, or how the call ends after two seconds."""


class Server:
    """Answers when `fate` says so, and writes down what a client that sends would."""

    def __init__(self, fate: Callable[[str, bool], Fate], ledger: Recorder | None = None) -> None:
        self.sent: list[tuple[str, float]] = []
        self.answered: Counter[str] = Counter()
        self._fate = fate
        self._ledger = ledger

    async def complete(self, asked: ChatRequest) -> ChatResult:
        began = now()
        self.sent.append((asked.key, began))
        ticket = self._ledger.intent(asked) if self._ledger else -1
        key, copy = asked.key.removesuffix(HEDGE), asked.key.endswith(HEDGE)
        fate = self._fate(key, copy)
        await asyncio.sleep(2.0 if isinstance(fate, Exception) else fate)
        if isinstance(fate, Exception):
            if self._ledger:
                self._ledger.void(ticket, str(fate))
            raise fate
        self.answered[key] += 1
        body = answer_bytes("second" if copy else "first")
        offset = self._ledger.answer(ticket, body) if self._ledger else len(self.sent)
        return decode_completion(body, asked.key, offset, model="m", latency_s=now() - began)

    @property
    def copies(self) -> list[tuple[str, float]]:
        return [(key, when) for key, when in self.sent if key.endswith(HEDGE)]


def hedged(server: Server, in_flight: int = IN_FLIGHT) -> tuple[Hedged, Limited]:
    limited = Limited(server, gate=None, max_in_flight=in_flight)
    return Hedged(limited, limited), limited


async def warm(client: Hedged, count: int = KNOWN, name: str = "warm") -> None:
    for number in range(count):
        await client.complete(request(f"{name}/{number}", schema_name="s"))


async def ask(client: Hedged, key: str) -> ChatResult:
    return await client.complete(request(key, schema_name="s", memo=key.encode().ljust(16)[:16]))


def stalling(key: str, copy: bool) -> Fate:
    return 60.0 if key.startswith("slow") and not copy else 0.3


def test_a_stalled_call_is_answered_by_its_second_copy() -> None:
    async def main() -> None:
        server = Server(stalling)
        client, limited = hedged(server)
        await warm(client)
        began = now()
        result = await ask(client, "slow/1")
        assert (result.key, result.text) == ("slow/1", "second")
        assert 1.3 <= now() - began <= 1.5  # Late after a second, seen within 0.1 s more.
        await asyncio.sleep(100)
        assert server.answered["slow/1"] == 1
        assert limited.in_flight == 0 and not limited.sent_s

    virtual_time.run(main())


def test_little_is_sent_twice_before_fifty_answers() -> None:
    async def main() -> None:
        server = Server(stalling)
        client, _ = hedged(server)
        await warm(client, 49)
        began = now()
        await client.complete(request("slow/1", schema_name="unknown"))
        assert not server.copies and now() - began == pytest.approx(60)
        began = now()
        await ask(client, "slow/2")
        assert 3.3 <= now() - began <= 3.5  # Ten medians, and the copy's own time.

    virtual_time.run(main())


def test_a_copy_takes_no_slot_that_another_call_wants() -> None:
    async def main() -> None:
        server = Server(stalling)
        client, _ = hedged(server, in_flight=4)
        await warm(client)
        busy = [asyncio.create_task(warm(client, 80, f"busy{n}")) for n in range(6)]
        slow = asyncio.create_task(ask(client, "slow/1"))
        await asyncio.sleep(0.01)
        await asyncio.wait(busy)
        finished = now()
        await slow
        ((_, when),) = server.copies
        # The last ones leave slots free as they finish.
        assert finished - 1 < when and now() < finished + 1

    virtual_time.run(main())


def test_a_slow_stage_is_not_late_by_the_measure_of_a_quick_one() -> None:
    async def main() -> None:
        server = Server(lambda key, copy: 0.3 if key.startswith("warm") else 5.0)
        client, _ = hedged(server)
        await warm(client, 400)
        for number in range(60):
            await client.complete(request(f"long/{number}", schema_name="long"))
        assert not server.copies

    virtual_time.run(main())


@pytest.mark.parametrize("stalls", [0.005, 0.01, 0.05])
def test_stalls_no_longer_last_and_at_most_two_calls_in_a_hundred_are_sent_twice(
    stalls: float,
) -> None:
    async def makespan(hedge: bool) -> tuple[float, Server]:
        luck = random.Random(7)
        fates = {
            (f"c/{number}", copy): 120.0 if luck.random() < stalls else luck.uniform(0.2, 0.6)
            for number in range(4000)
            for copy in (False, True)
        }
        server = Server(lambda key, copy: fates[key, copy])
        client, limited = hedged(server, in_flight=256)
        numbers = iter(range(4000))

        async def worker() -> None:
            for number in numbers:
                asked = request(f"c/{number}", schema_name="s")
                await (client if hedge else limited).complete(asked)

        began = now()
        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(worker())
        return now() - began, server

    plain, _ = virtual_time.run(makespan(False))
    took, server = virtual_time.run(makespan(True))
    assert len(server.copies) <= MOST * 4000
    assert all(count == 1 for count in server.answered.values()) and len(server.answered) == 4000
    if stalls < MOST:
        assert plain > 120 and took < 20
    else:
        # So many stall that they use up what may be sent, and not a copy more.
        assert len(server.copies) >= 0.95 * MOST * 4000


def test_where_the_first_call_breaks_its_copy_still_counts_and_else_its_error() -> None:
    broken = ServerFault("it fell over", status=500)

    async def main() -> None:
        server = Server(lambda key, copy: 5.0 if copy else broken if "1" in key else 0.3)
        client, limited = hedged(server)
        await warm_named(client)
        assert (await ask(client, "slow/1")).text == "second"
        server._fate = lambda key, copy: RateLimited("no", status=429) if copy else broken
        with pytest.raises(ServerFault, match="fell over"):
            await ask(client, "slow/1")
        assert len(server.copies) == 2
        await asyncio.sleep(10)
        assert limited.in_flight == 0

    virtual_time.run(main())


async def warm_named(client: Hedged) -> None:
    for number in range(120):
        await client.complete(request(f"warm/x{chr(97 + number % 20)}", schema_name="s"))


def test_cancelling_a_call_ends_both_and_is_not_mistaken_for_an_answer() -> None:
    async def main() -> None:
        server = Server(lambda key, copy: 60.0 if key.startswith("slow") else 0.3)
        client, limited = hedged(server)
        await warm(client)
        task = asyncio.create_task(ask(client, "slow/1"))
        await asyncio.sleep(5)
        assert limited.in_flight == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)
        assert limited.in_flight == 0 and not limited.sent_s
        assert len(asyncio.all_tasks()) == 1

    virtual_time.run(main())


def test_a_copy_that_the_budget_has_no_room_for_is_not_sent() -> None:
    async def main() -> None:
        server = Server(stalling)
        limited = Limited(server, gate=None, max_in_flight=IN_FLIGHT)
        client = Hedged(limited, limited, fits=lambda _copy: False)
        await warm(client)
        assert (await ask(client, "slow/1")).text == "first"
        assert not server.copies

    virtual_time.run(main())


class Watched:
    """A recorder that notes, before each intent, the stake of the call and all that are kept."""

    def __init__(self, tmp_path: Path, budget: Budget) -> None:
        self.ledger = Ledger(Journal(tmp_path / "journal"))
        self.purse = Purse(budget, self.ledger, {})
        self.seen: dict[str, tuple[_Stake | None, set[_Stake]]] = {}
        self._recorder = self.purse.recorder("generator")
        self.answer, self.void = self._recorder.answer, self._recorder.void

    def intent(self, asked: ChatRequest) -> int:
        self.seen[asked.key] = (_STAKE.get(), set(self.purse._kept))
        return self._recorder.intent(asked)

    def client(self, server: Server, **limits: float) -> Hedged:
        limited = Limited(server, gate=None, max_in_flight=IN_FLIGHT, **limits)  # type: ignore[arg-type]
        budgeted = Budgeted(limited, self.purse, "generator")
        fits = self.purse.fits
        return Hedged(budgeted, limited, fits=lambda copy: fits(worst_of(copy), "generator"))

    def settled(self) -> bool:
        purse = self.purse
        return not (purse._kept or purse._under_way or purse.waiting or purse._door.locked())


def test_under_a_cap_a_copy_has_a_stake_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        watched = Watched(tmp_path, Budget(max_requests=KNOWN + 2))
        server = Server(stalling, watched)
        client = watched.client(server)
        await warm(client)
        assert (await ask(client, "slow/1")).text == "second"
        (first, _), (second, kept) = watched.seen["slow/1"], watched.seen["slow/1" + HEDGE]
        assert first is not None and second is not None and second is not first
        assert kept == {second}, "that of the first went as it was sent"
        assert watched.settled()
        totals = watched.ledger.totals()
        assert (totals.served, totals.in_doubt, totals.hedged) == (KNOWN + 1, 1, 1)
        with pytest.raises(RunStopped, match="1 call in doubt"):
            await ask(client, "warm/1")

    virtual_time.run(main())


@pytest.mark.parametrize("room", [0, 1])
def test_copies_that_a_cap_leaves_no_room_for_neither_wait_nor_end_the_run(
    tmp_path: Path, room: int
) -> None:
    """Both are late at one look, and there may be room for one copy then."""

    async def main() -> None:
        watched = Watched(tmp_path, Budget(max_requests=120 + 2 + room))
        server = Server(stalling, watched)
        client = watched.client(server)
        await warm(client, 120)
        calls = [asyncio.create_task(ask(client, f"slow/{number}")) for number in range(2)]
        await asyncio.sleep(30)
        assert not watched.purse.waiting and not watched.purse._kept
        texts = sorted([(await call).text for call in calls])
        assert texts == ["first", "first" if room == 0 else "second"]
        assert len(server.copies) == room
        assert watched.settled() and watched.purse._over is None

    virtual_time.run(main())


def test_a_copy_in_line_keeps_its_room_and_gives_it_back_when_it_is_not_sent(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        watched = Watched(tmp_path, Budget(max_requests=1000))
        fates = {"slow/1": 3.0}
        server = Server(lambda key, copy: fates.get(key, 0.3), watched)
        client = watched.client(server, requests_per_minute=6)
        await warm(client)
        call = asyncio.create_task(ask(client, "slow/1"))
        while "slow/1" not in watched.seen:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        assert len(watched.purse._kept) == 1 and watched.purse._under_way == 2
        assert (await call).text == "first" and not server.copies
        await asyncio.sleep(0.01)
        assert watched.settled()
        assert watched.ledger.totals().in_doubt == 0

    virtual_time.run(main())


def test_a_copy_waits_for_the_declared_rate_as_any_call_does() -> None:
    async def main() -> None:
        server = Server(stalling)
        limited = Limited(server, gate=None, max_in_flight=IN_FLIGHT, requests_per_minute=60)
        client = Hedged(limited, limited)
        await warm(client, 120)
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(ask(client, f"slow/{number}"))
        assert server.copies
        last = server.sent[-30:]
        assert len(last) / (last[-1][1] - last[0][1]) < 1.1

    virtual_time.run(main())


def test_each_pair_has_one_answer_on_record_whenever_the_two_come(tmp_path: Path) -> None:
    """The journal names the copy, counts both, and is read to the same sums and the same answer."""
    luck = random.Random(3)
    gaps = [0.0, 1e-6, -1e-6, 2e-6, -2e-6, 1e-3, -1e-3]
    journal = Journal(tmp_path / "journal")
    opened = Opened(version=VERSION, data=Data(task="copa"), task_digest="d")
    journal.append(Kind.OPENED, msgspec.msgpack.encode(opened))
    ledger = Ledger(journal)
    arrival: dict[str, float] = {}

    def fate(key: str, copy: bool) -> Fate:
        if not key.startswith("slow"):
            return 0.3
        if copy:
            return max(0.0, arrival[key] - now() + luck.choice(gaps))
        arrival[key] = now() + 2.0
        return 2.0

    async def main() -> dict[str, int]:
        server = Server(fate, ledger)
        client, _ = hedged(server)
        await warm(client)
        found = {}
        for number in range(120):
            for _ in range(50):
                await ask(client, f"warm/{number}")
            found[f"slow/{number}"] = (await ask(client, f"slow/{number}")).offset
        assert len(server.copies) == 120
        return found

    found = virtual_time.run(main())
    live = ledger.totals()
    assert live.hedged == live.in_doubt == 120
    assert live.hedged_worst == live.in_doubt_worst
    journal.close()

    journal = Journal(tmp_path / "journal")
    ledger = Ledger(journal)
    memos = recover(journal.path, journal, ledger).memos
    assert ledger.totals() == live
    for key, offset in found.items():
        assert memos[key.encode().ljust(16)[:16]] == offset
    keys = [parse_intent(f.payload).key for f in frames(journal.path) if f.kind == Kind.INTENT]
    assert sum(key.endswith(HEDGE) for key in keys) == 120
    journal.close()
