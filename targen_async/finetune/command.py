"""`targen evaluate`: its arguments. Torch is loaded when it runs."""

import argparse
from pathlib import Path

from targen_async.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `targen evaluate`."""
    parser.add_argument("model", help="a model's folder, or its name on the hub")
    parser.add_argument("--tasks", required=True, metavar="A,B,…", help="as in cb,rte,boolq")
    parser.add_argument(
        "--data", required=True, help="official SuperGLUE files, a run's folder, or aps/super_glue"
    )
    parser.add_argument(
        "--split",
        choices=["train", "validation", "test"],
        default="validation",
        help="default: validation; a run has train only",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: the model's name with -evaluated"
    )
    parser.add_argument(
        "--max-source", type=int, metavar="N", help="most tokens read (default: as in training)"
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="of the intervals (default: 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and say what came out. Exit code 0; raises UserError and RunStopped."""
    try:
        from targen_async.finetune.evaluate import evaluate
    except ImportError as error:
        raise UserError(
            f"evaluating needs a package that is not installed ({error.name}); pip install "
            "'targen-async[train]'"
        ) from error
    evaluate(
        options.model,
        [task.strip() for task in options.tasks.split(",") if task.strip()],
        options.data,
        options.out or Path(f"{Path(options.model).name}-evaluated"),
        split=options.split,
        max_source=options.max_source,
        random_seed=options.random_seed,
    )
    return 0
