"""Pacing, in virtual time."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targen_async.chat import ChatClient
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Retrying
from targen_async.errors import RateLimited, Rejected, Unavailable
from targen_async.records import ChatRequest, ChatResult, Message, RateLimits, Usage
from targen_async.simulator.settings import LimitChange
from tests.chat import virtual_time
from tests.chat.bucket_server import BucketServer, sized
from tests.chat.helpers import request
from tests.chat.virtual_time import now


class Peer:
    """Answers after `latency_s` and remembers when it was asked."""

    def __init__(self, latency_s: float = 0.2, usage: Usage | None = None) -> None:
        self.latency_s = latency_s
        self.usage = usage
        self.sent: list[tuple[float, str]] = []
        self.now = 0
        self.most = 0

    async def complete(self, request: ChatRequest) -> ChatResult:
        self.sent.append((now(), request.key))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.now -= 1
        return ChatResult(
            key=request.key, text="", finish_reason="stop", model="m", usage=self.usage
        )

    def within(self, start: float, stop: float) -> int:
        return sum(start <= when < stop for when, _ in self.sent)


async def work_for(
    client: ChatClient, seconds: float, workers: int, make: Callable[[str], ChatRequest] = request
) -> None:
    """`workers` tasks that ask without a pause; cancelled after `seconds`."""
    numbers: Iterator[int] = iter(range(10**9))

    async def worker() -> None:
        for number in numbers:
            await client.complete(make(f"k/{number}"))

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ---- a rate that is declared, and an endpoint that never refuses


@pytest.mark.parametrize("per_minute", [6, 59, 60, 61, 300, 3000])
def test_a_declared_rate_is_used_up_and_respected(per_minute: int) -> None:
    """A minute's worth beyond it is tried once, as a burst; after that it holds by the minute."""

    async def main() -> None:
        peer = Peer()
        client = Limited(peer, gate=None, max_in_flight=64, requests_per_minute=per_minute)
        start = now()
        await work_for(client, 660.5, workers=100)
        assert peer.within(start, start + 60) <= per_minute * 2 + 1
        assert peer.within(start, start + 120) <= per_minute * 3 + 1
        for minute in range(2, 11):
            count = peer.within(start + 60 * minute, start + 60 * (minute + 1))
            assert per_minute * 0.97 - 1 <= count <= per_minute * 1.02 + 1

    virtual_time.run(main())


def test_the_burst_is_tried_gently() -> None:
    async def main() -> None:
        peer = Peer()
        client = Limited(peer, gate=None, max_in_flight=64, requests_per_minute=600)
        start = now()
        await work_for(client, 30, workers=100)
        assert peer.within(start, start + 1) <= 2 * 10 + 5
        assert peer.within(start, start + 30) >= 600

    virtual_time.run(main())


# ---- an endpoint with limits


class Together:
    """Callers of one or more clients, and what came of it."""

    def __init__(self, server: BucketServer, *clients: Limited) -> None:
        self.server = server
        self.clients = clients
        self.start = now()

    async def work(self, seconds: float, tokens: int = 100, workers: int = 100) -> None:
        """Ask without a pause; what cannot be served is asked again."""

        def make(key: str) -> ChatRequest:
            return sized(key, tokens, max_tokens=100)

        insisting = []
        for client in self.clients:
            breaker = Breaker(give_up_after_s=1e6)
            client._gate = breaker.check
            insisting.append(Retrying(client, breaker=breaker, rng=random.Random(1)))
        await asyncio.gather(*(work_for(each, seconds, workers, make) for each in insisting))

    def share(self, since: float, until: float, per_s: float, burst: float = 0.0) -> float:
        got = self.server.within(self.start + since, self.start + until)
        return got / (per_s * (until - since) + burst)

    def refused(self, since: float, until: float) -> float:
        no = self.server.refusals(self.start + since, self.start + until)
        got = self.server.within(self.start + since, self.start + until)
        return no / (got + no)


