"""Budgets bind: whatever happens to calls and to the process, the server never counts more."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targen_async.budget import Budgeted, Purse, cost_view
from targen_async.chains import Chain, addresses
from targen_async.chat import Recorder
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Drained
from targen_async.config import Budget, Data, Delivery, Prices, RunConfig, Timeouts
from targen_async.errors import ParseError, RateLimited, RunStopped, ServerFault, Unavailable
from targen_async.ledger import Ledger, Role, worst_of
from targen_async.records import ChatRequest, ChatResult, Usage
from tests.chat.virtual_time import run
from tests.test_ledger import GPT, begun, body, read_again, request

ROLES: tuple[Role, ...] = ("generator", "judge", "fallback")
PRICES: dict[Role, Prices] = {
    "generator": GPT,
    "judge": Prices(usd_per_million_prompt_tokens=0.3, usd_per_million_completion_tokens=50.0),
    "fallback": Prices(usd_per_million_prompt_tokens=9.0),
}
FATES = ("served", "served", "silent", "refused", "lost", "served and lost", "broken", "fault")


class Server:
    """Counts for itself what it served. A client that reports to a recorder as `HttpChat` does."""

    def __init__(self, luck: random.Random) -> None:
        self.luck = luck
        self.recorders: dict[Role, Recorder] = {}
        self.requests = 0
        self.tokens = 0
        self.usd = 0.0

    def client(self, role: Role) -> "Sending":
        return Sending(self, role)

    def serve(self, asked: ChatRequest, role: Role) -> Usage:
        worst = worst_of(asked)
        prompt = self.luck.randint(0, worst.prompt_tokens)
        usage = Usage(
            prompt_tokens=prompt,
            cached_prompt_tokens=self.luck.randint(0, prompt),
            completion_tokens=self.luck.choice((0, 1, asked.max_tokens)),
        )
        self.requests += 1
        self.tokens += usage.prompt_tokens + usage.completion_tokens
        price = PRICES[role]
        cached = price.usd_per_million_cached_prompt_tokens
        self.usd += (
            (prompt - usage.cached_prompt_tokens) * price.usd_per_million_prompt_tokens
            + usage.cached_prompt_tokens
            * (price.usd_per_million_prompt_tokens if cached is None else cached)
            + usage.completion_tokens * price.usd_per_million_completion_tokens
        ) / 1e6
        return usage


class Sending:
    def __init__(self, server: Server, role: Role) -> None:
        self.server = server
        self.role = role

    async def complete(self, asked: ChatRequest) -> ChatResult:
        server, luck = self.server, self.server.luck
        recorder = server.recorders[self.role]
        await asyncio.sleep(luck.choice((0, 0, 0.5)))  # As a client that signs in first.
        ticket = recorder.intent(asked)
        fate = luck.choice(FATES)
        await asyncio.sleep(luck.uniform(0, 2))
        if fate == "refused":
            recorder.void(ticket, "HTTP 429")
            raise RateLimited("slower", status=429)
        if fate == "fault":
            recorder.void(ticket, "HTTP 500")
            raise ServerFault("broken", status=500)
        if fate == "lost":
            raise Unavailable("broke off")
        usage = server.serve(asked, self.role)
        await asyncio.sleep(luck.uniform(0, 2))
        if fate == "served and lost":
            raise Unavailable("broke off")
        if fate == "broken":
            recorder.answer(ticket, b"<html>")
            raise ParseError("no JSON")
        told = body(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)
        recorder.answer(ticket, body(None) if fate == "silent" else told)
        return ChatResult(key=asked.key, text="x", finish_reason="stop", model="m", usage=usage)


async def start(
    purse: Purse, server: Server, calls: int, workers: int, killed_after_s: float
) -> str | None:
    """One start of a run: why it stopped, or None where it was killed or made all its calls."""
    server.recorders = {role: purse.recorder(role) for role in ROLES}
    clients = {role: Budgeted(server.client(role), purse, role) for role in ROLES}
    todo = list(range(calls))
    stopped: list[str] = []

    async def worker() -> None:
        while todo and not stopped:
            todo.pop()
            luck = server.luck
            asked = request(text="x" * luck.randint(0, 300), most=luck.choice((1, 50, 300)))
            try:
                await clients[luck.choice(ROLES)].complete(asked)
            except RunStopped as error:
                stopped.append(str(error))
            except (RateLimited, ServerFault, Unavailable, ParseError):
                pass

    try:
        async with asyncio.timeout(killed_after_s):
            await asyncio.gather(*(worker() for _ in range(workers)))
    except TimeoutError:
        return None
    assert len(set(stopped)) <= 1
    return stopped[0] if stopped else None


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 24),
    caps=st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(1, 60_000),
            "max_requests": st.integers(1, 80),
            "max_usd": st.floats(1e-4, 0.5),
        },
    ),
    kills=st.lists(st.floats(0.1, 20), max_size=4),
)
def test_the_server_never_counts_more_than_the_cap(
    seed: int, workers: int, caps: dict[str, float], kills: list[float]
) -> None:
    """Random faults, usages and kills over several starts, on three endpoints at once."""
    budget = Budget(**caps)  # type: ignore[arg-type]
    server = Server(random.Random(seed))
    with TemporaryDirectory() as folder:
        journal = begun(Path(folder) / "journal")
        for killed_after_s in (*kills, 1e6):
            ledger = read_again(journal)
            purse = Purse(budget, ledger, PRICES)
            why = run(start(purse, server, 60, workers, killed_after_s))
            totals = ledger.totals()
            assert read_again(journal).totals() == totals, "live and read again are one"
            assert server.requests <= totals.served + totals.in_doubt
            assert server.tokens <= caps.get("max_tokens", 1e9)
            assert server.requests <= caps.get("max_requests", 1e9)
            assert server.usd <= caps.get("max_usd", 1e9) + 1e-12
            if why is not None:
                assert "the budget of" in why and "raise --max-" in why
        journal.close()


# ---- how the room is used


def purse_of(
    tmp_path: Path, *, say: Callable[[str], None] = lambda _: None, **caps: float
) -> tuple[Purse, Ledger]:
    ledger = Ledger(begun(tmp_path / "journal"))
    return Purse(Budget(**caps), ledger, PRICES, say=say), ledger  # type: ignore[arg-type]


class Steady:
    """Takes a second for every call and `completion` tokens."""

    def __init__(self, recorder: Recorder, completion: int = 1) -> None:
        self.recorder = recorder
        self.completion = completion
        self.at_once = self.most_at_once = self.calls = 0

    async def complete(self, asked: ChatRequest) -> ChatResult:
        ticket = self.recorder.intent(asked)
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(1)
        finally:
            self.at_once -= 1
        self.recorder.answer(ticket, body(1, self.completion))
        return ChatResult(key="", text="x", finish_reason="stop", model="m", usage=None)


def test_calls_wait_for_room_that_those_under_way_give_back(tmp_path: Path) -> None:
    """Each may take 400 and takes 2: a cap of 1,000 lets two out at once, and all of them pass."""
    asked = request(text="x" * 100, most=400 - worst_of(request(text="x" * 100)).prompt_tokens)
    purse, ledger = purse_of(tmp_path, max_tokens=1000)
    steady = Steady(purse.recorder("generator"))
    client = Budgeted(steady, purse, "generator")

    async def main() -> None:
        await asyncio.gather(*(client.complete(asked) for _ in range(40)))

    run(main())
    assert (steady.calls, steady.most_at_once) == (40, 2)
    assert ledger.totals().charged == Usage(prompt_tokens=40, completion_tokens=40)


def test_the_run_stops_only_when_nothing_is_under_way(tmp_path: Path) -> None:
    asked = request(most=100)
    worst = worst_of(asked).prompt_tokens + 100
    purse, _ = purse_of(tmp_path, max_tokens=worst + 50)
    steady = Steady(purse.recorder("generator"), completion=60)
    client = Budgeted(steady, purse, "generator")
    after_s: list[float] = []

    async def one() -> None:
        begun_at = asyncio.get_running_loop().time()
        try:
            await client.complete(asked)
        except RunStopped as error:
            assert str(error) == (
                f"the budget of {worst + 50} tokens is used up: 61 spent, and the next call may "
                f"take up to {worst}; everything paid for is kept: raise --max-tokens and start "
                "the same command again"
            )
            after_s.append(asyncio.get_running_loop().time() - begun_at)

    async def main() -> None:
        held = asyncio.create_task(asyncio.sleep(0.5))
        calls = [asyncio.create_task(one()) for _ in range(3)]
        await held
        assert purse.held == "budget: waiting for calls under way"
        await asyncio.gather(*calls)

    run(main())
    assert purse.held == ""
    assert steady.calls == 1
    assert [round(s) for s in after_s] == [1, 1]


@pytest.mark.parametrize(
    ("caps", "said"),
    [
        ({"max_tokens": 10}, "the budget of 10 tokens is too small for a single call, which may"),
        ({"max_usd": 1e-6}, r"the budget of \$1e-06 is too small .*: raise --max-usd"),
    ],
)
def test_a_cap_below_one_call_is_told_at_once(
    tmp_path: Path, caps: dict[str, float], said: str
) -> None:
    purse, _ = purse_of(tmp_path, **caps)
    with pytest.raises(RunStopped, match=said):
        run(Budgeted(Steady(purse.recorder("judge")), purse, "judge").complete(request()))


def test_refused_attempts_are_given_back_and_lost_ones_are_not(tmp_path: Path) -> None:
    purse, ledger = purse_of(tmp_path, max_requests=2)
    recorder = purse.recorder("generator")

    class Failing:
        def __init__(self, void: bool) -> None:
            self.void = void

        async def complete(self, asked: ChatRequest) -> ChatResult:
            ticket = recorder.intent(asked)
            if self.void:
                recorder.void(ticket, "HTTP 503")
            raise Unavailable("away")

    for _ in range(5):
        with pytest.raises(Unavailable):
            run(Budgeted(Failing(void=True), purse, "generator").complete(request()))
    assert purse.left == "2 of 2 requests left"
    for _ in range(2):
        with pytest.raises(Unavailable):
            run(Budgeted(Failing(void=False), purse, "generator").complete(request()))
    said = r"2 requests is used up \(2 calls in doubt at worst case\); .*raise --max-requests"
    with pytest.raises(RunStopped, match=said):
        run(Budgeted(Failing(void=False), purse, "generator").complete(request()))
    assert ledger.totals().in_doubt == 2


def test_a_cancelled_call_stays_charged_and_makes_room_for_no_other(tmp_path: Path) -> None:
    purse, _ = purse_of(tmp_path, max_requests=1)
    client = Budgeted(Steady(purse.recorder("generator")), purse, "generator")

    async def main() -> None:
        call = asyncio.create_task(client.complete(request()))
        waits = asyncio.create_task(client.complete(request()))
        await asyncio.sleep(0.5)
        call.cancel()
        with pytest.raises(RunStopped, match="1 call in doubt"):
            await waits

    run(main())


def test_after_waiting_the_gate_is_asked_again(tmp_path: Path) -> None:
    """A run that is being stopped while a call waits for room sends nothing more."""
    purse, _ = purse_of(tmp_path, max_tokens=worst_of(request()).prompt_tokens + 70)
    steady = Steady(purse.recorder("generator"))
    ended = False

    def gate(_: ChatRequest) -> None:
        if ended:
            raise Drained("no new calls")

    client = Budgeted(Limited(steady, gate=gate, max_in_flight=8), purse, "generator")

    async def main() -> None:
        nonlocal ended
        first = asyncio.create_task(client.complete(request()))
        second = asyncio.create_task(client.complete(request()))
        await asyncio.sleep(0.5)
        ended = True
        await first
        with pytest.raises(Drained):
            await second

    run(main())
    assert steady.calls == 1


def test_a_call_that_waits_for_room_takes_no_slot_and_is_not_slow(tmp_path: Path) -> None:
    """What waits for the budget is no sign of a crowded endpoint."""
    worst = worst_of(request())
    cap = 2 * (worst.prompt_tokens + worst.completion_tokens) + 20
    purse, _ = purse_of(tmp_path, max_tokens=cap)
    config = RunConfig(
        data=Data(task="cb", model="m"), delivery=Delivery(base_url="http://127.0.0.1:9/v1")
    )
    chain = Chain(addresses(config, None)[0], Timeouts(), purse)
    steady = Steady(purse.recorder("generator"))
    chain.speaker = steady  # type: ignore[assignment]
    client = chain.open(Breaker(give_up_after_s=10), 0)

    async def main() -> None:
        calls = [asyncio.create_task(client.complete(request())) for _ in range(6)]
        await asyncio.sleep(0.5)
        assert chain.limited is not None
        assert (chain.limited.in_flight, chain.limited.waiting) == (2, 0)
        assert purse.held
        await asyncio.gather(*calls)

    run(main())
    assert steady.calls == 6


def test_room_is_kept_for_calls_that_stand_in_line(tmp_path: Path) -> None:
    """None of them comes to its turn for nothing, as it would have paid for the rate by then."""
    purse, _ = purse_of(tmp_path, max_requests=5)
    steady = Steady(purse.recorder("generator"))
    limited = Limited(steady, gate=None, max_in_flight=8, requests_per_minute=60)
    client = Budgeted(limited, purse, "generator")
    stopped: list[str] = []

    async def one() -> None:
        try:
            await client.complete(request())
        except RunStopped as error:
            stopped.append(str(error))

    async def main() -> None:
        calls = [asyncio.create_task(one()) for _ in range(8)]
        await asyncio.sleep(0.5)
        assert limited.waiting + limited.in_flight == 5
        assert purse.held == "", "it is the rate that holds them"
        await asyncio.gather(*calls)

    run(main())
    assert (steady.calls, len(stopped)) == (5, 3)


def test_a_server_that_counts_more_than_can_be_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    purse, ledger = purse_of(tmp_path, say=said.append, max_tokens=100_000)
    client = Budgeted(Steady(purse.recorder("generator"), 5_000), purse, "generator")
    for _ in range(3):
        run(client.complete(request()))
    assert ledger.totals().charged.completion_tokens == 15_000
    assert len(said) == 1
    assert "reports 1 prompt and 5000 completion tokens for a call that can take at most" in said[0]


def test_without_caps_nothing_stands_between(tmp_path: Path) -> None:
    purse, ledger = purse_of(tmp_path)
    assert not purse.binds
    assert purse.recorder("generator") is ledger
    assert purse.left == ""


def test_what_is_left_and_what_it_costs_in_words(tmp_path: Path) -> None:
    purse, ledger = purse_of(tmp_path, max_usd=2.5, max_tokens=1_000_000, max_requests=10)
    recorder = purse.recorder("generator")
    usage = {"prompt": 100_000, "completion": 50_000, "cached": 40_000}
    data = orjson.loads(body(usage["prompt"], usage["completion"], usage["cached"]))
    recorder.answer(recorder.intent(request()), orjson.dumps(data))
    usd = (60_000 * 2 + 40_000 * 0.5 + 50_000 * 8) / 1e6
    assert (
        purse.left
        == f"${2.5 - usd:.4g} of $2.50, 850,000 of 1,000,000 tokens, 9 of 10 requests left"
    )
    view = cost_view(ledger, PRICES, purse, delivered=10, n=40)
    assert (view.prompt_tokens, view.cached_prompt_tokens) == (100_000, 40_000)
    assert view.usd == pytest.approx(usd)
    assert view.usd_projected == pytest.approx(4 * usd)
    assert view.budget == purse.left
    assert cost_view(ledger, {}, purse, delivered=0, n=40).usd is None
