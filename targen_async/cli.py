"""The `targen` command. Heavy imports wait until the command that needs them runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from targen_async.errors import Denied, TargenError, UserError
from targen_async.flags import EXAMPLES, NAMES, add_generate, add_output, output_of

EXIT_OK, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 user's mistake, 130 Ctrl-C."""
    _open_standard_streams()
    arguments = sys.argv[1:] if argv is None else argv
    options = _parser(arguments).parse_args(arguments)
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
        print("interrupted; the same command goes on from here", file=sys.stderr)
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


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only a command that is asked for loads what its arguments need."""
    parser = argparse.ArgumentParser(
        prog="targen",
        description="Make a labelled, self-corrected data set from a task description with an LLM.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"targen-async {metadata.version('targen-async')}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_generate(commands, _generate)
    _add_simulate(commands, arguments)
    _add_new(commands)
    _add_tasks(commands)
    _add_runs(commands)
    _add_after(commands, arguments)
    return parser


def _add_simulate(commands: Any, arguments: Sequence[str]) -> None:  # noqa: ANN401
    simulate = commands.add_parser(
        "simulate",
        help="serve a simulated OpenAI-compatible endpoint",
        description="Serve a simulated OpenAI-compatible endpoint; counters at /stats.",
    )
    simulate.add_argument("--host", default="127.0.0.1")
    simulate.add_argument("--port", type=int, default=8399)
    if "simulate" in arguments:
        from targen_async.simulator.settings import add_arguments

        add_arguments(simulate)
    simulate.set_defaults(run=_simulate)


def _add_tasks(commands: Any) -> None:  # noqa: ANN401
    tasks = commands.add_parser("tasks", help="list the tasks that are built in")
    tasks.set_defaults(run=_tasks)
    check = commands.add_parser("check", help="report every fault of task folders")
    check.add_argument("task", nargs="*", help="names or folders; all built-in tasks where none")
    check.set_defaults(run=_check)
    render = commands.add_parser("render", help="print what would be sent for a task")
    render.add_argument("task", help="name or folder")
    render.add_argument("--stage", choices=["contexts", "seeds", "instances", "correction"])
    render.set_defaults(run=_render)


def _add_runs(commands: Any) -> None:  # noqa: ANN401
    for name, what in _AGAIN.items():
        command = commands.add_parser(name, help=what, description=f"{what.capitalize()}.")
        command.add_argument("folder", type=Path)
        add_output(command)
        command.set_defaults(run=_again, again=name)
    status = commands.add_parser("status", help="tell how far a run is")
    status.add_argument("folder", type=Path)
    status.add_argument("--json", action="store_true", help="print manifest.json")
    status.add_argument(
        "--watch", action="store_true", help="look on until the run ends; with --json: JSON lines"
    )
    status.set_defaults(run=_status)
    show = commands.add_parser("show", help="print some rows and the transition table of a run")
    show.add_argument("folder", type=Path)
    show.add_argument("-n", type=_count, default=5, help="how many rows (default: 5)")
    show.set_defaults(run=_show)


def _add_after(commands: Any, arguments: Sequence[str]) -> None:  # noqa: ANN401
    verify = commands.add_parser(
        "verify",
        help="check every row, count and hash of a run against its journal",
        description="Check every row, count and hash of a run against its journal. Writes nothing.",
    )
    verify.add_argument("folder", type=Path)
    verify.set_defaults(run=_verify)
    merge = commands.add_parser(
        "merge",
        help="put the rows of several runs of one task together",
        description="Put the rows of several runs of one task together, without duplicates.",
    )
    merge.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, or merged ones")
    merge.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new or empty folder"
    )
    merge.add_argument(
        "--task", metavar="TASK", help="the task's folder, where it is not where the runs say"
    )
    merge.set_defaults(run=_merge)
    export = commands.add_parser(
        "export",
        help="write a run as a data set that others can load",
        description="Write a run as a data set that others can load, with a data card.",
    )
    if "export" in arguments:
        from targen_async.export.command import add_arguments as add_export_arguments

        add_export_arguments(export)
    export.set_defaults(run=_export)
    analyze = commands.add_parser(
        "analyze",
        help="measure what a data set is worth before anyone trains on it",
        description="Measure difficulty, label quality, diversity, bias and overlap of a data set, "
        "and write one page about it: report.html.",
    )
    if "analyze" in arguments:
        from targen_async.analysis.command import add_arguments as add_analysis_arguments

        add_analysis_arguments(analyze)
    analyze.set_defaults(run=_analyze)
    _add_training(commands, arguments)


def _add_training(commands: Any, arguments: Sequence[str]) -> None:  # noqa: ANN401
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a fine-tuned model with SuperGLUE's metrics",
        description="Measure a model with SuperGLUE's metrics; predictions and submission files.",
    )
    if "evaluate" in arguments:
        from targen_async.finetune.command import add_arguments as add_evaluate_arguments

        add_evaluate_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)
    planned = commands.add_parser(
        "plan-training",
        help="tell what a training run needs, and whether it fits",
        description="Tell what a training run needs: parameters, memory of a GPU and of a host, "
        "disk, steps, expected speed. Exit code 2 where it does not fit.",
    )
    if "plan-training" in arguments:
        from targen_async.finetune.plan_command import add_arguments as add_plan_arguments

        add_plan_arguments(planned)
    planned.set_defaults(run=_plan_training)


_AGAIN = {
    "retry": "ask again for the rows whose calls or judgements failed",
    "reparse": "read a run's answers again after a validator was changed; makes no call",
}


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _add_new(commands: Any) -> None:  # noqa: ANN401
    new = commands.add_parser(
        "new",
        help="begin a task of your own: a folder of text to change",
        description="Write the folder of a new task. It is sound as it is; docs/tasks.md goes on.",
    )
    new.add_argument("name", help="small letters, digits and _; the folder is called like it")
    new.add_argument("--labels", metavar="A,B,…", help="the labels, with commas between")
    new.add_argument(
        "--into", type=Path, default=Path(), metavar="DIR", help="where (default: here)"
    )
    new.set_defaults(run=_new)


def _generate(options: argparse.Namespace) -> int:
    from targen_async.launch import config_from_options, run_generate

    config, out = config_from_options(options, NAMES)
    return run_generate(
        config,
        out,
        **output_of(options),
        accept_task_change=options.accept_task_change,
        estimated=options.estimate,
    )


def _again(options: argparse.Namespace) -> int:
    from targen_async.launch import run_generate
    from targen_async.rundir import read_config

    config = read_config(options.folder)
    return run_generate(config, options.folder, **output_of(options), again=options.again)


def _verify(options: argparse.Namespace) -> int:
    from targen_async.verify import run_verify

    return run_verify(options.folder)


def _merge(options: argparse.Namespace) -> int:
    from targen_async.merge import run_merge

    return run_merge(options.folders, options.out, task=options.task)


def _export(options: argparse.Namespace) -> int:
    from targen_async.export.command import run

    return run(options)


def _analyze(options: argparse.Namespace) -> int:
    from targen_async.analysis.command import run
    from targen_async.simulator.answers import gold_of

    def open_trainer(source: str) -> Any:  # noqa: ANN401
        try:
            from targen_async.finetune.classifier import Classifier
        except ImportError as error:
            raise UserError(
                f"--model needs a package that is not installed ({error.name}): pip install "
                "'targen-async[train]'; without --model difficulty is measured by a linear model"
            ) from error
        return Classifier(source)

    return run(
        options,
        gold=lambda task, fields: gold_of(task, fields, "full"),
        open_trainer=open_trainer,
    )


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


def _evaluate(options: argparse.Namespace) -> int:
    from targen_async.finetune.command import run

    return run(options)


def _plan_training(options: argparse.Namespace) -> int:
    from targen_async.finetune.plan_command import run

    return run(options)


def _new(options: argparse.Namespace) -> int:
    from targen_async.newtask import begin_task, next_steps

    labels = [] if options.labels is None else [x.strip() for x in options.labels.split(",")]
    print(next_steps(begin_task(options.name, labels, options.into)))
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
    if options.watch:
        from targen_async.watch import watch

        return watch(options.folder, as_json=options.json)
    from targen_async.terminal import print_status

    return print_status(options.folder, as_json=options.json)


def _show(options: argparse.Namespace) -> int:
    from targen_async.terminal import print_rows

    return print_rows(options.folder, options.n)


if __name__ == "__main__":
    sys.exit(main())
