"""The dialect of an endpoint: found in few calls, from the endpoint's own words, and remembered."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from aiohttp import web

from targen_async.ask import Asker, memo_of
from targen_async.chat.retry import Breaker, Retrying
from targen_async.chat.wire import Dialect, encode_request
from targen_async.config import Data
from targen_async.control import RunControl
from targen_async.errors import RunStopped
from targen_async.journal import VERSION, Journal, Kind, Opened
from targen_async.ledger import Ledger
from targen_async.probe import Probed, probe
from targen_async.recover import recover
from targen_async.stats import Stats
from tests.chat.helpers import chat, completion, request, serving
from tests.chat.test_contract import event, streaming

Body = dict[str, Any]
Answer = tuple[int, Body | bytes]
JSON_TEXT = '{"words": ["Hello!"]}'


def said(text: str = JSON_TEXT, reason: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": reason}
    return 200, completion(choices=[choice])


def refused(message: str, status: int = 400, **more: Any) -> Answer:
    return status, {"error": {"message": message, "type": "invalid_request_error", **more}}


@contextmanager
def opened(path: Path) -> Iterator[tuple[Journal, Ledger, dict[bytes, int]]]:
    """A journal that was begun, with what it remembers."""
    journal = Journal(path)
    try:
        ledger = Ledger(journal)
        found = recover(path, journal, ledger)
        if found.opened is None:
            first = Opened(version=VERSION, data=Data(task="copa"), task_digest="")
            journal.append(Kind.OPENED, msgspec.msgpack.encode(first))
        yield journal, ledger, found.memos
    finally:
        journal.close()


def probed(
    path: Path,
    answer: Callable[[Body], Answer],
    *,
    data: Data | None = None,
    stream: bool = False,
    offline: bool = False,
    **options: Any,
) -> tuple[Probed | None, list[Body]]:
    """Probe a server with the journal at `path`: what was found, and what the server was asked."""
    asked: list[Body] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append(body)
        status, told = answer(body)
        if status == 200 and body.get("stream"):
            assert isinstance(told, dict)
            choice = told["choices"][0]
            delta, usage = choice["message"], told["usage"]
            return await streaming([event(delta, choice["finish_reason"], usage=usage)])(request)
        data = told if isinstance(told, bytes) else orjson.dumps(told)
        return web.Response(body=data, status=status, content_type="application/json")

    async def main() -> Probed | None:
        with opened(path) as (journal, ledger, memos):
            async with serving(handler) as url, chat(url, recorder=ledger, stream=stream) as http:
                breaker = Breaker(give_up_after_s=5)
                client = Retrying(http, breaker=breaker, max_attempts=1)
                asker = Asker(journal, ledger, memos, RunControl(), Stats(), offline=offline)
                asker.client = client
                found = await probe(asker, http, "copa", data or Data(task="copa"), **options)
                if found is not None:
                    assert http.dialect == found.dialect
                assert ledger.dead == 0
                return found

    return asyncio.run(main()), asked


def found_twice(path: Path, answer: Callable[[Body], Answer], **options: Any) -> tuple[Probed, int]:
    """What a probe finds and the calls it takes; a second start finds the same without one."""
    first, asked = probed(path / "journal", answer, **options)
    again, more = probed(path / "journal", answer, **options)
    assert first == again
    assert more == []
    assert first is not None
    return first, len(asked)


def test_one_call_where_everything_is_understood(tmp_path: Path) -> None:
    bodies: list[Body] = []

    def answer(body: Body) -> Answer:
        bodies.append(body)
        return said()

    found, calls = found_twice(tmp_path, answer, data=Data(task="copa", model="m", top_p=0.9))
    assert (found.dialect, found.model, calls) == (Dialect(), "m@main", 1)
    assert found.notes == ()
    sent = bodies[0]
    assert {"temperature", "seed", "top_p", "max_tokens", "response_format"} <= set(sent)
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert "JSON" not in str(sent["messages"])


@pytest.mark.parametrize(
    "text", ["Hello there!", "```json\n" + JSON_TEXT + "\n```", '{"greeting": "Hello"}', "[]", ""]
)
def test_a_schema_that_is_ignored_is_not_asked_for_again(tmp_path: Path, text: str) -> None:
    found, calls = found_twice(tmp_path, lambda _: said(text))
    assert (found.dialect, calls) == (Dialect(schema="plain"), 1)
    assert "takes no JSON schema" in found.notes[0]


@pytest.mark.parametrize(
    "text", ["", '{"words": ["He', "<think>Let me", "<think>Hm.</think>" + JSON_TEXT]
)
def test_an_answer_that_was_cut_while_it_thought_or_wrote_json_obeys(
    tmp_path: Path, text: str
) -> None:
    found, _ = found_twice(tmp_path, lambda _: said(text, "length"))
    assert found.dialect == Dialect()


LLAMA = (
    "1 validation error: {'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), "
    "'msg': \"Input should be 'text' or 'json_object'\", 'input': 'json_schema'}"
)


@pytest.mark.parametrize(("status", "message"), [(500, LLAMA), (400, ""), (422, "no schema")])
def test_json_object_with_a_schema_is_tried_next(tmp_path: Path, status: int, message: str) -> None:
    def answer(body: Body) -> Answer:
        if body["response_format"]["type"] == "json_schema":
            return refused(message, status)
        assert body["response_format"]["schema"]["type"] == "object"
        return said()

    found, calls = found_twice(tmp_path, answer)
    assert (found.dialect, calls) == (Dialect(schema="json_object"), 2)


def test_plain_is_the_last_way(tmp_path: Path) -> None:
    def answer(body: Body) -> Answer:
        return refused("what is that?") if "response_format" in body else said("Hello!")

    found, calls = found_twice(tmp_path, answer)
    assert (found.dialect, found.plain, calls) == (Dialect(schema="plain"), True, 3)


def test_a_start_elsewhere_saves_calls_and_the_rest_is_still_tried(tmp_path: Path) -> None:
    def only_object(body: Body) -> Answer:
        kind = body.get("response_format", {}).get("type")
        return said() if kind == "json_object" else refused("response_format?")

    def only_schema(body: Body) -> Answer:
        kind = body.get("response_format", {}).get("type")
        return said() if kind == "json_schema" else refused("response_format?")

    start = Dialect(schema="json_object")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert found_twice(tmp_path / "a", only_object, start=start) == (
        Probed(dialect=start, model="m@main"),
        1,
    )
    assert found_twice(tmp_path / "b", only_schema, start=start)[1] == 2


NEW_NAME = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead."
)
ONLY_ONE = (
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) "
    "value is supported."
)


def test_a_reasoning_model_of_openai(tmp_path: Path) -> None:
    def answer(body: Body) -> Answer:
        if "max_tokens" in body:
            return refused(NEW_NAME, param="max_tokens", code="unsupported_parameter")
        if "temperature" in body:
            return refused(ONLY_ONE, param="temperature", code="unsupported_value")
        if "top_p" in body:
            return refused("Unsupported parameter.", param="top_p", code="unsupported_parameter")
        return said()

    found, calls = found_twice(tmp_path, answer, data=Data(task="copa", top_p=0.9))
    assert found.dialect == Dialect(
        max_tokens_field="max_completion_tokens", omit=frozenset({"temperature", "top_p"})
    )
    assert calls == 4
    assert found.notes == (
        "the endpoint does not take `temperature`: left out",
        "the endpoint does not take `top_p`: left out",
    )


def thought(text: str, reason: str, counted: int | None = None, shown: str = "") -> Answer:
    status, body = said(text, reason)
    assert isinstance(body, dict)
    if shown:
        body["choices"][0]["message"]["reasoning_content"] = shown
    if counted is not None:
        details = {"reasoning_tokens": counted}
        usage = {"prompt_tokens": 20, "completion_tokens": counted + len(text) // 4}
        body["usage"] = usage | {"completion_tokens_details": details}
    return status, body


@pytest.mark.parametrize(
    ("answer", "room"),
    [
        (said(), 0),
        (thought(JSON_TEXT, "stop", 0), 0),
        (thought(JSON_TEXT, "stop", 80), 4096),
        (thought(JSON_TEXT, "stop", 1500), 6144),
        (thought(JSON_TEXT, "stop", 30_000), 32_768),
        (thought(JSON_TEXT, "stop", shown="Let me see. " * 10), 4096),
        (thought(JSON_TEXT, "stop", shown="Let me see. " * 500), 6144),
        (said(f"<think>{'Let me see. ' * 500}</think>{JSON_TEXT}"), 6144),
    ],
)
def test_a_model_that_thinks_gets_room_for_it(tmp_path: Path, answer: Answer, room: int) -> None:
    found, calls = found_twice(tmp_path, lambda _: answer)
    assert (found.thinking_tokens, calls, found.plain) == (room, 1, False)
    assert len(found.notes) == bool(room)
    assert all(f"{room:,} tokens are added to max_tokens" in note for note in found.notes)


@pytest.mark.parametrize("start", ["", "\n\n", '{"words', "<think>Let me see whether"])
@pytest.mark.parametrize(("text", "plain"), [(JSON_TEXT, False), ("Hello there!", True)])
def test_an_answer_that_was_cut_in_thought_is_asked_for_with_room(
    tmp_path: Path, start: str, text: str, plain: bool
) -> None:
    limits: list[int] = []

    def answer(body: Body) -> Answer:
        limits.append(body["max_tokens"])
        if body["max_tokens"] <= 2000:
            return thought(start, "length", body["max_tokens"])
        return thought(text, "stop", 2000)

    found, calls = found_twice(tmp_path, answer)
    assert (found.thinking_tokens, found.plain, calls) == (8192, plain, 2)
    assert limits == [512, 512 + 4096]
    # What was found out holds where room is configured later.
    again, asked = probed(tmp_path / "journal", answer, thinking_tokens=9000)
    assert again is not None
    assert (again.dialect, again.thinking_tokens, asked) == (found.dialect, 0, [])


def test_what_it_thought_may_not_end_in_the_room_either(tmp_path: Path) -> None:
    found, calls = found_twice(tmp_path, lambda b: thought("", "length", b["max_tokens"]))
    assert (found.thinking_tokens, found.plain, calls) == (18_432, False, 2)


def test_an_endpoint_without_so_much_room_is_asked_as_before(tmp_path: Path) -> None:
    def answer(body: Body) -> Answer:
        if body["max_tokens"] > 4000:
            return refused("max_tokens must be at most 4000")
        return said("", "length")

    found, calls = found_twice(tmp_path, answer)
    assert (found.dialect, found.thinking_tokens, calls) == (Dialect(), 0, 2)


@pytest.mark.parametrize(("room", "sent"), [(0, 512), (1000, 1512)])
def test_where_room_is_configured_none_is_found(tmp_path: Path, room: int, sent: int) -> None:
    path = tmp_path / "journal"
    found, asked = probed(path, lambda _: thought(JSON_TEXT, "stop", 300), thinking_tokens=room)
    assert found is not None
    assert (found.thinking_tokens, found.notes) == (0, ())
    assert [body["max_tokens"] for body in asked] == [sent]
    # How much it is has no part in what the journal knows the call by.
    again, asked = probed(path, lambda _: said(), thinking_tokens=room + 1)
    assert (again, asked) == (found, [])
    unset, asked = probed(path, lambda _: said())
    assert unset is not None
    assert (unset.thinking_tokens, asked) == (4096, [])


def test_thoughts_are_seen_in_a_stream(tmp_path: Path) -> None:
    found, _ = found_twice(tmp_path, lambda _: thought(JSON_TEXT, "stop", 1500), stream=True)
    assert found.thinking_tokens == 6144


def test_the_old_name_where_the_new_one_is_not_known(tmp_path: Path) -> None:
    def answer(body: Body) -> Answer:
        if "max_completion_tokens" in body:
            return refused("Unrecognized request argument supplied: max_completion_tokens")
        return said()

    start = Dialect(max_tokens_field="max_completion_tokens")
    found, calls = found_twice(tmp_path, answer, start=start)
    assert (found.dialect, calls) == (Dialect(), 2)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "Unrecognized request argument supplied: seed"}}),
        (400, {"error": {"message": "Unsupported parameter", "param": "seed"}}),
        (400, {"error": {"message": "property 'seed' is unsupported", "code": None}}),
        (400, {"error": "Extra inputs are not permitted, field: 'seed'"}),
        (
            400,
            {"error": {"code": "400", "message": "it does not support ['seed']"}},
        ),
        (400, [{"error": {"message": 'Invalid JSON payload. Unknown name "seed"'}}]),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra"}]}),
        (422, {"detail": "Unexpected fields in the request: {'seed'}"}),
        (500, {"error": {"message": "unknown field `seed`"}}),
    ],
)
def test_a_field_is_left_out_however_it_is_named(tmp_path: Path, status: int, body: Any) -> None:
    found, calls = found_twice(tmp_path, lambda b: (status, body) if "seed" in b else said())
    assert (found.dialect, calls) == (Dialect(omit=frozenset({"seed"})), 2)


def test_what_was_sent_back_in_a_complaint_is_not_taken_for_a_complaint(tmp_path: Path) -> None:
    """pydantic repeats the whole input, which names every field."""

    def answer(body: Body) -> Answer:
        if "response_format" in body:
            complaint = {"loc": ["body", "response_format"], "msg": "no such kind", "input": body}
            return 422, {"detail": [{**complaint, "type": "literal_error"}]}
        return said("Hello!")

    found, calls = found_twice(tmp_path, answer)
    assert (found.dialect, calls) == (Dialect(schema="plain"), 3)


def test_words_of_the_address_are_not_the_servers(tmp_path: Path) -> None:
    asked: list[Body] = []

    async def handler(asking: web.Request) -> web.Response:
        body = await asking.json()
        asked.append(body)
        status, told = said("Hi") if "response_format" not in body else refused("what?")
        return web.Response(body=orjson.dumps(told), status=status)

    async def main() -> Probed | None:
        with opened(tmp_path / "journal") as (journal, ledger, memos):
            async with serving(handler) as url, chat(url + "/seed", recorder=ledger) as http:
                client = Retrying(http, breaker=Breaker(give_up_after_s=5), max_attempts=1)
                asker = Asker(journal, ledger, memos, RunControl(), Stats())
                asker.client = client
                return await probe(asker, http, "copa", Data(task="copa"))

    found = asyncio.run(main())
    assert found is not None
    assert found.dialect == Dialect(schema="plain")
    assert all("seed" in body for body in asked)


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "Conversation roles must alternate user/assistant/user/assistant/...",
    ],
)
def test_a_model_without_a_system_message(tmp_path: Path, message: str) -> None:
    def answer(body: Body) -> Answer:
        return refused(message) if body["messages"][0]["role"] == "system" else said()

    found, calls = found_twice(tmp_path, answer)
    assert (found.dialect, calls) == (Dialect(system="user"), 2)
    assert "no system message" in found.notes[0]


def test_all_of_it_at_once(tmp_path: Path) -> None:
    def answer(body: Body) -> Answer:
        for name in ("temperature", "seed", "top_p"):
            if name in body:
                return refused(f"Unknown parameter: '{name}'.")
        if "max_tokens" in body:
            return refused(NEW_NAME)
        if body["messages"][0]["role"] == "system":
            return refused("system role is not supported")
        return refused("response_format") if "response_format" in body else said("Hello")

    found, calls = found_twice(tmp_path, answer, data=Data(task="copa", top_p=0.5))
    assert found.dialect == Dialect(
        schema="plain",
        max_tokens_field="max_completion_tokens",
        system="user",
        omit=frozenset({"temperature", "seed", "top_p"}),
    )
    assert calls == 8


def test_a_limit_on_the_number_of_tokens_is_no_name_that_is_unknown(tmp_path: Path) -> None:
    names: list[bool] = []

    def answer(body: Body) -> Answer:
        names.append("max_tokens" in body)
        return refused("max_tokens must be at most 256")

    with pytest.raises(RunStopped, match=r"refuses the simplest call.*at most 256"):
        probed(tmp_path / "journal", answer)
    assert names == [True] * 3


def test_an_endpoint_that_refuses_everything_is_asked_again_once_it_is_mended(
    tmp_path: Path,
) -> None:
    bodies: list[Body] = []

    def broken(body: Body) -> Answer:
        bodies.append(body)
        return refused("go away")

    with pytest.raises(RunStopped, match="refuses the simplest call"):
        probed(tmp_path / "journal", broken)
    assert len(bodies) == 3
    found, calls = found_twice(tmp_path, lambda _: said())
    assert (found.dialect, calls) == (Dialect(), 1)


def test_stream_options_are_left_out_where_they_are_refused(tmp_path: Path) -> None:
    def answer(body: Body) -> Answer:
        assert body["stream"] is True
        if "stream_options" in body:
            return refused("Extra inputs are not permitted: body.stream_options", 422)
        return said()

    found, calls = found_twice(tmp_path, answer, stream=True)
    assert (found.dialect, calls) == (Dialect(omit=frozenset({"stream_options"})), 2)
    assert found.notes == ()


def test_endpoints_of_one_run_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert len(probed(path, lambda _: said())[1]) == 1
    judge, asked = probed(path, lambda _: said("prose"), role="judge", model="j")
    assert judge is not None
    assert judge.plain
    assert [body["model"] for body in asked] == ["j"]
    assert probed(path, lambda _: said(), role="judge", model="j") == (judge, [])
    generator, asked = probed(path, lambda _: said())
    assert generator is not None
    assert (generator.plain, asked) == (False, [])
    assert len(probed(path, lambda _: said(), role="fallback")[1]) == 1, "the model is the same"


def test_another_place_is_asked_anew_and_an_old_one_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    one, asked = probed(path, lambda _: said(), place="http://127.0.0.1:1/v1")
    two, more = probed(path, lambda _: said("prose"), place="http://127.0.0.1:2/v1")
    assert one is not None and two is not None
    assert (one.plain, len(asked), two.plain, len(more)) == (False, 1, True, 1)
    assert probed(path, lambda _: said(), place="http://127.0.0.1:2/v1") == (two, [])
    assert probed(path, lambda _: said("prose"), place="http://127.0.0.1:1/v1") == (one, [])


def test_streams_are_asked_about_when_they_are_first_wanted(tmp_path: Path) -> None:
    def answer(body: Body) -> Answer:
        return refused("stream_options: extra") if "stream_options" in body else said()

    path = tmp_path / "journal"
    assert len(probed(path, answer)[1]) == 1
    found, asked = probed(path, answer, stream=True)
    assert found is not None
    assert (found.dialect, len(asked)) == (Dialect(omit=frozenset({"stream_options"})), 2)
    assert probed(path, answer, stream=True) == (found, [])


def test_without_calls_only_the_journal_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, _ = probed(path, lambda b: refused("what?") if "response_format" in b else said("Hi"))
    again, asked = probed(path, lambda _: said(), offline=True)
    assert (again, asked) == (first, [])
    with pytest.raises(RunStopped, match="the journal does not hold it"):
        probed(tmp_path / "other", lambda _: said(), offline=True)


def test_the_memo_of_a_request_has_no_part_of_the_dialect() -> None:
    asked = request(json_schema={"type": "object"})
    odd = Dialect(
        schema="json_object",
        max_tokens_field="max_completion_tokens",
        system="user",
        omit=frozenset({"seed"}),
    )
    assert encode_request(asked) != encode_request(asked, odd)
    assert memo_of(asked) == memo_of(request(json_schema={"type": "object"}))
