"""Endpoints of a run: a judge elsewhere, a fallback, models that think, answers that turn bad."""

import itertools
import json
import socket
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from targen_async.journal import Intent, Kind, frames, parse_intent
from targen_async.pilot import stage_of
from tests.run.test_corpus import corpus, from_corpus
from tests.run.test_stops import serving
from tests.running import MODEL, Endpoint, lines, manifest, rows, simulator, targen


def judged_by(endpoint: Endpoint, *more: object) -> tuple[object, ...]:
    return ("--set", f"delivery.judge.base_url={endpoint.url}", *more)


def test_a_judge_may_be_elsewhere_and_counts_as_a_role_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(label_noise=0.1) as writer, simulator() as judge:
        flags = ("generate", "cb", "-n", 40, "--out", out, *writer.flags, *judged_by(judge))
        prices = ("--set", "delivery.prices.usd_per_million_prompt_tokens=2")
        prices += ("--set", "delivery.prices.usd_per_million_completion_tokens=8")
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


# ---- a model that steps in


def by_fallback(out: Path) -> list[str]:
    """Keys of the calls that the fallback was sent."""
    keys = [parse_intent(f.payload).key for f in frames(out / "journal") if f.kind == Kind.INTENT]
    return [key for key in keys if key.endswith("@fallback")]


def with_fallback(url: str) -> tuple[object, ...]:
    return ("--fallback", "second", "--set", f"delivery.fallback.base_url={url}")


