"""Whole runs of the real command at an endpoint that spoils many answers: nothing is lost."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from targen_async.journal import Kind, body_of, frames
from tests.running import digest, lines, manifest, rows, targen
from tests.traps.test_wire import BROKEN, ERRORS, USELESS, WHOLE, WORDS
from tests.traps.wire_server import PROBE, Endpoint, Talk, endpoint

N = 40
SHOWN_IN_ROWS = ("another_model", "no_usage", "usage_not_a_number")
"""Odd answers that a row's provenance tells of."""
SAME = [name for name in WHOLE if name not in (*SHOWN_IN_ROWS, "said_twice", "stray_afterwards")]
# Beside the breaker these stop everybody's calls for a while, and say nothing new.
BRIEF = [name for name in BROKEN if name not in ("silent", "two_lengths", "length_below_zero")]
NO_ROW = ("Error:", "error", "Sign in", "stray", "Rate limit", "zzzz", "upstream")


@contextmanager
def spoiling(names: Sequence[str], every: int) -> Iterator[Endpoint]:
    """Each answer in `every` has the next of these manners; the first call of all is let be."""
    turns = iter(range(10**6))

    def choose(talk: Talk) -> str:
        if not names or (talk.request.schema_name or PROBE).endswith(PROBE):
            return "good"
        turn = next(turns)
        return "good" if turn % every else names[turn // every % len(names)]

    with endpoint(choose) as served:
        yield served


def run(
    out: Path, names: Sequence[str], *flags: object, every: int = 3
) -> tuple[dict[str, Any], Counter[str]]:
    """The manifest of a run that delivered and is sound, and how answers were sent."""
    with spoiling(names, every) as served:
        done = targen(
            *("generate", "cb", "-n", N, "--contexts", 10, "--out", out, "--quiet"),
            *("--model", "m", "--base-url", served.url, "--max-in-flight", 8),
            *("--set", "delivery.timeouts.read_s=0.6", "--set", "delivery.timeouts.total_s=1.2"),
            *flags,
        )
    assert done.returncode == 0, done.stderr
    assert set(served.used) >= set(names), "some were never tried: raise N"
    verified = targen("verify", out)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    told = manifest(out)
    assert told["delivered"] == len(rows(out)) == N
    assert max(told["balance"].values()) - min(told["balance"].values()) <= 1
    return told, served.used


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calm") / "run"
    run(out, [])
    return out


def bodies(out: Path) -> list[bytes]:
    return [body_of(one.payload) for one in frames(out / "journal") if one.kind == Kind.ANSWER]


def test_odd_answers_change_no_byte(tmp_path: Path, calm: Path) -> None:
    told, used = run(tmp_path / "run", SAME)
    assert digest(tmp_path / "run") == digest(calm)
    assert told["failed"] == {} and told["identity_broken_by"] == []
    # An idle connection that is closed just as it is used again costs a call; hardly ever.
    assert told["calls"]["in_doubt"] <= 3
    assert told["calls"]["served"] <= used.total() <= told["calls"]["served"] + 3
    assert told["spent"] == manifest(calm)["spent"]


def test_broken_answers_are_asked_for_again_and_change_no_byte(tmp_path: Path, calm: Path) -> None:
    told, used = run(tmp_path / "run", BRIEF)
    assert digest(tmp_path / "run") == digest(calm)
    assert told["failed"] == {} and told["identity_broken_by"] == []
    broken = sum(used[name] for name in BRIEF)
    assert told["calls"]["in_doubt"] == broken
    assert told["calls"]["served"] == used.total() - broken == manifest(calm)["calls"]["served"]


def test_errors_in_answers_are_asked_for_again_and_change_no_byte(
    tmp_path: Path, calm: Path
) -> None:
    told, used = run(tmp_path / "run", list(ERRORS), every=12)
    assert digest(tmp_path / "run") == digest(calm)
    assert told["failed"] == {}
    # Who sends a 200 may charge for it.
    assert told["calls"]["served"] == used.total()
    kept = Counter(body[:9] for body in bodies(tmp_path / "run"))
    assert kept[b'{"error":'] == sum(used[name] for name in ERRORS)


def test_trap_2_and_9_useless_answers_are_kept_and_never_become_rows(tmp_path: Path) -> None:
    """HTML, nothing, apologies, errors as text, ten megabytes: paid for, on disk, asked again."""
    names = [*USELESS, *WORDS]
    told, used = run(tmp_path / "run", names)
    assert told["calls"]["served"] == used.total()
    assert told["calls"]["in_doubt"] == 0
    assert told["wasted"]["completion_tokens"] > 0
    kept = bodies(tmp_path / "run")
    assert len(kept) == used.total()
    assert sum(body.startswith(b"<!doctype html>") for body in kept) == used["html"]
    assert sum(body == b"" for body in kept) == used["nothing"] + used["no_content"]
    for row in rows(tmp_path / "run"):
        said = (row["premise"], row["hypothesis"], row["provenance"]["seed"])
        assert all(text.strip() for text in said)
        assert not any(word in text for text in said for word in NO_ROW), row
    for failure in lines(tmp_path / "run" / "failures.jsonl"):
        assert failure["kind"] in ("malformed", "empty", "oversized"), failure


def test_usage_that_is_missing_or_no_number_is_counted_as_missing(tmp_path: Path) -> None:
    told, used = run(tmp_path / "run", ["no_usage", "usage_not_a_number"])
    missing = used["no_usage"] + used["usage_not_a_number"]
    assert told["calls"]["served_without_usage"] == missing > 0
    assert told["calls"]["served"] == used.total()


def test_a_model_that_changes_its_name_mid_run_is_told_and_on_every_row_that_it_wrote(
    tmp_path: Path, calm: Path
) -> None:
    log = tmp_path / "log"
    told, used = run(tmp_path / "run", ["another_model"], "--max-in-flight", 1, "--log", log)
    names = Counter(row["provenance"]["model"] for row in rows(tmp_path / "run"))
    assert set(names) == {"m-2026-11-01", "targen-simulator"}
    assert told["models"] == names
    assert told["calls"]["served"] == used.total()
    # Told once, however often it changes.
    (said,) = [line["text"] for line in lines(log) if "calls itself" in line.get("text", "")]
    assert "'m-2026-11-01'" in said and "'targen-simulator'" in said

    def texts(out: Path) -> list[tuple[str, str]]:
        return [(row["premise"], row["hypothesis"]) for row in rows(out)]

    assert texts(tmp_path / "run") == texts(calm)
