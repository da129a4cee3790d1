"""How many calls at a time, in virtual time."""

import asyncio
import random
from collections.abc import Callable, Iterator

import pytest

from targen_async.chat.adapt import Adaptive
from targen_async.chat.limit import Limited
from targen_async.errors import RateLimited, ServerFault, TargenError, Unavailable
from targen_async.records import ChatRequest, ChatResult
from tests.chat import virtual_time
from tests.chat.helpers import request
from tests.chat.virtual_time import now


class Workers:
    """A server that works on `parallel` calls at a time; the others wait inside it.

    `lengths`: how much longer the answers of a stage take. Times are log-normal.
    """

    def __init__(
        self,
        parallel: int,
        *,
        latency_s: float = 0.3,
        sigma: float = 0.5,
        lengths: dict[str | None, float] | None = None,
    ) -> None:
        self.slots = asyncio.Semaphore(parallel)
        self.latency_s = latency_s
        self.sigma = sigma
        self.lengths = lengths or {None: 1.0}
        self.served: list[float] = []
        self.out = 0
        self.most_out = 1 << 30
        self.fault: Callable[[], TargenError | None] = lambda: None
        self.luck = random.Random(3)

    async def complete(self, request: ChatRequest) -> ChatResult:
        self.out += 1
        try:
            if self.out > self.most_out:
                await asyncio.sleep(0.01)
                raise RateLimited("too many at a time", status=429)
            async with self.slots:
                length = self.lengths[request.schema_name]
                luck = self.luck.lognormvariate(0, self.sigma)
                await asyncio.sleep(self.latency_s * length * luck)
        finally:
            self.out -= 1
        error = self.fault()
        if error is not None:
            raise error
        self.served.append(now())
        return ChatResult(key="", text="", finish_reason="stop", model="m", usage=None)

    def per_s(self, since: float, until: float) -> float:
        return sum(since <= when < until for when in self.served) / (until - since)


class Crowded(Workers):
    """A server that gets slower in proportion past `parallel` calls, and answers 503 past twice as
    many. No call waits for another one's end."""

    def __init__(self, parallel: int, *, sigma: float = 0.0) -> None:
        super().__init__(parallel, latency_s=0.5, sigma=sigma)
        self.parallel = parallel
        self.took_s: list[float] = []
        self.refused = 0

    async def complete(self, request: ChatRequest) -> ChatResult:
        if self.out >= 2 * self.parallel:
            self.refused += 1
            await asyncio.sleep(0.002)
            raise Unavailable("too many", status=503)
        self.out += 1
        took_s = self.latency_s * max(1.0, self.out / self.parallel)
        took_s *= self.luck.lognormvariate(0, self.sigma)
        try:
            await asyncio.sleep(took_s)
        finally:
            self.out -= 1
        self.served.append(now())
        self.took_s.append(took_s)
        return ChatResult(key="", text="", finish_reason="stop", model="m", usage=None)


async def press(client: Limited, server: Workers, seconds: int, workers: int = 300) -> list[int]:
    """Ask without a pause; the limit after each second. What fails is asked again at once."""
    numbers: Iterator[int] = iter(range(10**9))
    names = list(server.lengths)

    async def worker() -> None:
        for number in numbers:
            try:
                await client.complete(
                    request(f"k/{number}", schema_name=names[number % len(names)])
                )
            except TargenError:
                await asyncio.sleep(1)

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    limits = []
    for _ in range(seconds):
        await asyncio.sleep(1)
        limits.append(client.max_in_flight)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return limits


def adaptive(server: Workers, most: int = 256) -> Limited:
    return Limited(server, gate=None, max_in_flight=most, adaptive=True)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_a_server_whose_latency_does_not_grow_is_not_throttled(sigma: float) -> None:
    async def main() -> None:
        server = Workers(10**6, sigma=sigma, latency_s=0.2)
        limits = await press(adaptive(server), server, 90)
        if sigma < 1:
            assert limits[5] == 256
        assert limits[15] > 100
        assert sum(limits[20:]) / 70 >= 0.95 * 256

    virtual_time.run(main())


@pytest.mark.parametrize("parallel", [4, 8, 32, 64])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_knee_is_found_in_twenty_seconds(parallel: int, sigma: float) -> None:
    async def main() -> None:
        server = Workers(parallel, sigma=sigma)
        start = now()
        limits = await press(adaptive(server), server, 80)
        assert limits[19] <= 3 * parallel
        assert sum(limits[20:]) / 60 <= 2.5 * parallel
        alone_s = server.latency_s * 2.718 ** (sigma**2 / 2)
        assert server.per_s(start + 20, start + 80) >= 0.88 * parallel / alone_s

    virtual_time.run(main())


