"""A model's answers to examples: the option with the highest logit, or the likeliest one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from targen_async.finetune.config import ModelChoice
from targen_async.finetune.feeds import score_items
from targen_async.finetune.instructions import Instruction
from targen_async.finetune.models import Model
from targen_async.finetune.posed import options_of
from targen_async.finetune.schema import Example
from targen_async.finetune.tokens import Tokens, tokenise


def tokens_for(
    model: Model,
    choice: ModelChoice,
    examples: Sequence[Example],
    instructions: Mapping[str, Instruction],
    cache: Path | None = None,
) -> Tokens:
    """The examples as this model is given them."""
    names = model.names if model.family == "encoder" else ()
    return tokenise(examples, model.tokenizer, choice, names, instructions, cache)


def answer_examples(
    model: Model, examples: Sequence[Example], tokens: Tokens, device: torch.device
) -> list[str]:
    """One option for each example; ties go to the first."""
    scores = score_items(model, tokens.items, device)
    return [
        options_of(one)[max(range(len(found)), key=found.__getitem__)]
        for one, found in zip(examples, scores, strict=True)
    ]
