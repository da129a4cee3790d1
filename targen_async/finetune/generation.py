"""What a model writes when nothing holds it to the options."""

from collections.abc import Mapping, Sequence

import torch

from targen_async.finetune.config import ModelChoice
from targen_async.finetune.feeds import batches_by_length, in_memory, padded_inputs
from targen_async.finetune.forms import read_answer
from targen_async.finetune.instructions import Instruction
from targen_async.finetune.models import Model
from targen_async.finetune.schema import Example
from targen_async.finetune.tokens import Item, Tokens, pose_text


def write_freely(
    model: Model,
    choice: ModelChoice,
    examples: Sequence[Example],
    instructions: Mapping[str, Instruction],
    tokens: Tokens,
    device: torch.device,
) -> tuple[list[str], list[str | None]]:
    """For each example the text, and the option it says; None where it says none of them."""
    texts = generate_texts(model, tokens.items, device)
    forms = (pose_text(one, choice, instructions) for one in examples)
    return texts, [read_answer(form, text) for form, text in zip(forms, texts, strict=True)]


def generate_texts(model: Model, items: Sequence[Item], device: torch.device) -> list[str]:
    """Greedy, to the end token or as many tokens as the longest option of a batch has with it: what
    is longer is none of them."""
    model.network.eval()
    texts = [""] * len(items)
    with torch.inference_mode():
        for numbers in batches_by_length(items):
            some = [items[number] for number in numbers]
            written = in_memory(lambda part: _write(model, part, device), some)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
    return texts


def _write(model: Model, items: Sequence[Item], device: torch.device) -> list[str]:
    tokenizer, decoder = model.tokenizer, model.family == "decoder"
    inputs = padded_inputs([item.sources[0] for item in items], model, device, left=decoder)
    made = model.network.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max(len(choice) for item in items for choice in item.choices),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    written = made[:, inputs["input_ids"].shape[1] :] if decoder else made
    said: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True)
    return said
