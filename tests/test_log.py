"""Events as JSON lines: what is told, how loudly, and what never."""

import json
import os
import re
import stat
import tempfile
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from targen_async.errors import UserError
from targen_async.log import MOST_TEXT, Level, Log, Observer, no_event, secrets_in
from targen_async.progress import Progress
from tests.scenes import GENERATOR, healthy, progress

KEY = "sk-proj-Zx81_not-a-real-key"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_an_event_is_one_line_with_time_level_and_name(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.event("info", "run_started", n=200, task="copa", share=0.5, judge=None, folder=tmp_path)
    log.event("warning", "waiting", why="two\nlines\u2028here")
    log.close()
    first, second = lines(tmp_path / "log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(first.pop("at")))
    assert first == {
        "level": "info",
        "event": "run_started",
        "n": 200,
        "task": "copa",
        "share": 0.5,
        "judge": None,
        "folder": str(tmp_path),
    }
    assert second["why"] == "two\nlines\u2028here"
    assert (tmp_path / "log").read_bytes().count(b"\n") == 2


def test_a_key_of_the_environment_is_in_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_ENDPOINT", KEY)
    monkeypatch.setenv("OTHER_API_KEY", "hunter2-and-more")
    log = Log(tmp_path / "log", secrets_in(os.environ, {"MY_ENDPOINT"}))
    log.event("error", "failed", text=f"401: no such key {KEY}", details={"h": [KEY, {KEY: 1}]})
    log.event("error", "failed", text="password hunter2-and-more is wrong")
    log.close()
    text = (tmp_path / "log").read_text("utf-8")
    assert "Zx81" not in text
    assert "hunter2" not in text
    assert text.count("[hidden]") == 4


@pytest.mark.parametrize(
    "secret",
    [
        "Authorization: Bearer abcdef123456",
        "sk-live-0123456789abcdef",
        "http://user:passw0rd@proxy.example:3128",
    ],
)
def test_what_looks_like_a_secret_is_hidden_though_nobody_named_it(
    tmp_path: Path, secret: str
) -> None:
    log = Log(tmp_path / "log")
    log.event("error", "failed", text=f"the endpoint said: {secret}!")
    log.close()
    text = (tmp_path / "log").read_text("utf-8")
    assert "[hidden]" in text
    assert not re.search("abcdef|passw0rd", text)


def test_a_named_secret_is_hidden_however_short_it_is(tmp_path: Path) -> None:
    environment = {"GW": "tok12", "PIN": "7x", "OTHER_TOKEN": "abc"}
    log = Log(tmp_path / "log", secrets_in(environment, {"GW", "PIN", "UNSET"}))
    log.event("error", "failed", text="'tok12' or atok123 for 7x, not 7xl, abc")
    log.close()
    hidden = "'[hidden]' or a[hidden]3 for [hidden], not 7xl, abc"
    assert lines(tmp_path / "log")[0]["text"] == hidden


def test_a_secret_that_is_a_word_of_ours_spoils_no_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", {"info", "rows", "text"})
    log.event("info", "rows", text="rows of a text")
    log.close()
    line = lines(tmp_path / "log")[0]
    assert (line["level"], line["event"]) == ("info", "rows")
    assert line["text"] == "[hidden] of a [hidden]"


def test_plain_words_are_not_taken_for_secrets() -> None:
    environment = {"EDITOR": "vi", "API_KEY": "short", "HOME": "/somewhere", "GH_TOKEN": "x" * 20}
    assert secrets_in(environment) == {"x" * 20}
    assert secrets_in(environment, {"HOME", "absent"}) == {"/somewhere", "x" * 20}


ANY_TEXT = st.text(st.characters())


@given(st.dictionaries(ANY_TEXT, ANY_TEXT | st.floats() | st.integers() | st.binary()))
def test_whatever_a_field_holds_the_line_is_json(fields: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = Log(path)
        log.event("info", "x", deep=fields)
        log.close()
        assert path.read_bytes().count(b"\n") == 1
        for line in path.read_bytes().splitlines():
            msgspec.json.decode(line)


def test_a_models_words_would_not_fit(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.event("info", "x", text="word " * 1000)
    log.close()
    assert len(str(lines(tmp_path / "log")[0]["text"])) == MOST_TEXT


def test_several_runs_may_share_a_log_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs = [Log(path) for _ in range(4)]

    def write(log: Log) -> None:
        for number in range(200):
            log.event("info", "x", number=number, text="y" * 300)

    threads = [threading.Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    assert len(lines(path)) == 800
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write the log .*no such file or directory"):
        Log(tmp_path / "absent" / "log")


def test_a_full_disk_stops_no_run() -> None:
    log = Log(Path("/dev/full"))
    log.event("info", "x")
    log.close()


def test_where_nobody_keeps_a_log_nothing_happens() -> None:
    no_event("info", "x", a=1)


# ---- what is seen from outside

Seen = list[tuple[str, str, dict[str, object]]]


def watched() -> tuple[Observer, Seen]:
    seen: Seen = []

    def event(level: Level, name: str, /, **fields: object) -> None:
        seen.append((level, name, fields))

    return Observer(event), seen


def at(second: float, **changes: object) -> Progress:
    return replace(progress(healthy()), elapsed_s=second, why="", **changes)


def test_each_tenth_of_the_rows_is_a_milestone() -> None:
    observer, seen = watched()
    for second in range(101):
        observer.show(at(float(second), delivered=1500 + 15 * second))
    assert [name for _, name, _ in seen] == ["rows"] * 5
    assert [fields["delivered"] for _, _, fields in seen] == [1800, 2100, 2400, 2700, 3000]


def test_a_long_wait_is_a_warning_once_and_its_end_is_told() -> None:
    observer, seen = watched()
    for second in range(60):
        waits = 5 <= second < 45
        reason = f"waiting {45 - second} s: Retry-After from the endpoint" if waits else ""
        observer.show(replace(at(float(second)), why=reason))
    assert [(level, name) for level, name, _ in seen] == [
        ("warning", "waiting"),
        ("info", "waiting_ended"),
    ]
    assert seen[0][2]["why"] == "waiting 30 s: Retry-After from the endpoint"
    assert seen[1][2]["waited_s"] == 40


def test_a_short_wait_and_a_drain_are_nothing_to_look_at() -> None:
    observer, seen = watched()
    for second in range(60):
        observer.show(replace(at(float(second)), why="x" if 5 <= second < 12 else ""))
    assert seen == []
    for second in range(60, 90):
        reason = f"draining: waiting for {90 - second} calls under way"
        observer.show(replace(at(float(second)), why=reason))
    assert [(level, name) for level, name, _ in seen] == [("info", "waiting")]


@pytest.mark.parametrize("prefix", ["", "judge: "])
def test_a_breaker_is_told_at_once_and_when_it_closes(prefix: str) -> None:
    observer, seen = watched()
    for second in range(30):
        is_open = 5 <= second < 25
        probe = "probing now" if second % 5 == 0 else f"next probe in {second % 5} s"
        reason = f"{prefix}breaker open since 12:01:07, {probe}" if is_open else ""
        observer.show(replace(at(float(second)), why=reason))
    assert [(level, name) for level, name, _ in seen] == [
        ("warning", "breaker_opened"),
        ("info", "breaker_closed"),
    ]
    assert seen[1][2]["waited_s"] == 20


def test_a_limit_that_was_learnt_is_told() -> None:
    observer, seen = watched()
    for most, requests in ((48, 600), (50, 600), (50, 300), (20, 300), (19, 300)):
        view = replace(GENERATOR, most_in_flight=most, requests_limit=requests)
        observer.show(at(1.0, limits=[view]))
    assert [fields["requests_per_minute"] for _, _, fields in seen] == [300, 300]
    assert [fields["most_in_flight"] for _, _, fields in seen] == [50, 20]
    assert {name for _, name, _ in seen} == {"limit_learnt"}


def test_a_storm_of_refusals_is_a_warning_at_most_once_a_minute() -> None:
    observer, seen = watched()
    for second in range(300):
        refused = 38 + (second // 4 if second < 100 else min(25 + second - 100, 125))
        observer.show(at(float(second), limits=[replace(GENERATOR, refused=refused)]))
    assert {(level, name) for level, name, _ in seen} == {("warning", "rate_limited")}
    assert 1 <= len(seen) <= 3
    assert all(fields["refused_last_minute"] >= 20 for _, _, fields in seen)  # type: ignore[operator]
