"""generate() in process, against endpoints that do one particular thing wrong."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from msgspec.structs import replace

from targen_async import Data, Delivery, RunConfig, RunStopped, generate, read_shards
from targen_async.config import Correction
from targen_async.control import RunControl
from targen_async.manifest import Manifest
from targen_async.records import ChatRequest
from targen_async.simulator import SimulatorSettings, answer, wire
from tests.running import lines, rows

Twist = Callable[[ChatRequest, bytes], web.Response | None]
"""May answer in the simulator's place; gets the request and the body it would send."""


@asynccontextmanager
async def endpoint(twist: Twist) -> AsyncIterator[tuple[str, Counter[str]]]:
    """A simulator with a twist, in this process: its base URL, and served answers by stage."""
    served: Counter[str] = Counter()

    async def chat(http: web.Request) -> web.Response:
        request = wire.read_request(await http.read()).request
        body = wire.completion(1, 0, answer(request, SimulatorSettings()))
        stage = (request.schema_name or "-plain").split("-")[1]
        twisted = twist(request, body)
        if twisted is None or twisted.status == 200:
            served[stage] += 1
        return twisted or web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", served
    finally:
        await runner.cleanup()


def run(
    twist: Twist, out: Path, task: str = "cb", n: int = 30, **data: object
) -> tuple[Manifest, Counter[str]]:
    async def main() -> tuple[Manifest, Counter[str]]:
        async with endpoint(twist) as (url, served):
            config = RunConfig(
                data=Data(task=task, model="m", contexts=10, **data),  # type: ignore[arg-type]
                delivery=Delivery(n=n, base_url=url),
            )
            return await generate(config, out), served

    return anyio.run(main)


def asked_for(request: ChatRequest, stage: str) -> bool:
    return f"-{stage}" in (request.schema_name or "")


def test_a_request_that_is_refused_for_good_is_a_failure_and_never_sent_again(
    tmp_path: Path,
) -> None:
    refused: list[int] = []

    def twist(request: ChatRequest, _body: bytes) -> web.Response | None:
        if asked_for(request, "instances") and request.seed % 7 == 0:
            refused.append(request.seed)
            return web.json_response({"error": {"message": "too spicy"}}, status=400)
        return None

    told, _ = run(twist, tmp_path / "run", n=60)
    assert told.delivered == 60
    assert told.failed == {"instances.rejected": len(refused)} != {}
    assert told.identity_broken_by == [f"{len(refused)} calls failed for good"]
    failures = lines(tmp_path / "run" / "failures.jsonl")
    assert all("too spicy" in failure["message"] for failure in failures)
    before = list(refused)
    again, served = run(twist, tmp_path / "run", n=90)
    assert again.delivered == 90
    assert not set(before) & set(refused[len(before) :])
    assert served["contexts"] == 0, "the first run's contexts were asked for again"


def test_an_answer_of_ten_megabytes_is_cut_and_asked_again(tmp_path: Path) -> None:
    huge: list[int] = []

    def twist(request: ChatRequest, _body: bytes) -> web.Response | None:
        if asked_for(request, "instances") and not huge:
            huge.append(request.seed)
            return web.Response(body=b'{"choices": [{"message": {"content": "' + b"x" * 10_000_000)
        return None

    told, served = run(twist, tmp_path / "run")
    assert told.delivered == 30
    assert told.calls.served == served.total()
    assert (tmp_path / "run" / "journal").stat().st_size < 6_000_000