def limited(server: BucketServer, **options: Any) -> Limited:
    return Limited(server, **{"gate": None, "max_in_flight": 64, **options})


DECLARED = {"requests_per_minute": 600.0, "tokens_per_minute": 200_000.0}


@pytest.mark.parametrize("burst_s", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("tokens", [100, 600])
def test_a_declared_rate_is_used_up_with_few_refusals_whatever_the_burst(
    burst_s: float, headers: bool, tokens: int
) -> None:
    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=burst_s, rate_headers=headers)
        run = Together(server, limited(server, **DECLARED))
        await run.work(120, tokens)
        per_s = min(600, 200_000 / (tokens + 50)) / 60
        assert run.share(0, 120, per_s, per_s * burst_s) >= 0.97
        assert run.refused(0, 120) < 0.005

    virtual_time.run(main())


@pytest.mark.parametrize("burst_s", [1.0, 10.0, 600.0])
@pytest.mark.parametrize("tokens", [100, 600])
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_rate_that_nobody_declared_is_learnt_from_headers(
    burst_s: float, tokens: int, adaptive: bool
) -> None:
    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=burst_s)
        run = Together(server, limited(server, adaptive=adaptive))
        await run.work(120, tokens)
        per_s = min(600, 200_000 / (tokens + 50)) / 60
        assert run.share(0, 120, per_s, per_s * burst_s) >= 0.97
        assert run.refused(20, 120) < 0.005

    virtual_time.run(main())


@pytest.mark.parametrize("tells_arrival", [True, False])
@pytest.mark.parametrize("burst_s", [1.0, 60.0])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("uneven", [True, False])
def test_with_headers_hardly_a_call_in_a_thousand_is_refused_as_a_burst_ends(
    tells_arrival: bool, burst_s: float, declared: bool, uneven: bool
) -> None:
    """Calls overtake each other on the way, so what an answer tells may not count all before it."""

    async def main() -> None:
        rates = {"requests_per_minute": 3000.0, "tokens_per_minute": 300_000.0}
        server = BucketServer(**rates, burst_s=burst_s, tells_arrival=tells_arrival)
        client = limited(server, max_in_flight=256, adaptive=True, **(rates if declared else {}))
        luck = random.Random(2)

        def make(key: str) -> ChatRequest:
            tokens = min(2000, int(luck.lognormvariate(5.7, 0.8))) if uneven else 40
            sizes[key] = tokens + 50
            return sized(key, tokens, max_tokens=100)

        sizes: dict[str, int] = {}
        start = now()
        await work_for(Retrying(client, breaker=Breaker(give_up_after_s=1e6)), 120, 300, make)
        spent = sum(sizes[key] for _, key in server.served) if uneven else len(server.served)
        per_s = 5000 if uneven else 50
        assert spent >= 0.99 * per_s * (now() - start + burst_s)
        assert len(server.refused) <= 0.001 * len(server.served)

    virtual_time.run(main())


def test_a_burst_told_in_headers_is_used_although_it_is_ten_minutes_worth() -> None:
    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=600)
        run = Together(server, limited(server, **DECLARED))
        await run.work(60)
        assert run.share(0, 60, 10, 6000) >= 0.97
        assert not server.refused

    virtual_time.run(main())


def test_a_declared_rate_holds_where_headers_offer_more() -> None:
    async def main() -> None:
        server = BucketServer(requests_per_minute=6000, burst_s=60)
        run = Together(server, limited(server, requests_per_minute=600))
        await run.work(240)
        assert run.share(0, 240, 10) <= 1.26
        assert 0.97 <= run.share(120, 240, 10) <= 1.02

    virtual_time.run(main())


