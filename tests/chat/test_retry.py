"""Repeating, holding back and giving up, in virtual time."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Elsewhere, Retrying
from targen_async.errors import (
    Denied,
    ParseError,
    RateLimited,
    Rejected,
    RunStopped,
    ServerFault,
    TargenError,
    Unavailable,
)
from targen_async.records import ChatRequest, ChatResult
from tests.chat import virtual_time
from tests.chat.helpers import (
    KEY,
    Notes,
    answer_bytes,
    chat,
    constant,
    request,
    result,
    serving,
)
from tests.chat.virtual_time import now

Answer = Callable[[ChatRequest], TargenError | None]


class Endpoint:
    """Takes `latency_s` and then answers, or fails as `answer` says."""

    def __init__(self, answer: Answer, latency_s: float = 0.2) -> None:
        self.answer = answer
        self.latency_s = latency_s
        self.sent: list[tuple[float, str]] = []
        self.served: list[float] = []
        self.out = 0
        self.most = 0

    async def complete(self, request: ChatRequest) -> ChatResult:
        self.sent.append((now(), request.key))
        self.out += 1
        self.most = max(self.most, self.out)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.out -= 1
        error = self.answer(request)
        if error is not None:
            raise error
        self.served.append(now())
        return result(request.key)

    def times(self) -> list[float]:
        return [when for when, _ in self.sent]


def stack(
    endpoint: Endpoint,
    *,
    max_in_flight: int = 64,
    give_up_after_s: float = 3600.0,
    **options: Any,
) -> Retrying:
    breaker = Breaker(give_up_after_s=give_up_after_s)
    limited = Limited(endpoint, gate=breaker.check, max_in_flight=max_in_flight, **options)
    return Retrying(limited, breaker=breaker, rng=random.Random(1))


def each(*errors: TargenError | None) -> Answer:
    """Fails with these in turn, and then no more."""
    left = list(errors)
    return lambda _: left.pop(0) if left else None


async def work(client: Retrying, seconds: float, workers: int) -> list[BaseException | None]:
    numbers = iter(range(10**9))

    async def worker() -> None:
        for number in numbers:
            await client.complete(request(f"k/{number}"))

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return [None if isinstance(end, asyncio.CancelledError) else end for end in ends]


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            await test()

        virtual_time.run(main())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


# ---- one request


@in_virtual_time
async def test_faults_of_the_request_are_counted() -> None:
    endpoint = Endpoint(each(*[ServerFault("boom", status=500)] * 4))
    assert (await stack(endpoint).complete(request())).attempts == 5
    assert len(endpoint.sent) == 5


@in_virtual_time
async def test_five_faults_end_the_request_and_not_the_run() -> None:
    endpoint = Endpoint(each(*[ServerFault("boom", status=500)] * 5))
    client = stack(endpoint)
    with pytest.raises(ServerFault):
        await client.complete(request())
    assert (await client.complete(request())).attempts == 1


@in_virtual_time
async def test_faults_of_the_endpoint_are_not_counted() -> None:
    endpoint = Endpoint(each(*[RateLimited("slow", status=429)] * 20, *[Unavailable("x")] * 20))
    assert (await stack(endpoint).complete(request())).attempts == 1
    assert len(endpoint.sent) == 41


@pytest.mark.parametrize("error", [Rejected("no", status=400), ParseError("not JSON")])
def test_what_never_succeeds_passes_through_at_once(error: TargenError) -> None:
    async def main() -> None:
        endpoint = Endpoint(each(error))
        with pytest.raises(type(error)):
            await stack(endpoint).complete(request())
        assert len(endpoint.sent) == 1

    virtual_time.run(main())


@in_virtual_time
async def test_back_off_grows_and_is_capped_at_a_minute() -> None:
    endpoint = Endpoint(each(*[RateLimited("slow", status=429)] * 100), latency_s=0.0)
    await stack(endpoint, give_up_after_s=1e6).complete(request())
    gaps = [b - a for a, b in pairwise(endpoint.times())]
    assert gaps[0] <= 1.01
    assert max(gaps) <= 60.01
    assert 25 < sum(gaps[10:]) / len(gaps[10:]) < 35


@in_virtual_time
async def test_back_off_holds_no_slot() -> None:
    endpoint = Endpoint(lambda asked: ServerFault("boom", status=500) if asked.key == "a" else None)
    client = stack(endpoint, max_in_flight=1)
    failing = asyncio.create_task(client.complete(request("a")))
    await asyncio.sleep(0.21)
    for number in range(3):
        start = now()
        await client.complete(request(f"b{number}"))
        assert now() - start < 0.5
    with pytest.raises(ServerFault):
        await failing


# ---- Retry-After


@pytest.mark.parametrize("wait_s", [0.0, 7.0, 3000.0])
def test_retry_after_holds_everybody(wait_s: float) -> None:
    async def main() -> None:
        endpoint = Endpoint(each(RateLimited("slow", status=429, retry_after_s=wait_s)))
        client = stack(endpoint)
        start = now()
        first = asyncio.create_task(client.complete(request("a")))
        await asyncio.sleep(0.3)
        if wait_s > 5:
            assert "asked for a pause" in client.breaker.state
            left = f"{wait_s - 0.1:.0f} s"
            said = f"waiting {left}: Retry-After from the endpoint"
            assert client.breaker.waits_for == said
        await asyncio.gather(first, client.complete(request("b")))
        later = [when - start for when, _ in endpoint.sent[1:]]
        assert len(later) == 2
        assert min(later) >= wait_s
        assert max(later) <= wait_s + 1.5

    virtual_time.run(main())


@in_virtual_time
async def test_those_in_line_are_held_too() -> None:
    """They came before the 429, but have not been sent."""
    endpoint = Endpoint(each(RateLimited("slow", status=429, retry_after_s=100)))
    client = stack(endpoint, max_in_flight=1)
    start = now()
    await asyncio.gather(*(client.complete(request(str(i))) for i in range(20)))
    assert sum(when < start + 100 for when in endpoint.times()) == 1


@in_virtual_time
async def test_a_longer_wait_than_our_patience_gets_one_last_try() -> None:
    endpoint = Endpoint(lambda _: RateLimited("quota", status=429, retry_after_s=86_400))
    client = stack(endpoint, give_up_after_s=600)
    start = now()
    with pytest.raises(RunStopped, match="quota"):
        await client.complete(request())
    assert 600 <= now() - start < 605
    assert len(endpoint.sent) == 2


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rate", [None, 60_000.0])
def test_a_429_storm_of_ten_minutes_is_over_within_a_minute(
    adaptive: bool, rate: float | None
) -> None:
    async def main() -> None:
        start = now()
        storm = (start + 60, start + 660)
        endpoint = Endpoint(
            lambda _: RateLimited("slow", status=429) if storm[0] < now() < storm[1] else None
        )
        client = stack(endpoint, adaptive=adaptive, requests_per_minute=rate)
        ends = await work(client, 780, workers=64)
        assert ends == [None] * 64

        def served(first_s: float, last_s: float) -> int:
            return sum(start + first_s <= when < start + last_s for when in endpoint.served)

        assert served(720, 730) >= 0.95 * served(40, 50)
        # Meanwhile 64 callers knocked about every half minute, not as fast as they could.
        knocks = sum(storm[0] + 60 < when < storm[1] for when in endpoint.times())
        assert knocks < 64 * 540 / 20

    virtual_time.run(main())


# ---- the breaker


def test_an_outage_is_met_with_probes_and_outlived() -> None:
    async def main() -> None:
        start = now()
        outage = (start + 10, start + 610)
        endpoint = Endpoint(
            lambda _: Unavailable("refused") if outage[0] < now() < outage[1] else None
        )
        client = stack(endpoint, max_in_flight=32)
        task = asyncio.create_task(work(client, 700, workers=100))
        await asyncio.sleep(300)
        state = client.breaker.state
        assert state.startswith("endpoint down for 290 s: refused")
        assert "prob" in state
        said = r"breaker open since \d\d:\d\d:\d\d, (probing now|next probe in \d+ s)"
        assert re.fullmatch(said, client.breaker.waits_for)
        assert await task == [None] * 100
        probes = [when for when in endpoint.times() if outage[0] + 1 < when < outage[1]]
        assert 10 <= len(probes) <= 20
        assert all(b - a >= 1 for a, b in pairwise(probes))
        recovered = min(when for when in endpoint.served if when > outage[1])
        assert recovered - outage[1] < 61
        assert client.breaker.state == "endpoint up"
        assert client.breaker.waits_for == ""
        last = [when for when in endpoint.served if when > start + 690]
        assert len(last) > 0.9 * 10 * 32 * 5

    virtual_time.run(main())


def test_those_in_line_when_it_opens_are_not_sent() -> None:
    async def main() -> None:
        endpoint = Endpoint(lambda _: Unavailable("x"))
        client = stack(endpoint, max_in_flight=5)
        tasks = [asyncio.create_task(client.complete(request(str(i)))) for i in range(60)]
        await asyncio.sleep(1)
        # The first five failures open it; while they are counted their slots may be taken again.
        assert len(endpoint.sent) <= 10
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    virtual_time.run(main())


async def states_seen(*errors: TargenError | None) -> list[str]:
    """The breaker's state at each send of two requests to an endpoint that fails so."""
    answer = each(*errors)
    states: list[str] = []

    def noting(asked: ChatRequest) -> TargenError | None:
        states.append(client.breaker.state)
        return answer(asked)

    client = stack(Endpoint(noting))
    for _ in range(2):
        with suppress(Rejected, ParseError):
            await client.complete(request())
    return states


