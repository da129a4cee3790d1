"""`targen plan-training`: its arguments, and the plans it prints. Needs no torch."""

import argparse
from pathlib import Path

import msgspec

from targen_async.errors import UserError
from targen_async.finetune.config import Hardware, load_train_config
from targen_async.finetune.planning import Machine, RunPlan, misfit, plan_run, table, told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `targen plan-training`."""
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="a training TOML")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="default: `hardware.gpus` of the configuration, or 1"
    )
    parser.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="of each GPU; default: `hardware.gpu_memory`, or 80",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.35,
        metavar="SHARE",
        help="share of the peak that is assumed (default: 0.35)",
    )
    parser.add_argument(
        "--peak",
        type=float,
        default=989.0,
        metavar="TFLOPS",
        help="peak of a GPU in bfloat16 (default: 989, of an H100 or H200)",
    )
    parser.add_argument("--table", action="store_true", help="a Markdown table, a row for each")


def run(options: argparse.Namespace) -> int:
    """Print the plans. Exit code 0; raises UserError where a run does not fit."""
    plans = [(path, _plan(path, options)) for path in options.configs]
    if options.table:
        print(table([(path.name, plan) for path, plan in plans]))
    else:
        print("\n\n".join(told(plan, path.name) for path, plan in plans), flush=True)
    for path, plan in plans:
        if fault := misfit(plan):
            raise UserError(f"{path}: {fault}")
    return 0


def _plan(path: Path, options: argparse.Namespace) -> RunPlan:
    config = load_train_config(path)
    given = {"gpus": options.gpus, "gpu_memory": options.gpu_memory}
    wanted = msgspec.structs.asdict(config.hardware)
    wanted |= {key: value for key, value in given.items() if value is not None}
    try:
        hardware = msgspec.convert(wanted, Hardware)
    except msgspec.ValidationError as error:
        raise UserError(f"--gpus, --gpu-memory: {error}") from error
    if not 0 < options.mfu <= 1 or options.peak <= 0:
        raise UserError("--mfu is a share above 0 and at most 1, --peak is above 0")
    machine = Machine(
        gpus=hardware.gpus,
        gpu_memory=hardware.gpu_memory,
        peak=options.peak * 1e12,
        mfu=options.mfu,
    )
    try:
        return plan_run(config, machine)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