@pytest.mark.parametrize("burst_s", [1.0, 10.0])
@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("declared", [True, False])
def test_a_limit_that_is_halved_is_followed(burst_s: float, headers: bool, declared: bool) -> None:
    async def main() -> None:
        change = LimitChange(at_s=60, requests_per_minute=300, tokens_per_minute=100_000)
        server = BucketServer(
            **DECLARED, burst_s=burst_s, rate_headers=headers, limit_changes=(change,)
        )
        run = Together(server, limited(server, **(DECLARED if declared else {})))
        await run.work(200)
        assert run.share(80, 200, 5) >= 0.97
        assert run.refused(80, 200) < 0.005

    virtual_time.run(main())


@pytest.mark.parametrize("change", [0.5, 2.0])
@pytest.mark.parametrize("burst_s", [1.0, 60.0])
@pytest.mark.parametrize("declared", [True, False])
def test_thousands_a_minute_are_followed_within_seconds_though_nobody_tells(
    change: float, burst_s: float, declared: bool
) -> None:
    async def main() -> None:
        first, after = 3000 / max(change, 1), 3000 * min(change, 1)
        server = BucketServer(
            requests_per_minute=first,
            burst_s=burst_s,
            rate_headers=False,
            limit_changes=(LimitChange(at_s=60, requests_per_minute=after),),
        )
        rates = {"requests_per_minute": 3000.0} if declared else {}
        run = Together(server, limited(server, adaptive=True, **rates))
        await run.work(120)
        assert run.share(80, 120, after / 60) >= 0.98
        assert run.refused(80, 120) < 0.005

    virtual_time.run(main())


@pytest.mark.parametrize("burst_s", [1.0, 10.0])
@pytest.mark.parametrize("headers", [True, False])
def test_a_limit_that_is_doubled_is_followed(burst_s: float, headers: bool) -> None:
    """Without headers it takes longer: more can only be tried at the price of refusals."""

    async def main() -> None:
        change = LimitChange(at_s=60, requests_per_minute=600, tokens_per_minute=200_000)
        server = BucketServer(
            requests_per_minute=300,
            tokens_per_minute=100_000,
            burst_s=burst_s,
            rate_headers=headers,
            limit_changes=(change,),
        )
        run = Together(server, limited(server, **DECLARED))
        await run.work(240)
        since = 80 if headers else 140
        assert run.share(since, 240, 10) >= 0.97
        assert run.refused(since, 240) < 0.005

    virtual_time.run(main())


@pytest.mark.parametrize("burst_s", [1.0, 10.0])
@pytest.mark.parametrize("change_s", [100, 105, 110, 115])
def test_a_limit_doubled_from_600_a_minute_is_followed_in_20_s_though_nobody_tells(
    burst_s: float, change_s: float
) -> None:
    """Whenever the change comes between two tries."""

    async def main() -> None:
        change = LimitChange(at_s=change_s, requests_per_minute=1200)
        server = BucketServer(
            requests_per_minute=600, burst_s=burst_s, rate_headers=False, limit_changes=(change,)
        )
        run = Together(server, limited(server, requests_per_minute=1200))
        await run.work(change_s + 100)
        assert run.refused(40, change_s) < 0.0075  # One try more or less in so short a time.
        assert run.share(change_s + 20, change_s + 100, 20) >= 0.97
        assert run.refused(change_s + 20, change_s + 100) < 0.005

    virtual_time.run(main())


def test_a_rate_that_nobody_declared_nor_told_is_learnt_from_refusals() -> None:
    async def main() -> None:
        server = BucketServer(requests_per_minute=600, burst_s=10, rate_headers=False)
        run = Together(server, limited(server, adaptive=True))
        await run.work(180)
        assert run.share(0, 180, 10, 100) >= 0.97
        assert run.refused(20, 180) < 0.01

    virtual_time.run(main())


@pytest.mark.parametrize("headers", [True, False])
def test_what_strangers_take_from_the_same_quota_is_left_to_them(headers: bool) -> None:
    """Colleagues on other hosts hold no lease."""

    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=10, rate_headers=headers)

        async def strangers() -> None:
            while True:
                await asyncio.sleep(0.2)
                server.limits.admit(now(), 100)

        taking = asyncio.create_task(strangers())
        run = Together(server, limited(server, **DECLARED))
        await run.work(240)
        taking.cancel()
        assert run.refused(40, 240) < 0.03
        assert run.share(40, 240, 5) >= 0.9

    virtual_time.run(main())


