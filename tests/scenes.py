"""Runs at a moment of their life, as the counters of an engine show them."""

import io
import re
import time
from collections.abc import Callable

from msgspec.structs import replace
from rich.console import Console

from targen_async.live import picture
from targen_async.progress import Meter, Progress
from targen_async.stats import CostView, LimitView, StageStats, Stats

GENERATOR = LimitView(
    name="generator",
    in_flight=41,
    most_in_flight=48,
    waiting=12,
    requests_per_minute=584,
    requests_limit=600,
    tokens_per_minute=187_400,
    tokens_limit=200_000,
    refused=38,
    waits_for="",
)
JUDGE = replace(GENERATOR, name="judge", in_flight=6, requests_limit=None, tokens_limit=None)
COST = CostView(
    prompt_tokens=1_204_331,
    cached_prompt_tokens=811_400,
    completion_tokens=160_922,
    usd=0.2165,
    usd_projected=0.512,
    budget="$0.78 of $1.00 is left",
)
STATES: dict[str, Callable[[Stats], None]] = {}
"""A word for it, and what it changes on a run where all is well."""
REASONS: dict[str, str] = {}
"""What a person must be able to read then."""


def healthy(**changes: object) -> Stats:
    """A run of fifty seconds, half done, where calls go out and come back."""
    stats = Stats(
        task="cb",
        model="m",
        n=3000,
        delivered=1500,
        stages={
            "contexts": StageStats(10, 10, 0),
            "instances": StageStats(1538, 1486, 21),
            "correction": StageStats(187, 181, 2),
        },
        balance={"entailment": 499, "contradiction": 500, "neutral": 501},
        transitions={"entailment": {"entailment": 480, "neutral": 21, "drop": 4, "review": 1}},
        rejected={"instances.near_duplicate": 44, "seeds.duplicate": 12},
        failed=3,
        waiting=29,
        waiting_for="cb/000500/0",
        started_at=time.monotonic() - 50,
        queues=lambda: {"instances": (9, 16), "slots": (1, 16)},
        limits=lambda: [GENERATOR],
        cost=lambda: COST,
        endpoint=lambda: "endpoint up",
        in_flight=lambda: 47,
    )
    for name, value in changes.items():
        setattr(stats, name, value)
    return stats


def state(name: str, reason: str, **changes: object) -> None:
    def change(stats: Stats) -> None:
        for field, value in changes.items():
            setattr(stats, field, value)

    STATES[name], REASONS[name] = change, reason


def waits(view: LimitView, reason: str) -> LimitView:
    return replace(view, waits_for=reason)


_RETRY = "waiting 42 s: Retry-After from the endpoint"
_OPEN = "breaker open since 12:01:07, next probe in 5 s"
state("retry-after", _RETRY, limits=lambda: [waits(GENERATOR, _RETRY)])
state("breaker", _OPEN, limits=lambda: [waits(GENERATOR, _OPEN)])
state("down", "endpoint down for 3 s", endpoint=lambda: "endpoint down for 3 s: refused")
state("judge waits", f"judge: {_RETRY}", limits=lambda: [GENERATOR, waits(JUDGE, _RETRY)])
state(
    "both wait",
    f"generator and judge: {_RETRY}",
    limits=lambda: [waits(GENERATOR, _RETRY), waits(JUDGE, _RETRY)],
)
state("window", "key cb/000500/0 holds the window: 29 rows wait", window_full=lambda: True)
state(
    "draining",
    "draining: waiting for 12 calls under way",
    draining=lambda: "interrupted",
    in_flight=lambda: 12,
)
state(
    "one left",
    "draining: waiting for 1 call under way (all rows are delivered)",
    draining=lambda: "all rows are delivered",
    in_flight=lambda: 1,
)
_BUDGET = "budget: waiting for 3 calls under way"
state("budget", _BUDGET, held=lambda: _BUDGET)
state("replay", "making files again from the journal", replaying=lambda: True)
state("opening", "opening the run", n=0)
state("probe", "asking the endpoint what it can do", stages={"probe": StageStats(1, 0, 0)})


def progress(stats: Stats, *, still_s: float = 0.0) -> Progress:
    """The run as a display sees it, after nothing has moved for `still_s`."""
    meter = Meter(stats)
    now = time.monotonic()
    meter.progress(now)
    return meter.progress(now + still_s)


def seen(stats: Stats, width: int = 80, height: int = 40) -> str:
    """What stands on a terminal of that size, without styles."""
    return picture(progress(stats), width, height).plain


def printed(text: object, width: int = 80, **options: object) -> str:
    """The bytes that a terminal is sent for it, as text."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, **options)  # type: ignore[arg-type]
    console.print(text)
    return file.getvalue()


class Screen:
    """As much of a terminal as the live view uses: what stands on it in the end."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = self.column = 0
        self.cursor_is_hidden = False

    def feed(self, text: str) -> None:
        for found in re.finditer(r"\x1b\[([?\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)", text):
            parameter, command, back, down, plain = found.groups()
            if command == "A":
                self.row = max(self.row - int(parameter or 1), 0)
            elif command == "K":
                self.lines[self.row] = ""
            elif command in "hl" if command else False:
                if parameter == "?25":
                    self.cursor_is_hidden = command == "l"
            elif back:
                self.column = 0
            elif down:
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif plain:
                line = self.lines[self.row].ljust(self.column)
                end = self.column + len(plain)
                self.lines[self.row] = line[: self.column] + plain + line[end:]
                self.column = end

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()