def test_four_failures_do_not_open_it_and_a_success_counts_them_anew() -> None:
    down = [Unavailable("x")] * 4
    states = virtual_time.run(states_seen(*down, None, *down))
    assert states == ["endpoint up"] * 10


@pytest.mark.parametrize(
    "error",
    [
        None,
        Rejected("bad", status=400),
        ParseError("not JSON"),
        ServerFault("boom", status=500),
        RateLimited("slow", status=429),
    ],
)
def test_whatever_the_endpoint_answers_shows_that_it_is_up(error: TargenError | None) -> None:
    states = virtual_time.run(states_seen(*[Unavailable("x")] * 5, error))
    assert states[:5] == ["endpoint up"] * 5
    assert states[5] == "endpoint down for 1 s: x; probing now"
    assert set(states[6:]) == {"endpoint up"}


@in_virtual_time
async def test_one_request_that_breaks_its_server_keeps_nobody_else_out() -> None:
    endpoint = Endpoint(lambda asked: Unavailable("502") if asked.key == "bad" else None)
    client = stack(endpoint)
    bad = asyncio.create_task(client.complete(request("bad")))
    while client.breaker.state == "endpoint up":
        await asyncio.sleep(0.1)
    start = now()
    await asyncio.gather(*(client.complete(request(str(i))) for i in range(20)))
    assert now() - start < 5
    bad.cancel()


