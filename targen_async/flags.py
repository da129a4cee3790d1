"""The flags of `targen generate`, each with the key of the configuration that it sets."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  targen generate copa -n 200 --out runs/copa          simulated endpoint, no key needed
  targen generate copa -n 200 --model gpt-4o-mini      OpenAI, key in OPENAI_API_KEY
  targen generate cb --model NAME --base-url http://127.0.0.1:8000/v1
  targen generate --out runs/copa                      go on with a run
"""

# The dotted key of the configuration that each flag of `generate` sets.
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "-n": ("delivery.n", {"type": int, "metavar": "N", "help": "rows to deliver (default: 200)"}),
    "--model": (
        "data.model",
        {"metavar": "NAME", "help": "model that writes and, unless --judge is given, judges"},
    ),
    "--base-url": (
        "delivery.base_url",
        {"metavar": "URL", "help": "endpoint, like http://127.0.0.1:8000/v1 (default: OpenAI)"},
    ),
    "--api-key-env": (
        "delivery.api_key_env",
        {"metavar": "NAME", "help": "environment variable with the key (default: OPENAI_API_KEY)"},
    ),
    "--random-seed": ("data.random_seed", {"type": int, "metavar": "N", "help": "default: 0"}),
    "--temperature": ("data.temperature", {"type": float, "metavar": "T", "help": "default: 1.0"}),
    "--contexts": (
        "data.contexts",
        {"type": int, "metavar": "N", "help": "contexts (default: 40); raise it with n"},
    ),
    "--correction": (
        "data.correction.mode",
        {
            "choices": ["blind", "shown", "off"],
            "help": "whether the judge sees the label (default: blind)",
        },
    ),
    "--votes": (
        "data.correction.votes",
        {"type": int, "metavar": "N", "help": "judgements a row, odd (default: 1)"},
    ),
    "--judge": (
        "data.correction.model",
        {"metavar": "MODEL", "help": "another model as the judge"},
    ),
    "--seeds": (
        "data.corpus.file",
        {"metavar": "FILE", "help": "take the seeds from here: text, JSONL or Parquet"},
    ),
    "--seeds-field": (
        "data.corpus.field",
        {"metavar": "NAME", "help": "the JSONL field or Parquet column with the text"},
    ),
    "--max-rows-per-seed": (
        "delivery.max_rows_per_seed",
        {"type": int, "metavar": "N", "help": "how many rows a text of --seeds may be used for"},
    ),
    "--requests-per-minute": (
        "delivery.limits.requests_per_minute",
        {"type": float, "metavar": "N", "help": "the endpoint's limit (default: learnt)"},
    ),
    "--tokens-per-minute": (
        "delivery.limits.tokens_per_minute",
        {"type": float, "metavar": "N", "help": "the endpoint's limit (default: learnt)"},
    ),
    "--max-in-flight": (
        "delivery.limits.max_in_flight",
        {"type": int, "metavar": "N", "help": "calls at the same time (default: 64)"},
    ),
    "--fixed-in-flight": (
        "delivery.limits.adaptive",
        {
            "action": "store_const",
            "const": False,
            "help": "always as many calls at once as --max-in-flight; else found out by latency",
        },
    ),
    "--preset": (
        "delivery.preset",
        {"metavar": "NAME", "help": "kind of server: openai, vllm, llama-cpp, ollama, azure, …"},
    ),
    "--stream": (
        "delivery.stream",
        {
            "action": "store_const",
            "const": True,
            "help": "have answers sent piece by piece, for proxies that cut idle connections",
        },
    ),
    "--thinking-tokens": (
        "delivery.thinking_tokens",
        {"type": int, "metavar": "N", "help": "room to think, in each call (default: found out)"},
    ),
    "--fallback": (
        "data.fallback_model",
        {"metavar": "MODEL", "help": "asked where the model refuses, is away or out of credit"},
    ),
    "--max-usd": (
        "delivery.budget.max_usd",
        {"type": float, "metavar": "USD", "help": "cap over all starts; needs a known price"},
    ),
    "--max-tokens": (
        "delivery.budget.max_tokens",
        {"type": int, "metavar": "N", "help": "cap over all starts, prompt and completion"},
    ),
    "--max-requests": (
        "delivery.budget.max_requests",
        {"type": int, "metavar": "N", "help": "cap over all starts"},
    ),
    "--hedge": (
        "delivery.hedge",
        {
            "action": argparse.BooleanOptionalAction,
            "help": "send stalled calls twice, 2 %% of all at most (default: only without a key, "
            "a known price or a cap)",
        },
    ),
    "--metrics-port": (
        "delivery.metrics_port",
        {"type": int, "metavar": "PORT", "help": "Prometheus metrics on 127.0.0.1; 0: any port"},
    ),
    "--give-up-after": (
        "delivery.give_up_after_s",
        {"type": float, "metavar": "SECONDS", "help": "silence to bear (default: 3600)"},
    ),
}

NAMES = {dotted: flag for flag, (dotted, _) in FLAGS.items()}
"""The flag that sets a key."""


def add_generate(commands: Any, run: Callable[[argparse.Namespace], int]) -> None:  # noqa: ANN401
    """The command `generate` and its flags."""
    generate = commands.add_parser(
        "generate",
        help="make a data set, or go on with one",
        description="Make a data set, or go on with one: the same command resumes a run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate.add_argument("task", nargs="?", help="a built-in task or a task folder")
    generate.add_argument(
        "--out", type=Path, metavar="DIR", help="the run's folder (default: runs/<task>)"
    )
    generate.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with [data] and [delivery]"
    )
    generate.add_argument(
        "--simulate", action="store_true", help="use the built-in simulator even if a key is set"
    )
    for flag, (dotted, keywords) in FLAGS.items():
        generate.add_argument(flag, dest=dotted, **keywords)
    generate.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="FILE",
        help="keep texts of this file out: whole ones, and 13 words in a row (may be repeated)",
    )
    generate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key of the configuration, as in --set data.near_duplicate=0.9",
    )
    generate.add_argument(
        "--accept-task-change", action="store_true", help="go on although the prompts were changed"
    )
    generate.add_argument(
        "--estimate",
        action="store_true",
        help="make the first rows only and tell what all of them will take; they are kept",
    )
    add_output(generate)
    generate.set_defaults(run=run)


def add_output(command: argparse.ArgumentParser) -> None:
    """How a run tells of itself; see docs/terminal.md."""
    command.add_argument("--quiet", action="store_true", help="no progress, only the result")
    command.add_argument(
        "--json", action="store_true", help="progress as JSON lines on stdout, events on stderr"
    )
    command.add_argument("--log", type=Path, metavar="FILE", help="append events as JSON lines")


def output_of(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_output` was given, for `run_generate`."""
    return {"quiet": options.quiet, "as_json": options.json, "log_file": options.log}
