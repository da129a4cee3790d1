"""An encoder fine-tuned to classify texts of any kind, epoch by epoch, on one device.

For what is measured by training models over and over, such as difficulty: nothing is written, and
texts and labels need not be of a SuperGLUE task. Batches, loss, optimiser and rate are those of a
training run.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from targen_async.errors import RunStopped, UserError
from targen_async.finetune.batches import epoch_steps, run_steps
from targen_async.finetune.config import ModelChoice, Training
from targen_async.finetune.engine import PlainEngine
from targen_async.finetune.feeds import feed_of, plan_samples, samples_of, score_items
from targen_async.finetune.models import (
    Model,
    build_model,
    choose_tokenizer,
    family_of,
    open_config,
    places_of,
)
from targen_async.finetune.optim import learning_rate
from targen_async.finetune.tokens import Item

TRAINING = Training(epochs=5, examples=16, learning_rate=5e-5, weight_decay=0.01)
"""The rate is BERT's (Devlin et al. 2019), as in the research code's own measure."""
MAX_TOKENS = 256
"""In training and in scoring alike; fewer where the model reads fewer."""

Texts = Sequence[str]
"""The texts of one example: the first is the first segment, the others are the second."""
Scorer = Callable[[Sequence[Texts]], NDArray[np.float64]]
"""Texts to probabilities of the labels, shape (examples, labels)."""


class Classifier:
    """Any encoder that transformers can load, by name or folder, trained for whole epochs.

    Raises UserError where it cannot be loaded, or is no encoder.
    """

    def __init__(self, source: str, training: Training = TRAINING) -> None:
        config = open_config(source)
        if family_of(config) != "encoder":
            raise UserError(f"{source} is no encoder, and difficulty is measured with one")
        most = min(MAX_TOKENS, places_of(config) or MAX_TOKENS)
        self._training = training
        self._choice = ModelChoice(family="encoder", init=source, max_source=most)
        self._tokenizer = choose_tokenizer(self._choice, (), Path())
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # What surrounds a call may have set it to one thread.
        self._threads = torch.get_num_threads()
        self.name = f"{source}, fine-tuned for {training.epochs:g} epochs, {most} tokens at most"

    def epochs(
        self, texts: Sequence[Texts], labels: Sequence[int], count: int, seed: int
    ) -> Iterator[Scorer]:
        """Train on these texts; after each epoch, the model as it then is.

        `count`: how many labels there are, from 0. A scorer is good until the next one is asked
        for. Raises RunStopped where the loss is not a number.
        """
        torch.set_num_threads(self._threads)
        model = build_model(self._choice, self._tokenizer, [str(n) for n in range(count)], seed)
        samples = samples_of(self._items(texts, labels, count), "encoder")
        training = self._training
        plan = plan_samples(samples, "encoder", examples=training.examples, random_seed=seed)
        per_epoch = len(epoch_steps(plan, 0))
        steps = per_epoch * round(training.epochs)
        engine = PlainEngine(model.network, training, self._device)
        for number, (_, step) in enumerate(islice(run_steps(plan, per_epoch), steps)):
            feeds = (feed_of([samples[n] for n in batch], model, self._device) for batch in step)
            rate = learning_rate(training, number, steps)
            loss, _ = engine.step(feeds, sum(map(len, step)), rate)
            if loss != loss:
                raise RunStopped(f"{self._choice.init}: the loss of step {number + 1} is no number")
            if (number + 1) % per_epoch == 0:
                yield lambda asked: self._score(model, asked, count)

    def _score(self, model: Model, texts: Sequence[Texts], count: int) -> NDArray[np.float64]:
        items = self._items(texts, [0] * len(texts), count)
        logits = np.array(score_items(model, items, self._device)).reshape(len(texts), count)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(texts) else logits
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def _items(self, texts: Sequence[Texts], labels: Sequence[int], count: int) -> list[Item]:
        if not texts:
            return []
        between = f" {self._tokenizer.sep_token or self._tokenizer.eos_token or ''} "
        pairs = [(first, between.join(others) if others else None) for first, *others in texts]
        made = self._tokenizer(
            [first for first, _ in pairs],
            # All examples of a data set have the same fields.
            None if pairs[0][1] is None else [second for _, second in pairs],
            truncation=True,
            max_length=self._choice.max_source,
            return_attention_mask=False,
        )
        typed = "token_type_ids" in self._tokenizer.model_input_names
        types = made["token_type_ids"] if typed else None
        return [
            Item(
                sources=(tuple(made["input_ids"][n]),),
                types=(tuple(types[n]),) if types else (),
                choices=(),
                logits=tuple(range(count)),
                right=(label,),
                by_length=False,
            )
            for n, label in enumerate(labels)
        ]
