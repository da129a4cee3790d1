"""The training loop: from a configuration to a folder with a model, across kills and restarts.

What is in the folder: `config.json` (the resolved configuration), `tokenizer/` (of random weights),
`metrics.jsonl` (a line a step, a line an evaluation), `checkpoints/`, and at the end `model/`.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace

from targen_async.errors import RunStopped, UserError
from targen_async.finetune.answering import answer_examples
from targen_async.finetune.batches import (
    BatchPlan,
    epoch_steps,
    padding_efficiency,
    rank_batches,
    real_tokens,
    run_steps,
)
from targen_async.finetune.board import check_board
from targen_async.finetune.checkpoints import (
    Progress,
    load_random_state,
    save_checkpoint,
    seed_rank,
)
from targen_async.finetune.config import TrainConfig
from targen_async.finetune.curve import Curve
from targen_async.finetune.engine import Engine
from targen_async.finetune.feeds import (
    Pack,
    Sample,
    feed_of,
    pack_samples,
    plan_samples,
    samples_of,
    weight_of,
)
from targen_async.finetune.figure import draw_curve
from targen_async.finetune.logits import logit_names
from targen_async.finetune.lora import add_lora, count_learnt
from targen_async.finetune.meter import Meter, warn_of_room
from targen_async.finetune.metrics import Report, measure
from targen_async.finetune.models import (
    Model,
    build_model,
    check_model,
    choose_tokenizer,
    expected_parameters,
    open_model,
)
from targen_async.finetune.optim import count_parameters, learning_rate
from targen_async.finetune.prepare import Prepared, prepare
from targen_async.finetune.ranks import Ranks, join_ranks, open_engine
from targen_async.finetune.resume import Start, claim_folder, find_start
from targen_async.finetune.room import check_room, checkpoint_bytes, unwritten, writing
from targen_async.finetune.saved import save_model, told, write_card
from targen_async.finetune.tokens import Tokens, check_targets, token_cache, tokenise

Say = Callable[[str], None]
METRICS, PICTURE = "metrics.jsonl", "loss.png"


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
    samples: Sequence[Sample] | Sequence[Pack]
    validation: Mapping[str, Tokens]
    plan: BatchPlan
    per_epoch: int
    steps: int
    """Of the whole run."""
    room: int
    """Bytes of a checkpoint, at most."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    say: Say = print,
    stopped: Callable[[], bool] = lambda: False,
    tensorboard: bool = False,
) -> Trained:
    """Train, or go on with a run in `out`. `stopped`: asked after every step; True saves and ends.
    `tensorboard`: write the curve for it too, into a folder of that name.

    Raises UserError for what the user has to mend, RunStopped where the run cannot go on or was
    stopped.
    """
    if tensorboard:
        check_board()
    board = out / "tensorboard" if tensorboard else None
    try:
        with join_ranks(config.training) as ranks:
            return _train(config, out, ranks, _silent if ranks.rank else say, stopped, board)
    except OSError as error:
        raise unwritten(out, error) from error


def _train(
    config: TrainConfig,
    out: Path,
    ranks: Ranks,
    say: Say,
    stopped: Callable[[], bool],
    board: Path | None,
) -> Trained:
    training = config.training
    ranks.of_first(lambda: claim_folder(out, config))
    start = ranks.of_first(lambda: find_start(out, training, ranks.count, say))
    work = _make_work(config, out, ranks, start, say)
    warn_of_room(config, work.model.network, ranks, say)
    meter = Meter(config, work.model.network, work.samples, ranks)
    accumulation = start.progress.batches // ranks.count
    engine = open_engine(
        work.model.network,
        replace(training, accumulation=accumulation),
        ranks,
        universal=start.universal is not None,
    )
    metrics = out / METRICS
    with Curve(metrics, work.steps, engine.rank == 0, say, board) as curve:
        if ranks.lifeline:
            ranks.lifeline.tidy = curve.stop
        progress = _resume(work, engine, start, curve, say)
        progress = _run(work, engine, progress, curve, meter, stopped)
        return _finish(work, engine, progress, curve, say)


def _silent(_: str) -> None:
    pass


def _make_work(config: TrainConfig, out: Path, ranks: Ranks, start: Start, say: Say) -> Work:
    """What the user has to mend is found before the model is built, which may take long."""
    prepared = prepare(config)
    choice, training, taught = config.model, config.training, prepared.instructions
    check_model(choice, training.packing)
    names = logit_names(prepared.tasks) if choice.family == "encoder" else ()
    room = ranks.of_first(lambda: _room(config, out, names))
    with ranks.first():
        texts = (text for one in prepared.train for text in (*one.fields.values(), one.label or ""))
        tokenizer = choose_tokenizer(choice, texts, out / "tokenizer")
        cache = token_cache()
        tokens = tokenise(prepared.train, tokenizer, choice, names, taught, cache)
        check_targets(prepared.train, tokens, choice)
        validation = {
            task: tokenise(held, tokenizer, choice, names, taught, cache)
            for task, held in prepared.validation.items()
        }
    samples: Sequence[Sample] | Sequence[Pack] = samples_of(tokens.items, choice.family)
    if training.packing:
        samples = pack_samples(samples_of(tokens.items, choice.family), choice.max_source)
    plan = _plan(samples, config, start.progress.batches)
    first = epoch_steps(plan, 0)
    steps = training.steps or max(1, round(training.epochs * len(first)))
    model = build_model(choice, tokenizer, names, training.random_seed)
    if config.lora:
        add_lora(model, config.lora)
    share = padding_efficiency(plan, first, ranks.count)
    say(
        f"{choice.family} with {count_parameters(model.network):,} parameters"
        f"{count_learnt(model.network)}; {len(samples)} {'rows' if training.packing else 'samples'}"
        f" ({tokens.cut} cut to the model's length), {len(first)} steps an "
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
        room=room,
    )