@in_virtual_time
async def test_one_request_that_always_breaks_ends_although_the_endpoint_is_up() -> None:
    """It is given up after eight calls; the others, and the run, go on."""
    broken = Unavailable("connection reset")
    server = Endpoint(lambda asked: broken if asked.key == "k/poison" else None)
    client = Retrying(server, breaker=Breaker(give_up_after_s=3600), rng=random.Random(1))

    async def poison() -> None:
        with pytest.raises(ServerFault, match="connection reset; 7 times, while other requests"):
            await client.complete(request("k/poison"))

    async with asyncio.timeout(600), asyncio.TaskGroup() as group:
        group.create_task(poison())
        for number in range(20):
            group.create_task(client.complete(request(f"k/{number}")))
    assert sum(key == "k/poison" for _, key in server.sent) == 8
    assert client.breaker.waits_for == ""


@in_virtual_time
async def test_who_asks_for_fewer_calls_is_there_and_gets_more_patience() -> None:
    """As at a start, where an address that never answers is more likely wrong than down."""
    start = now()
    server = Endpoint(lambda _: RateLimited("slow", status=429) if now() < start + 120 else None)
    breaker = Breaker(give_up_after_s=10, limited_for_s=3600)
    await Retrying(server, breaker=breaker, rng=random.Random(1)).complete(request())
    assert now() - start > 120
    away = Endpoint(lambda _: Unavailable("connection refused"))
    breaker = Breaker(give_up_after_s=10, limited_for_s=3600)
    with pytest.raises(RunStopped, match="served nothing for 10 s"):
        await Retrying(away, breaker=breaker, rng=random.Random(1)).complete(request())


