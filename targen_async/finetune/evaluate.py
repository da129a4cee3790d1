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
from targen_async.finetune.metrics import Report, measure
from targen_async.finetune.models import Model, check_length, open_model
from targen_async.finetune.predictions import write_predictions, write_submission
from targen_async.finetune.saved import Facts, read_facts, told

METRICS = "metrics.json"


class Measured(Struct, frozen=True, kw_only=True):
    """What metrics.json holds of one task."""

    report: Report | None
    """None where the split keeps its labels back."""
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
    say: Callable[[str], None] = print,
) -> dict[str, Measured]:
    """Answer every task's examples in `data` and write metrics.json, predictions and submissions.

    `data`: a folder of official files, a run (`split="train"`), or the hub's name. Options are
    ranked by logit or likelihood, so every answer is one of them. Raises UserError for what the
    user has to mend.
    """
    if not tasks:
        raise UserError("name at least one task, as in --tasks cb,rte")
    if (out / METRICS).exists():
        raise UserError(f"{out} holds the metrics of another evaluation: name another folder")
    loaded = [load_examples(data, task, split) for task in dict.fromkeys(tasks)]
    facts = read_facts(Path(model))
    asked = open_model(model, facts.model.family if facts else None)
    facts = _within(facts, asked, model, max_source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked.network.to(device)
    measured: dict[str, Measured] = {}
    for one in loaded:
        measured[one.task] = _measure(asked, facts, one, out, device, random_seed)
        report = measured[one.task].report
        if report:
            mark = "SIMULATED rows, " if one.simulated else ""
            say(f"{one.task}: {mark}{told(report)}")
        else:
            say(f"{one.task}: {len(one.examples)} answers; the labels of {split} are kept back")
    held = {"model": model, "random_seed": random_seed, "tasks": measured}
    (out / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(held)))
    say(f"metrics, predictions and submission files are in {out}")
    return measured


def _within(facts: Facts | None, model: Model, source: str, max_source: int | None) -> Facts:
    """How to put examples: as in training, or plainly where another program trained."""
    if facts is None:
        choice = ModelChoice(family=model.family, init=source, max_source=max_source or 512)
        facts = Facts(model=choice)
    elif max_source:
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
) -> Measured:
    examples = loaded.examples
    instructions: Mapping[str, Any] = facts.instructions
    tokens = tokens_for(model, facts.model, examples, instructions)
    answers = answer_examples(model, examples, tokens, device)
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions" / f"{loaded.task}.jsonl", examples, answers)
    if loaded.origin != "run":
        write_submission(out / "submission", examples, answers)
    labelled = all(one.label is not None for one in examples)
    return Measured(
        report=measure(loaded.task, examples, answers, random_seed=random_seed)
        if labelled
        else None,
        origin=loaded.origin,
        split=loaded.split,
        digest=loaded.digest,
        simulated=loaded.simulated,
        cut=tokens.cut,
    )
