"""What the live view looks like.

`python bench/screenshots.py docs/live.svg` draws the picture of the documents in the middle of a
run against the simulator; `python bench/screenshots.py --all FOLDER` one of every state with made
up figures, at 80 and 120 columns, to look at.
"""

import io
import re
import sys
import tempfile
from pathlib import Path

import anyio
import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI, TerminalTheme
from rich.text import Text

from targen_async import RunConfig, RunControl, Stats, generate
from targen_async.live import picture
from targen_async.progress import Meter, Progress, StageView
from targen_async.stats import CostView, LimitView

GENERATOR = LimitView(
    name="generator",
    in_flight=41,
    most_in_flight=48,
    waiting=12,
    requests_per_minute=584,
    requests_limit=600,
    tokens_per_minute=187_400,
    tokens_limit=200_000,
    refused=2,
    waits_for="",
)
JUDGE = replace(
    GENERATOR,
    name="judge",
    in_flight=6,
    most_in_flight=16,
    waiting=0,
    requests_per_minute=71,
    requests_limit=None,
    tokens_per_minute=40_210,
    tokens_limit=None,
    refused=0,
)


def stage(queue: int, under_way: int, answered: int, per_second: float, again: int) -> StageView:
    return StageView(
        queue=queue,
        queue_limit=16,
        under_way=under_way,
        answered=answered,
        per_second=per_second,
        asked_again=again,
    )


HEALTHY = Progress(
    at="2026-11-23T12:04:11Z",
    elapsed_s=191.4,
    task="cb",
    model="gpt-4o-mini",
    simulated=False,
    n=3000,
    delivered=1268,
    rows_per_second=6.9,
    eta_s=251.0,
    why="",
    in_flight=47,
    still_s=0.0,
    stages={
        "contexts": stage(0, 0, 10, 0.0, 0),
        "seeds": stage(2, 3, 402, 1.9, 4),
        "instances": stage(9, 52, 1486, 8.1, 21),
        "correction": stage(1, 6, 181, 1.0, 2),
    },
    limits=[GENERATOR, JUDGE],
    cost=CostView(
        prompt_tokens=1_204_331,
        cached_prompt_tokens=811_400,
        completion_tokens=160_922,
        usd=0.2165,
        usd_projected=0.512,
        budget="$0.78 of $1.00 is left",
    ),
    balance={"entailment": 421, "contradiction": 424, "neutral": 423},
    transitions={
        "entailment": {"entailment": 402, "neutral": 21, "drop": 4},
        "contradiction": {"contradiction": 424, "entailment": 3, "drop": 2},
        "neutral": {"neutral": 402, "contradiction": 9, "entailment": 16, "drop": 11, "review": 2},
    },
    rejected={
        "instances.invalid": 31,
        "instances.near_duplicate": 44,
        "instances.dropped": 17,
        "seeds.duplicate": 12,
    },
    failed=3,
    waiting=29,
    waiting_for="cb/000422/2",
)
LIMITED = replace(
    HEALTHY,
    why="waiting 42 s: Retry-After from the endpoint",
    in_flight=0,
    rows_per_second=4.2,
    eta_s=412.0,
    limits=[
        replace(
            GENERATOR,
            in_flight=0,
            most_in_flight=24,
            waiting=53,
            requests_per_minute=412,
            refused=38,
        ),
        JUDGE,
    ],
)
OPEN = replace(
    HEALTHY,
    why="breaker open since 12:01:07, next probe in 5 s: cannot connect to "
    "http://127.0.0.1:8000/v1: connection refused",
    in_flight=0,
    rows_per_second=0.0,
    eta_s=None,
)
STATES = {
    "healthy": HEALTHY,
    "limited": LIMITED,
    "open": OPEN,
    "simulated": replace(
        HEALTHY, simulated=True, task="copa", n=200, delivered=61, limits=[GENERATOR], cost=None
    ),
    "window": replace(
        HEALTHY, why="key cb/000422/2 holds the window: 65,535 rows wait behind it", waiting=65_535
    ),
    "draining": replace(HEALTHY, why="draining: waiting for 12 calls under way", in_flight=12),
    "opening": replace(
        HEALTHY,
        why="asking the endpoint what it can do",
        n=200,
        delivered=0,
        eta_s=None,
        rows_per_second=0.0,
        stages={},
        limits=[],
        cost=None,
        transitions={},
        rejected={},
        failed=0,
        waiting_for="cb/000000/0",
        waiting=0,
        elapsed_s=1.2,
        balance=dict.fromkeys(HEALTHY.balance, 0),
    ),
}


RUN = {
    "data": {
        "task": "cb",
        "simulator": {
            "latency_ms": 400,
            "latency_sigma": 0.4,
            "label_noise": 0.1,
            "corrector_error": 0.03,
            "malformed": 0.02,
            "error_rate": 0.01,
            "requests_per_minute": 1200,
            "tokens_per_minute": 1_500_000,
            "burst_s": 2,
        },
    },
    "delivery": {
        "n": 900,
        "budget": {"max_usd": 1.0},
        "limits": {"requests_per_minute": 1200, "tokens_per_minute": 1_500_000},
        "prices": {
            "usd_per_million_prompt_tokens": 0.15,
            "usd_per_million_completion_tokens": 0.6,
        },
    },
}
COMMAND = "$ targen generate cb -n 900 --simulate --requests-per-minute 1200 --max-usd 1"


def middle_of_a_run() -> Progress:
    """A run against the embedded simulator when four in ten rows are delivered."""
    config = msgspec.convert(RUN, RunConfig)
    control, stats = RunControl(), Stats()
    seen: list[Progress] = []

    async def look() -> None:
        meter = Meter(stats)
        while not (stats.n and stats.delivered >= 0.4 * stats.n):
            await anyio.sleep(0.25)
            seen[:] = [meter.progress()]
        control.drain("the picture is taken")

    async def main(out: str) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(look)
            await generate(config, out, control=control, stats=stats)
            group.cancel_scope.cancel()

    with tempfile.TemporaryDirectory() as out:
        anyio.run(main, out)
    return seen[0]


def svg(progress: Progress, width: int, theme: TerminalTheme, title: str, command: str = "") -> str:
    """The picture of a run as an SVG file's text. Fonts are the reader's own."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    if command:
        console.print(Text(command, style="dim"))
    console.print(picture(progress, width, 40))
    text = console.export_svg(title=title, theme=theme, unique_id="live")
    # Nothing is fetched by who looks at it.
    return re.sub(r"\s*@font-face \{.*?\}\n", "", text, flags=re.DOTALL)


def main() -> None:
    if sys.argv[1] == "--all":
        folder = Path(sys.argv[2])
        folder.mkdir(parents=True, exist_ok=True)
        for name, progress in STATES.items():
            for width in (80, 120):
                for tone, theme in (("dark", DIMMED_MONOKAI), ("light", DEFAULT_TERMINAL_THEME)):
                    text = svg(progress, width, theme, f"{name}, {width} columns")
                    (folder / f"{name}-{width}-{tone}.svg").write_text(text, "utf-8")
    else:
        text = svg(middle_of_a_run(), 96, DIMMED_MONOKAI, "targen", COMMAND)
        Path(sys.argv[1]).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