@in_virtual_time
async def test_an_outage_is_no_fault_of_a_request() -> None:
    """Calls that fail with all others are asked again for as long as it takes."""
    start = now()
    server = Endpoint(lambda _: Unavailable("reset") if now() < start + 1800 else None)
    client = Retrying(server, breaker=Breaker(give_up_after_s=3600), rng=random.Random(1))
    await asyncio.gather(*(client.complete(request(f"k/{number}")) for number in range(30)))
    assert len(server.served) == 30


@in_virtual_time
async def test_the_next_in_line_probes_when_the_first_is_cancelled_at_its_turn() -> None:
    endpoint = Endpoint(each(*[Unavailable("x")] * 5))
    client = stack(endpoint)
    first = asyncio.create_task(client.complete(request("first")))
    while client.breaker.state == "endpoint up":
        await asyncio.sleep(0.1)
    # Something slow blocks the loop beyond the time of the probe. The late one runs before the
    # first in line, finds that it is not its turn, and then the first goes away.
    loop = asyncio.get_running_loop()
    assert isinstance(loop, virtual_time.VirtualLoop)
    loop.now += 5
    late = asyncio.create_task(client.complete(request("late")))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(late, 10)


@in_virtual_time
async def test_a_cancelled_probe_makes_room_for_the_next() -> None:
    down = True
    endpoint = Endpoint(lambda _: Unavailable("x") if down else None, latency_s=1)
    client = stack(endpoint)
    tasks = {str(i): asyncio.create_task(client.complete(request(str(i)))) for i in range(6)}
    while "probing now" not in client.breaker.state:
        await asyncio.sleep(0.01)
    down = False
    tasks.pop(endpoint.sent[-1][1]).cancel()
    await asyncio.wait_for(asyncio.gather(*tasks.values()), 60)


@in_virtual_time
async def test_a_server_that_names_its_return_is_not_probed_before() -> None:
    endpoint = Endpoint(each(*[Unavailable("x", status=503, retry_after_s=120)] * 5), latency_s=1)
    start = now()
    client = stack(endpoint)
    await asyncio.gather(*(client.complete(request(str(i))) for i in range(5)))
    assert all(when >= start + 120 for when in endpoint.times()[5:])


def test_a_silent_endpoint_stops_every_waiter_with_one_sentence() -> None:
    async def main() -> None:
        endpoint = Endpoint(lambda _: Unavailable("no route"))
        client = stack(endpoint, max_in_flight=4, give_up_after_s=900)
        start = now()
        ends = await work(client, 5000, workers=50)
        assert 900 <= now() - start < 905
        assert {type(end) for end in ends} == {RunStopped}
        (sentence,) = {str(end) for end in ends}
        assert "no route" in sentence
        assert "same command" in sentence
        assert client.breaker.state == client.breaker.waits_for == sentence
        sent = len(endpoint.sent)
        with pytest.raises(RunStopped):
            await client.complete(request())
        assert len(endpoint.sent) == sent

    virtual_time.run(main())


