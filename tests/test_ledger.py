"""The ledger: the same sums live and after a start, by role, with the worst case of the rest."""

from pathlib import Path

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.chat.wire import OVERSIZED
from targen_async.config import Data, Prices
from targen_async.journal import VERSION, Journal, Kind, Opened
from targen_async.ledger import (
    Ledger,
    Role,
    Totals,
    role_of,
    spent_usd,
    usage_in,
    usd_of,
    worst_of,
    worst_usd_of,
)
from targen_async.records import ChatRequest, Message, Usage
from targen_async.recover import recover

GPT = Prices(
    usd_per_million_prompt_tokens=2.0,
    usd_per_million_cached_prompt_tokens=0.5,
    usd_per_million_completion_tokens=8.0,
)


def request(key: str = "copa/000001/0", text: str = "Write.", most: int = 64) -> ChatRequest:
    return ChatRequest(
        key=key,
        model="m",
        messages=(Message(role="user", content=text),),
        temperature=0.0,
        max_tokens=most,
        seed=0,
    )


def body(prompt: int | None = 10, completion: int = 5, cached: int = 0) -> bytes:
    data: dict[str, object] = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    if prompt is not None:
        details = {"cached_tokens": cached}
        data["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": details,
        }
    return orjson.dumps(data)


def begun(path: Path) -> Journal:
    journal = Journal(path)
    opened = Opened(version=VERSION, data=Data(task="copa"), task_digest="")
    journal.append(Kind.OPENED, msgspec.msgpack.encode(opened))
    return journal


def read_again(journal: Journal) -> Ledger:
    """The ledger as another start would find it."""
    ledger = Ledger(journal)
    recover(journal.path, journal, ledger)
    return ledger


def test_every_call_is_open_then_answered_or_void_or_in_doubt(tmp_path: Path) -> None:
    journal = begun(tmp_path / "journal")
    ledger = Ledger(journal)
    assert ledger.untouched
    asked = request()
    worst = worst_of(asked)
    told, silent, refused, _ = (ledger.intent(asked) for _ in range(4))
    assert ledger.totals().in_doubt == 4
    assert ledger.totals().charged == Usage(
        prompt_tokens=4 * worst.prompt_tokens, completion_tokens=4 * 64
    )
    ledger.answer(told, body(10, 5))
    ledger.answer(silent, body(None))
    ledger.void(refused, "HTTP 429")
    totals = ledger.totals()
    assert totals == Totals(
        served=2,
        refused=1,
        in_doubt=1,
        usage=Usage(prompt_tokens=10, completion_tokens=5),
        without_usage=1,
        without_usage_worst=worst,
        in_doubt_worst=worst,
    )
    assert totals.charged.completion_tokens == 5 + 2 * 64
    assert read_again(journal).totals() == totals
    assert not ledger.untouched
    journal.close()


@pytest.mark.parametrize(
    "broken",
    [b"<html>", b"{}", OVERSIZED + b"{", b'{"error": {"message": "no", "code": 500}}', b"\xff"],
)
def test_an_answer_that_cannot_be_read_is_charged_at_worst(tmp_path: Path, broken: bytes) -> None:
    journal = begun(tmp_path / "journal")
    ledger = Ledger(journal)
    ledger.answer(ledger.intent(request()), broken)
    assert ledger.totals().without_usage == 1
    assert ledger.totals().charged == worst_of(request())
    assert read_again(journal).totals() == ledger.totals()
    journal.close()


def test_each_role_has_an_account_that_survives_a_start(tmp_path: Path) -> None:
    journal = begun(tmp_path / "journal")
    ledger = Ledger(journal)
    roles: tuple[Role, ...] = ("generator", "judge", "fallback")
    for count, role in enumerate(roles, 1):
        book = ledger.of(role)
        for _ in range(count):
            book.answer(book.intent(request("copa/x000000/v0")), body(count, 1))
        book.void(book.intent(request()), "HTTP 500")
    by_role = ledger.by_role()
    assert {role: one.served for role, one in by_role.items()} == {
        "generator": 1,
        "judge": 2,
        "fallback": 3,
    }
    assert {one.refused for one in by_role.values()} == {1}
    assert by_role["fallback"].usage == Usage(prompt_tokens=9, completion_tokens=3)
    assert ledger.totals().served == 6
    assert read_again(journal).by_role() == by_role
    journal.close()


def test_a_role_is_known_by_the_intent() -> None:
    assert role_of("copa/000001/0~1") == "generator"
    assert role_of("copa/x000010/v0.1~1@judge") == "judge"
    assert role_of("copa/probe@fallback") == "fallback"
    assert role_of("odd@name/000001/0") == "generator"


def test_usage_over_the_worst_case_is_counted_as_reported_and_remembered(tmp_path: Path) -> None:
    journal = begun(tmp_path / "journal")
    ledger = Ledger(journal)
    ledger.answer(ledger.intent(request()), body(10, 64))
    assert ledger.beyond is None
    ledger.answer(ledger.intent(request()), body(10, 65))
    assert ledger.beyond is not None and ledger.beyond.used.completion_tokens == 65
    assert ledger.totals().charged.completion_tokens == 129
    journal.close()


@given(st.text(max_size=200), st.integers(1, 9999))
def test_no_tokenizer_passes_the_worst_case(text: str, most: int) -> None:
    """A token is at least a byte; a schema counts, and so do messages."""
    bare = worst_of(request(text=text, most=most))
    assert bare.prompt_tokens >= len(text.encode()) + 16
    assert bare.completion_tokens == most
    schema = {"type": "object", "properties": {"words": {"type": "array"}}}
    with_schema = msgspec.structs.replace(request(text=text), json_schema=schema)
    assert worst_of(with_schema).prompt_tokens >= bare.prompt_tokens + len(orjson.dumps(schema))


def test_cached_tokens_cost_their_own_price_but_not_in_the_worst_case() -> None:
    usage = Usage(prompt_tokens=1_000_000, cached_prompt_tokens=400_000, completion_tokens=100_000)
    assert usd_of(usage, GPT) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.8)
    assert worst_usd_of(usage, GPT) == pytest.approx(2 + 0.8)
    plain = msgspec.structs.replace(GPT, usd_per_million_cached_prompt_tokens=None)
    assert usd_of(usage, plain) == pytest.approx(2.8)
    dear = msgspec.structs.replace(GPT, usd_per_million_cached_prompt_tokens=3.0)
    assert worst_usd_of(usage, dear) == pytest.approx(3.8)
    more_than_all = msgspec.structs.replace(usage, cached_prompt_tokens=2_000_000)
    assert usd_of(more_than_all, GPT) == pytest.approx(0.5 + 0.8)


def test_a_sum_over_roles_is_known_when_every_price_is() -> None:
    usage: dict[Role, Usage] = {
        "generator": Usage(prompt_tokens=1_000_000),
        "judge": Usage(completion_tokens=1_000_000),
    }
    free = Prices()
    assert spent_usd(usage, {"generator": GPT, "judge": free}) == pytest.approx(2.0)
    assert spent_usd(usage, {"generator": GPT}) is None
    assert spent_usd({}, {"generator": GPT}) is None


def test_cached_tokens_are_read_from_an_answer() -> None:
    usage = usage_in(body(1500, 5, cached=1280))
    assert usage is not None and usage.prompt_tokens == 1500
    assert usage.cached_prompt_tokens == 1280
