"""Which address, key and headers each role gets: what was meant for one host stays there."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from targen_async.budget import Purse
from targen_async.chains import Address, Chain, addresses
from targen_async.chat.hedge import Hedged
from targen_async.chat.retry import Breaker, Retrying
from targen_async.config import Budget, Data, Delivery, Endpoint, Prices, RunConfig, Timeouts
from targen_async.errors import UserError
from targen_async.journal import Journal
from targen_async.ledger import Ledger

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
    client = Chain(address, Timeouts(), purse).open(Breaker(give_up_after_s=1))
    assert isinstance(client, Retrying)
    assert isinstance(client._inner, Hedged) == expected
    journal.close()
