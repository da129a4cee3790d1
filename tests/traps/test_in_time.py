"""Ten minutes of refusals, a minute without names: real HTTP on loopback, in virtual time."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest
from aiohttp import web

from targen_async import Data, Delivery, RunConfig, generate
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Retrying
from targen_async.errors import Denied
from targen_async.manifest import Manifest
from targen_async.simulator import SimulatorSettings, answer, wire
from tests.chat.helpers import KEY, Notes, answer_bytes, chat, request, serving
from tests.chat.virtual_time import now
from tests.running import rows
from tests.traps import patient_time

WORKERS = 8
LATENCY_S = 0.5
STORM_S = (30.0, 630.0)
SAID: dict[str, Callable[[], str]] = {
    "nothing": str,
    "0": lambda: "0",
    "garbage": lambda: "when the moon is full; try-again",
    "20 seconds": lambda: "20",
    "a date in 20 seconds": lambda: formatdate(time() + 20, usegmt=True),
}
"""Retry-After, as a storm may say it."""


class Storm:
    """Serves, but for ten minutes: then every call is refused with 429."""

    def __init__(self, said: str) -> None:
        self.start = now()
        self.served: list[float] = []
        self.refused: list[float] = []
        self._said = SAID[said]

    async def answer(self, asked: web.Request) -> web.Response:
        await asked.read()
        await asyncio.sleep(LATENCY_S)
        at = now() - self.start
        if STORM_S[0] < at < STORM_S[1]:
            self.refused.append(at)
            headers = {"Retry-After": said} if (said := self._said()) else {}
            return web.Response(status=429, headers=headers, body=b'{"error": "slow down"}')
        self.served.append(at)
        return web.Response(body=answer_bytes(), content_type="application/json")

    def rate(self, first_s: float, last_s: float) -> float:
        return sum(first_s <= at < last_s for at in self.served) / (last_s - first_s)


async def calling(client: Retrying, seconds: float) -> None:
    numbers = iter(range(10**9))

    async def worker() -> None:
        for number in numbers:
            await client.complete(request(f"k/{number}"))

    tasks = [asyncio.create_task(worker()) for _ in range(WORKERS)]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def stack(inner: Any) -> Retrying:
    breaker = Breaker(give_up_after_s=3600)
    limited = Limited(inner, gate=breaker.check, max_in_flight=WORKERS, adaptive=True)
    return Retrying(limited, breaker=breaker, rng=random.Random(1))


@pytest.mark.parametrize("said", SAID)
def test_trap_10_and_14_a_storm_of_ten_minutes_is_over_within_one_whatever_it_says(
    said: str,
) -> None:
    async def main() -> None:
        storm, notes = Storm(said), Notes()
        async with serving(storm.answer) as url, chat(url, notes, max_in_flight=WORKERS) as http:
            await calling(stack(http), STORM_S[1] + 80)
        before, after = storm.rate(10, 30), storm.rate(STORM_S[1] + 60, STORM_S[1] + 75)
        assert before > 0.9 * WORKERS / LATENCY_S
        assert after > 0.95 * before
        # Knocks of eight callers: about one a minute each where nothing is said, and with 20 s
        # one round every 20 s.
        storm_s = STORM_S[1] - STORM_S[0]
        assert len(storm.refused) < WORKERS * (storm_s / 20 + 10)
        assert notes.kinds.count("void") == len(storm.refused)
        # The last ones were cancelled on the way.
        assert len(storm.served) - WORKERS <= notes.kinds.count("answer") <= len(storm.served)

    patient_time.run(main())


def test_trap_14_an_hour_asked_for_is_waited_for_and_not_a_second_less() -> None:
    """The run's own patience, an hour by default, is counted from the first refusal."""

    async def main() -> None:
        arrivals: list[float] = []

        async def handler(asked: web.Request) -> web.Response:
            arrivals.append(now())
            if len(arrivals) == 1:
                return web.Response(status=429, headers={"Retry-After": "3500"})
            return web.Response(body=answer_bytes(), content_type="application/json")

        async with serving(handler) as url, chat(url) as http:
            client = stack(http)
            first = asyncio.create_task(client.complete(request("first")))
            await asyncio.sleep(10)
            # These came later and were told nothing themselves.
            await asyncio.gather(first, *(client.complete(request(str(i))) for i in range(3)))
        late = [at - arrivals[0] for at in arrivals[1:]]
        assert len(late) == 4
        assert min(late) >= 3500
        assert max(late) < 3502

    patient_time.run(main())


# ---- names


