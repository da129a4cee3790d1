"""What a person can read of a run while it goes on."""

import fcntl
import html
import io
import os
import pty
import re
import runpy
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from targen_async.live import LiveView, matrix_lines, one_line, picture, visible
from targen_async.progress import Meter, amount, duration, usd
from targen_async.stats import StageStats, Stats
from targen_async.terminal import (
    JsonLines,
    PlainView,
    is_live,
    plain_line,
    show_progress,
    tell,
)
from tests.running import command, targen
from tests.scenes import (
    COST,
    GENERATOR,
    REASONS,
    STATES,
    Screen,
    healthy,
    printed,
    progress,
    seen,
    waits,
)

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b[2J[red]boo[/red]\x07\r\nnew\u202egnp\u2028line"


# ---- states, in words


@pytest.mark.parametrize("width", [80, 120])
def test_a_run_where_all_is_well_shows_everything_there_is_to_know(width: int) -> None:
    text = seen(healthy(), width)
    for wanted in (
        "cb  1,500 of 3,000 rows, 50 %",
        "30.0 rows/s",
        "0:50 left",
        "0:50 so far",
        "moving: 47 calls out",
        "584 of 600",
        "187 k of 200 k",
        "41/48",
        "entailment 499, contradiction 500, neutral 501",
        "near_duplicate 44, seeds.duplicate 12, failed calls 3",
        "cb/000500/0; 29 rows wait behind it",
        "$0.2165 so far, about $0.5120 in all",
        "1.2 M prompt (811 k cached) + 161 k completion",
        "$0.78 of $1.00 is left",
    ):
        assert wanted in text
    instances = next(line for line in text.splitlines() if line.startswith("instances"))
    assert instances.split() == ["instances", "52", "1,486", "0.0", "21", "9/16"]
    generator = next(line for line in text.splitlines() if line.startswith("generator"))
    assert generator.split()[-2:] == ["38", "12"]
    head, row = (line for line in text.splitlines() if "review" in line or " 480 " in line)
    assert head.split()[-4:] == ["entailment", "neutral", "drop", "review"]
    assert row.split()[-4:] == ["480", "21", "4", "1"]
    assert "simulated" not in text.lower()


def test_between_two_calls_those_in_line_are_told() -> None:
    """At a slow rate nothing is out most of the time, and yet all is well."""
    text = seen(healthy(in_flight=lambda: 0))
    assert "moving: 12 calls in line" in text
    empty = replace(GENERATOR, waiting=0)
    text = seen(healthy(in_flight=lambda: 0, limits=lambda: [empty]))
    assert "\nmoving\n" in re.sub(r" +\n", "\n", text)


@pytest.mark.parametrize("name", STATES)
def test_why_nothing_moves_is_told_in_words(name: str) -> None:
    stats = healthy()
    STATES[name](stats)
    for text in (seen(stats), seen(stats, 120), plain_line(progress(stats))):
        assert REASONS[name] in text
        assert "moving" not in text


def test_a_silence_is_told_with_its_length() -> None:
    stats = healthy()
    assert progress(stats, still_s=2).why == ""
    assert progress(stats, still_s=34).why == "no answer for 34 s: 47 calls under way"
    stats.in_flight = int
    text = "nothing sent for 34 s: 58 calls in line or waiting for another try"
    assert progress(stats, still_s=34).why == text
    stats.stages = {}
    assert progress(stats, still_s=34).why == "nothing to ask for 34 s"


def test_the_reason_that_explains_the_others_comes_first() -> None:
    stats = healthy()
    for name in ("window", "budget", "retry-after", "replay", "draining"):
        STATES[name](stats)
        assert progress(stats).why.startswith(REASONS[name])


def test_simulated_rows_are_called_so() -> None:
    assert seen(healthy(simulated=True)).startswith("SIMULATED cb")
    assert "none: simulated" in seen(
        healthy(simulated=True, cost=lambda: msgspec.structs.replace(healthy().cost(), usd=None))
    )


@pytest.mark.parametrize("name", ["healthy", *STATES])
def test_no_line_is_wider_and_no_picture_higher_than_the_terminal(name: str) -> None:
    stats = healthy(simulated=True, limits=lambda: [GENERATOR, GENERATOR])
    STATES.get(name, lambda _: None)(stats)
    for width in (1, 7, 20, 40, 80, 109, 110, 120, 200):
        for height in (2, 4, 10, 24, 60):
            lines = picture(progress(stats), width, height).split("\n")
            assert len(lines) <= max(height - 1, 2)
            assert max(line.cell_len for line in lines) <= width


@pytest.mark.parametrize("width", [40, 80])
def test_a_small_terminal_shows_the_rows_and_the_reason(width: int) -> None:
    stats = healthy()
    STATES["retry-after"](stats)
    text = seen(stats, width, height=6)
    assert "1,500 of 3,000 rows" in text
    assert "waiting 42 s: Retry-After" in text


def test_a_picture_of_24_lines_keeps_all_that_80_columns_show() -> None:
    full = [line for line in seen(healthy(), height=99).splitlines() if line]
    assert [line for line in seen(healthy(), height=24).splitlines() if line] == full


def test_the_matrix_stands_beside_the_stages_where_there_is_room() -> None:
    transitions = {"a": {"a": 60, "b": 3}, "b": {"b": 57}}
    wide = seen(healthy(transitions=transitions), 120).splitlines()
    assert any(line.startswith("stage ") and "before \\ after" in line for line in wide)
    narrow = seen(healthy(transitions=transitions), 80).splitlines()
    assert any(line.startswith("before \\ after") for line in narrow)


def test_the_matrix_of_open_labels_has_no_column_of_zeros() -> None:
    lines = [line.plain.split() for line in matrix_lines({"answer": {"kept": 9, "changed": 1}}, 80)]
    assert lines == [["before", "\\", "after", "changed", "kept"], ["answer", "1", "9"]]


def test_a_label_that_everything_flees_keeps_its_column() -> None:
    lines = [line.plain.split() for line in matrix_lines({"a": {"b": 9}, "b": {"b": 8}}, 80)]
    assert lines == [["before", "\\", "after", "a", "b"], ["a", "0", "9"], ["b", "0", "8"]]


def test_many_labels_are_cut_and_counted() -> None:
    balance = {f"label {number}": number for number in range(50)}
    assert "and 4" in seen(healthy(balance=balance)).split("labels")[1].splitlines()[0]
    transitions = {label: dict.fromkeys(balance, 1) for label in balance}
    assert len(matrix_lines(transitions, 80)) == 7


# ---- rates


def test_rates_are_of_the_last_stretch_and_the_rest_of_the_way_at_that_pace() -> None:
    stats = Stats(n=1000, started_at=0.0, stages={"instances": StageStats()})
    meter = Meter(stats)
    for second in range(301):
        fast = second > 240
        stats.delivered += 2 if fast else 1
        stats.stages["instances"].sent += 3
        stats.stages["instances"].done += 3
        now = meter.progress(float(second))
    assert now.rows_per_second == pytest.approx(2, rel=0.05)
    assert now.eta_s == pytest.approx((1000 - stats.delivered) / 2, rel=0.05)
    assert now.stages["instances"].per_second == pytest.approx(3, rel=0.05)


def test_rows_of_an_earlier_start_are_no_pace() -> None:
    stats = Stats(n=1000, delivered=900, delivered_before=900, started_at=0.0)
    now = Meter(stats).progress(30.0)
    assert now.rows_per_second == 0
    assert now.eta_s is None
    assert "time left unknown" in picture(now, 80).plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (90_061, "1 day 1:01:01")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_amounts_are_short() -> None:
    assert [amount(n) for n in (0, 999, 9999, 12_345, 187_400, 1_234_567, 3.2e9)] == [
        "0",
        "999",
        "9999",
        "12.3 k",
        "187 k",
        "1.2 M",
        "3.2 G",
    ]
    assert (usd(0.00012), usd(123.456)) == ("$0.0001", "$123.46")


# ---- texts of others


@given(st.text())
def test_no_text_leaves_its_line_or_commands_the_terminal(text: str) -> None:
    shown = one_line(text, 20)
    assert cell_len(shown) <= 20
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()
    assert "\x1b" not in visible(text).plain


def test_hostile_labels_reasons_and_keys_are_shown_and_obeyed_by_nobody() -> None:
    stats = healthy(
        task=HOSTILE,
        balance={HOSTILE: 3, "\u6587" * 40: 2},
        rejected={f"instances.{HOSTILE}": 1},
        transitions={HOSTILE: {HOSTILE: 4, "\u6587" * 40: 1}},
        waiting_for=HOSTILE,
        limits=lambda: [waits(GENERATOR, HOSTILE)],
    )
    for width in (40, 80, 120):
        shown = picture(progress(stats), width, 40)
        assert "[red]boo[/red]" in shown.plain
        assert max(line.cell_len for line in shown.split("\n")) <= width
        sent = re.sub(r"\x1b\[[\d;]*m", "", printed(shown, width))
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", sent)
    assert "\n" not in plain_line(progress(stats))


def test_a_line_to_a_person_is_no_markup() -> None:
    file = io.StringIO()
    tell(Console(file=file, force_terminal=True, width=20), "refused: [/nope] \x1b[2J, that is all")
    assert file.getvalue() == "refused: [/nope] \\u001b[2J, that is all\n"


# ---- colours


def test_without_colours_the_same_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = healthy(simulated=True)
    STATES["breaker"](stats)
    shown = picture(progress(stats), 80)
    coloured = printed(shown)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(shown)
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", plain) for code in found.split(";")}
    assert codes <= {"", "0", "1", "2"}
    assert "\x1b[1;31m" in coloured
    assert shown.plain in re.sub(r"\x1b\[[\d;]*m", "", plain)


def test_colours_are_the_terminals_own_and_never_of_the_background() -> None:
    for name in STATES:
        stats = healthy(simulated=True)
        STATES[name](stats)
        sent = printed(picture(progress(stats), 80), color_system="truecolor")
        codes = {c for found in re.findall(r"\x1b\[([\d;]*)m", sent) for c in found.split(";")}
        # Bold, dim, red, green, magenta, cyan: no yellow on white, no blue on black.
        assert codes <= {"0", "1", "2", "31", "32", "35", "36"}


def test_a_terminal_that_knows_only_ascii_is_sent_only_that() -> None:
    for name in STATES:
        stats = healthy()
        STATES[name](stats)
        for width in (30, 80):
            assert picture(progress(stats), width, ascii_only=True).plain.isascii()


# ---- where it is shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_frames_are_drawn_in_place_and_leave_nothing_behind() -> None:
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=80, height=24)
    stats = healthy()
    with LiveView(console) as view:
        for number in range(5):
            stats.delivered += number
            view.show(progress(stats))
            tell(console, f"said {number}")
        drawn = file.getvalue()
        view.show(progress(stats))
    screen = Screen()
    screen.feed(drawn)
    assert screen.text.count("moving: 47 calls out") == 1
    assert "said 4" in screen.text
    assert screen.cursor_is_hidden
    screen = Screen()
    screen.feed(file.getvalue())
    assert screen.text.splitlines() == [f"said {number}" for number in range(5)]
    assert not screen.cursor_is_hidden
    # Each frame is held back until it is whole.
    assert file.getvalue().count("\x1b[?2026h") == file.getvalue().count("\x1b[?2026l") == 5


