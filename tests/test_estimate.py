"""What a run will take, told from its first rows; and that the run goes on from them."""

import json
import math
import random
import re
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from targen_async import RunControl, UserError, generate
from targen_async.config import Budget, Prices, RunConfig, decode
from targen_async.course import Course, Range, Sums, spent
from targen_async.estimate import Estimate, estimate, extrapolate, pilot_rows
from targen_async.journal import Intent, Items, Kind
from targen_async.ledger import Role
from targen_async.pace import Allowed, Pace, allowed_by
from targen_async.pilot import Call, Pilot, Seen, read_pilot, stage_of
from targen_async.plan import RowPlanState, Wave
from targen_async.prices import prices_of
from targen_async.records import Usage
from targen_async.rundir import JOURNAL, read_config
from targen_async.tasks import load_task
from tests.running import command, manifest, simulator, targen, wait_for
from tests.scenes import GENERATOR
from tests.test_ledger import GPT, begun, body

PRICES: dict[Role, Prices] = {"generator": GPT, "judge": GPT}
COPA = load_task("copa")
WHOLE = {"usd_per_million_prompt_tokens": 2, "usd_per_million_completion_tokens": 8}


def config(n: int = 400, data: dict[str, Any] | None = None, **delivery: Any) -> RunConfig:
    raw = {"data": {"task": "copa", **(data or {})}, "delivery": {"n": n, **delivery}}
    return decode(raw, "test")


# ---- how large a pilot is


@pytest.mark.parametrize(
    ("task", "n", "begun_at", "rows"),
    [
        ("copa", 300, 0, 20),
        ("copa", 5000, 0, 100),
        ("copa", 100_000, 0, 200),
        ("copa", 30, 0, 15),
        ("copa", 1, 0, 1),
        ("multirc", 300, 0, 32),
        ("axg", 31, 0, 16),
        ("copa", 300, 120, 120),
    ],
)
def test_a_pilot_is_large_enough_and_below_n(task: str, n: int, begun_at: int, rows: int) -> None:
    one = config(n, {"task": task})
    assert pilot_rows(one, load_task(task), begun_at) == rows


# ---- what the journal tells


def test_the_stage_of_a_call_is_known_by_its_key() -> None:
    keys = {
        "probe": ("copa/probe", "copa/probe-plain@judge"),
        "contexts": ("copa/c0001", "copa/c0001~2"),
        "seeds": ("copa/s000012",),
        "instances": ("copa/000012/3", "copa/000012/3~1@fallback"),
        "correction": ("copa/x000010/v0", "copa/x000010/v1.0.1@judge"),
    }
    assert {stage: {stage_of(key) for key in some} for stage, some in keys.items()} == {
        stage: {stage} for stage in keys
    }


def test_calls_are_told_apart_by_stage_role_and_question(tmp_path: Path) -> None:
    journal = begun(tmp_path / "journal")

    def call(key: str, answer: bytes | None, *, void: bool = False) -> None:
        ticket = journal.intent(Intent(bytes(16), 100, 50, key))
        if void:
            journal.void(ticket, "HTTP 429")
        elif answer is not None:
            journal.answer(ticket, answer)

    listed = b'{"choices":[{"message":{"content":"{\\"seeds\\":[\\"The cat sat on the mat.\\",'
    listed += b'\\"A dog ran over the hill.\\"]}"},"finish_reason":"stop"}]}'
    call("copa/s000000", b"<html>")
    call("copa/s000000~1", listed)
    call("copa/s000001", listed)
    call("copa/000000/0", None, void=True)
    call("copa/000000/0", None)
    call("copa/000000/0", body(7, 3))
    items = Items(key="copa/x000000/v0", vote=0, rows=[(0, b""), (1, b"")])
    journal.append(Kind.ITEMS, msgspec.msgpack.encode(items))
    call("copa/x000000/v0@judge", body(20, 9, cached=4))
    call("copa/x000000/v0.1@judge", body(20, 9))
    journal.close()
    pilot = read_pilot(tmp_path / "journal", COPA)
    seeds, rows = pilot.stages["seeds"], pilot.stages["instances"]
    assert (len(seeds.calls), seeds.questions, seeds.useful) == (3, 2, [2, 0])
    assert (len(rows.calls), rows.questions, rows.refused) == (2, 1, 1)
    judged = pilot.stages["correction"]
    assert [(c.role, c.items, c.again) for c in judged.calls] == [
        ("judge", 2, False),
        ("judge", 0, True),
    ]
    assert judged.calls[0].usage is not None and judged.calls[0].usage.cached_prompt_tokens == 4
    sums = spent(pilot)
    assert sums.requests == 7
    # The call in doubt counts as its like; nothing is known of the seeds' tokens.
    assert (sums.prompt, sums.completion) == (2 * 7 + 40, 2 * 3 + 18)


