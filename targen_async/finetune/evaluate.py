"""Measuring a saved model on examples of any origin, in a process of its own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.answering import answer_examples, tokens_for
from targen_async.finetune.config import ModelChoice
from targen_async.finetune.data import Loaded, Split, load_examples
from targen_async.finetune.generation import write_freely
from targen_async.finetune.metrics import Answers, Report, Spread, measure, over_seeds
from targen_async.finetune.models import Model, check_length, open_model
from targen_async.finetune.predictions import write_predictions, write_submission
from targen_async.finetune.room import unwritten
from targen_async.finetune.saved import Facts, read_facts, told
from targen_async.finetune.tokens import token_cache

METRICS = "metrics.json"
LEAST = 16
"""Tokens that a model reads at least, as of `model.max_source`."""


class Free(Struct, frozen=True, kw_only=True):
    """What the model wrote with nothing to hold it to the options."""

    outside: float
    """Share of the texts that are none of the options."""
    report: Report | None
    """A text outside the options is not right. None where the labels are kept back."""


class Measured(Struct, frozen=True, kw_only=True):
    """What metrics.json holds of one task."""

    report: Report | None
    """None where the split keeps its labels back."""
    free: Free | None = None
    """Where it was asked for."""
    origin: str
    split: str
    digest: str
    """SHA-256 of the content."""
    simulated: bool
    cut: int
    """Examples shortened to what the model reads."""


def evaluate(
    model: str,
    tasks: Sequence[str],
    data: str,
    out: Path,
    *,
    split: Split = "validation",
    max_source: int | None = None,
    random_seed: int = 0,
    free: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Measured]:
    """Answer every task's examples in `data` and write metrics.json, predictions and submissions.

    `data`: a folder of official files, a run (`split="train"`), or the hub's name. Options are
    ranked by logit or likelihood, so every answer is one of them; `free` lets a model that writes
    also write as it likes, and counts what is none of them. Raises UserError for what the user has
    to mend, RunStopped where the disk is full.
    """
    if not tasks:
        raise UserError("name at least one task, as in --tasks cb,rte")
    if max_source is not None and max_source < LEAST:
        raise UserError(f"--max-source is {max_source}, and the least is {LEAST}")
    if (out / METRICS).exists():
        raise UserError(
            f"{out} holds the metrics of another evaluation: name another folder with `--out`"
        )
    loaded = [load_examples(data, task, split) for task in dict.fromkeys(tasks)]
    facts = read_facts(Path(model))
    asked = open_model(model, facts.model.family if facts else None)
    facts = _within(facts, asked, model, max_source)
    if free and asked.family == "encoder":
        raise UserError("an encoder writes nothing: drop `--free`")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from error
    for one in loaded:
        if facts.instructions and one.task not in facts.instructions:
            say(f"{one.task} was not trained: it is put with definition and labels, no examples")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked.network.to(device)
    measured: dict[str, Measured] = {}
    try:
        for one in loaded:
            measured[one.task] = _measure(asked, facts, one, out, device, random_seed, free)
            say(_in_words(measured[one.task], one))
        held = {"model": model, "random_seed": random_seed, "tasks": measured}
        (out / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(held)))
    except OSError as error:
        raise unwritten(out, error) from error
    say(f"metrics, predictions and submission files are in {out}")
    return measured


def evaluate_seeds(
    models: Sequence[str],
    tasks: Sequence[str],
    data: str,
    out: Path,
    *,
    say: Callable[[str], None] = print,
    **options: Any,  # noqa: ANN401
) -> dict[str, tuple[Spread, ...]]:
    """`evaluate` of several models, say of one configuration with several seeds: each in a folder
    of its own in `out`, 1 and on, and mean and standard deviation over them in its metrics.json."""
    found = [
        evaluate(model, tasks, data, out / str(number), say=say, **options)
        for number, model in enumerate(models, 1)
    ]
    spreads: dict[str, tuple[Spread, ...]] = {}
    for task in found[0]:
        reports = [report for one in found if (report := one[task].report)]
        if reports:
            spreads[task] = over_seeds(reports)
            scores = (f"{s.name} {s.mean:.3f} ± {s.deviation or 0:.3f}" for s in spreads[task])
            say(f"{task}: {', '.join(scores)} over {len(models)} models")
    held = {"models": list(models), "tasks": spreads}
    (out / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(held)))
    return spreads


def _in_words(measured: Measured, loaded: Loaded) -> str:
    said = f"{len(loaded.examples)} answers; the labels of {measured.split} are kept back"
    if measured.report:
        said = f"{'SIMULATED rows, ' if measured.simulated else ''}{told(measured.report)}"
    if measured.free:
        scores = measured.free.report.scores if measured.free.report else ()
        free = "".join(f", {score.name} {score.value:.3f}" for score in scores)
        said += f"; written freely{free}, {measured.free.outside:.1%} outside the options"
    return f"{loaded.task}: {said}"


def _within(facts: Facts | None, model: Model, source: str, max_source: int | None) -> Facts:
    """How to put examples: as in training, or plainly where another program trained."""
    if facts is None:
        choice = ModelChoice(family=model.family, init=source, max_source=max_source or 512)
        facts = Facts(model=choice)
    elif max_source is not None:
        facts = Facts(
            model=msgspec.structs.replace(facts.model, max_source=max_source),
            instructions=facts.instructions,
        )
    check_length(model.network.config, facts.model)
    return facts


def _measure(
    model: Model,
    facts: Facts,
    loaded: Loaded,
    out: Path,
    device: torch.device,
    random_seed: int,
    free: bool,
) -> Measured:
    examples = loaded.examples
    instructions: Mapping[str, Any] = facts.instructions
    tokens = tokens_for(model, facts.model, examples, instructions, token_cache())
    answers = answer_examples(model, examples, tokens, device)
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions" / f"{loaded.task}.jsonl", examples, answers)
    if loaded.origin != "run":
        write_submission(out / "submission", examples, answers)
    labelled = all(one.label is not None for one in examples)

    def report(said: Answers) -> Report | None:
        return measure(loaded.task, examples, said, random_seed=random_seed) if labelled else None

    written: Free | None = None
    if free:
        texts, said = write_freely(model, facts.model, examples, instructions, tokens, device)
        path = out / "predictions" / f"{loaded.task}.free.jsonl"
        write_predictions(path, examples, said, texts)
        written = Free(outside=said.count(None) / len(said), report=report(said))
    return Measured(
        report=report(answers),
        free=written,
        origin=loaded.origin,
        split=loaded.split,
        digest=loaded.digest,
        simulated=loaded.simulated,
        cut=tokens.cut,
    )