def _room(config: TrainConfig, out: Path, names: Sequence[str]) -> int:
    """Bytes of a checkpoint, for which there is room. A tokenizer that is yet to be trained has at
    most as many entries as it may."""
    training = config.training
    parameters = expected_parameters(config.model, config.model.vocabulary, names)
    sharded = training.deepspeed is not None
    room = checkpoint_bytes(parameters, sharded, adapters=config.lora is not None)
    models = 2 if training.evaluate_every else 1
    check_room(out, room, 4 * parameters * models, training.keep)
    return room


def _plan(
    samples: Sequence[Sample] | Sequence[Pack], config: TrainConfig, batches: int
) -> BatchPlan:
    training = config.training
    return plan_samples(
        samples,
        config.model.family,
        tokens=training.tokens,
        examples=training.examples,
        batches=batches,
        random_seed=training.random_seed,
    )


def _resume(work: Work, engine: Engine, start: Start, curve: Curve, say: Say) -> Progress:
    seed, progress = work.config.training.random_seed, start.progress
    seed_rank(seed, engine.rank)
    if start.path is None:
        curve.begin(0)
        return replace(progress, data=work.prepared.digest)
    if progress.data != work.prepared.digest:
        raise UserError(
            f"{start.path} was written on other data: the rows of a source have changed since "
            "then; name another folder"
        )
    engine.load(start.universal or start.path)
    if not load_random_state(start.path, engine):
        seed_rank(seed, engine.rank, progress.step)
    engine.any_of([False])
    if engine.rank == 0 and start.universal:
        shutil.rmtree(start.universal)
    say(f"going on from step {progress.step} of {work.steps}")
    curve.begin(progress.step)
    return progress


def _run(
    work: Work,
    engine: Engine,
    progress: Progress,
    curve: Curve,
    meter: Meter,
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
        try:
            loss, norm = engine.step(feeds, count, rate)
        except torch.OutOfMemoryError as error:
            raise RunStopped(
                f"step {number + 1} does not fit into the memory of {engine.device}: raise "
                "`training.accumulation`, lower `training.tokens`, or set "
                "`training.gradient_checkpointing`"
            ) from error
        for what, figure in (("loss", loss), ("gradient", norm)):
            if not isfinite(figure):
                raise RunStopped(f"the {what} of step {number + 1} is not finite: lower the rate")
        progress = replace(progress, step=number + 1)
        tokens = real_tokens(work.plan, step)
        seconds = time.perf_counter() - began
        curve.step(
            step=progress.step,
            epoch=epoch,
            loss=loss,
            gradient_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            seconds=seconds,
            **meter.read(step, seconds),
        )
        last = progress.step == work.steps
        if training.evaluate_every and (last or progress.step % training.evaluate_every == 0):
            progress = _evaluate(work, engine, progress, curve)
        [halt] = engine.any_of([stopped()])
        if last or halt or progress.ended or progress.step % training.save_every == 0:
            save_checkpoint(folder, engine, progress, training.keep, work.room)
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
            step, loss = progress.step, curve.loss
            progress = replace(progress, best=value, best_step=step, best_loss=loss)
            _save(work, weights, work.out / "best")
    [better] = engine.any_of([better])
    worse = 0 if better else progress.worse + 1
    patience = work.config.training.patience
    return replace(progress, worse=worse, ended=patience is not None and worse >= patience)


def _save(work: Work, weights: Mapping[str, Any] | None, folder: Path) -> None:
    assert weights is not None
    with writing(folder):
        save_model(folder, work.model, weights, work.config, work.prepared)


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
            _save(work, weights, folder)
        if work.validation:
            reports = _measure_written(work, folder, engine.device, say)
        write_card(folder, work.config, work.prepared, reports, progress.figures(curve.loss))
        _draw(work.out, say)
        for task, report in reports.items():
            say(f"{task}: {told(report)}")
        say(f"the model is in {folder}")
    engine.any_of([False])
    return Trained(folder=folder, steps=progress.step, loss=curve.loss, reports=reports)


def _measure_written(work: Work, folder: Path, device: torch.device, say: Say) -> dict[str, Report]:
    """Beside the engine, whose optimiser still fills the device: nothing where it does not fit."""
    try:
        written = open_model(str(folder), work.model.family)
        if work.config.training.deepspeed is None:
            work.model.network.to("cpu")  # It is not trained any more.
        written.network.to(device)
        return _reports(work, written, device)
    except (torch.OutOfMemoryError, RunStopped):
        say(
            f"the model is not measured, as it does not fit into the memory of {device} a second "
            f"time: `targen evaluate {folder}` measures it"
        )
        return {}


def _draw(out: Path, say: Say) -> None:
    try:
        draw_curve(out / METRICS, out / PICTURE)
    except ImportError:
        say(f"no {PICTURE}: it needs matplotlib; pip install 'targen-async[plots]'")
