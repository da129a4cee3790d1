"""Several endpoints in one run: a judge elsewhere, a fallback, each with its own dialect."""

import json
from pathlib import Path

import pytest

from targen_async.journal import Kind, frames, parse_intent
from tests.run.test_stops import serving
from tests.running import MODEL, Endpoint, lines, manifest, rows, simulator, targen


def judged_by(endpoint: Endpoint, *more: object) -> tuple[object, ...]:
    return ("--set", f"delivery.judge.base_url={endpoint.url}", *more)


def test_a_judge_may_be_elsewhere_and_counts_as_a_role_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(label_noise=0.1) as writer, simulator() as judge:
        flags = ("generate", "cb", "-n", 40, "--out", out, *writer.flags, *judged_by(judge))
        prices = ("--set", "delivery.prices.usd_per_million_prompt_tokens=2")
        done = targen(*flags, *prices, "--quiet")
        assert done.returncode == 0, done.stderr
        wrote, judged = writer.stats(), judge.stats()
    assert wrote["by_stage"].get("correction", 0) == 0 < wrote["by_stage"]["instances"]
    assert set(judged["by_stage"]) - {"correction", "other"} <= {
        stage for stage, count in judged["by_stage"].items() if not count
    }
    told = manifest(out)
    assert told["calls"]["served"] == wrote["served"] + judged["served"]
    assert told["spent"]["prompt_tokens"] == wrote["prompt_tokens"] + judged["prompt_tokens"]
    assert set(told["prices"]) == {"generator", "judge"}
    assert targen("verify", out).returncode == 0
    # Gone on with, it asks nothing again, of either.
    with simulator(writer.port) as writer, simulator(judge.port) as judge:
        assert targen("generate", "--out", out, "--quiet").returncode == 0
        assert writer.stats()["served"] == judge.stats()["served"] == 0


def test_the_judge_has_a_dialect_of_its_own(tmp_path: Path) -> None:
    """A judge that ignores schemas is asked in words; the writer is not."""
    out = tmp_path / "run"
    with simulator() as writer, simulator(free_text=1.0) as judge:
        flags = ("generate", "cb", "-n", 12, "--out", out, *writer.flags, *judged_by(judge))
        done = targen(*flags, "--set", "data.correction.per_call=1")
    assert "judge: the endpoint takes no JSON schema" in done.stderr
    assert "generator: the endpoint takes no JSON schema" not in done.stderr


def test_a_fallback_is_asked_where_a_request_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(models=["targen-simulator", "second"]) as endpoint:
        port = endpoint.port

        def filtered(body: dict[str, object]) -> tuple[int, bytes]:
            import urllib.request

            schema = json.dumps(body.get("response_format") or {})
            if "-instances" in schema and int(str(body["seed"])) % 3 == 0:
                return 400, b'{"error": {"message": "content policy", "code": "content_filter"}}'
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()

        with serving(filtered) as (url, _):
            flags = ("-n", 30, "--out", out, *MODEL, "--base-url", url, "--quiet")
            away = ("--fallback", "second", "--set", f"delivery.fallback.base_url={endpoint.url}")
            done = targen("generate", "cb", *flags, *away)
            assert done.returncode == 0, done.stderr
    keys = [parse_intent(f.payload).key for f in frames(out / "journal") if f.kind == Kind.INTENT]
    assert 5 < sum(key.endswith("@fallback") for key in keys) < 25
    assert len(rows(out)) == 30
    assert manifest(out)["failed"] == {}
    assert not lines(out / "failures.jsonl")


@pytest.mark.parametrize("where", ["--max-requests", "--max-tokens"])
def test_a_budget_binds_over_all_endpoints_and_the_run_goes_on_when_it_is_raised(
    tmp_path: Path, where: str
) -> None:
    out = tmp_path / "run"
    cap = {"--max-requests": 40, "--max-tokens": 40_000}[where]
    with simulator() as writer, simulator() as judge:
        flags = ("generate", "cb", "-n", 60, "--out", out, *writer.flags, *judged_by(judge))
        done = targen(*flags, where, cap, "--quiet")
        assert done.returncode == 1
        assert f"raise {where}" in done.stderr and "Traceback" not in done.stderr
        served = [writer.stats(), judge.stats()]
        tokens = sum(one["prompt_tokens"] + one["completion_tokens"] for one in served)
        spent = {"--max-requests": sum(one["served"] for one in served), "--max-tokens": tokens}
        assert 0.5 * cap < spent[where] <= cap
        assert targen("generate", "--out", out, where, 100 * cap, "--quiet").returncode == 0
    assert len(rows(out)) == 60