# ---- from there to n


def sound_pilot() -> Pilot:
    """20 rows without a fault, by calls of known size."""
    journal_of = {
        "copa/c0000": (100, 50, 0),
        **{f"copa/s{i:06d}": (200, 100, 0) for i in range(2)},
        **{f"copa/{i:06d}/0": (300, 40, 0) for i in range(20)},
        **{f"copa/x{10 * i:06d}/v0": (100 + 50 * 10, 20 * 10, 10) for i in range(2)},
    }
    pilot = Pilot(
        plan=RowPlanState(
            n=20,
            waves=[Wave(start=0, counts=dict.fromkeys(COPA.classes, 10))],
            watermark=20,
            replan_at=20,
            accepted=dict.fromkeys(COPA.classes, 10),
            tried=dict.fromkeys(COPA.classes, 10),
            moved={label: {label: 10} for label in COPA.classes},
        )
    )

    for key, (prompt, completion, items) in journal_of.items():
        usage = Usage(prompt_tokens=prompt, completion_tokens=completion)
        one = pilot.stages.setdefault(stage_of(key), Seen())
        one.calls.append(Call(role="generator", usage=usage, items=items, again=False))
    pilot.stages["contexts"].useful = [10]
    pilot.stages["seeds"].useful = [10, 10]
    return pilot


def told(n: int, **changes: Any) -> Estimate:
    one = config(n, {"contexts": 10, **changes.pop("data", {})}, **changes)
    return extrapolate(one, COPA, sound_pilot(), PRICES, Pace(), [])


def test_a_faultless_run_is_within_the_range_and_near_its_low_end() -> None:
    one = told(1000)
    true = {
        "requests": 1 + 100 + 1000 + 100,
        "prompt_tokens": 100 + 200 * 100 + 300 * 1000 + 600 * 100,
        "completion_tokens": 50 + 100 * 100 + 40 * 1000 + 200 * 100,
    }
    for name, value in true.items():
        span: Range = getattr(one, name)
        assert span.low <= value <= span.high, name
        assert span.low >= 0.95 * value, name
    assert one.usd is not None and one.tokens is not None
    usd = (true["prompt_tokens"] * 2 + true["completion_tokens"] * 8) / 1e6
    assert one.usd.low <= usd <= one.usd.high < 1.4 * usd
    assert one.stages["contexts"].high == 1, "their number does not depend on n"


def test_more_rows_and_more_votes_cost_more() -> None:
    thousand, two = told(1000), told(2000)
    assert 1.9 < two.requests.likely / thousand.requests.likely < 2.1
    votes = told(1000, data={"correction": {"votes": 3}})
    assert votes.stages["correction"].likely > 2.5 * thousand.stages["correction"].likely
    assert votes.stages["instances"].likely == pytest.approx(
        thousand.stages["instances"].likely, rel=0.05
    )


def test_rejected_rows_and_repeats_raise_it() -> None:
    pilot = sound_pilot()
    plan = pilot.plan
    plan.watermark, plan.tried = 30, dict.fromkeys(COPA.classes, 15)
    clean = told(1000)
    one = extrapolate(config(1000, {"contexts": 10}), COPA, pilot, PRICES, Pace(), [])
    assert one.stages["instances"].likely > 1.35 * clean.stages["instances"].likely


def test_drawing_is_the_same_each_time_and_never_less_than_what_is_spent() -> None:
    assert told(500) == told(500)
    course = Course(config(20), COPA, sound_pilot())
    for seed in range(50):
        draw = course.draw(random.Random(seed))
        assert min(draw.prompt, draw.completion, *draw.calls.values()) >= 0
        assert math.isfinite(draw.requests)


def test_what_a_person_is_told() -> None:
    lines = told(1000, budget={"max_usd": 0.5, "max_requests": 1300}).lines()
    text = "\n".join(lines)
    assert lines[0].startswith("estimate for 1,000 rows from the first 20 (25 calls, $0.0")
    assert "requests  1,200 to 1,4" in text
    assert "cost      $1.3" in text
    assert "--max-usd 0.5 will stop it before the end" in text
    assert "--max-requests 1,300 may stop it before the end" in text
    assert lines[-1].endswith("the same command without --estimate goes on")