@in_virtual_time
async def test_patience_is_counted_anew_after_every_success() -> None:
    """An hour without work is not an hour of silence, either."""
    endpoint = Endpoint(each(Unavailable("x"), None, Unavailable("x")))
    client = stack(endpoint, give_up_after_s=60)
    await client.complete(request())
    await asyncio.sleep(4000)
    await client.complete(request())
    assert len(endpoint.sent) == 4


@in_virtual_time
async def test_requests_refused_at_our_own_door_say_nothing_of_the_endpoint() -> None:
    breaker = Breaker(give_up_after_s=3600)
    endpoint = Endpoint(lambda _: Unavailable("x"))
    limited = Limited(endpoint, gate=breaker.check, max_in_flight=4, tokens_per_minute=6e5)
    client = Retrying(limited, breaker=breaker)
    waiting = asyncio.create_task(client.complete(request()))
    while breaker.state == "endpoint up":
        await asyncio.sleep(0.1)
    with pytest.raises(Rejected):
        await client.complete(request("big", max_tokens=10**6))
    assert breaker.state.startswith("endpoint down")
    waiting.cancel()


# ---- denied


def test_denied_ends_every_later_call_unsent() -> None:
    async def main() -> None:
        endpoint = Endpoint(lambda _: Denied("wrong key", status=401, user_fault=False))
        client = stack(endpoint, max_in_flight=2)
        start = now()
        ends = await work(client, 60, workers=50)
        assert now() - start < 1
        assert {type(end) for end in ends} == {Denied}
        assert len(endpoint.sent) == 2
        with pytest.raises(Denied) as caught:
            await client.complete(request())
        assert (str(caught.value), caught.value.status) == ("wrong key", 401)
        assert not caught.value.user_fault
        assert len(endpoint.sent) == 2

    virtual_time.run(main())


@in_virtual_time
async def test_denied_wakes_those_who_sleep() -> None:
    endpoint = Endpoint(
        lambda asked: (
            Denied("no credit", status=402)
            if asked.key == "b"
            else RateLimited("slow", status=429, retry_after_s=None)
        )
    )
    client = stack(endpoint)
    sleeping = asyncio.create_task(client.complete(request("a")))
    await asyncio.sleep(200)
    start = now()
    with pytest.raises(Denied):
        await client.complete(request("b"))
    with pytest.raises(Denied):
        await sleeping
    assert now() - start < 1


@in_virtual_time
async def test_cancelling_a_sleeper_is_honoured_at_once() -> None:
    endpoint = Endpoint(lambda _: RateLimited("slow", status=429, retry_after_s=1000))
    client = stack(endpoint)
    task = asyncio.create_task(client.complete(request()))
    await asyncio.sleep(5)
    start = now()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() - start < 0.1


# ---- the whole client on loopback


def test_a_401_stops_every_later_call_on_the_wire() -> None:
    async def main() -> None:
        notes = Notes()
        body = f'{{"error":{{"message":"bad key {KEY}","code":"invalid_api_key"}}}}'.encode()
        async with serving(constant(body, 401)) as url, chat(url, notes, max_in_flight=3) as http:
            breaker = Breaker(give_up_after_s=60)
            client = Retrying(Limited(http, gate=breaker.check, max_in_flight=3), breaker=breaker)
            ends = await asyncio.gather(
                *(client.complete(request(str(i))) for i in range(40)), return_exceptions=True
            )
        assert {type(end) for end in ends} == {Denied}
        assert not any(KEY in str(end) for end in ends)
        assert notes.kinds.count("intent") <= 3
        assert notes.kinds.count("void") == notes.kinds.count("intent")

    asyncio.run(main())


def test_a_server_that_was_down_is_found_again() -> None:
    asked = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked <= 7:
            return web.Response(status=503, text="starting up")
        return web.Response(body=answer_bytes())

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url, chat(url, notes) as http:
            breaker = Breaker(give_up_after_s=60)
            client = Retrying(Limited(http, gate=breaker.check, max_in_flight=8), breaker=breaker)
            done = await asyncio.gather(*(client.complete(request(str(i))) for i in range(6)))
        assert [each.attempts for each in done] == [1] * 6
        assert notes.kinds.count("answer") == 6
        assert notes.kinds.count("void") == 7
        assert notes.kinds.count("intent") == 13

    asyncio.run(main())


