"""Batches as tensors: what a plan counts is what a model is given."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async.finetune.batches import epoch_steps, padding_efficiency  # noqa: E402
from targen_async.finetune.feeds import Sample, feed_of, plan_samples, samples_of  # noqa: E402
from targen_async.finetune.forms import Family  # noqa: E402
from targen_async.finetune.models import Model  # noqa: E402
from targen_async.finetune.tokens import Item  # noqa: E402
from tests.finetune.training import FAMILIES  # noqa: E402

BUDGET = 16_384


def made_samples(family: Family, count: int = 400) -> list[Sample]:
    """For an encoder a mixture: pairs, COPA's two sequences, ReCoRD's three to thirty."""
    draw = np.random.default_rng(0)

    def ids(most: int) -> tuple[int, ...]:
        return (7,) * int(np.exp(draw.normal(np.log(most / 3), 0.5)).clip(3, most))

    items = []
    for number in range(count):
        options = (1, 2, int(draw.integers(3, 31)))[number % 3] if family == "encoder" else 1
        sources = tuple(ids(256) for _ in range(options))
        choices = () if family == "encoder" else (ids(24),)
        items.append(Item(sources, (), choices, (0,), (0,), False))
    return samples_of(items, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_as_large_as_it_was_planned_and_within_its_tokens(family: Family) -> None:
    samples = made_samples(family)
    network = SimpleNamespace(config=SimpleNamespace(decoder_start_token_id=0))
    tokenizer = SimpleNamespace(pad_token_id=1)
    model = Model(family=family, network=network, tokenizer=tokenizer)
    plan = plan_samples(samples, family, tokens=BUDGET)
    steps = epoch_steps(plan, 0)
    computed = real = 0
    sizes = []
    for step in steps:
        for batch in step:
            feed = feed_of([samples[n] for n in batch], model, torch.device("cpu"))
            names = feed.inputs.keys() & {"input_ids", "decoder_input_ids"}
            sizes.append(sum(feed.inputs[name].numel() for name in names))
            computed += sizes[-1]
            real += int(feed.inputs["attention_mask"].sum())
            if family == "encoder-decoder":
                assert feed.labels is not None
                real += int((feed.labels >= 0).sum())
    assert 0.9 * BUDGET < max(sizes) == max(sizes[:2]) <= BUDGET
    assert real / computed == pytest.approx(padding_efficiency(plan, steps))
