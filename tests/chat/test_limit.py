"""Pacing, in virtual time."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targen_async.chat.limit import Limited
from targen_async.errors import Rejected, Unavailable
from targen_async.records import ChatRequest, ChatResult, Message, Usage
from tests.chat import virtual_time
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
    client: Limited, seconds: float, workers: int, make: Callable[[str], ChatRequest] = request
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


@pytest.mark.parametrize("per_minute", [6, 59, 60, 61, 300, 3000])
def test_requests_a_minute_are_used_up_and_respected(per_minute: int) -> None:
    async def main() -> None:
        peer = Peer()
        client = Limited(peer, gate=None, max_in_flight=64, requests_per_minute=per_minute)
        start = now()
        await work_for(client, 600.5, workers=100)
        # The first of all goes at once, so one call a window is no fault.
        for minute in range(10):
            count = peer.within(start + 60 * minute, start + 60 * (minute + 1))
            assert count <= per_minute * 1.02 + 1
        assert peer.within(start, start + 600) >= per_minute * 10 * 0.98

    virtual_time.run(main())


def test_a_second_of_calls_may_go_at_once() -> None:
    async def main() -> None:
        peer = Peer(latency_s=10)
        client = Limited(peer, gate=None, max_in_flight=64, requests_per_minute=3000)
        start = now()
        await work_for(client, 5, workers=100)
        assert peer.within(start, start + 0.01) == 50

    virtual_time.run(main())


def test_paid_calls_do_not_pile_up_behind_a_stall() -> None:
    """A slow minute must not be followed by a burst above the rate."""

    async def main() -> None:
        peer = Peer(latency_s=60)
        client = Limited(peer, gate=None, max_in_flight=10, requests_per_minute=600)
        start = now()
        task = asyncio.create_task(work_for(client, 100, workers=200))
        await asyncio.sleep(59)
        peer.latency_s = 0.001
        await task
        assert peer.within(start, start + 59) == 10
        assert peer.within(start + 59, start + 62) <= 3 * 10 + 11

    virtual_time.run(main())


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
        assert peer.within(start + 60, start + 300) * cost == pytest.approx(240_000, rel=0.02)

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
        await asyncio.sleep(60)
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