# ---- callers who have somewhere else to go


def handing_over(endpoint: Endpoint, give_up_after_s: float, **options: Any) -> Retrying:
    breaker = Breaker(give_up_after_s=give_up_after_s, elsewhere=True)
    limited = Limited(endpoint, gate=breaker.check, **{"max_in_flight": 8, **options})
    return Retrying(limited, breaker=breaker, rng=random.Random(1))


async def turned_away(client: Retrying, key: str) -> float | None:
    """How long it took until the call was turned away; None: it was served."""
    start = now()
    try:
        await client.complete(request(key))
    except Elsewhere:
        return now() - start
    return None


@in_virtual_time
async def test_who_can_go_elsewhere_waits_for_nobody_when_it_opens() -> None:
    """Those who stand in line behind others, those whose call failed, and who comes later."""
    endpoint = Endpoint(lambda _: Unavailable("refused"))
    client = handing_over(endpoint, 3600)
    took = await asyncio.gather(*(turned_away(client, str(i)) for i in range(100)))
    assert all(one is not None and one < 10 for one in took)
    assert await turned_away(client, "late") in (0.0, pytest.approx(0.2))
    assert client.breaker.state.startswith("endpoint down")


@in_virtual_time
async def test_a_call_now_and_then_finds_out_when_it_is_back() -> None:
    start = now()
    endpoint = Endpoint(lambda _: Unavailable("refused") if now() < start + 7200 else None)
    client = handing_over(endpoint, 600)
    away: list[float] = []
    numbers = iter(range(10**6))

    async def ask() -> None:
        while now() < start + 7300:
            if await turned_away(client, str(next(numbers))) is not None:
                away.append(now())
                await asyncio.sleep(1)

    await asyncio.gather(*(ask() for _ in range(20)))
    assert len(away) > 20 * 6000
    assert start + 7200 < min(endpoint.served) < start + 7265
    assert max(away) < start + 7265
    probes = [when for when in endpoint.times() if start + 200 < when < start + 7200]
    assert all(59 < b - a < 63 for a, b in pairwise(probes))
    assert client.breaker.state == "endpoint up"


@pytest.mark.parametrize("retry_after_s", [None, 86_400.0])
def test_one_that_only_says_429_is_left_when_it_would_be_given_up(
    retry_after_s: float | None,
) -> None:
    async def main() -> None:
        slow = RateLimited("quota", status=429, retry_after_s=retry_after_s)
        endpoint = Endpoint(lambda _: slow)
        client = handing_over(endpoint, 600)
        took = await asyncio.gather(*(turned_away(client, str(i)) for i in range(20)))
        assert all(one is not None and 599 < one < 665 for one in took)
        sent = len(endpoint.sent)
        assert await turned_away(client, "late") == 0.0
        assert len(endpoint.sent) == sent
        assert "quota" in client.breaker.state
        # The next that is due tries it, and stays no longer than that.
        await asyncio.sleep(61)
        took_s = await turned_away(client, "probe")
        assert took_s is not None and took_s < 1
        assert len(endpoint.sent) - sent == (1 if retry_after_s is None else 0)

    virtual_time.run(main())


@in_virtual_time
async def test_a_pause_that_was_asked_for_holds_no_probe_in_a_circle() -> None:
    """The endpoint asks for a pause, and then is away."""
    slow = RateLimited("slow", status=429, retry_after_s=100)
    endpoint = Endpoint(each(slow, *[Unavailable("gone")] * 50))
    client = handing_over(endpoint, 3600)
    took = await asyncio.gather(*(turned_away(client, str(i)) for i in range(8)))
    assert all(one is not None and one < 120 for one in took)
    assert len(endpoint.sent) < 30
