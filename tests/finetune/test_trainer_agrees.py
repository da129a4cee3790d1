"""transformers' Trainer on the same batches, where it is told what it gets wrong by itself."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install '.[train]'")

from targen_async.finetune.answering import tokens_for  # noqa: E402
from targen_async.finetune.batches import epoch_steps  # noqa: E402
from targen_async.finetune.config import TrainConfig  # noqa: E402
from targen_async.finetune.feeds import Feed, feed_of, plan_samples, samples_of  # noqa: E402
from targen_async.finetune.logits import logit_names  # noqa: E402
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.models import Model, build_model, choose_tokenizer  # noqa: E402
from targen_async.finetune.prepare import prepare  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import FAMILIES, curve, settings  # noqa: E402

pytestmark = [pytest.mark.long]
STEPS = 8


def told(feed: Feed, family: str) -> dict[str, Any]:
    """A batch as a model of transformers takes it to compute its own loss."""
    inputs = {name: value for name, value in feed.inputs.items() if name != "decoder_input_ids"}
    if family == "encoder":
        assert feed.logits is not None and feed.right is not None
        labels = feed.logits.gather(1, feed.right.int().argmax(1, keepdim=True)).squeeze(1)
    else:
        assert feed.labels is not None
        labels = feed.labels
    if family == "decoder":  # Which it moves by one itself.
        labels = torch.nn.functional.pad(labels, (1, 0), value=-100)[:, :-1]
    return {**inputs, "labels": labels}


def feeds_of(made: TrainConfig, model: Model, cache: Path, batches: int) -> list[dict[str, Any]]:
    """What the loop computes on, in its order."""
    family = made.model.family
    tokens = tokens_for(model, made.model, prepare(made).train, {}, cache)
    samples = samples_of(tokens.items, family)
    plan = plan_samples(
        samples,
        family,
        examples=made.training.examples,
        batches=batches,
        random_seed=made.training.random_seed,
    )
    cpu = torch.device("cpu")
    return [
        told(feed_of([samples[n] for n in batch], model, cpu), family)
        for step in epoch_steps(plan, 0)[:STEPS]
        for batch in step
    ]


@pytest.mark.parametrize(
    ("family", "batches"), [*((family, 1) for family in FAMILIES), ("encoder", 2)]
)
def test_the_trainer_has_the_same_losses_and_norms(
    family: str, batches: int, tmp_path: Path
) -> None:
    """Accumulated batches only where all have one weight: it means over the means of batches."""
    rows = grammar_run(tmp_path / "cb", "cb", 96)
    raw = settings(family, rows, steps=STEPS, schedule="constant", warmup=0.0)
    raw["training"]["accumulation"] = batches
    made = msgspec.convert(raw, TrainConfig)
    train(made, tmp_path / "ours", say=lambda _: None)

    tokenizer = choose_tokenizer(made.model, (), tmp_path / "ours" / "tokenizer")
    names = logit_names(["cb"]) if family == "encoder" else ()
    model = build_model(made.model, tokenizer, names, made.training.random_seed)
    model.network.accepts_loss_kwargs = False
    feeds = feeds_of(made, model, tmp_path / "tokens", batches)

    class InOrder(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(feeds, batch_size=None)

    trainer = InOrder(
        model=model.network,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "theirs"),
            max_steps=STEPS,
            gradient_accumulation_steps=batches,
            learning_rate=made.training.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=made.training.clip,
            optim="adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=feeds,
    )
    trainer.train()
    theirs = [line for line in trainer.state.log_history if "grad_norm" in line]
    for number, (one, two) in enumerate(zip(curve(tmp_path / "ours"), theirs, strict=True)):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3 if number else 1e-4)
        assert one["gradient_norm"] == pytest.approx(two["grad_norm"], rel=1e-2 if number else 1e-3)