def test_without_usage_or_price_that_is_said() -> None:
    pilot = sound_pilot()
    unpriced = extrapolate(config(100), COPA, pilot, {}, Pace(), [])
    assert unpriced.usd is None and unpriced.tokens is not None
    assert unpriced.unpriced == ["targen-simulator"] and unpriced.usd_part is None
    text = "\n".join(unpriced.lines())
    assert "cost      not known: no price for 'targen-simulator'; docs/endpoints.md" in text
    assert "requests and tokens end within their range in about nine runs of ten" in text
    for one in pilot.stages.values():
        one.calls = [msgspec.structs.replace(call, usage=None) for call in one.calls]
    blind = extrapolate(config(100), COPA, pilot, PRICES, Pace(), [])
    assert blind.tokens is None and blind.usd is None and blind.requests.low > 100
    text = "\n".join(blind.lines())
    assert "reports no usage" in text
    assert "  requests end within their range" in text


def test_the_model_without_a_price_is_named_and_the_rest_told() -> None:
    pilot = sound_pilot()
    judged = pilot.stages["correction"]
    judged.calls = [msgspec.structs.replace(call, role="judge") for call in judged.calls]
    two = config(1000, {"contexts": 10, "model": "gpt-4o", "correction": {"model": "wat"}})
    whole = extrapolate(two, COPA, pilot, PRICES, Pace(), [])
    part = extrapolate(two, COPA, pilot, {"generator": GPT}, Pace(), [])
    assert whole.usd is not None and part.usd is None and part.usd_part is not None
    assert part.unpriced == ["wat"]
    # 600 prompt and 200 completion tokens for each of 100 calls to the judge.
    judge = (600 * 2 + 200 * 8) * 100 / 1e6
    assert part.usd_part.low == pytest.approx(whole.usd.low - judge, rel=0.05)
    text = "\n".join(part.lines())
    assert re.search(r"cost +not known: \$1.* to \$1.*, and there is no price for 'wat';", text)


# ---- time


def ways(*requests: float, judged: float = 0.0, tokens: float = 0.0) -> list[Sums]:
    found = []
    for count in requests:
        one = Sums()
        one.count("instances", count, {"generator": 1.0})
        one.count("correction", judged, {"judge": 1.0})
        one.add("generator", tokens, 0.0, 0.0)
        found.append(one)
    return found


def allowed(
    what: str,
    per_minute: float,
    role: Role = "generator",
    place: str = "here",
    source: str = "told",
) -> Allowed:
    return Allowed(role=role, place=place, what=what, per_minute=per_minute, source=source)


def paced() -> Pace:
    """A call took two seconds, and one came back every 0.4 s."""
    pace = Pace()
    pace.busy_s, pace.calls, pace.seconds = 100.0, 50, 20.0
    return pace


def test_time_is_between_all_calls_at_once_and_the_pilots_pace() -> None:
    found = paced().rest(ways(1000, 1200), [], at_once=10, counted=True)
    assert found.seconds == Range(low=200, likely=math.sqrt(200 * 480), high=480)
    assert found.words == "if the endpoint keeps its pace: no limit of it is known"


def test_time_is_no_less_than_the_known_rates_allow() -> None:
    """A pilot lives off what a bucket holds, and goes faster than the run can."""
    slow = allowed("requests", 60)
    found = paced().rest(ways(1000, 1200), [slow], at_once=10, counted=True)
    assert found.seconds is not None
    # At most a minute's worth may have been saved up.
    assert found.seconds.low == 1000 - 60
    assert 1200 <= found.seconds.high < 1300
    assert found.words == "at about 60 requests a minute, by the endpoint's headers"
    tokens = allowed("tokens", 40_000, source="declared")
    found = paced().rest(ways(400, tokens=360_000), [slow, tokens], at_once=10, counted=True)
    assert found.seconds is not None
    assert found.seconds.low == 540 - 60 and 540 <= found.seconds.high < 600
    assert found.words == "at 40,000 tokens a minute"
    fast = allowed("requests", 60_000)
    found = paced().rest(ways(1000, 1200), [fast], at_once=10, counted=True)
    assert found.seconds is not None and found.seconds.high == 480
    assert found.words == "if the endpoint keeps its pace"