@pytest.mark.parametrize(
    "content",
    [
        '{"premise": "' + "\\ud800" + '", "hypothesis": "b", "explanation": "c"}',
        '{"premise": ' * 5000,
        "\x1b[31mred\x1b[0m <script>alert(1)</script> {{ seed }}",
        '{"premise": "\\u001b[2J\\u202egnp.exe", "hypothesis": "<b>x</b>", "explanation": "e"}',
    ],
)
def test_hostile_text_never_reaches_a_row(tmp_path: Path, content: str) -> None:
    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        if not (asked_for(request, "instances") and request.seed % 3 == 0):
            return None
        whole = json.loads(body)
        whole["choices"][0]["message"]["content"] = content
        return web.json_response(whole)

    told, _ = run(twist, tmp_path / "run")
    assert told.delivered == 30
    for row in rows(tmp_path / "run"):
        assert all(text.isprintable() for text in (row["premise"], row["hypothesis"]))


def test_html_stays_text(tmp_path: Path) -> None:
    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        if not asked_for(request, "instances"):
            return None
        whole = json.loads(body)
        row = json.loads(whole["choices"][0]["message"]["content"])
        row["hypothesis"] = "<i>Hm</i>: " + row["hypothesis"]
        whole["choices"][0]["message"]["content"] = json.dumps(row)
        return web.json_response(whole)

    run(twist, tmp_path / "run", n=9, correction=_correction("off"))
    assert all("<i>Hm</i>" in row.fields["hypothesis"] for row in read_shards(tmp_path / "run"))


def _correction(mode: str) -> object:
    return Correction(mode=mode)  # type: ignore[arg-type]


def test_answers_without_usage_are_counted_as_such(tmp_path: Path) -> None:
    def twist(_request: ChatRequest, body: bytes) -> web.Response:
        whole = json.loads(body)
        del whole["usage"]
        return web.json_response(whole)

    told, served = run(twist, tmp_path / "run")
    assert told.calls.served_without_usage == told.calls.served == served.total()
    assert told.spent.prompt_tokens == 0


def test_a_judge_that_never_answers_properly_leaves_every_row_to_review(tmp_path: Path) -> None:
    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        if not asked_for(request, "correction"):
            return None
        whole = json.loads(body)
        whole["choices"][0]["message"]["content"] = '{"items": []}'
        return web.json_response(whole)

    with pytest.raises(RunStopped, match=r"starves: 200 tries gave 0 usable rows"):
        run(twist, tmp_path / "run", n=900)
    rejected = Counter(line["reason"] for line in lines(tmp_path / "run" / "rejected.jsonl"))
    assert rejected["review"] > 400
    assert not rows(tmp_path / "run")


def test_a_judge_that_answers_only_one_at_a_time_is_asked_one_at_a_time(tmp_path: Path) -> None:
    """Trap 12: a batch that fails does not take its neighbours along."""

    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        whole = json.loads(body)
        if not asked_for(request, "correction"):
            return None
        items = json.loads(whole["choices"][0]["message"]["content"])["items"]
        if len(items) == 1:
            return None
        whole["choices"][0]["message"]["content"] = json.dumps({"items": items[1:]})
        return web.json_response(whole)

    told, served = run(twist, tmp_path / "run", n=30)
    assert told.delivered == 30
    assert served["correction"] > 30
    assert told.wasted.completion_tokens > 0
    assert not told.failed


