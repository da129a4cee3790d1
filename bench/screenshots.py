"""What the live view looks like.

`python bench/screenshots.py docs/live.svg` runs the commands that stand in the picture of the
documents, and draws the run in its middle; `python bench/screenshots.py --all FOLDER` draws one of
every state with made up figures, at 80 and 120 columns, to look at.
"""

import io
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI, TerminalTheme
from rich.text import Text

from targen_async.live import picture
from targen_async.progress import Progress, StageView
from targen_async.stats import CostView, LimitView

_TARGEN = (sys.executable, "-m", "targen_async.cli")

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


COMMANDS = (
    "targen simulate --latency-ms 400 --requests-per-minute 1200 --burst-s 2 --label-noise 0.1",
    "targen generate cb -n 900 --model gpt-4o-mini --base-url http://127.0.0.1:8399/v1 --max-usd 1",
)
"""What the picture of the documents shows, word by word: a server, and a run against it."""


def middle_of_a_run() -> Progress:
    """The run of COMMANDS when four in ten rows are delivered, as its --json tells it."""
    serve, generate = ([*_TARGEN, *line.split()[1:]] for line in COMMANDS)
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        with tempfile.TemporaryDirectory() as out:
            words = [*generate, "--out", out, "--json"]
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
                assert run.stdout is not None
                for line in run.stdout:
                    told = msgspec.json.decode(line)
                    if told["kind"] == "end":
                        raise SystemExit(f"no picture: {told['error'] or 'the run is complete'}")
                    progress = msgspec.convert(told, Progress)
                    if progress.n and progress.delivered >= 0.4 * progress.n:
                        run.send_signal(signal.SIGINT)
                        return progress
        raise SystemExit("no picture: the run told nothing")
    finally:
        server.terminate()
        server.wait()


def svg(
    progress: Progress, width: int, theme: TerminalTheme, title: str, commands: Sequence[str] = ()
) -> str:
    """The picture of a run as an SVG file's text. Fonts are the reader's own."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for number, command in enumerate(commands, 1):
        # The server stays in the background, as the second line follows.
        text = f"$ {command}{' &' if number < len(commands) else ''}"
        console.print(Text(text, style="dim"))
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
        text = svg(middle_of_a_run(), 96, DIMMED_MONOKAI, "targen", COMMANDS)
        Path(sys.argv[1]).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