def test_the_judges_own_limits_count_and_one_address_may_be_one_quota() -> None:
    judge = allowed("requests", 6, "judge", source="measured")
    writer = allowed("requests", 60)
    found = paced().rest(ways(600, judged=60), [writer, judge], at_once=10, counted=True)
    assert found.seconds is not None
    assert found.seconds.low == 600 - 60
    assert 1200 <= found.seconds.high < 1300, "one after the other, at worst"
    elsewhere = [writer, msgspec.structs.replace(judge, place="there")]
    found = paced().rest(ways(600, judged=66), elsewhere, at_once=10, counted=True)
    assert found.seconds is not None and 660 <= found.seconds.high < 720
    assert found.words == (
        "if the endpoint keeps to 6 requests a minute of the judge, as measured so far"
    )


def test_where_nothing_was_asked_or_counted_the_time_is_not_known() -> None:
    assert Pace().rest(ways(100), [], at_once=10, counted=True).seconds is None
    known = Pace().rest(ways(100), [allowed("requests", 60)], at_once=10, counted=True).seconds
    assert known is not None and known.high >= 100
    blind = paced().rest(ways(100), [allowed("tokens", 60)], at_once=10, counted=False)
    assert blind.seconds is None and "counts none" in blind.words


def test_rates_are_those_declared_for_each_role_or_learnt_by_the_pilot() -> None:
    judge = {"base_url": "http://127.0.0.1:2/v1", "limits": {"requests_per_minute": 30}}
    one = config(
        400,
        {"model": "m", "correction": {"model": "j"}},
        base_url="http://127.0.0.1:1/v1",
        limits={"tokens_per_minute": 40_000},
        judge=judge,
    )
    told = {(x.role, x.what, x.place): (x.per_minute, x.source) for x in allowed_by(one, [])}
    assert told == {
        ("generator", "tokens", "http://127.0.0.1:1/v1"): (40_000, "declared"),
        ("judge", "requests", "http://127.0.0.1:2/v1"): (30, "declared"),
    }
    view = msgspec.structs.replace(GENERATOR, requests_limit=600, tokens_limit=20_000, refused=0)
    learnt = {(x.role, x.what): (x.per_minute, x.source) for x in allowed_by(one, [view])}
    assert learnt == {
        ("generator", "requests"): (600, "told"),
        ("generator", "tokens"): (20_000, "told"),
        ("judge", "requests"): (30, "declared"),
    }
    view = msgspec.structs.replace(view, tokens_limit=None, refused=3)
    assert {x.source for x in allowed_by(one, [view])} == {"measured", "declared"}


# ---- in a real folder


def run_estimate(one: RunConfig, out: Path, **options: Any) -> Estimate | None:
    async def main() -> Estimate | None:
        make = partial(generate, **options)
        return (await estimate(one, out, generate=make))[1]

    return anyio.run(main)


def test_the_pilot_is_kept_and_the_run_asks_none_of_it_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(latency_ms=5) as endpoint:
        one = config(
            120,
            {"contexts": 10},
            base_url=endpoint.url,
            prices=WHOLE,
        )
        said = run_estimate(one, out)
        assert said is not None and said.pilot_rows == 20
        assert manifest(out)["n"] == 20
        assert endpoint.stats()["served"] == said.pilot_calls
        assert read_config(out) == one, "a start without flags makes all rows"
        done = anyio.run(lambda: generate(one, out))
        assert done.delivered == 120
        served = endpoint.stats()
        assert done.calls.served == served["served"], "nothing was asked twice"
    total = spent(read_pilot(out / JOURNAL, COPA))
    assert total.requests == served["served"]
    assert total.tokens == served["prompt_tokens"] + served["completion_tokens"]
    assert said.seconds is not None and said.seconds.high > said.seconds.low > 0
    assert said.seconds_hold == "if the endpoint keeps its pace: no limit of it is known"
    with pytest.raises(UserError, match="already aims at n = 120: there is nothing left"):
        run_estimate(one, out)


def test_a_pilot_that_is_stopped_tells_nothing(tmp_path: Path) -> None:
    control = RunControl()
    control.drain("interrupted")
    one = config(120)
    assert run_estimate(one, tmp_path / "run", control=control) is None
    assert read_config(tmp_path / "run") == one, "a start without flags makes all rows"