@pytest.mark.parametrize("parallel", [8, 64, 512])
def test_it_settles_at_the_knee_and_not_at_the_refusals(parallel: int) -> None:
    async def main() -> None:
        server = Crowded(parallel, sigma=0.1)
        start = now()
        client = adaptive(server, 4 * parallel)
        early = await press(client, server, 20, workers=4 * parallel)
        before = len(server.took_s)
        limits = await press(client, server, 20, workers=4 * parallel)
        assert 0.95 * parallel <= sorted(limits)[10] <= 1.25 * parallel
        assert max(early[8:] + limits) <= 1.75 * parallel
        late_s = sorted(server.took_s[before:])
        alone_s = server.latency_s * 2.718 ** (2.33 * server.sigma)
        assert late_s[int(0.99 * len(late_s))] <= 1.75 * alone_s
        assert server.per_s(start + 21, start + 40) >= 0.95 * parallel / server.latency_s
        assert server.refused <= (0.02 if parallel == 8 else 0.01) * len(server.served)

    virtual_time.run(main())


def test_answers_that_vary_hide_the_knee_for_a_while_only() -> None:
    """Not in every run: a try may be decided wrongly, and the next one is a minute away."""

    async def settled(seed: int) -> float:
        server = Crowded(64, sigma=1.0)
        server.luck = random.Random(seed)
        limits = await press(adaptive(server), server, 120)
        assert server.refused <= 0.02 * len(server.served)
        return sum(limits[60:]) / 60

    each = [virtual_time.run(settled(seed)) for seed in range(4)]
    assert 0.8 * 64 <= sum(each) / 4 <= 1.5 * 64


def test_a_server_that_loses_and_gets_back_capacity_is_followed() -> None:
    async def main() -> None:
        server = Crowded(64)
        client = adaptive(server)
        await press(client, server, 20)
        server.parallel = 24
        assert sorted(await press(client, server, 40))[20] <= 1.5 * 24
        server.parallel = 64
        limits = await press(client, server, 60)
        assert min(limits[-5:]) >= 0.95 * 64

    virtual_time.run(main())


def test_less_is_tried_where_a_server_that_had_room_gets_slower() -> None:
    async def main() -> None:
        server = Workers(10**6)
        client = adaptive(server, 128)
        assert (await press(client, server, 20))[-1] == 128
        server.slots = asyncio.Semaphore(32)
        assert max((await press(client, server, 60))[-10:]) <= 2 * 32

    virtual_time.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_where_nothing_slows_down(seed: int) -> None:
    """With a tail as long as that of a language model's answers."""

    async def main() -> None:
        server = Workers(10**6, sigma=1.0)
        server.luck = random.Random(seed)
        limits = await press(adaptive(server), server, 40)
        assert limits[3] == 256
        assert sum(limits) / 40 >= 0.97 * 256

    virtual_time.run(main())


@pytest.mark.parametrize("seed", range(6))
def test_a_start_that_failed_by_chance_goes_on(seed: int) -> None:
    async def main() -> None:
        server = Workers(10**6)
        server.luck = random.Random(seed)
        faults = iter([Unavailable("by chance", status=503)] * 3)
        server.fault = lambda: next(faults, None)
        assert (await press(adaptive(server), server, 55))[-1] == 256

    virtual_time.run(main())


def test_one_call_at_a_time_is_approached() -> None:
    async def main() -> None:
        server = Workers(1)
        limits = await press(adaptive(server), server, 120)
        assert max(limits) < 40
        assert max(limits[60:]) <= 12

    virtual_time.run(main())


@pytest.mark.parametrize("parallel", [16, 10**6])
def test_stages_of_different_length_do_not_look_like_a_queue(parallel: int) -> None:
    async def main() -> None:
        lengths: dict[str | None, float] = {"short": 0.3, "usual": 1.0, "long": 5.0}
        server = Workers(parallel, lengths=lengths)
        limits = await press(adaptive(server), server, 90)
        if parallel == 16:
            assert sum(limits[30:]) / 60 <= 3 * parallel
        else:
            assert min(limits[20:]) >= 150

    virtual_time.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_few_long_calls_at_the_start_hold_back_nobody_later(seed: int) -> None:
    """As of a run: ten contexts, some dozens of seeds, then rows by the thousand, all with as
    long a tail as a language model's answers have."""

    async def main() -> None:
        server = Workers(10**6, sigma=1.0, lengths={"contexts": 4.0})
        server.luck = random.Random(seed)
        client = adaptive(server)
        await press(client, server, 4, workers=10)
        server.lengths = {"seeds": 2.0}
        await press(client, server, 6, workers=32)
        server.lengths = {"rows": 1.0}
        limits = await press(client, server, 60)
        assert sum(limits[:20]) / 20 >= 0.6 * 256
        assert sum(limits) / 60 >= 0.9 * 256

    virtual_time.run(main())


