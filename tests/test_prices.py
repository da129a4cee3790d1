"""Price tables: what is shipped, a user's own over it, and what is said of a bad one."""

import tomllib
from datetime import date
from pathlib import Path

import pytest

from targen_async.config import Prices, RunConfig, decode
from targen_async.errors import UserError
from targen_async.prices import SHIPPED, entry_of, load_table, models_of, price_of, prices_of

OWN = """
[[model]]
names = ["my-model", "gpt-4o-mini*"]
prompt = 1
completion = 2.5
known = 2026-01-31
"""


def own(tmp_path: Path, text: str = OWN) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def config(data: dict[str, object], **delivery: object) -> RunConfig:
    return decode({"data": {"task": "copa", **data}, "delivery": delivery}, "test")


def test_the_shipped_table_is_dated_and_says_where_to_look() -> None:
    (entries,) = load_table()
    assert len(entries) >= 12
    assert "Check the\n# provider's page" in SHIPPED.read_text("utf-8")
    for entry in entries:
        assert entry.page.startswith("https://"), entry.names
        assert date(2025, 1, 1) < entry.known <= date(2026, 12, 31), entry.names
        assert 0 < entry.prompt <= entry.completion
        assert entry.cached_prompt is None or entry.cached_prompt < entry.prompt


def test_names_are_exact_or_a_beginning_and_the_longest_counts() -> None:
    table = load_table()
    assert price_of("gpt-4.1-mini", table) == Prices(
        usd_per_million_prompt_tokens=0.4,
        usd_per_million_cached_prompt_tokens=0.1,
        usd_per_million_completion_tokens=1.6,
    )
    assert price_of("gpt-4.1-mini-2025-04-14", table) == price_of("gpt-4.1-mini", table)
    assert price_of("gpt-4.1-2025-04-14", table) == price_of("gpt-4.1", table)
    for unknown in ("gpt-4o-audio-preview", "gpt-4", "my-model", "", "targen-simulator"):
        assert price_of(unknown, table) is None, unknown