@pytest.mark.parametrize("declared", [True, False])
def test_time_knows_the_limits_of_an_endpoint(tmp_path: Path, *, declared: bool) -> None:
    """The pilot is let through at once; all rows take minutes."""
    with simulator(tokens_per_minute=40_000, rate_headers=not declared) as endpoint:
        limits = {"tokens_per_minute": 40_000} if declared else {}
        said = run_estimate(config(400, base_url=endpoint.url, limits=limits), tmp_path / "run")
    assert said is not None and said.seconds is not None and said.tokens is not None
    left = said.tokens.high - spent(read_pilot(tmp_path / "run" / JOURNAL, COPA)).tokens
    assert said.seconds.high >= 60 * left / 40_000
    assert said.seconds.low > 240
    if declared:
        assert said.seconds_hold == "at 40,000 tokens a minute"
    else:
        about = r"at about (39|40),\d{3} tokens a minute, by the endpoint's headers"
        assert re.fullmatch(about, said.seconds_hold)
    assert re.search(r"  time +\d min to \d+ min, at .*tokens a minute", "\n".join(said.lines()))


def test_the_command_goes_on_with_all_rows_after_an_interrupted_estimate(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(latency_ms=700) as endpoint:
        flags = ("generate", "copa", "-n", 120, "--out", out, "--contexts", 10, *endpoint.flags)
        child = subprocess.Popen(command(*flags, "--estimate"), stderr=subprocess.PIPE, text=True)
        wait_for(lambda: (out / "run.toml").exists())
        wait_for(lambda: endpoint.stats()["served"] > 0)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
        assert child.returncode == 130
        assert f"`targen generate --out {out}` goes on from here and makes all 120 rows" in said
        assert read_config(out).delivery.n == 120
    with simulator(endpoint.port) as endpoint:
        assert targen("generate", "--out", out, "--quiet").returncode == 0
    assert manifest(out)["delivered"] == 120


def test_a_pilot_that_failed_leaves_the_run_as_it_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("generate", "copa", "-n", 120, "--out", out, "--estimate", "--quiet")
    assert targen(*flags, "--simulate", "--max-requests", 5).returncode == 1
    assert read_config(out).delivery.n == 120


def test_as_json_lines_the_estimate_is_in_the_last_object(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = targen("generate", "copa", "-n", 120, "--out", out, "--simulate", "--estimate", "--json")
    assert done.returncode == 0, done.stderr
    *ticks, end = map(json.loads, done.stdout.splitlines())
    assert {line["kind"] for line in ticks} <= {"progress"} and end["kind"] == "end"
    told = msgspec.convert(end["estimate"], Estimate)
    assert told.n == 120 and told.requests.low > 120
    assert end["manifest"]["n"] == told.pilot_rows == 20
    # One that is stopped has an end too, and nothing to tell.
    done = targen(
        *("generate", "copa", "-n", 120, "--out", tmp_path / "two", "--simulate", "--estimate"),
        *("--json", "--max-requests", 5),
    )
    end = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, end["kind"], end["estimate"]) == (1, "end", None)
    assert "the budget of 5 requests is used up" in end["error"]


@pytest.mark.slow
def test_the_range_holds_what_runs_take(tmp_path: Path) -> None:
    """Ten runs on a noisy simulator, each another task: most end inside."""
    noise = {"label_noise": 0.1, "corrector_error": 0.02, "malformed": 0.05, "missing_ids": 0.05}
    tasks = ("axb", "axg", "boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
    inside = 0
    for seed, task in enumerate(tasks, 400):
        data = {"task": task, "random_seed": seed, "simulator": {"random_seed": seed, **noise}}
        one = config(300, data, prices=WHOLE)
        said = run_estimate(one, tmp_path / task)
        assert said is not None and said.usd is not None
        anyio.run(lambda one=one, task=task: generate(one, tmp_path / task))
        true = spent(read_pilot(tmp_path / task / JOURNAL, load_task(task)))
        inside += said.usd.low <= true.usd(prices_of(one)) <= said.usd.high
    assert inside >= 8, "nine of ten do in the long run"


def test_caps_hold_in_a_pilot_too() -> None:
    assert told(100, budget={"max_usd": 1000.0}).budget == Budget(max_usd=1000.0)
    assert not any("stop it" in line for line in told(100, budget={"max_usd": 1000.0}).lines())