def test_a_frame_that_is_like_the_last_is_not_drawn() -> None:
    file = Terminal()
    stats = healthy()
    now = progress(stats)
    with LiveView(Console(file=file, force_terminal=True, width=80, height=24)) as view:
        view.show(now)
        once = file.getvalue()
        view.show(now)
        assert file.getvalue() == once


def test_forced_colours_make_no_terminal_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not is_live(Console(file=io.StringIO()))
    assert is_live(Console(file=Terminal()))
    assert not is_live(Console(file=Terminal(), quiet=True))
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(Console(file=Terminal()))


def test_plain_lines_come_every_five_seconds_and_more_seldom_while_nothing_moves() -> None:
    file = io.StringIO()
    view = PlainView(Console(file=file))
    stats = healthy(started_at=0.0)
    meter = Meter(stats)
    at: list[int] = []
    for second in range(600):
        if second == 60:
            STATES["retry-after"](stats)
        if second < 60:
            stats.delivered += 1
        before = file.tell()
        view.show(meter.progress(float(second)))
        if file.tell() > before:
            at.append(second)
    assert at[:4] == [5, 10, 15, 20]
    assert len([second for second in at if second >= 60]) <= 16
    assert (
        file.getvalue().splitlines()[-1].endswith("; waiting 42 s: Retry-After from the endpoint")
    )
    assert "=" not in file.getvalue()


