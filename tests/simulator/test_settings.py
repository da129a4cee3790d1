"""Settings: validated when decoded, and one flag each."""

import argparse
import json
from pathlib import Path

import msgspec
import pytest

from targen_async.errors import UserError
from targen_async.simulator import SimulatorSettings
from targen_async.simulator.settings import LimitChange, Outage, add_arguments, settings_from


def parsed(*flags: str) -> SimulatorSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_from(parser.parse_args(flags))


def test_no_flags_are_the_defaults() -> None:
    assert parsed() == SimulatorSettings()


def test_every_setting_has_a_flag() -> None:
    flags = {
        "random_seed": 3,
        "lexicon": "small",
        "thinking_tokens": 600,
        "burst_s": 2.5,
        "api_key": "k",
        "requests_per_minute": 60.0,
        "tokens_per_minute": 1000.0,
        "rate_headers": "off",
        "prefix_cache": "on",
    }
    rates = [n for n in SimulatorSettings.__struct_fields__ if n not in flags]
    rates = [n for n in rates if n not in ("task_folders", "models", "outages", "limit_changes")]
    flags |= dict.fromkeys(rates, 0.5)
    words = [word for n, v in flags.items() for word in ("--" + n.replace("_", "-"), str(v))]
    words += ["--task-folder", "a", "--task-folder", "b", "--model", "m", "--outage", "5:10"]
    words += ["--limit-change", "60:300:", "--limit-change", "90::5000"]
    expected = SimulatorSettings(
        **flags | {"rate_headers": False, "prefix_cache": True},  # type: ignore[arg-type]
        task_folders=("a", "b"),
        models=("m",),
        outages=(Outage(start_s=5.0, duration_s=10.0),),
        limit_changes=(
            LimitChange(at_s=60.0, requests_per_minute=300.0),
            LimitChange(at_s=90.0, tokens_per_minute=5000.0),
        ),
    )
    assert parsed(*words) == expected


def test_flags_override_the_settings_argument(tmp_path: Path) -> None:
    text = json.dumps({"malformed": 0.1, "refusals": 0.2})
    file = tmp_path / "settings.json"
    file.write_text(text)
    for value in (text, f"@{file}"):
        assert parsed("--settings", value, "--refusals", "0.3") == SimulatorSettings(
            malformed=0.1, refusals=0.3
        )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--malformed", "1.5"], "<= 1.0"),
        (["--settings", '{"malformd": 1}'], "malformd"),
        (["--settings", "{"], "truncated"),
        (["--settings", "@/nowhere/at/all"], "No such file"),
        (["--outage", "soon"], "START_S:DURATION_S"),
        (["--limit-change", "60:many:"], "AT_S:REQUESTS:TOKENS"),
        (["--limit-change", ":300:"], "AT_S:REQUESTS:TOKENS"),
        (["--requests-per-minute", "0"], "> 0.0"),
    ],
)
def test_bad_values_are_one_sentence(flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=r"settings|outage|limit-change") as caught:
        parsed(*flags)
    assert words in str(caught.value)


def test_help_explains_every_flag() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    shown = parser.format_help()
    assert "--label-noise" in shown and "contradict the label" in shown


def test_decoding_knows_no_other_keys() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode('{"rpm": 5}', type=SimulatorSettings)