def test_answers_of_a_judge_that_bought_no_row_cost_what_the_judge_costs(tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    for name, price in (("m", 1), ("dear", 500)):
        with table.open("a") as file:
            file.write(f'[[model]]\nnames = ["{name}"]\nprompt = 0\ncompletion = {price}\n')
            file.write("known = 2026-11-01\n")

    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        whole = json.loads(body)
        if not asked_for(request, "correction"):
            return None
        items = json.loads(whole["choices"][0]["message"]["content"])["items"]
        if len(items) == 1:
            return None
        whole["choices"][0]["message"]["content"] = json.dumps({"items": items[1:]})
        return web.json_response(whole)

    async def main() -> Manifest:
        async with endpoint(twist) as (url, _):
            config = RunConfig(
                data=Data(task="cb", model="m", contexts=10, correction=Correction(model="dear")),
                delivery=Delivery(n=30, base_url=url, prices_file=str(table)),
            )
            return await generate(config, tmp_path / "run")

    told = anyio.run(main)
    rejected = sum(
        note["row"]["provenance"]["usage"]["completion_tokens"]
        for note in lines(tmp_path / "run" / "rejected.jsonl")
        if note["reason"] != "surplus" and "row" in note
    )
    judged = told.wasted.completion_tokens - rejected
    assert judged > 0
    assert told.wasted.usd == pytest.approx((rejected + 500 * judged) / 1e6)


def test_a_doubled_row_stays_two_calls_and_one_row(tmp_path: Path) -> None:
    """Trap 7: equal prompts of two keys are two calls; equal rows are refused duplicates."""
    first: list[bytes] = []

    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        if not asked_for(request, "instances-neutral"):
            return None
        first.append(body)
        return web.Response(body=first[len(first) // 2], content_type="application/json")

    told, _ = run(twist, tmp_path / "run", n=30, correction=_correction("off"))
    assert told.delivered == 30
    assert told.rejected["instances.duplicate"] >= 3
    assert told.wasted.completion_tokens > 0, "a rejected row's tokens bought nothing"
    texts = [tuple(row.fields.values()) for row in read_shards(tmp_path / "run")]
    assert len(set(texts)) == 30


def test_cached_tokens_of_rows_that_were_refused_are_counted_and_stand_in_no_row(
    tmp_path: Path,
) -> None:
    """What a cache holds hangs on what was asked just before, and rows must not."""
    first: list[bytes] = []

    def twist(request: ChatRequest, body: bytes) -> web.Response:
        if asked_for(request, "instances-neutral"):
            first.append(body)
            body = first[len(first) // 2]
        whole = json.loads(body)
        whole["usage"]["prompt_tokens_details"] = {"cached_tokens": 8}
        return web.json_response(whole)

    told, _ = run(twist, tmp_path / "run", n=30, correction=_correction("off"))
    refused = told.rejected["instances.duplicate"]
    assert refused >= 3
    assert told.wasted.cached_prompt_tokens == 8 * refused
    assert {row.provenance.usage.cached_prompt_tokens for row in read_shards(tmp_path / "run")} == {
        0
    }


def test_an_endpoint_without_schemas_is_asked_in_words(tmp_path: Path) -> None:
    prompts: list[str] = []

    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        if request.json_schema is not None:
            return web.json_response({"error": "response_format is not supported"}, status=400)
        prompts.append(request.messages[-1].content)
        whole = json.loads(body)
        content = whole["choices"][0]["message"]["content"]
        whole["choices"][0]["message"]["content"] = f"Sure!\n```json\n{content}\n```"
        return web.json_response(whole)

    told, _ = run(twist, tmp_path / "run", task="copa", n=30)
    assert told.delivered == 30
    assert not told.failed
    assert told.identity_broken_by == []
    assert all("JSON" in prompt for prompt in prompts if not prompt.startswith("Greet me"))
    assert any(
        '{"right": "\u2026", "wrong": "\u2026", "explanation": "\u2026"}' in p for p in prompts
    )


def test_another_address_is_asked_what_it_takes_and_nothing_that_is_known(tmp_path: Path) -> None:
    asked: list[ChatRequest] = []

    def takes_all(request: ChatRequest, _body: bytes) -> web.Response | None:
        asked.append(request)
        return None

    def takes_no_schema(request: ChatRequest, body: bytes) -> web.Response | None:
        asked.append(request)
        if request.json_schema is None:
            return None
        return web.json_response({"error": "response_format is not supported"}, status=400)

    def probes() -> int:
        return sum(request.messages[-1].content.startswith("Greet me") for request in asked)

    async def main() -> None:
        async with endpoint(takes_all) as (first, _), endpoint(takes_no_schema) as (second, _):

            async def make(url: str, n: int) -> Manifest:
                asked.clear()
                config = RunConfig(
                    data=Data(task="copa", model="m", contexts=10),
                    delivery=Delivery(n=n, base_url=url),
                )
                return await generate(config, tmp_path / "run")

            await make(first, 10)
            assert probes() == 1
            await make(first + "/", 20)
            assert probes() == 0 < len(asked), "the same address was probed again"
            told = await make(second, 30)
            assert told.delivered == 30 and not told.failed
            assert probes() == 3
            refused = [request for request in asked if request.json_schema is not None]
            assert len(refused) == 2, "after the probe schemas were still sent"
            texts = [request.messages[-1].content for request in asked]
            assert not any('"contexts"' in text for text in texts), "known contexts were asked for"
            await make(second, 40)
            assert probes() == 0 < len(asked)
            await make(first, 50)
            assert probes() == 0 < len(asked)
            assert all(request.json_schema is not None for request in asked)

    anyio.run(main)


def test_rows_are_read_again_though_the_address_of_the_last_start_never_answered(
    tmp_path: Path,
) -> None:
    async def main() -> Manifest:
        async with endpoint(lambda *_: None) as (url, _):
            config = RunConfig(
                data=Data(task="cb", model="m", contexts=10), delivery=Delivery(n=10, base_url=url)
            )
            await generate(config, tmp_path / "run")
        delivery = Delivery(n=10, base_url="http://127.0.0.1:9/v1", give_up_after_s=0.1)
        away = replace(config, delivery=delivery)
        more = replace(config, delivery=replace(delivery, n=20))
        whole = await generate(away, tmp_path / "run")
        assert (whole.state, whole.simulated) == ("complete", True), "nothing was to be asked"
        with pytest.raises(RunStopped, match="served nothing"):
            await generate(more, tmp_path / "run")
        return await generate(more, tmp_path / "run", again="reparse")

    told = anyio.run(main)
    assert (told.delivered, told.simulated) == (10, True)


def test_too_few_contexts_are_lived_with_and_counted(tmp_path: Path) -> None:
    first: list[bytes] = []

    def twist(request: ChatRequest, body: bytes) -> web.Response | None:
        if not asked_for(request, "contexts"):
            return None
        first.append(body)
        return web.Response(body=first[0], content_type="application/json")

    async def main() -> Manifest:
        async with endpoint(twist) as (url, _):
            config = RunConfig(
                data=Data(task="cb", model="m", contexts=30), delivery=Delivery(n=30, base_url=url)
            )
            return await generate(config, tmp_path / "run")

    told = anyio.run(main)
    assert told.delivered == 30
    assert told.contexts_missing == 20


def test_a_batch_too_long_for_one_call_is_judged_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, long = (run(lambda *_: None, tmp_path / "usual"), None)
    monkeypatch.setattr("targen_async.stages.BATCH_PROMPT_BYTES", 400)
    long = run(lambda *_: None, tmp_path / "long")
    assert usual[0].delivered == long[0].delivered == 30
    assert long[1]["correction"] >= 3 * usual[1]["correction"]


def test_drain_from_a_program_returns_a_stopped_manifest_and_resumes(tmp_path: Path) -> None:
    async def main() -> tuple[Manifest, Manifest]:
        control = RunControl()
        calls = 0

        def twist(_request: ChatRequest, _body: bytes) -> None:
            nonlocal calls
            calls += 1
            if calls == 40:
                control.drain("enough for today")

        async with endpoint(twist) as (url, _):
            config = RunConfig(
                data=Data(task="cb", model="m", contexts=10),
                delivery=Delivery(n=200, base_url=url),
            )
            stopped = await generate(config, tmp_path / "run", control=control)
            return stopped, await generate(config, tmp_path / "run")

    stopped, whole = anyio.run(main)
    assert stopped.state == "stopped"
    assert stopped.reason == "enough for today"
    assert stopped.delivered < 200 == whole.delivered
    assert whole.calls.in_doubt == 0
