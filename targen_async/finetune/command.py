"""`targen evaluate`: its arguments. Torch is loaded when it runs."""

import argparse
from pathlib import Path

from targen_async.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `targen evaluate`."""
    parser.add_argument(
        "model",
        nargs="+",
        help="a model's folder, or its name on the hub; of several, mean and deviation are told",
    )
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
        "--out", type=Path, metavar="DIR", help="default: the run's or model's name with -evaluated"
    )
    parser.add_argument(
        "--max-source", type=int, metavar="N", help="most tokens read (default: as in training)"
    )
    parser.add_argument(
        "--free",
        action="store_true",
        help="also let the model write as it likes, and count what is none of the options",
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="of the intervals (default: 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and say what came out. Exit code 0; raises UserError and RunStopped."""
    try:
        from targen_async.finetune.evaluate import evaluate, evaluate_seeds
    except ImportError as error:
        raise UserError(
            f"evaluating needs a package that is not installed ({error.name}); pip install "
            "'targen-async[train]'"
        ) from error
    tasks = [task.strip() for task in options.tasks.split(",") if task.strip()]
    out = options.out or Path(f"{_name_of(options.model[0])}-evaluated")
    more = {name: getattr(options, name) for name in ("split", "max_source", "random_seed", "free")}
    if len(options.model) == 1:
        evaluate(options.model[0], tasks, options.data, out, **more)
    else:
        evaluate_seeds(options.model, tasks, options.data, out, **more)
    return 0


def _name_of(model: str) -> str:
    """Of the run where it is its `model/`; every run has one."""
    path = Path(model)
    path = path.resolve() if path.is_dir() else path
    return path.parent.name if path.name == "model" else path.name