def test_a_table_of_ones_own_comes_first_even_with_a_beginning(tmp_path: Path) -> None:
    table = load_table(own(tmp_path))
    mine = price_of("my-model", table)
    assert mine is not None and mine.usd_per_million_completion_tokens == 2.5
    assert price_of("gpt-4o-mini", table) == mine
    assert entry_of("gpt-4o", table) == entry_of("gpt-4o", load_table())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[model]\n", "mine.toml is not valid TOML: .*line 1"),
        ("\n[[model]]\nnames = ['x']\nprompt = 1\n", "line 2, model 'x': .*missing.*`completion`"),
        (OWN.replace("prompt = 1", "prompt = -1"), "line 2, model 'my-model': `prompt`: .*>= 0"),
        (OWN.replace("prompt = 1", "prompt = 'a'"), "`prompt`: Expected `float`, got `str`"),
        (OWN + OWN.replace("my-", "our-"), "line 8: 'gpt-4o-mini\\*' stands in it twice"),
        (OWN.replace("prompt", "price"), "line 2, model 'my-model': .*unknown field `price`"),
        (OWN.replace('"my-model"', '"*x"'), "`names`: Expected `str` matching"),
        (OWN.replace("2026-01-31", "'soon'"), "`known`: Invalid RFC3339"),
        ("[model.gpt-4]\nprompt = 1\n", "mine.toml: Expected `array`, got `object`"),
        ("[[models]]\n", "unknown field `models`"),
    ],
)
def test_a_bad_table_is_one_sentence_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        load_table(own(tmp_path, text))
    assert "mine.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_table_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the price table .*none\.toml: No such file"):
        load_table(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.toml is not UTF-8"):
        load_table(tmp_path / "bytes.toml")


def test_each_role_has_the_price_of_its_model(tmp_path: Path) -> None:
    run = config(
        {"model": "gpt-4o", "fallback_model": "gpt-4.1", "correction": {"model": "gpt-4o-mini"}}
    )
    assert models_of(run) == {"generator": "gpt-4o", "judge": "gpt-4o-mini", "fallback": "gpt-4.1"}
    table = load_table()
    assert prices_of(run) == {role: price_of(m, table) for role, m in models_of(run).items()}
    assert set(prices_of(config({"model": "gpt-4o", "correction": {"mode": "off"}}))) == {
        "generator"
    }
    named = config({"model": "my-model"}, prices_file=str(own(tmp_path)))
    assert set(prices_of(named)) == {"generator", "judge"}


def test_prices_of_the_configuration_are_those_of_the_generators_model() -> None:
    prices = {"usd_per_million_prompt_tokens": 7.0, "usd_per_million_completion_tokens": 9.0}
    run = config({"model": "gpt-4o", "correction": {"model": "gpt-4o-mini"}}, prices=prices)
    told = prices_of(run)
    assert told["generator"].usd_per_million_prompt_tokens == 7.0
    assert told["judge"].usd_per_million_prompt_tokens == 0.15
    assert prices_of(config({"model": "gpt-4o"}, prices=prices))["judge"] == told["generator"]


@pytest.mark.parametrize(
    ("told", "lacking"),
    [
        ("usd_per_million_prompt_tokens", "add `usd_per_million_completion_tokens`"),
        ("usd_per_million_completion_tokens", "add `usd_per_million_prompt_tokens`"),
        ("usd_per_million_cached_prompt_tokens", "add `usd_per_million_prompt_tokens` and `usd"),
    ],
)
def test_half_a_price_is_none(told: str, lacking: str) -> None:
    """Nor is the other half taken from the table: who names a price pays by a contract."""
    half = {"prices": {told: 1.0}}
    judged = {"model": "gpt-4o", "correction": {"model": "gpt-4o-mini"}}
    assert set(prices_of(config(judged, **half))) == {"judge"}
    with pytest.raises(
        UserError, match=r"cannot bind: `delivery\.prices` tells only a part"
    ) as said:
        prices_of(config({"model": "gpt-4o"}, **half, budget={"max_usd": 1.0}))
    assert lacking in str(said.value)


def test_gateways_write_the_maker_before_a_name(tmp_path: Path) -> None:
    table = load_table()
    for gateways, makers in {
        "openai/gpt-4o-mini": "gpt-4o-mini",
        "openrouter/openai/gpt-4.1-mini-2025-04-14": "gpt-4.1-mini",
        "anthropic/claude-sonnet-4.5": "claude-sonnet-4-5",
    }.items():
        assert price_of(gateways, table) == price_of(makers, table) != None, gateways  # noqa: E711
    for unknown in ("openai/gpt-4o-mini:free", "openai/gpt-oss-20b", "gpt-4o/mine", "openai/"):
        assert price_of(unknown, table) is None, unknown
    # The whole name counts first, in whichever file it stands.
    mine = load_table(own(tmp_path, OWN.replace("my-model", "openai/gpt-4o")))
    assert price_of("openai/gpt-4o", mine) == Prices(
        usd_per_million_prompt_tokens=1, usd_per_million_completion_tokens=2.5
    )
    assert price_of("openai/gpt-4.1", mine) == price_of("gpt-4.1", table)


def test_a_cap_in_dollars_wants_a_price_of_every_model() -> None:
    assert prices_of(config({"model": "unheard-of"})) == {}
    with pytest.raises(
        UserError, match=r"what 'unheard-of' costs is not known; .*delivery\.prices`"
    ):
        prices_of(config({"model": "unheard-of"}, budget={"max_usd": 1.0}))
    judged = {"model": "gpt-4o", "correction": {"model": "odd"}}
    with pytest.raises(UserError, match="what 'odd' costs"):
        prices_of(config(judged, budget={"max_usd": 1.0}))


def test_the_table_is_part_of_the_package() -> None:
    assert SHIPPED.parent.name == "targen_async"
    assert tomllib.loads(SHIPPED.read_text("utf-8"))["model"]