def show_for(stats: Stats, console: Console, seconds: float, **options: object) -> None:
    async def main() -> None:
        async with show_progress(stats, console, **options):  # type: ignore[arg-type]
            await anyio.sleep(seconds)

    anyio.run(main)


def test_a_quiet_console_is_told_nothing_and_others_are() -> None:
    file = Terminal()
    shown: list[object] = []
    show_for(healthy(), Console(file=file, quiet=True), 0.6, others=[shown.append])
    assert file.getvalue() == ""
    assert len(shown) >= 1


def test_a_terminal_that_goes_away_stops_neither_the_run_nor_the_others() -> None:
    class Gone(Terminal):
        def write(self, _text: str) -> int:
            raise OSError(5, "Input/output error")

    shown: list[object] = []
    console = Console(file=Gone(), force_terminal=True)
    show_for(healthy(), console, 0.9, others=[shown.append])
    assert len(shown) >= 2


def test_a_fault_of_a_display_is_told_and_stops_no_run() -> None:
    def faulty(_progress: object) -> None:
        raise KeyError("label")

    shown: list[object] = []
    with pytest.warns(UserWarning, match="a display is left out: KeyError"):
        show_for(
            healthy(), Console(file=io.StringIO(), quiet=True), 0.9, others=[faulty, shown.append]
        )
    assert len(shown) >= 2


