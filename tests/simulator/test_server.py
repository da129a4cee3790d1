"""The endpoint over real HTTP: answers, errors, transport faults, and stats that are true."""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from targen_async.records import ChatRequest
from targen_async.simulator import SimulatorSettings, answer
from targen_async.simulator.server import serve
from targen_async.simulator.settings import Outage
from targen_async.simulator.transport import Transport
from targen_async.tasks import load_task

from .asking import HONEST, request


def body_of(asked: ChatRequest, **more: object) -> dict[str, Any]:
    schema = {"name": asked.schema_name, "strict": True, "schema": asked.json_schema}
    return {
        "model": asked.model,
        "messages": [{"role": m.role, "content": m.content} for m in asked.messages],
        "temperature": asked.temperature,
        "max_tokens": asked.max_tokens,
        "seed": asked.seed,
        "response_format": {"type": "json_schema", "json_schema": schema},
        **more,
    }


def contexts_request(seed: int = 0) -> ChatRequest:
    return request(load_task("copa"), "contexts", {"count": "5"}, seed=seed)


class Client:
    """Asks one server and tells what came back: a status, `reset` or `torn`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url
        self.answers: list[dict[str, Any]] = []

    async def ask(self, seed: int = 0, **more: object) -> str:
        try:
            async with self.session.post(
                f"{self.url}/v1/chat/completions", json=body_of(contexts_request(seed), **more)
            ) as response:
                try:
                    text = await response.text()
                except aiohttp.ClientPayloadError:
                    return "torn"
                self.headers = response.headers
                self.last = json.loads(text)
                if response.status == 200:
                    self.answers.append(self.last)
                return str(response.status)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return "reset"

    async def stats(self) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/stats") as response:
            return await response.json()


@asynccontextmanager
async def serving(settings: SimulatorSettings) -> AsyncIterator[Client]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(settings, on_ready=port.set_result))
    try:
        url = f"http://127.0.0.1:{await port}"
        # A connection for each request: what one reset does is seen by one request only.
        connector = aiohttp.TCPConnector(force_close=True, limit=64)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Client(session, url)
    finally:
        server.cancel()
        await asyncio.wait([server])


def with_server(
    use: Callable[[Client], Awaitable[None]], settings: SimulatorSettings = HONEST
) -> None:
    async def main() -> None:
        async with serving(settings) as client:
            await use(client)

    asyncio.run(main())


def test_an_answer_is_a_chat_completion() -> None:
    async def use(client: Client) -> None:
        assert await client.ask(seed=7) == "200"
        expected = answer(contexts_request(7), HONEST)
        choice = client.last["choices"][0]
        assert choice["message"] == {
            "role": "assistant",
            "content": expected.text,
            "refusal": None,
        }
        assert choice["finish_reason"] == "stop"
        assert client.last["object"] == "chat.completion"
        assert client.last["model"] == "targen-simulator"
        assert client.last["usage"]["completion_tokens"] == expected.usage.completion_tokens
        assert client.last["usage"]["prompt_tokens"] == expected.usage.prompt_tokens

    with_server(use)


def test_thoughts_are_shown_and_counted_and_come_first_of_max_tokens() -> None:
    async def use(client: Client) -> None:
        honest = answer(contexts_request(7), HONEST)
        said = honest.usage.completion_tokens
        assert await client.ask(seed=7) == "200"
        choice, usage = client.last["choices"][0], client.last["usage"]
        assert choice["message"]["content"] == honest.text
        assert len(choice["message"]["reasoning_content"]) == 4 * 300
        assert usage["completion_tokens"] == 300 + said
        assert usage["total_tokens"] == usage["prompt_tokens"] + 300 + said
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 300}

    with_server(use, SimulatorSettings(thinking_tokens=300))


@pytest.mark.parametrize(("room", "left"), [(200, 0), (300, 0), (310, 10)])
def test_thoughts_may_leave_no_room_for_the_answer(room: int, left: int) -> None:
    asked = replace(contexts_request(7), max_tokens=room)
    told = answer(asked, SimulatorSettings(thinking_tokens=300))
    assert (told.finish_reason, len(told.text)) == ("length", 4 * left)
    assert told.usage.completion_tokens == room
    assert told.thought_tokens == room - left


def test_a_refusal_has_no_content() -> None:
    async def use(client: Client) -> None:
        for seed in range(20):
            await client.ask(seed)
        messages = [a["choices"][0]["message"] for a in client.answers]
        assert any(m["refusal"] and m["content"] is None for m in messages)
        assert any(m["refusal"] is None and m["content"] for m in messages)

    with_server(use, SimulatorSettings(refusals=1.0))


def test_other_dialects_are_understood() -> None:
    async def use(client: Client) -> None:
        asked = contexts_request()
        formats = (
            {"type": "json_object", "schema": asked.json_schema},
            {"type": "json_object"},
            {"type": "text"},
        )
        for response_format in formats:
            assert await client.ask(response_format=response_format) == "200"
            text = client.last["choices"][0]["message"]["content"]
            assert len(json.loads(text)["contexts"]) == 5
        assert await client.ask(max_completion_tokens=3, max_tokens=None) == "200"
        assert client.last["choices"][0]["finish_reason"] == "length"
        parts = [{"role": "developer", "content": [{"type": "text", "text": "Say OK."}]}]
        assert await client.ask(messages=parts, response_format={"type": "text"}) == "200"

    with_server(use)


def test_errors_have_openais_form() -> None:
    async def use(client: Client) -> None:
        assert await client.ask() == "401"
        assert client.last["error"]["code"] == "invalid_api_key"
        client.session.headers["Authorization"] = "Bearer secret"
        assert await client.ask(model="gpt-9") == "404"
        assert client.last["error"]["code"] == "model_not_found"
        for broken in ({"messages": []}, {"messages": 3}, {"n": 2}, {"max_tokens": -1}):
            assert await client.ask(**{"model": "one", **broken}) == "400"
            assert client.last["error"]["type"] == "invalid_request_error"
        assert await client.ask(model="one") == "200"
        async with client.session.get(f"{client.url}/v1/models") as response:
            models = await response.json()
        assert [entry["id"] for entry in models["data"]] == ["one", "two"]
        assert (await client.stats())["errors_4xx"] == 6

    with_server(use, SimulatorSettings(api_key="secret", models=("one", "two")))


def test_stats_are_what_the_client_saw() -> None:
    settings = SimulatorSettings(error_rate=0.2, reset_rate=0.3, stall_rate=0.1, stall_s=0.05)

    async def use(client: Client) -> None:
        seen = Counter(await asyncio.gather(*(client.ask(seed) for seed in range(400))))
        stats = await client.stats()
        errors = seen["500"] + seen["502"] + seen["503"]
        assert stats["errors_5xx"] == errors and 50 < errors < 110
        assert all(seen[status] for status in ("500", "502", "503"))
        assert stats["resets"] == seen["reset"] + seen["torn"] and 90 < stats["resets"] < 150
        assert seen["reset"] > 30 and seen["torn"] > 30
        # A torn body was begun: the provider would charge for it.
        assert stats["served"] == seen["200"] + seen["torn"] == stats["by_stage"]["contexts"]
        assert 20 < stats["stalls"] < 62
        told = [a["usage"]["completion_tokens"] for a in client.answers]
        asked = [a["usage"]["prompt_tokens"] for a in client.answers]
        assert stats["completion_tokens"] >= sum(told) and stats["prompt_tokens"] >= sum(asked)
        assert stats["in_flight"] == 0 and stats["max_in_flight"] > 1
        async with client.session.post(f"{client.url}/stats/reset"):
            pass
        assert (await client.stats())["served"] == 0

    with_server(use, settings)


def test_without_faults_tokens_agree_exactly() -> None:
    async def use(client: Client) -> None:
        await asyncio.gather(*(client.ask(seed) for seed in range(50)))
        stats = await client.stats()
        assert stats["served"] == 50
        for name in ("prompt_tokens", "completion_tokens"):
            assert stats[name] == sum(a["usage"][name] for a in client.answers)

    with_server(use)


def test_an_answer_nobody_waited_for_is_not_served() -> None:
    async def use(client: Client) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.ask(), 0.05)
        await asyncio.sleep(0.3)
        stats = await client.stats()
        assert stats["served"] == 0 and stats["abandoned"] == 1 and stats["in_flight"] == 0

    with_server(use, SimulatorSettings(stall_rate=1.0, stall_s=0.2))


def test_the_request_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    async def use(client: Client) -> None:
        start = time.monotonic()
        seen = Counter(await asyncio.gather(*(client.ask(seed) for seed in range(30))))
        spent_s = time.monotonic() - start
        # 10 a second, a burst of one second's worth.
        assert 10 <= seen["200"] <= 10 + 10 * spent_s + 1
        assert seen["429"] == 30 - seen["200"] == (await client.stats())["rejected_429"]
        while await client.ask() != "429":
            pass
        assert client.headers["Retry-After"] == "1"
        assert client.last["error"]["code"] == "rate_limit_exceeded"
        assert client.headers["x-ratelimit-remaining-requests"] == "0"
        await asyncio.sleep(int(client.headers["retry-after-ms"]) / 1000 + 0.01)
        assert await client.ask() == "200"

    with_server(use, SimulatorSettings(requests_per_minute=600, burst_s=1.0))


def test_the_token_bucket_counts_prompt_and_answer() -> None:
    one = answer(contexts_request(), HONEST).usage
    cost = one.prompt_tokens + one.completion_tokens

    async def use(client: Client) -> None:
        seen = [await client.ask() for _ in range(6)]
        # The bucket holds three and a half: the fourth finds too little for its prompt.
        assert seen == ["200"] * 3 + ["429"] * 3
        assert int(client.headers["x-ratelimit-limit-tokens"]) == int(3.5 * cost)

    with_server(use, SimulatorSettings(tokens_per_minute=3.5 * cost, burst_s=60.0))


def test_an_outage_answers_nothing_and_ends() -> None:
    settings = SimulatorSettings(outages=(Outage(start_s=0.3, duration_s=0.5),))

    async def use(client: Client) -> None:
        assert await client.ask() == "200"
        await asyncio.sleep(0.35)
        seen = Counter([await client.ask(seed) for seed in range(20)])
        assert set(seen) == {"503", "reset"}
        assert (await client.stats())["outage_hits"] == 20
        await asyncio.sleep(0.6)
        assert await client.ask() == "200"
        assert (await client.stats())["served"] == 2

    with_server(use, settings)


def test_latency_is_log_normal_about_its_median() -> None:
    transport = Transport(SimulatorSettings(latency_ms=100, latency_sigma=0.5))
    delays = sorted(transport.plan().delay_s for _ in range(4000))
    assert delays[2000] == pytest.approx(0.1, rel=0.05)
    # One sigma above the median: a factor of e to the 0.5.
    assert delays[int(4000 * 0.8413)] == pytest.approx(0.1 * math.exp(0.5), rel=0.07)


def test_an_answer_takes_its_latency() -> None:
    async def use(client: Client) -> None:
        start = time.monotonic()
        assert await client.ask() == "200"
        assert 0.2 <= time.monotonic() - start < 2

    with_server(use, SimulatorSettings(latency_ms=200))


@pytest.mark.parametrize("settings", [{"error_rate": 0.5, "random_seed": 4}])
def test_transport_faults_follow_the_random_seed(settings: dict[str, Any]) -> None:
    seen: list[list[str]] = []

    async def use(client: Client) -> None:
        seen.append([await client.ask(seed) for seed in range(30)])

    for _ in range(2):
        with_server(use, SimulatorSettings(**settings))
    assert seen[0] == seen[1]


def test_the_command_tells_its_port_and_ends_with_its_parent() -> None:
    command = [sys.executable, "-m", "targen_async.simulator", "--exit-with-parent"]
    with subprocess.Popen(
        [*command, "--malformed", "0.5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        port = json.loads(child.stdout.readline())["port"]

        async def ask() -> int:
            async with aiohttp.ClientSession() as session:
                response = await session.get(f"http://127.0.0.1:{port}/v1/models")
                return response.status

        assert asyncio.run(ask()) == 200
        child.stdin.close()
        assert child.wait(10) == 0


def test_a_bad_setting_ends_the_command_with_one_sentence() -> None:
    command = [sys.executable, "-m", "targen_async.simulator", "--malformed", "7"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: simulator settings:") and ended.stderr.count("\n") == 1


def test_importing_the_simulator_does_not_load_the_web_server() -> None:
    code = "import sys, targen_async.simulator; print({'aiohttp.web', 'uvloop'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_a_stream_says_what_the_answer_at_once_says() -> None:
    async def use(client: Client) -> None:
        asked = body_of(contexts_request(3))
        assert await client.ask(3) == "200"
        whole = client.last
        for options, last in (({"include_usage": True}, 1), (None, 0)):
            stream = {**asked, "stream": True, "stream_options": options}
            url = f"{client.url}/v1/chat/completions"
            async with client.session.post(url, json=stream) as response:
                assert response.content_type == "text/event-stream"
                lines = (await response.text()).split("\n\n")
            assert lines[-2:] == ["data: [DONE]", ""]
            events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
            deltas = [choice["delta"] for event in events for choice in event["choices"]]
            text = "".join(delta.get("content") or "" for delta in deltas)
            assert text == whole["choices"][0]["message"]["content"]
            assert len(deltas) > 3
            assert [e["usage"] for e in events if e.get("usage")] == [whole["usage"]] * last
        assert await client.ask(stream_options={"include_usage": True}) == "400"
        stats = await client.stats()
        assert stats["served"] == 3
        assert stats["completion_tokens"] == 3 * whole["usage"]["completion_tokens"]

    with_server(use)


def test_a_stream_is_torn_as_any_answer_is() -> None:
    async def use(client: Client) -> None:
        told = Counter([await client.ask(seed, stream=True) for seed in range(20)])
        assert told["torn"] > 3
        assert told["reset"] > 3

    with_server(use, SimulatorSettings(reset_rate=1.0))


def test_tokens_in_the_cache_are_told_and_counted() -> None:
    async def use(client: Client) -> None:
        messages = [{"role": "user", "content": "a long story " * 500}]
        for _ in range(2):
            await client.ask(messages=messages)
        details = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in client.answers]
        assert details[0] == 0
        assert details[1] > 1000
        assert (await client.stats())["cached_prompt_tokens"] == details[1]

    with_server(use, SimulatorSettings(prefix_cache=True))
