"""Which address, key and headers each role gets: what was meant for one host stays there."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from targen_async.ask import Asker
from targen_async.budget import Budgeted, Purse
from targen_async.chains import Address, Chain, addresses
from targen_async.chat.fallback import Fallback, WithFallback
from targen_async.chat.hedge import Hedged
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Retrying
from targen_async.chat.thinking import Thinking
from targen_async.config import Budget, Data, Delivery, Endpoint, Prices, RunConfig, Timeouts
from targen_async.control import RunControl
from targen_async.errors import Rejected, ServerFault, TargenError, UserError
from targen_async.journal import Journal
from targen_async.ledger import Ledger
from targen_async.records import ChatRequest, ChatResult, Failure
from targen_async.stats import Stats
from tests.chat.helpers import request, result

ENVIRONMENT = {"OPENAI_API_KEY": "first", "JUDGE_KEY": "second", "ORG": "org-secret"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_API_KEY", "TOGETHER_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def judge_of(own: Endpoint | None, **delivery: object) -> Address:
    config = RunConfig(
        data=Data(task="cb", model="writer", correction={"model": "judge"}),  # type: ignore[arg-type]
        delivery=Delivery(judge=own, headers={"X-Org": "$ORG"}, **delivery),  # type: ignore[arg-type]
    )
    config = msgspec.convert(msgspec.to_builtins(config), RunConfig)
    generator, judge = addresses(config, None)
    assert (generator.api_key, generator.headers) == ("first", {"X-Org": "org-secret"})
    return judge


def test_a_judge_at_the_same_place_is_asked_with_the_same_secrets() -> None:
    judge = judge_of(None)
    assert (judge.role, judge.model) == ("judge", "judge")
    assert (judge.api_key, judge.headers) == ("first", {"X-Org": "org-secret"})


@pytest.mark.parametrize(
    "own",
    [Endpoint(base_url="http://127.0.0.1:1/v1"), Endpoint(preset="vllm")],
    ids=["address", "preset"],
)
def test_neither_key_nor_headers_go_to_another_host(own: Endpoint) -> None:
    judge = judge_of(own)
    assert judge.base_url.startswith("http://127.0.0.1") or "localhost" in judge.base_url
    assert judge.api_key is None and judge.headers == {}


def test_another_host_gets_the_key_that_is_named_for_it() -> None:
    own = Endpoint(base_url="http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY")
    assert judge_of(own).api_key == "second"
    assert judge_of(Endpoint(api_key_env="JUDGE_KEY")).api_key == "second"


def test_a_judge_that_is_the_generator_has_no_chain_of_its_own() -> None:
    config = RunConfig(data=Data(task="cb", model="writer"))
    assert [address.role for address in addresses(config, None)] == ["generator"]


def test_the_key_that_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=r"no API key.*OPENAI_API_KEY"):
        addresses(RunConfig(data=Data(task="cb", model="writer")), None)


# ---- a fallback


class Fails:
    def __init__(self, error: TargenError) -> None:
        self.error = error

    async def complete(self, request: ChatRequest) -> ChatResult:
        raise self.error


class Serves:
    async def complete(self, request: ChatRequest) -> ChatResult:
        return replace(result(request.key), model=request.model)


BROKE = ServerFault("it broke the connection; 7 times, while other requests were served")


def test_a_call_that_alone_goes_on_breaking_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    """Its error has no status, as there was no answer: that is no mistake of the user's."""

    async def main() -> None:
        journal, control = Journal(tmp_path / "journal", reserve_bytes=0), RunControl()
        asker = Asker(journal, Ledger(journal), {}, control, Stats())
        asker.client = Fails(BROKE)
        answer = await asker.answer("instances", request())
        assert isinstance(answer, Failure) and answer.kind == "exhausted"
        assert control.draining is None
        journal.close()

    asyncio.run(main())


def test_what_breaks_goes_to_the_fallback_and_what_was_not_sent_does_not() -> None:
    async def asked(error: TargenError) -> str:
        second = Fallback(Serves(), "second")
        return (await WithFallback(Fails(error), second).complete(request())).model

    assert asyncio.run(asked(BROKE)) == "second"
    with pytest.raises(Rejected, match="too large for the limit"):
        asyncio.run(asked(Rejected("too large for the limit that is declared")))


# ---- second copies


OWN = {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "NO_KEY"}
PRICED = Prices(usd_per_million_prompt_tokens=1.0)


@pytest.mark.parametrize(
    ("delivery", "prices", "expected"),
    [
        (OWN, None, True),
        ({**OWN, "api_key_env": "JUDGE_KEY"}, None, False),
        ({**OWN, "headers": {"X-Org": "$ORG"}}, None, False),
        (OWN, PRICED, False),
        ({**OWN, "budget": {"max_requests": 10}}, None, False),
        ({**OWN, "hedge": False}, None, False),
        ({**OWN, "hedge": True, "api_key_env": "JUDGE_KEY"}, PRICED, True),
        ({}, None, False),
    ],
    ids=["own", "key", "headers", "price", "cap", "off", "on", "simulator"],
)
def test_stalled_calls_are_sent_twice_only_where_nobody_can_send_a_bill(
    tmp_path: Path, delivery: dict[str, Any], prices: Prices | None, expected: bool
) -> None:
    raw = {"data": {"task": "cb", "model": "writer"}, "delivery": delivery}
    config = msgspec.convert(raw, RunConfig)
    (address,) = addresses(config, "http://127.0.0.1:2/v1")
    journal = Journal(tmp_path / "journal")
    priced = {"generator": prices} if prices else {}
    purse = Purse(config.delivery.budget or Budget(), Ledger(journal), priced)  # type: ignore[arg-type]
    thinking = Chain(address, Timeouts(), purse).open(Breaker(give_up_after_s=1), 0)
    assert isinstance(thinking, Thinking)
    retrying = thinking._inner
    assert isinstance(retrying, Retrying)
    assert isinstance(retrying._inner, Hedged) == expected
    journal.close()


def test_a_second_copy_passes_the_purse_before_the_limits(tmp_path: Path) -> None:
    delivery = Delivery(base_url="http://127.0.0.1:1/v1", hedge=True)
    config = RunConfig(data=Data(task="cb", model="writer"), delivery=delivery)
    (address,) = addresses(config, None)
    journal = Journal(tmp_path / "journal")
    chain = Chain(address, Timeouts(), Purse(Budget(max_requests=9), Ledger(journal), {}))
    thinking = chain.open(Breaker(give_up_after_s=1), 0)
    assert isinstance(thinking, Thinking) and isinstance(thinking._inner, Retrying)
    hedged = thinking._inner._inner
    assert isinstance(hedged, Hedged) and isinstance(hedged._inner, Budgeted)
    assert isinstance(hedged._limited, Limited)
    assert hedged._inner._inner is hedged._limited is chain.limited
    journal.close()