# ---- JSON lines


def ticks(stream: io.StringIO) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def test_json_lines_hold_a_tick_a_second_and_an_end(tmp_path: Path) -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    stats = healthy(started_at=0.0)
    meter = Meter(stats)
    for quarter in range(13):
        lines.show(meter.progress(quarter / 4))
    lines.end(None, tmp_path, error="the endpoint said no")
    found = ticks(stream)
    assert [line["kind"] for line in found] == ["progress"] * 4 + ["end"]
    assert found[0]["delivered"] == 1500
    assert found[0]["limits"][0]["requests_limit"] == 600  # type: ignore[index]
    assert found[-1]["error"] == "the endpoint said no"
    assert found[-1]["manifest"] is None


def test_every_key_of_the_json_lines_is_documented() -> None:
    stream = io.StringIO()
    stats = healthy()
    lines = JsonLines(stream)
    lines.show(progress(stats))
    lines.end(None, Path("runs/cb"))
    page = (Path(__file__).parents[1] / "docs" / "terminal.md").read_text("utf-8")
    told = set(re.findall(r"`([\w.\[\]]+)`", page))
    tick, end = ticks(stream)
    names = {*tick, *end}
    names |= {f"stages[].{name}" for name in tick["stages"]["instances"]}  # type: ignore[index]
    names |= {f"limits[].{name}" for name in tick["limits"][0]}  # type: ignore[index]
    names |= {f"cost.{name}" for name in tick["cost"]}  # type: ignore[attr-defined]
    assert names - told == set()


def test_who_stops_reading_json_does_not_stop_the_run_nor_spoil_its_end(tmp_path: Path) -> None:
    program = """
import sys, anyio
from rich.console import Console
from targen_async.terminal import JsonLines, show_progress
from tests.scenes import healthy
from pathlib import Path
lines = JsonLines(sys.stdout)
async def main():
    console = Console(stderr=True, quiet=True)
    async with show_progress(healthy(), console, others=[lines.show]):
        await anyio.sleep(3)
anyio.run(main)
lines.end(None, Path("x"))
print("went on", file=sys.stderr)
"""
    read, write = os.pipe()
    told, telling = os.pipe()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", program],
        os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, telling, 2)],
    )
    os.close(write)
    os.close(telling)
    assert os.read(read, 100_000).startswith(b'{"kind":"progress"')
    os.close(read)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.read(told, 10_000) == b"went on\n"
    os.close(told)


# ---- the real command on a real terminal