def test_a_stage_that_begins_late_is_measured_against_the_others() -> None:
    """Rows are asked for after contexts, and take a quarter of their time."""

    async def main() -> None:
        server = Workers(10**6, lengths={"contexts": 4.0, "rows": 1.0})
        client = adaptive(server)
        server.lengths = {"contexts": 4.0}
        await press(client, server, 30)
        server.lengths = {"contexts": 4.0, "rows": 1.0}
        limits = await press(client, server, 30)
        assert min(limits[5:]) >= 150

    virtual_time.run(main())


def test_a_server_that_gets_slower_for_everybody_is_not_asked_less() -> None:
    async def main() -> None:
        server = Workers(10**6, latency_s=0.2)
        client = adaptive(server)
        await press(client, server, 20)
        server.latency_s = 0.8
        limits = await press(client, server, 60)
        assert sum(limits[20:]) / 40 >= 0.9 * 256

    virtual_time.run(main())


def test_too_many_at_a_time_is_learnt_from_refusals() -> None:
    async def main() -> None:
        server = Workers(10**6, latency_s=0.5, sigma=0.2)
        server.most_out = 20
        start = now()
        client = adaptive(server)
        limits = await press(client, server, 120)
        assert max(limits[60:]) <= 30
        assert server.per_s(start + 30, start + 120) >= 0.7 * 20 / 0.51

    virtual_time.run(main())


def test_an_overloaded_server_is_spared_and_asked_again_when_it_is_well() -> None:
    async def main() -> None:
        server = Workers(10**6, latency_s=0.2, sigma=0.2)
        client = adaptive(server, 64)
        await press(client, server, 10)
        server.fault = lambda: Unavailable("overloaded", status=503)
        assert (await press(client, server, 10))[-1] == 4
        server.fault = lambda: None
        assert (await press(client, server, 20))[-1] >= 50

    virtual_time.run(main())


def test_a_few_failures_are_not_load() -> None:
    async def main() -> None:
        server = Workers(10**6, latency_s=0.2)
        client = adaptive(server, 64)
        luck = random.Random(1)
        server.fault = lambda: ServerFault("500", status=500) if luck.random() < 0.05 else None
        assert min((await press(client, server, 60))[10:]) == 64

    virtual_time.run(main())


def test_a_fixed_number_stays() -> None:
    async def main() -> None:
        server = Workers(4)
        client = Limited(server, gate=None, max_in_flight=64)
        assert set(await press(client, server, 20)) == {64}
        declared = Limited(
            server, gate=None, max_in_flight=64, adaptive=True, requests_per_minute=1e6
        )
        assert set(await press(declared, server, 5)) == {64}

    virtual_time.run(main())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_it_stays_between_one_and_the_most(most: int) -> None:
    found = Adaptive(most)
    luck = random.Random(most)
    for step in range(5000):
        now_s = step / 10
        match luck.randrange(10):
            case 0:
                found.refused(now_s)
            case 1:
                found.failed(now_s)
            case _:
                took_s, out = luck.lognormvariate(0, 2), luck.randint(1, most)
                found.answered("s", took_s, luck.randint(0, most), out, now_s)
        assert 1 <= found.limit <= most


def test_lone_calls_that_take_longer_than_the_first_are_no_queue() -> None:
    found = Adaptive(64)
    for step in range(300):
        found.answered("s", 0.1 if step < 16 else 0.3, 1, 1, float(step))
        assert found.limit >= 1


@pytest.mark.parametrize("seed", range(60))
def test_whatever_comes_it_goes_on(seed: int) -> None:
    """Stages that come and go, answers of any length, refusals and failures in any order."""
    luck = random.Random(seed)
    most = luck.choice([1, 2, 9, 64, 256])
    adaptive = Adaptive(most)
    stages = luck.sample(["contexts", "seeds", "instances", "correction"], luck.randint(1, 4))
    now_s = 0.0
    for _ in range(4000):
        if luck.random() < 0.005:
            stages = luck.sample(["contexts", "seeds", "instances", "correction"], 2)
        now_s += luck.expovariate(50)
        out = luck.choice([0, luck.randint(1, most), adaptive.limit])
        kind = luck.random()
        if kind < 0.01:
            adaptive.refused(now_s)
        elif kind < 0.02:
            adaptive.failed(now_s)
        else:
            took_s = luck.choice([0.0, luck.lognormvariate(-1, 1), 0.01 * out])
            adaptive.answered(luck.choice(stages), took_s, adaptive.limit, out, now_s)
        assert 1 <= adaptive.limit <= most


def test_failures_while_fewer_are_tried_do_not_lead_ever_lower() -> None:
    """They fail whatever the load: 15 % of the calls, of any number."""
    luck = random.Random(1)
    found, now_s, lowest = Adaptive(64), 0.0, 64
    for step in range(40_000):
        now_s += 1.0 / found.limit
        if luck.random() < 0.15:
            found.failed(now_s)
        else:
            found.answered("s", luck.lognormvariate(0, 0.5), found.limit, found.limit, now_s)
        if step > 2000:
            lowest = min(lowest, found.limit)
    assert lowest >= 4