def test_a_window_that_begins_anew_every_minute_is_spent_and_waited_for() -> None:
    """Not every server has a bucket: this one counts from full minute to full minute."""

    class Windows(BucketServer):
        used = 0
        window = -1

        async def complete(self, request: ChatRequest) -> ChatResult:
            left_s = 60 - now() % 60
            if int(now() // 60) != self.window:
                self.window, self.used = int(now() // 60), 0
            refused = self.used >= 300
            if refused:
                self.refused.append(now())
            else:
                self.used += 1
                self.served.append((now(), request.key))
            said = RateLimits(
                requests_limit=300, requests_remaining=300 - self.used, requests_reset_s=left_s
            )
            await asyncio.sleep(0.2)
            if refused:
                raise RateLimited("slow", status=429, retry_after_s=left_s, rate_limits=said)
            return ChatResult(
                key="", text="", finish_reason="stop", model="m", usage=None, rate_limits=said
            )

    async def main() -> None:
        server = Windows()
        run = Together(server, limited(server))
        await run.work(600)
        assert run.share(0, 600, 5) >= 0.97
        assert run.refused(0, 600) < 0.002

    virtual_time.run(main())


def test_paid_calls_do_not_pile_up_behind_a_stall() -> None:
    async def main() -> None:
        server = BucketServer(requests_per_minute=600, burst_s=1, latency_s=60, rate_headers=False)
        run = Together(server, limited(server, requests_per_minute=600, max_in_flight=10))
        task = asyncio.create_task(run.work(160))
        await asyncio.sleep(59)
        server.latency_s = 0.001
        await task
        assert server.within(run.start, run.start + 42) == 10
        assert run.refused(0, 160) < 0.005
        assert run.share(100, 160, 10) >= 0.97

    virtual_time.run(main())


# ---- reserving and settling


def test_a_call_whose_connection_broke_stays_paid() -> None:
    async def main() -> None:
        class Failing:
            async def complete(self, request: ChatRequest) -> ChatResult:
                raise error

        client = Limited(Failing(), gate=None, max_in_flight=1, **DECLARED)
        tokens = []
        for error in (Rejected("no", status=400), Unavailable("broken")):
            with pytest.raises(type(error)):
                await client.complete(request(max_tokens=1000))
            assert client._quota is not None and client._quota.tokens is not None
            tokens.append(client._quota.tokens.spent)
        assert tokens[0] < 100
        assert tokens[1] > tokens[0] + 1000

    virtual_time.run(main())


def test_a_call_that_was_let_through_and_not_sent_costs_nothing() -> None:
    class Closed(Exception):
        pass

    async def main() -> None:
        asked = 0

        def gate(_: ChatRequest) -> None:
            nonlocal asked
            asked += 1
            # Once for the first; then on coming, in line, when its turn has come, and at last
            # before it is sent.
            if asked == 5:
                raise Closed

        client = Limited(Peer(latency_s=1), gate=gate, max_in_flight=1, **DECLARED)
        first = asyncio.create_task(client.complete(request()))
        await asyncio.sleep(0.1)
        with pytest.raises(Closed):
            await client.complete(request())
        await first
        assert client._quota is not None and client._quota.requests is not None
        assert client._quota.requests.spent == 1
        assert (client.in_flight, client.waiting) == (0, 0)

    virtual_time.run(main())


def test_it_costs_next_to_nothing() -> None:
    """The whole engine takes 470 µs a call; generous here, as machines are shared."""
    usage = Usage(prompt_tokens=300, completion_tokens=100)
    said = ChatResult(key="", text="", finish_reason="stop", model="m", usage=usage)

    class Instant:
        async def complete(self, request: ChatRequest) -> ChatResult:
            return said

    async def main() -> float:
        client = Limited(
            Instant(), gate=None, max_in_flight=64, requests_per_minute=1e9, tokens_per_minute=1e12
        )
        asked = request()
        times = []
        for _ in range(5):
            start = time.process_time()
            for _ in range(2000):
                await client.complete(asked)
            times.append((time.process_time() - start) / 2000)
        return min(times)

    assert asyncio.run(main()) < 40e-6


# ---- tokens


@pytest.mark.parametrize("tokens", [Usage(prompt_tokens=100, completion_tokens=50), None])
def test_tokens_a_minute(tokens: Usage | None) -> None:
    async def main() -> None:
        peer = Peer(usage=tokens)
        client = Limited(peer, gate=None, max_in_flight=64, tokens_per_minute=60_000)
        sized = [Message(role="user", content="x" * 200)]

        def make(key: str) -> ChatRequest:
            return request(key, messages=tuple(sized), max_tokens=500)

        start = now()
        await work_for(client, 300, workers=100, make=make)
        # With usage reported the cost is learnt; without it stays at the worst case.
        cost = 150 if tokens else 200 * 0.3 + 500
        # The burst that a minute's rate may allow is over after two minutes at most.
        assert peer.within(start + 120, start + 300) * cost == pytest.approx(180_000, rel=0.03)

    virtual_time.run(main())


def test_a_request_larger_than_a_second_of_tokens_passes_in_its_turn() -> None:
    """Amount-ordered waiters would let small calls overtake a large one for ever."""

    async def main() -> None:
        peer = Peer()
        client = Limited(peer, gate=None, max_in_flight=64, tokens_per_minute=6000)
        small = request("small", max_tokens=50)
        large = request("large", max_tokens=5000)
        asked = [small] * 20 + [large] + [small] * 200
        tasks = [asyncio.create_task(client.complete(each)) for each in asked]
        await asyncio.sleep(90)
        assert peer.sent[20][1] == "large"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    virtual_time.run(main())


def test_what_can_never_fit_is_refused_at_the_door() -> None:
    async def main() -> None:
        peer = Peer()
        client = Limited(peer, gate=None, max_in_flight=1, tokens_per_minute=1000)
        with pytest.raises(Rejected, match="tokens_per_minute"):
            await client.complete(request(max_tokens=1000))
        await client.complete(request(max_tokens=900))
        assert len(peer.sent) == 1

    virtual_time.run(main())


@settings(max_examples=30, deadline=None)
@given(
    limit=st.integers(1, 7),
    calls=st.lists(
        st.tuples(st.floats(0, 3), st.floats(0, 3), st.sampled_from(["ok", "fail", "cancel"])),
        max_size=40,
    ),
)
def test_never_more_in_flight_than_allowed_whatever_happens(
    limit: int, calls: list[tuple[float, float, str]]
) -> None:
    class Moody:
        now = most = 0

        async def complete(self, request: ChatRequest) -> ChatResult:
            _, latency_s, fate = calls[int(request.key)]
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await asyncio.sleep(latency_s)
            finally:
                self.now -= 1
            if fate == "fail":
                raise Unavailable("down")
            return ChatResult(key="", text="", finish_reason="stop", model="m", usage=None)

    async def main() -> None:
        peer = Moody()
        client = Limited(peer, gate=None, max_in_flight=limit, requests_per_minute=600)

        async def one(index: int) -> None:
            await asyncio.sleep(calls[index][0])
            patience_s = 1.0 if calls[index][2] == "cancel" else None
            async with asyncio.timeout(patience_s):
                await client.complete(request(str(index)))
                assert client.in_flight <= limit

        await asyncio.gather(*(one(i) for i in range(len(calls))), return_exceptions=True)
        assert peer.most <= limit
        assert (client.in_flight, client.waiting) == (0, 0)
        # Every slot came back: as many as before fit in at once.
        for number in range(limit):
            calls.append((0.0, 5.0, "ok"))
            assert number < limit
        first = len(calls) - limit
        await asyncio.gather(*(client.complete(request(str(first + i))) for i in range(limit)))
        assert peer.most == limit

    virtual_time.run(main())


def test_counters() -> None:
    async def main() -> None:
        client = Limited(Peer(latency_s=1), gate=None, max_in_flight=2)
        tasks = [asyncio.create_task(client.complete(request())) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert (client.in_flight, client.waiting, client.max_in_flight) == (2, 3, 2)
        await asyncio.gather(*tasks)
        assert (client.in_flight, client.waiting) == (0, 0)

    virtual_time.run(main())


def test_order_of_waiting_is_order_of_coming() -> None:
    async def main() -> None:
        peer = Peer()
        client = Limited(peer, gate=None, max_in_flight=3, requests_per_minute=300)
        await asyncio.gather(*(client.complete(request(str(i))) for i in range(50)))
        assert [key for _, key in peer.sent] == [str(i) for i in range(50)]

    virtual_time.run(main())


def test_the_gate_turns_back_those_in_line_and_keeps_no_slot() -> None:
    class Closed(Exception):
        pass

    async def main() -> None:
        peer = Peer(latency_s=1)
        shut = False

        def gate(_: ChatRequest) -> None:
            if shut:
                raise Closed

        client = Limited(peer, gate=gate, max_in_flight=1)
        tasks = [asyncio.create_task(client.complete(request())) for _ in range(5)]
        await asyncio.sleep(0.5)
        shut = True
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [ChatResult] + [Closed] * 4
        assert now() < 1002
        shut = False
        await client.complete(request())
        assert len(peer.sent) == 2

    virtual_time.run(main())


def test_the_gate_turns_back_those_in_line_before_they_pay() -> None:
    class Closed(Exception):
        pass

    async def main() -> None:
        shut = False

        def gate(_: ChatRequest) -> None:
            if shut:
                raise Closed

        client = Limited(Peer(), gate=gate, max_in_flight=1, requests_per_minute=1)
        start = now()
        tasks = [asyncio.create_task(client.complete(request())) for _ in range(9)]
        await asyncio.sleep(1)
        shut = True
        await asyncio.gather(*tasks, return_exceptions=True)
        assert now() - start < 61

    virtual_time.run(main())


# ---- shown


def test_the_view_says_what_is_waited_for() -> None:
    async def main() -> None:
        client = Limited(Peer(latency_s=30), gate=None, max_in_flight=2)
        assert client.view("judge").waits_for == ""
        tasks = [asyncio.create_task(client.complete(request())) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert client.view("judge").waits_for == ""
        await asyncio.sleep(9.6)
        view = client.view("judge")
        assert view.waits_for == "waiting 10 s: all 2 calls that may be out are"
        assert (view.name, view.in_flight, view.most_in_flight, view.waiting) == ("judge", 2, 2, 3)
        assert client.view("judge", held="breaker open").waits_for == "breaker open"
        assert view.requests_limit is None
        await asyncio.gather(*tasks)
        view = client.view("judge")
        assert view.requests_per_minute == 1
        assert view.waits_for == ""

    virtual_time.run(main())


def test_the_view_names_the_rate_that_is_used_up() -> None:
    async def main() -> None:
        server = BucketServer(requests_per_minute=6, burst_s=1)
        run = Together(server, limited(server, requests_per_minute=6))
        task = asyncio.create_task(run.work(125))
        await asyncio.sleep(80)
        (client,) = run.clients
        seen = set()
        for _ in range(400):
            view = client.view("generator")
            seen.add(view.waits_for.partition(": ")[2])
            await asyncio.sleep(0.1)
        assert seen == {"6 requests a minute are used up", ""}
        await task
        assert view.requests_limit == pytest.approx(6, rel=0.1)
        assert view.requests_per_minute == pytest.approx(6, abs=1.1)

    virtual_time.run(main())