def on_a_terminal(
    *arguments: object, act: Callable[[str, int], None] = lambda _text, _fd: None, columns: int = 80
) -> tuple[str, int]:
    """Run `targen` on a terminal of 24 lines; what it was sent, and the exit code."""
    pid, fd = pty.fork()
    if pid == 0:
        environment = dict(os.environ, TERM="xterm-256color")
        for name in ("OPENAI_API_KEY", "NO_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        words = command(*arguments)
        os.execvpe(words[0], words, environment)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    text = ""
    for piece in pieces(fd, 60.0):
        text += piece
        act(text, fd)
    os.close(fd)
    return text, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pieces(fd: int, timeout_s: float) -> Iterator[str]:
    end = time.monotonic() + timeout_s
    rest = b""
    while time.monotonic() < end:
        if not select.select([fd], [], [], 0.1)[0]:
            yield ""
            continue
        try:
            data = os.read(fd, 65536)
        except OSError:
            return
        if not data:
            return
        text = (rest + data).decode(errors="ignore")
        rest = b""
        yield text
    raise AssertionError("it did not end")


SLOW = ("--set", "data.simulator.latency_ms=150", "--max-in-flight", 16)


def test_the_command_draws_a_live_view_and_leaves_a_clean_terminal(tmp_path: Path) -> None:
    out = tmp_path / "run"
    text, code = on_a_terminal("generate", "copa", "-n", 200, "--simulate", "--out", out, *SLOW)
    assert code == 0
    assert text.count("\x1b[?2026h") >= 3
    assert "of 200 rows" in text
    assert "instances" in text
    screen = Screen()
    screen.feed(text)
    assert not screen.cursor_is_hidden
    assert "under way" not in screen.text
    assert screen.text.startswith("SIMULATED: these rows")
    assert "SIMULATED copa: 200 of 200 rows (choice1 100, choice2 100)" in screen.text
    assert "\u2500" not in screen.text
    assert "\u2502" not in screen.text


def test_ctrl_c_drains_and_leaves_a_clean_terminal(tmp_path: Path) -> None:
    out = tmp_path / "run"
    pressed: list[int] = []

    def act(text: str, fd: int) -> None:
        if "moving:" in text and not pressed:
            pressed.append(os.write(fd, b"\x03"))

    words = ("generate", "copa", "-n", 5000, "--simulate", "--out", out, *SLOW)
    text, code = on_a_terminal(*words, act=act)
    assert code == 130
    screen = Screen()
    screen.feed(text)
    assert "stopping: waiting for the calls under way" in screen.text
    assert "goes on from here" in screen.text
    assert not screen.cursor_is_hidden
    assert "under way  answered" not in screen.text


def test_a_lost_terminal_ends_as_hangups_do(tmp_path: Path) -> None:
    """The terminal goes away under a run that has been told not to mind (nohup): it is finished."""
    out = tmp_path / "run"
    pid, fd = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        words = command("generate", "copa", "-n", 60, "--simulate", "--out", out, *SLOW)
        environment = dict(os.environ, TERM="xterm-256color")
        environment.pop("OPENAI_API_KEY", None)
        os.execvpe(words[0], words, environment)
    for piece in pieces(fd, 60.0):
        if "\x1b[?2026h" in piece:
            break
    os.close(fd)
    os.waitpid(pid, 0)
    told = msgspec.json.decode((out / "manifest.json").read_bytes())
    assert told["state"] == "complete"


def test_a_cost_that_is_not_known_says_what_it_may_be_at_most() -> None:
    """As the budget does, where the endpoint does not count every answer."""
    blind = replace(COST, usd=None, usd_projected=None, usd_at_most=0.25)
    stats = healthy(cost=lambda: blind)
    assert "at most $0.2500 so far; answers came without a count" in seen(stats)
    assert "at most $0.2500 so far" in plain_line(progress(stats))


# ---- the picture of the documents


def test_the_commands_in_the_picture_work_as_typed(tmp_path: Path) -> None:
    """Those that the picture shows, and the script runs: only the port and n are others here."""
    drawn = html.unescape((ROOT / "docs" / "live.svg").read_text("utf-8")).replace("\xa0", " ")
    shown = re.findall(r">\$ (targen .+?)<", drawn)
    script = runpy.run_path(str(ROOT / "bench" / "screenshots.py"))
    assert tuple(line.removesuffix(" &") for line in shown) == script["COMMANDS"]
    serve, make = (line.removesuffix(" &").split()[1:] for line in shown)
    with subprocess.Popen([*command(*serve), "--port", "0"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = re.search(rb":(\d+)/v1", server.stdout.readline())
        assert port is not None
        make = [word.replace(":8399/", f":{port[1].decode()}/") for word in make]
        done = targen(*make, "-n", 20, "--out", tmp_path / "run")
        server.terminate()
    assert done.returncode == 0, done.stderr
    assert "SIMULATED cb: 20 of 20 rows" in done.stdout
    # What it shows of money is what such a run tells.
    assert re.search(r"cost +\$0\.\d+", done.stdout)
    assert re.search(r"cost +</text>.*?\$0\.\d+ so far", drawn, re.DOTALL)
