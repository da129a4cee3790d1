"""The `targen` command. Heavy imports wait until the command that needs them runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from targen_async.errors import Denied, TargenError, UserError

EXIT_OK, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130

_EPILOG = """examples:
  targen generate copa -n 200 --out runs/copa          simulated endpoint, no key needed
  targen generate copa -n 200 --model gpt-4o-mini      OpenAI, key in OPENAI_API_KEY
  targen generate cb --model NAME --base-url http://127.0.0.1:8000/v1
  targen generate --out runs/copa                      go on with a run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 user's mistake, 130 Ctrl-C."""
    _open_standard_streams()
    options = _parser().parse_args(argv)
    try:
        code: int = options.run(options)
        return code
    except Denied as error:
        return _complain(error, EXIT_USER if error.user_fault else EXIT_FAILED)
    except UserError as error:
        return _complain(error, EXIT_USER)
    except TargenError as error:
        return _complain(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone, as with `targen show … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _open_standard_streams() -> None:
    """Give closed standard streams a place: else the first file opened would be taken for one."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _complain(error: Exception, code: int) -> int:
    print(f"targen: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="targen",
        description="Make a labelled, self-corrected data set from a task description with an LLM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"targen-async {metadata.version('targen-async')}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    simulate = commands.add_parser(
        "simulate",
        help="serve a simulated OpenAI-compatible endpoint",
        description="Serve a simulated OpenAI-compatible endpoint; counters at /stats.",
    )
    simulate.add_argument("--host", default="127.0.0.1")
    simulate.add_argument("--port", type=int, default=8399)
    if len(sys.argv) > 1 and "simulate" in sys.argv:
        from targen_async.simulator.settings import add_arguments

        add_arguments(simulate)
    simulate.set_defaults(run=_simulate)
    tasks = commands.add_parser("tasks", help="list the tasks that are built in")
    tasks.set_defaults(run=_tasks)
    check = commands.add_parser("check", help="report every fault of task folders")
    check.add_argument("task", nargs="*", help="names or folders; all built-in tasks where none")
    check.set_defaults(run=_check)
    render = commands.add_parser("render", help="print what would be sent for a task")
    render.add_argument("task", help="name or folder")
    render.add_argument("--stage", choices=["contexts", "seeds", "instances", "correction"])
    render.set_defaults(run=_render)
    for name, what in _AGAIN.items():
        command = commands.add_parser(name, help=what, description=f"{what.capitalize()}.")
        command.add_argument("folder", type=Path)
        command.add_argument("--quiet", action="store_true", help="no progress, only the result")
        command.set_defaults(run=_again, again=name)
    status = commands.add_parser("status", help="tell how far a run is")
    status.add_argument("folder", type=Path)
    status.add_argument("--json", action="store_true", help="print manifest.json as it is")
    status.set_defaults(run=_status)
    export = commands.add_parser(
        "export",
        help="write a run as a data set that others can load",
        description="Write a run as a data set that others can load, with a data card.",
    )
    if "export" in sys.argv:
        from targen_async.export.command import add_arguments as add_export_arguments

        add_export_arguments(export)
    export.set_defaults(run=_export)
    show = commands.add_parser("show", help="print some rows and the transition table of a run")
    show.add_argument("folder", type=Path)
    show.add_argument("-n", type=_count, default=5, help="how many rows (default: 5)")
    show.set_defaults(run=_show)
    return parser


# The dotted key of the configuration that each flag of `generate` sets.
_FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
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
        {"type": float, "metavar": "N", "help": "the endpoint's limit (default: none)"},
    ),
    "--tokens-per-minute": (
        "delivery.limits.tokens_per_minute",
        {"type": float, "metavar": "N", "help": "the endpoint's limit (default: none)"},
    ),
    "--max-in-flight": (
        "delivery.limits.max_in_flight",
        {"type": int, "metavar": "N", "help": "calls at the same time (default: 64)"},
    ),
    "--give-up-after": (
        "delivery.give_up_after_s",
        {"type": float, "metavar": "SECONDS", "help": "silence to bear (default: 3600)"},
    ),
}


_AGAIN = {
    "retry": "ask again for the rows whose calls or judgements failed",
    "reparse": "read a run's answers again after a validator was changed; makes no call",
}


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _add_generate(commands: Any) -> None:  # noqa: ANN401
    generate = commands.add_parser(
        "generate",
        help="make a data set, or go on with one",
        description="Make a data set, or go on with one: the same command resumes a run.",
        epilog=_EPILOG,
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
    for flag, (dotted, keywords) in _FLAGS.items():
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
    generate.add_argument("--quiet", action="store_true", help="no progress, only the result")
    generate.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> int:
    from targen_async.launch import config_from_options, run_generate

    config, out = config_from_options(options, [dotted for dotted, _ in _FLAGS.values()])
    return run_generate(
        config, out, quiet=options.quiet, accept_task_change=options.accept_task_change
    )


def _again(options: argparse.Namespace) -> int:
    from targen_async.launch import run_generate
    from targen_async.rundir import read_config

    config = read_config(options.folder)
    return run_generate(config, options.folder, quiet=options.quiet, again=options.again)


def _export(options: argparse.Namespace) -> int:
    from targen_async.export.command import run

    return run(options)


def _simulate(options: argparse.Namespace) -> int:
    from targen_async.config import SIMULATED_MODEL
    from targen_async.simulator import server
    from targen_async.simulator.settings import settings_from

    def ready(port: int) -> None:
        print(f"SIMULATED endpoint at http://{options.host}:{port}/v1, counters at /stats")
        print(
            f"use it: targen generate copa --model {SIMULATED_MODEL} "
            f"--base-url http://{options.host}:{port}/v1",
            flush=True,
        )

    settings = settings_from(options)
    try:
        server.run(server.serve(settings, options.host, options.port, ready))
    except OSError as error:
        raise UserError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror}; try --port 0"
        ) from error
    return EXIT_OK


def _tasks(_options: argparse.Namespace) -> int:
    from targen_async.tasks import list_tasks, load_task

    for name in list_tasks():
        task = load_task(name)
        print(f"{name:10} {', '.join(task.labels)}\n           {task.description.strip()}")
    return EXIT_OK


def _check(options: argparse.Namespace) -> int:
    from targen_async.tasks import check_task, list_tasks

    faults = 0
    for name in options.task or list_tasks():
        found = check_task(name)
        faults += len(found)
        for fault in found:
            print(fault)
        if not found:
            print(f"{name}: no faults")
    return EXIT_USER if faults else EXIT_OK


def _render(options: argparse.Namespace) -> int:
    from targen_async.preview import render_task

    print(render_task(options.task, options.stage))
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from targen_async.terminal import print_status

    return print_status(options.folder, as_json=options.json)


def _show(options: argparse.Namespace) -> int:
    from targen_async.terminal import print_rows

    return print_rows(options.folder, options.n)


if __name__ == "__main__":
    sys.exit(main())
