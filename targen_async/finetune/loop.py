"""The training loop: from a configuration to a folder with a model, across kills and restarts.

What is in the folder: `config.json` (the resolved configuration), `tokenizer/` (of random weights),
`metrics.jsonl` (a line a step, a line an evaluation), `checkpoints/`, and at the end `model/`.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace

from targen_async.errors import RunStopped, UserError
from targen_async.finetune.answering import answer_examples, tokens_for
from targen_async.finetune.batches import (
    BatchPlan,
    epoch_steps,
    padding_efficiency,
    plan_batches,
    rank_batches,
    run_steps,
)
from targen_async.finetune.checkpoints import (
    Progress,
    check_room,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    seed_rank,
)
from targen_async.finetune.config import TrainConfig
from targen_async.finetune.curve import Curve
from targen_async.finetune.engine import Engine
from targen_async.finetune.feeds import Sample, feed_of, lengths_of, samples_of, weight_of
from targen_async.finetune.logits import logit_names
from targen_async.finetune.metrics import Report, measure
from targen_async.finetune.models import Model, build_model, choose_tokenizer, open_model
from targen_async.finetune.optim import count_parameters, learning_rate
from targen_async.finetune.prepare import Prepared, prepare
from targen_async.finetune.ranks import Ranks, open_engine
from targen_async.finetune.saved import CARD, FACTS, save_model, told, write_card
from targen_async.finetune.tokens import Tokens

Say = Callable[[str], None]


class Trained(Struct, frozen=True, kw_only=True):
    """What came of a run."""

    folder: Path
    """The model."""
    steps: int
    loss: float
    """Of the last step."""
    reports: Mapping[str, Report]
    """By task of the validation examples; empty where there are none."""


class Work(Struct, frozen=True, kw_only=True):
    """What is made before the first step, alike on every rank."""

    config: TrainConfig
    out: Path
    prepared: Prepared
    model: Model
    samples: list[Sample]
    validation: Mapping[str, Tokens]
    plan: BatchPlan
    per_epoch: int
    steps: int
    """Of the whole run."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    say: Say = print,
    stopped: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train, or go on with a run in `out`. `stopped`: asked after every step; True saves and ends.

    Raises UserError for what the user has to mend, RunStopped where the run cannot go on or was
    stopped.
    """
    ranks = Ranks.of_environment(config.training)
    if ranks.rank:
        say = _silent
    with ranks.first():
        _claim(out, config)
    if (done := out / "model" / FACTS).is_file() and (done.parent / CARD).is_file():
        raise UserError(f"{out} holds a trained model: name another folder, or remove it")
    work = _make_work(config, out, ranks, say)
    engine = open_engine(work.model.network, config.training, ranks)
    with Curve(out / "metrics.jsonl", work.steps, engine.rank == 0, say) as curve:
        progress = _resume(work, engine, curve, say)
        progress = _run(work, engine, progress, curve, stopped)
        return _finish(work, engine, progress, curve, say)


def _silent(_: str) -> None:
    pass


def _claim(out: Path, config: TrainConfig) -> None:
    """The folder is the configuration's that wrote its first checkpoint; before there is one, a
    mended configuration takes it over."""
    path, own = out / "config.json", msgspec.json.format(msgspec.json.encode(config))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_bytes() != own:
            if any((out / "checkpoints").glob("step-*")):
                raise UserError(
                    f"{out} was begun with another configuration ({path}): name another folder, or "
                    "give the same configuration"
                )
            for name in ("tokenizer", "best"):
                shutil.rmtree(out / name, ignore_errors=True)
        path.write_bytes(own)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error


def _make_work(config: TrainConfig, out: Path, ranks: Ranks, say: Say) -> Work:
    prepared = prepare(config)
    choice = config.model
    names = logit_names(prepared.tasks) if choice.family == "encoder" else ()
    with ranks.first():
        texts = (text for one in prepared.train for text in (*one.fields.values(), one.label or ""))
        tokenizer = choose_tokenizer(choice, texts, out / "tokenizer")
    model = build_model(choice, tokenizer, names, config.training.random_seed)
    with ranks.first():
        cache, taught = out / "tokens", prepared.instructions
        tokens = tokens_for(model, choice, prepared.train, taught, cache)
        validation = {
            task: tokens_for(model, choice, held, taught, cache)
            for task, held in prepared.validation.items()
        }
    samples = samples_of(tokens.items, choice.family)
    training = config.training
    lengths = [lengths_of(sample, choice.family) for sample in samples]
    plan = plan_batches(
        [source for source, _ in lengths],
        [target for _, target in lengths],
        tokens=training.tokens,
        examples=training.examples,
        batches=ranks.count * training.accumulation,
        random_seed=training.random_seed,
    )
    first = epoch_steps(plan, 0)
    steps = training.steps or max(1, round(training.epochs * len(first)))
    check_room(out, count_parameters(model.network), training.keep)
    share = padding_efficiency(plan, first, ranks.count)
    say(
        f"{choice.family} with {count_parameters(model.network):,} parameters; "
        f"{len(samples)} samples ({tokens.cut} cut to the model's length), {len(first)} steps an "
        f"epoch, {steps} in all; {share:.0%} of computed tokens are real"
    )
    return Work(
        config=config,
        out=out,
        prepared=prepared,
        model=model,
        samples=samples,
        validation=validation,
        plan=plan,
        per_epoch=len(first),
        steps=steps,
    )


def _resume(work: Work, engine: Engine, curve: Curve, say: Say) -> Progress:
    seed_rank(work.config.training.random_seed, engine.rank)
    data = work.prepared.digest
    path = newest_checkpoint(work.out / "checkpoints", say)
    if path is None:
        curve.begin(0)
        return Progress(ranks=engine.ranks, data=data)
    progress = load_checkpoint(path, engine, data)
    say(f"going on from step {progress.step} of {work.steps}")
    curve.begin(progress.step)
    return progress


def _run(
    work: Work,
    engine: Engine,
    progress: Progress,
    curve: Curve,
    stopped: Callable[[], bool],
) -> Progress:
    """The steps that are left. Returns where the run stands at their end."""
    training = work.config.training
    folder = work.out / "checkpoints"
    for epoch, step in _steps(work, progress):
        began, number = time.perf_counter(), progress.step
        count = sum(weight_of(work.samples[n]) for batch in step for n in batch)
        mine = rank_batches(step, engine.rank, engine.ranks)
        feeds = (
            feed_of([work.samples[n] for n in batch], work.model, engine.device) for batch in mine
        )
        rate = learning_rate(training, number, work.steps)
        loss, norm = engine.step(feeds, count, rate)
        if loss != loss:
            raise RunStopped(f"the loss of step {number + 1} is not a number: lower the rate")
        progress = replace(progress, step=number + 1)
        tokens = sum(int((work.plan.sources[b] + work.plan.targets[b]).sum()) for b in step)
        curve.step(
            step=progress.step,
            epoch=epoch,
            loss=loss,
            gradient_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            seconds=time.perf_counter() - began,
        )
        last = progress.step == work.steps
        if training.evaluate_every and (last or progress.step % training.evaluate_every == 0):
            progress = _evaluate(work, engine, progress, curve)
        [halt] = engine.any_of([stopped()])
        if last or halt or progress.ended or progress.step % training.save_every == 0:
            save_checkpoint(folder, engine, progress, training.keep)
        if progress.ended:
            break
        if halt and not last:
            raise RunStopped(
                f"stopped at step {progress.step} of {work.steps}, which is saved; the same "
                "command goes on"
            )
    return progress


def _steps(work: Work, progress: Progress) -> Iterator[tuple[int, Any]]:
    left = 0 if progress.ended else work.steps - progress.step
    return islice(run_steps(work.plan, work.per_epoch, progress.step), left)


def _evaluate(work: Work, engine: Engine, progress: Progress, curve: Curve) -> Progress:
    """Measure, and keep the weights if they are the best so far. All ranks come to the same."""
    weights = engine.weights()
    better = False
    if engine.rank == 0:
        reports = _reports(work, work.model, engine.device)
        value = sum(report.main for report in reports.values()) / len(reports)
        curve.evaluation(progress.step, reports)
        better = progress.best is None or value > progress.best
        if better:
            progress = replace(progress, best=value)
            assert weights is not None
            save_model(work.out / "best", work.model, weights, work.config, work.prepared)
    [better] = engine.any_of([better])
    worse = 0 if better else progress.worse + 1
    patience = work.config.training.patience
    return replace(progress, worse=worse, ended=patience is not None and worse >= patience)


def _reports(work: Work, model: Model, device: torch.device) -> dict[str, Report]:
    return {
        task: measure(task, held, answer_examples(model, held, work.validation[task], device))
        for task, held in work.prepared.validation.items()
    }


def _finish(work: Work, engine: Engine, progress: Progress, curve: Curve, say: Say) -> Trained:
    """The model's folder, measured as it was written; its card last, which says it is whole."""
    folder, best = work.out / "model", work.out / "best"
    weights = engine.weights()
    reports: dict[str, Report] = {}
    if engine.rank == 0:
        if best.is_dir():
            shutil.copytree(best, folder, dirs_exist_ok=True)
        else:
            assert weights is not None
            save_model(folder, work.model, weights, work.config, work.prepared)
        if work.validation:
            written = open_model(str(folder), work.model.family)
            written.network.to(engine.device)
            reports = _reports(work, written, engine.device)
        figures = {"steps": progress.step, "last loss": f"{curve.loss:.4f}", "ranks": engine.ranks}
        write_card(folder, work.config, work.prepared, reports, figures)
        for task, report in reports.items():
            say(f"{task}: {told(report)}")
        say(f"the model is in {folder}")
    engine.any_of([False])
    return Trained(folder=folder, steps=progress.step, loss=curve.loss, reports=reports)
