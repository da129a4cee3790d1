"""`targen analyze`: its arguments and what it prints."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from targen_async.errors import UserError

if TYPE_CHECKING:
    from targen_async.analysis.analyze import Analysis, Comparison, Measures
    from targen_async.analysis.estimate import Estimate
    from targen_async.analysis.reading import Columns
    from targen_async.analysis.trained import Trainer

NEEDS = "targen analyze needs more packages: pip install 'targen-async[analysis]'"
EXIT_INTERRUPTED = 130
MOST_SEED = 2**32 - 1
"""What scikit-learn and UMAP take."""
_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `targen analyze`."""
    parser.add_argument(
        "data", type=Path, help="a run's folder, or JSONL, Parquet, a folder of `datasets`"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="another set to compare with, such as the original",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="a file that no row may overlap with; can be repeated",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for report.html and its data"
    )
    parser.add_argument("--text", metavar="A,B,…", help="the columns with texts, in order")
    parser.add_argument("--label", metavar="COLUMN", help="the column with the label")
    parser.add_argument("--key", metavar="COLUMN", help="the column that names a row")
    parser.add_argument(
        "--embeddings",
        metavar="MODEL",
        help="a sentence-transformers name or folder (default: TF-IDF)",
    )
    parser.add_argument(
        "--model",
        metavar="ENCODER",
        help="measure difficulty and label noise by fine-tuning this encoder, a name or folder of "
        "transformers, ten times (default: a linear model)",
    )
    parser.add_argument(
        "--entities",
        metavar="MODEL",
        help="a spaCy model for countries, nationalities, names, events and products, such as "
        "en_core_web_sm (default: rules)",
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="of samples and folds (default: 0)"
    )


def run(
    options: argparse.Namespace,
    *,
    gold: Callable[[str, Mapping[str, str]], str | None],
    open_trainer: "Callable[[str], Trainer]",
) -> int:
    """Analyse, write report.html and what it is made from, say what was found. Exit code 0;
    130 where it was interrupted.

    `gold`: the true label of a simulated row; `open_trainer`: of an encoder's name or folder.
    Raises UserError.
    """
    try:
        return _run(options, gold, open_trainer)
    except UserError as error:
        raise UserError(_visible(str(error))) from error
    except KeyboardInterrupt:
        print("interrupted; the same command begins anew", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(
    options: argparse.Namespace,
    gold: Callable[[str, Mapping[str, str]], str | None],
    open_trainer: "Callable[[str], Trainer]",
) -> int:
    try:
        from targen_async.analysis.analyze import Ways, analyze, check_folder, write_analysis
        from targen_async.analysis.reading import read_sets
        from targen_async.analysis.report.page import write_report
    except ImportError as error:
        raise UserError(f"{NEEDS} ({error.name} is missing)") from error
    if not 0 <= options.random_seed <= MOST_SEED:
        raise UserError(
            f"--random-seed is a whole number from 0 to {MOST_SEED}, not {options.random_seed}"
        )
    columns = _columns(options)
    check_folder(options.out)
    given = [path for path in (options.data, options.against) if path is not None]
    rows, *others = read_sets([*given, *options.evaluation], columns, _say)
    against = others[0] if options.against is not None else None
    analysis, notes = analyze(
        rows,
        against=against,
        evaluations=others[len(given) - 1 :],
        ways=Ways(
            random_seed=options.random_seed,
            embeddings=options.embeddings,
            entities=options.entities,
            trainer=open_trainer(options.model) if options.model else None,
            gold=gold,
            say=_say,
        ),
    )
    write_analysis(analysis, notes, options.out)
    folder = options.data if options.data.is_dir() else None
    write_report(analysis, notes, rows, against, options.out, folder)
    for line in summary(analysis):
        print(_visible(line))
    names = ("report.html", "analysis.json", "rows.jsonl", "rows.parquet")
    print(f"written: {', '.join(str(options.out / name) for name in names)}")
    return 0


def _columns(options: argparse.Namespace) -> "Columns | None":
    from targen_async.analysis.reading import Columns

    if options.text is None:
        if options.label or options.key:
            raise UserError("--label and --key go with --text: name the columns with texts too")
        return None
    texts = tuple(name.strip() for name in options.text.split(",") if name.strip())
    if not texts:
        raise UserError("--text names no column")
    return Columns(texts=texts, label=options.label, key=options.key)


def _say(line: str) -> None:
    print(_visible(line), file=sys.stderr)


def summary(analysis: "Analysis") -> Iterator[str]:
    """The analysis on a terminal, line by line."""
    from targen_async.analysis.analyze import estimates

    data = analysis.data
    simulated = "SIMULATED rows, not from a language model: " if analysis.simulated else ""
    yield f"{simulated}{data.name}, {data.rows:,} rows"
    yield ""
    for finding in analysis.findings:
        yield f"! {finding.text}"
    if not analysis.findings:
        yield "no fault found"
    yield from _unmeasured(data)
    gold = data.labels.simulator_gold
    if gold is not None and gold.correct is not None:
        known = "all labels" if gold.known == data.rows else f"the {gold.known:,} labels it knows"
        yield f"by the simulator's gold {_share(gold.correct)} of {known} are right"
    yield ""
    if analysis.against is not None:
        yield from _side_by_side(analysis.against)
    else:
        yield from (_row(name, _number(value)) for name, value in estimates(data).items())


def _unmeasured(data: "Measures") -> Iterator[str]:
    from targen_async.analysis.crossfit import Unfit

    if isinstance(data.difficulty, Unfit):
        yield f"difficulty and label noise could not be measured: {data.difficulty.reason}"
    elif isinstance(data.labels.noise, Unfit):
        yield f"label noise could not be measured: {data.labels.noise.reason}"


def _side_by_side(comparison: "Comparison") -> Iterator[str]:
    from targen_async.analysis.analyze import estimates

    data, other = comparison.data, comparison.other
    yield f"{comparison.rows:,} rows of each; the difference where its 95 % interval leaves out 0"
    yield _row("", "data", "other", "difference")
    theirs = estimates(other)
    for name, value in estimates(data).items():
        if name not in theirs:
            continue
        apart = comparison.differences[name]
        sure = apart.low is not None and apart.high is not None and apart.low * apart.high > 0
        yield _row(name, _short(value), _short(theirs[name]), _number(apart) if sure else "-")
    for kind, divergence in comparison.divergences.items():
        if divergence is not None:
            more = divergence.jensen_shannon.value > divergence.by_chance
            yield _row(
                f"bias.{kind}, Jensen-Shannon",
                f"{divergence.jensen_shannon.value:.4f}",
                f"by chance {divergence.by_chance:.4f}",
                "differs" if more else "-",
            )


def _row(name: str, *cells: str) -> str:
    return f"{name:{_WIDTH}} " + "  ".join(f"{cell:<16}" for cell in cells).rstrip()


def _short(value: "Estimate") -> str:
    return f"{value.value:.4g}"


def _number(value: "Estimate") -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.4g}"
    return f"{value.value:.4g} ({value.low:.4g} to {value.high:.4g})"


def _share(value: "Estimate") -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.1%}"
    return f"{value.value:.1%} ({value.low:.1%} to {value.high:.1%})"


def _visible(line: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
