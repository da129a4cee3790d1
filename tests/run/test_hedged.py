"""The real command and an endpoint that stalls now and then: second copies and their account."""

import time
from pathlib import Path

import pytest

from tests.running import Endpoint, digest, manifest, simulator, targen

STALL_S = 25.0
ROWS = 400


def account(endpoint: Endpoint, out: Path) -> None:
    """Every call that the server had is in the ledger, or in doubt."""
    told, calls = endpoint.stats(), manifest(out)["calls"]
    assert calls["served"] + calls["in_doubt"] >= told["served"]
    assert calls["in_doubt"] == calls["hedged"]
    most = manifest(out)["hedged"]
    doubt = manifest(out)["in_doubt"]
    assert most["prompt_tokens"] == doubt["prompt_tokens"] > 0
    assert targen("verify", out).returncode == 0


@pytest.mark.slow
def test_a_run_is_no_longer_as_slow_as_its_slowest_call(tmp_path: Path) -> None:
    with simulator(latency_ms=30, stall_rate=0.008, stall_s=STALL_S) as endpoint:
        flags = ("copa", "-n", ROWS, "--max-in-flight", 64, "--fixed-in-flight", *endpoint.flags)
        began = time.monotonic()
        done = targen("generate", *flags, "--out", tmp_path / "hedged")
        took_s = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        account(endpoint, tmp_path / "hedged")
        calls = manifest(tmp_path / "hedged")["calls"]
        assert 0 < calls["hedged"] <= 0.02 * calls["served"]
        assert f"{calls['hedged']} stalled calls sent twice" in done.stdout + done.stderr
        assert took_s < STALL_S
    with simulator(latency_ms=1) as endpoint:
        flags = ("copa", "-n", ROWS, *endpoint.flags, "--no-hedge", "--quiet")
        assert targen("generate", *flags, "--out", tmp_path / "plain").returncode == 0
        assert manifest(tmp_path / "plain")["calls"]["hedged"] == 0
    assert digest(tmp_path / "hedged") == digest(tmp_path / "plain")


@pytest.mark.slow
def test_with_a_key_nothing_is_sent_twice_unless_asked_for(tmp_path: Path) -> None:
    with simulator(latency_ms=30, stall_rate=0.008, stall_s=4) as endpoint:
        flags = ("copa", "-n", 300, "--max-in-flight", 64, "--quiet", *endpoint.flags)
        key = {"OPENAI_API_KEY": "sk-no-secret"}
        assert targen("generate", *flags, "--out", tmp_path / "off", **key).returncode == 0
        assert manifest(tmp_path / "off")["calls"]["in_doubt"] == 0
        assert endpoint.stats()["stalls"]
        on = targen("generate", *flags, "--hedge", "--out", tmp_path / "on", **key)
        assert on.returncode == 0
        assert manifest(tmp_path / "on")["calls"]["hedged"] > 0