class Names:
    """The system's resolver, with a minute in which it knows nobody."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, away_s: tuple[float, float]) -> None:
        self.asked: list[float] = []
        self.failed = 0

        async def getaddrinfo(
            loop: asyncio.AbstractEventLoop, host: str, port: int, **_: object
        ) -> list[Any]:
            at = loop.time() - 1000.0
            self.asked.append(at)
            if away_s[0] <= at < away_s[1]:
                self.failed += 1
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(patient_time.PatientLoop, "getaddrinfo", getaddrinfo)
        # By this clock aiohttp forgets names, after ten seconds.
        monkeypatch.setattr("aiohttp.connector.monotonic", now)


def test_a_minute_without_names_is_outlived_and_nothing_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, (30, 90))
    served: list[float] = []

    async def handler(asked: web.Request) -> web.Response:
        await asked.read()
        await asyncio.sleep(LATENCY_S)
        served.append(now() - 1000)
        # No connection outlives its answer, so that each call asks for the name.
        headers = {"Connection": "close"}
        return web.Response(body=answer_bytes(), content_type="application/json", headers=headers)

    async def main() -> None:
        notes = Notes()
        async with serving(handler) as url:
            named = url.replace("127.0.0.1", "models.example.org")
            async with chat(named, notes, max_in_flight=WORKERS) as http:
                client = stack(http)
                task = asyncio.create_task(calling(client, 180))
                await asyncio.sleep(60)
                assert "its name is not known" in client.breaker.state
                await task
        assert names.failed > 5
        # Those who ask at the same time share an answer.
        assert notes.kinds.count("void") >= names.failed
        # Callers that were cancelled at the end are the only ones in doubt.
        doubts = notes.kinds.count("intent") - notes.kinds.count("void")
        assert doubts - notes.kinds.count("answer") <= WORKERS
        back = min(at for at in served if at > 91)
        assert back < 90 + 61
        assert sum(at > back for at in served) > 0.9 * (180 - back) * WORKERS / LATENCY_S

    patient_time.run(main())


# ---- a whole run


def whole_run(out: Path, spoil: Callable[[float], web.Response | None]) -> tuple[Manifest, int]:
    """A small run in virtual time; `spoil` may answer in the simulator's place, by the time."""
    served: Counter[str] = Counter()

    async def main() -> Manifest:
        async def handler(asked: web.Request) -> web.Response:
            body = await asked.read()
            await asyncio.sleep(LATENCY_S)
            if (spoilt := spoil(now() - 1000)) is not None:
                return spoilt
            served["all"] += 1
            said = answer(wire.read_request(body).request, SimulatorSettings())
            return web.Response(body=wire.completion(1, 0, said), content_type="application/json")

        async with serving(handler) as url:
            data = Data(task="cb", model="m", contexts=10)
            return await generate(RunConfig(data=data, delivery=Delivery(n=30, base_url=url)), out)

    return patient_time.run(main()), served["all"]


@pytest.mark.parametrize("said", ["nothing", "20 seconds"])
def test_trap_10_a_run_lives_through_a_storm_and_loses_nothing(tmp_path: Path, said: str) -> None:
    calm, calls = whole_run(tmp_path / "calm", lambda _: None)

    def storm(at_s: float) -> web.Response | None:
        if not 2 < at_s < 602:
            return None
        headers = {"Retry-After": text} if (text := SAID[said]()) else {}
        return web.Response(status=429, headers=headers)

    told, again = whole_run(tmp_path / "storm", storm)
    assert told.delivered == calm.delivered == 30
    assert told.shards == calm.shards
    assert told.failed == {} == calm.failed
    assert told.calls.in_doubt == 0
    assert (told.calls.served, calm.calls.served) == (again, calls)
    assert told.calls.refused > 0
    assert rows(tmp_path / "storm") == rows(tmp_path / "calm")


def test_trap_11_credit_that_runs_out_stops_at_once_and_the_run_goes_on_with_more(
    tmp_path: Path,
) -> None:
    """Nothing that was paid for is asked for again."""
    calm, calls = whole_run(tmp_path / "calm", lambda _: None)
    ends: list[float] = []

    def empty(at_s: float) -> web.Response | None:
        if at_s < 2:
            return None
        ends.append(at_s)
        said = {"error": {"message": "no money", "code": "insufficient_quota"}}
        return web.json_response(said, status=429)

    with pytest.raises(Denied, match="no credit left") as caught:
        whole_run(tmp_path / "run", empty)
    assert KEY not in str(caught.value)
    assert ends[-1] - ends[0] < 5
    told, more = whole_run(tmp_path / "run", lambda _: None)
    assert told.shards == calm.shards
    assert told.calls.in_doubt == 0
    # The second server has another address, so it is asked what it takes.
    assert told.calls.served == calls + 1
    assert more < calls
