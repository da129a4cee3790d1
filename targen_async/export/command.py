"""`targen export`: its arguments and what it prints."""

import argparse
from pathlib import Path

from targen_async.errors import UserError
from targen_async.export import FORMS, export_run
from targen_async.export.sieve import told
from targen_async.splits import parse_shares

_SHOWN_FILES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `targen export`."""
    parser.add_argument("folder", type=Path, help="a run's folder")
    parser.add_argument(
        "--to",
        choices=FORMS,
        required=True,
        help="jsonl: official SuperGLUE files; datasets: Arrow; parquet; csv; flat: input, output",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new or empty folder (default: DIR-<form>)"
    )
    parser.add_argument(
        "--split",
        metavar="NAME=SHARE,…",
        help="as in train=0.8,validation=0.1,test=0.1 (default: one split)",
    )
    parser.add_argument(
        "--min-pvi",
        type=float,
        metavar="BITS",
        help="leave out rows with a lower PVI, by --analysis: below 0 are likely wrong labels",
    )
    parser.add_argument(
        "--analysis", type=Path, metavar="DIR", help="what `targen analyze --out DIR` wrote"
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="decides the splits (default: 0)"
    )
    parser.add_argument(
        "--push", metavar="REPO", help="upload to the Hugging Face hub; token in HF_TOKEN"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")


def run(options: argparse.Namespace) -> int:
    """Export and say what was made. Exit code 0; raises UserError and RunStopped."""
    if options.private and options.push is None:
        raise UserError("--private says how to --push: name a repository with it")
    if (options.min_pvi is None) != (options.analysis is None):
        raise UserError("--min-pvi and --analysis go together: a bound, and what is known of rows")
    made = export_run(
        options.folder,
        to=options.to,
        out=options.out,
        split=parse_shares(options.split) if options.split else None,
        random_seed=options.random_seed,
        min_pvi=options.min_pvi,
        analysis=options.analysis,
        push=options.push,
        private=options.private,
    )
    simulated = "SIMULATED " if made.simulated else ""
    counts = ", ".join(f"{name} {count}" for name, count in made.rows.items())
    print(f"{simulated}{made.task}: {sum(made.rows.values())} rows ({counts}) in {made.folder}/")
    if made.sieved is not None:
        print(f"left out: {told(made.sieved)}")
    for name in made.files[:_SHOWN_FILES]:
        print(f"  {name}")
    if len(made.files) > _SHOWN_FILES:
        print(f"  and {len(made.files) - _SHOWN_FILES} more files")
    if made.url:
        print(f"pushed to {made.url}")
    return 0
