"""The optimiser, and the learning rate as a function of the step alone."""

import math
from typing import Any

import torch
from transformers import Adafactor

from targen_async.finetune.config import Training


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Of step 0 … steps - 1: it rises over the warmup, then stays, or falls to 0 at `steps`."""
    warmup = round(training.warmup * steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if training.schedule == "constant":
        return training.learning_rate
    if training.schedule == "linear":
        return training.learning_rate * (1 - done)
    return training.learning_rate * (1 + math.cos(math.pi * done)) / 2


def build_optimizer(network: Any, training: Training) -> torch.optim.Optimizer:  # noqa: ANN401
    """AdamW, fused on a GPU, or Adafactor with a given rate times the root mean square of each
    weight (Shazeer and Stern 2018, section 8), as T5 was trained and fine-tuned: its embeddings
    begin at a spread of 1, its other weights far below, and no one rate is right for both. No decay
    of vectors: biases, norms."""
    learnt = [value for value in network.parameters() if value.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = training.learning_rate
    if training.optimizer == "adafactor":
        return Adafactor(groups, lr=rate, scale_parameter=True, relative_step=False)
    fused = learnt[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def count_parameters(network: Any) -> int:  # noqa: ANN401
    """Each once, however often it is used."""
    return sum(value.numel() for value in network.parameters())