def relay(endpoint: Endpoint, body: dict[str, Any], name: str = "") -> tuple[int, bytes]:
    """What the simulator says, under another model's name if one is given."""
    request = urllib.request.Request(
        f"{endpoint.url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        said = json.load(answer)
        return answer.status, json.dumps(said | {"model": name or said["model"]}).encode()


STEPS_IN = "going on with the fallback 'second': "


def test_a_run_goes_on_with_the_fallback_while_the_first_is_away(tmp_path: Path) -> None:
    """From all calls that wait, at once, and past the time after which it would be given up."""
    out = tmp_path / "run"
    away = {"start_s": 1.0, "duration_s": 1000}
    with simulator(latency_ms=100, outages=[away]) as first, simulator(latency_ms=250) as second:
        flags = ("generate", "copa", "-n", 400, "--out", out, *first.flags, "--max-in-flight", 16)
        started = time.monotonic()
        patience = ("--give-up-after", 3)
        done = targen(*flags, *with_fallback(second.url), *patience)
        took_s = time.monotonic() - started
        assert done.returncode == 0, done.stderr
        assert second.stats()["served"] > 200
    assert took_s > 4, "too short to tell: the first would not have been given up"
    assert len(rows(out)) == 400
    assert done.stderr.count(STEPS_IN) == 1
    assert lines(out / "failures.jsonl") == []
    assert targen("verify", out).returncode == 0


def test_the_run_comes_back_to_the_first_when_it_is_there_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    away = {"start_s": 0.5, "duration_s": 5}
    with simulator(latency_ms=50, outages=[away]) as first, simulator(latency_ms=300) as second:
        flags = ("generate", "copa", "-n", 400, "--out", out, *first.flags, "--max-in-flight", 8)
        done = targen(*flags, *with_fallback(second.url), "--quiet")
        assert done.returncode == 0, done.stderr
        calls = first.stats()["served"], second.stats()["served"]
    assert min(calls) > 20
    sent = [parse_intent(f.payload).key for f in frames(out / "journal") if f.kind == Kind.INTENT]
    assert not any(key.endswith("@fallback") for key in sent[-50:])


@pytest.mark.parametrize("status", [402, 401])
def test_a_run_that_is_denied_in_the_middle_goes_on_with_the_fallback(
    tmp_path: Path, status: int
) -> None:
    out = tmp_path / "run"
    calls = itertools.count()
    with simulator() as endpoint:

        def runs_dry(body: dict[str, Any]) -> tuple[int, bytes]:
            if next(calls) >= 40:
                return status, b'{"error": {"message": "no more of you"}}'
            return relay(endpoint, body)

        with serving(runs_dry) as (url, asked):
            flags = ("-n", 60, "--out", out, *MODEL, "--base-url", url, "--max-in-flight", 8)
            done = targen("generate", "copa", *flags, *with_fallback(endpoint.url))
            assert len(asked) < 40 + 2 * 8
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(STEPS_IN) == 1 and f"HTTP {status}" in done.stderr
    assert len(rows(out)) == 60


def closed() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def refused_by(status: int | None, first: ExitStack) -> str:
    """A server that answers everything so; None: nobody."""
    if status is None:
        return closed()
    body = json.dumps({"error": {"message": "not today"}}).encode()
    return first.enter_context(serving(lambda _: (status, body)))[0]


@pytest.mark.parametrize("status", [None, 503, 402, 500])
def test_a_first_that_is_not_there_at_the_start_is_stepped_in_for(
    tmp_path: Path, status: int | None
) -> None:
    out = tmp_path / "run"
    with ExitStack() as first, simulator() as second:
        flags = ("-n", 20, "--out", out, *MODEL, "--base-url", refused_by(status, first))
        patience = ("--give-up-after", 1)
        done = targen("generate", "copa", *flags, *with_fallback(second.url), *patience)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(STEPS_IN) == 1
    assert len(rows(out)) == 20
    told = manifest(out)
    assert told["state"] == "complete" and set(told["failed"]) == set()
    # Complete, it asks nothing more, though nobody is there any longer.
    assert targen("generate", "--out", out, "--quiet").returncode == 0


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_is_to_be_mended_and_no_cause_for_a_fallback(
    tmp_path: Path, status: int
) -> None:
    out = tmp_path / "run"
    with ExitStack() as first, simulator() as second:
        flags = ("-n", 20, "--out", out, *MODEL, "--base-url", refused_by(status, first))
        done = targen("generate", "copa", *flags, *with_fallback(second.url))
        assert second.stats()["served"] == 0
    assert done.returncode == 2
    assert f"HTTP {status}" in done.stderr and STEPS_IN not in done.stderr


def test_where_the_fallback_is_not_there_either_both_are_told_of(tmp_path: Path) -> None:
    for status in (None, 503):
        with ExitStack() as first, ExitStack() as second:
            flags = ("-n", 20, *MODEL, "--base-url", refused_by(status, first), "--quiet")
            other = with_fallback(refused_by(401, second))
            out = ("--out", tmp_path / f"run{status}", "--give-up-after", 1)
            done = targen("generate", "copa", *flags, *other, *out)
        assert done.returncode == 1
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith("targen: the endpoint has served nothing for ")
        assert "nor can the fallback 'second' be asked: " in sentence and "HTTP 401" in sentence


def test_a_refusal_in_an_answer_goes_to_the_fallback_at_the_last_asking(tmp_path: Path) -> None:
    """The simulator refuses half of the time in `refusal`, and else in the text."""
    out = tmp_path / "run"
    with simulator(refusals=1.0) as first, simulator() as second:
        flags = ("generate", "copa", "-n", 20, "--out", out, *first.flags, "--quiet")
        done = targen(*flags, *with_fallback(second.url))
        assert done.returncode == 0, done.stderr
        first_asked, second_asked = first.stats()["served"], second.stats()["served"]
    assert len(rows(out)) == 20
    # Twice the first, then the other; a block of rows to be judged is halved down to one first.
    asked = by_fallback(out)
    assert all(key.endswith("~2@fallback") for key in asked if "/probe-" not in key)
    assert len(asked) == second_asked < first_asked / 2
    with simulator(first.port) as first, simulator(second.port) as second:
        assert targen("generate", "--out", out, "--quiet").returncode == 0
        assert first.stats()["served"] == second.stats()["served"] == 0
    assert targen("verify", out).returncode == 0


def test_a_judge_elsewhere_that_refuses_has_no_fallback(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator() as writer, simulator(refusals=1.0) as judge, simulator() as second:
        flags = ("generate", "cb", "-n", 12, "--out", out, *writer.flags, *judged_by(judge))
        targen(*flags, *with_fallback(second.url), "--quiet")
        assert second.stats()["served"] == 1, "its probe"


def test_the_summary_names_all_that_wrote_rows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator() as endpoint:

        def first(body: dict[str, Any]) -> tuple[int, bytes]:
            schema = json.dumps(body.get("response_format") or {})
            if "-instances" in schema and int(str(body["seed"])) % 3 == 0:
                return 400, b'{"error": {"message": "content policy", "code": "content_filter"}}'
            return relay(endpoint, body, "writer@main")

        def second(body: dict[str, Any]) -> tuple[int, bytes]:
            return relay(endpoint, body, "second@main")

        with serving(first) as (url, _), serving(second) as (other, _):
            flags = ("-n", 30, "--out", out, "--model", "writer", "--base-url", url, "--quiet")
            done = targen("generate", "copa", *flags, *with_fallback(other))
    assert done.returncode == 0, done.stderr
    wrote = Counter(row["provenance"]["model"] for row in rows(out))
    assert set(wrote) == {"writer@main", "second@main"}
    assert manifest(out)["models"] == dict(wrote)
    served = ", ".join(f"{name} ({wrote[name]} rows)" for name in sorted(wrote))
    named = f"model       writer, fallback second; rows by {served}"
    for told in (done.stdout, targen("status", out).stdout):
        assert named in told
    assert targen("verify", out).returncode == 0


# ---- models that think


def intents(out: Path) -> list[Intent]:
    return [parse_intent(f.payload) for f in frames(out / "journal") if f.kind == Kind.INTENT]


def asked_twice(out: Path) -> list[bytes]:
    return [memo for memo, count in Counter(one.memo for one in intents(out)).items() if count > 1]


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_a_model_that_thinks_has_room_to_answer(tmp_path: Path, stream: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    with simulator(thinking_tokens=600) as endpoint:
        flags = ("generate", "copa", "-n", 10, "--out", out, *endpoint.flags, *stream)
        done = targen(*flags)
        assert done.returncode == 0, done.stderr
        assert "the model thinks before it answers: 4,096 tokens are added" in done.stderr
        served = endpoint.stats()["served"]
    assert served < 40 and not lines(out / "failures.jsonl")
    room = [one.max_tokens - 4096 for one in intents(out) if stage_of(one.key) != "probe"]
    assert set(room) >= {512, 1024} and min(room) > 0
    with simulator(endpoint.port, thinking_tokens=600) as endpoint:
        again = targen("generate", "--out", out)
        assert (again.returncode, endpoint.stats()["served"]) == (0, 0)
        # The same room without a new look, and another one without a repeated question.
        assert targen("generate", "--out", out, "-n", 20).returncode == 0
        assert min(one.max_tokens for one in intents(out)[served:]) > 4096
        before = len(intents(out))
        wider = targen("generate", "--out", out, "-n", 40, "--thinking-tokens", 8000)
        assert wider.returncode == 0
        assert "thinks before" not in wider.stderr
    assert min(one.max_tokens for one in intents(out)[before:]) > 8000
    assert asked_twice(out) == []
    assert targen("verify", out).returncode == 0


def test_a_run_without_room_to_think_ends_early_and_goes_on_with_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(thinking_tokens=600) as endpoint:
        flags = ("generate", "copa", "-n", 10, "--out", out, *endpoint.flags)
        done = targen(*flags, "--thinking-tokens", 0, "--max-in-flight", 8)
        assert done.returncode == 1
        assert "20 answers in a row were cut at max_tokens" in done.stderr
        assert "--thinking-tokens 4096" in done.stderr and "starves" not in done.stderr
        assert endpoint.stats()["served"] < 60
        mended = targen("generate", "--out", out, "--thinking-tokens", 4096)
        assert mended.returncode == 0, mended.stderr
    assert len(rows(out)) == 10
    assert asked_twice(out) == []


def test_only_the_one_that_thinks_gets_room(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator() as writer, simulator(thinking_tokens=2000) as judge:
        flags = ("generate", "cb", "-n", 12, "--out", out, *writer.flags, *judged_by(judge))
        done = targen(*flags)
        assert done.returncode == 0, done.stderr
        assert "judge: the model thinks before it answers: 8,192 tokens" in done.stderr
        assert "generator: the model thinks" not in done.stderr
        set_so = ("--set", "delivery.judge.thinking_tokens=5000", "-n", 24)
        before = len(intents(out))
        assert targen("generate", "--out", out, *set_so).returncode == 0
    wide = {stage_of(one.key) for one in intents(out) if one.max_tokens > 8192}
    assert wide == {"correction"}
    later = [one for one in intents(out)[before:] if stage_of(one.key) == "correction"]
    assert later and all(5000 < one.max_tokens < 8192 for one in later)


def test_a_budget_reckons_with_the_room(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(thinking_tokens=600) as endpoint:
        flags = ("generate", "copa", "-n", 60, "--out", out, *endpoint.flags)
        done = targen(*flags, "--max-tokens", 20_000, "--quiet")
        assert done.returncode == 1
        assert "the next call may take up to" in done.stderr
        told = endpoint.stats()
    spent = told["prompt_tokens"] + told["completion_tokens"]
    # With what no call can take any more: its prompt, its answer and its thoughts.
    assert 20_000 - 4096 - 4096 < spent <= 20_000


# ---- answers that turn bad


@pytest.mark.parametrize("seeds", ["asked for", "from a corpus"])
def test_answers_that_turn_bad_end_the_run_with_what_they_are(tmp_path: Path, seeds: str) -> None:
    out, good = tmp_path / "run", 60
    task, given = "copa", ()
    if seeds == "from a corpus":
        task, given = "boolq", from_corpus(corpus(tmp_path, 600))
    with simulator() as endpoint:
        answered = 0

        def answer(body: dict[str, object]) -> tuple[int, bytes]:
            nonlocal answered
            answered += 1
            if answered > good:
                return 200, b"<html><title>Please sign in</title></html>"
            request = urllib.request.Request(
                f"{endpoint.url}/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as served:
                return served.status, served.read()

        with serving(answer) as (url, asked):
            flags = ("-n", 300, "--out", out, *MODEL, "--base-url", url, "--quiet", *given)
            done = targen("generate", task, *flags, "--max-in-flight", 4)
            assert done.returncode == 1
            assert "in a row failed, the last as `malformed`" in done.stderr
            assert "did not answer with JSON, but with: <html>" in done.stderr
            assert "see to the endpoint" in done.stderr
            assert "--contexts" not in done.stderr and "starves" not in done.stderr
            assert len(asked) < good + 200
            good = 10**6
            # What failed before does not end a later start.
            mended = targen("generate", "--out", out, "--quiet")
            assert mended.returncode == 0, mended.stderr
    assert len(rows(out)) == 300
