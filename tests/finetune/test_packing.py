"""Several examples of a decoder in a row: the loss and the gradient are those of one a row."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async.errors import UserError  # noqa: E402
from targen_async.finetune.config import TrainConfig, load_train_config  # noqa: E402
from targen_async.finetune.feeds import (  # noqa: E402
    Sample,
    feed_of,
    lengths_of,
    loss_sum,
    pack_samples,
    weight_of,
)
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.models import PACKED, Model  # noqa: E402
from targen_async.finetune.tokens import Item  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import begun_from, curve, settings, write_config  # noqa: E402

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": {**SHAPE, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": GATED,
    "qwen2": GATED,
}


class Padding:
    pad_token_id = 0


def tiny(kind: str) -> Model:
    """In float64 and without dropout, so that what is left of a difference is a mistake."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=99, bos_token_id=1, eos_token_id=2, pad_token_id=0, **CONFIGS[kind]
    )
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    network = transformers.AutoModelForCausalLM.from_config(config).double().train()
    return Model(family="decoder", network=network, tokenizer=Padding())


def samples(count: int) -> list[Sample]:
    draw = torch.Generator().manual_seed(3)

    def ids(most: int) -> tuple[int, ...]:
        length = int(torch.randint(1, most, (), generator=draw))
        return tuple(torch.randint(3, 99, (length,), generator=draw).tolist())

    return [
        Sample(Item((ids(30),), (), (ids(6), ids(6)), (), (0,), False), 0) for _ in range(count)
    ]


def loss_and_gradient(model: Model, rows: Any) -> tuple[float, list[Any]]:
    """The loss in float64, which `loss_sum` rounds to float32."""
    model.network.zero_grad()
    feed = feed_of(rows, model, CPU)
    logits = model.network(**feed.inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), feed.labels.flatten(), reduction="sum"
    )
    loss.backward()
    with torch.no_grad():
        assert float(loss_sum(model.network, feed)) == pytest.approx(loss.item(), rel=1e-6)
    return loss.item(), [value.grad.clone() for value in model.network.parameters()]


def test_every_sample_stands_in_one_row_and_no_row_is_too_long() -> None:
    held = samples(50)
    rows = pack_samples(held, 40)
    assert sorted(map(repr, chain.from_iterable(row.samples for row in rows))) == sorted(
        map(repr, held)
    )
    widths = [lengths_of(row, "decoder")[0] for row in rows]
    assert max(widths) <= 40 and len(rows) < 30
    assert sum(map(weight_of, rows)) == sum(map(weight_of, held))


@pytest.mark.parametrize("kind", PACKED)
def test_packed_and_alone_examples_have_the_same_loss_and_gradient(kind: str) -> None:
    model, held = tiny(kind), samples(12)
    rows = pack_samples(held, 64)
    assert len(rows) < 6
    alone, packed = loss_and_gradient(model, held), loss_and_gradient(model, rows)
    assert packed[0] == pytest.approx(alone[0], rel=1e-12)
    for one, two in zip(alone[1], packed[1], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


def test_no_text_sees_another_of_its_row() -> None:
    """Other words in the first text of a row change nothing of what is thought in the second."""
    model = tiny("gpt_neox")
    first, second = samples(2)
    words = tuple((token + 7) % 96 + 3 for token in first.item.sources[0])
    other = replace(first, item=replace(first.item, sources=(words,)))
    found = []
    for beside in (first, other):
        [row] = pack_samples([second, beside], 200)
        feed = feed_of([row], model, CPU)
        start = 0 if row.samples[0] == second else sum(lengths_of(beside, "decoder"))
        width = sum(lengths_of(second, "decoder"))
        found.append(model.network(**feed.inputs).logits[0, start : start + width])
    assert torch.equal(*found)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grammar_run(tmp_path_factory.mktemp("rows") / "cb", "cb", 200)


def packed(family: str, source: Path, **training: Any) -> dict[str, Any]:
    raw = settings(family, source, steps=3, packing=True, tokens=4096, **training)
    raw["model"]["max_source"] = 512
    del raw["training"]["examples"]
    return raw


def test_a_run_of_packed_rows_learns_and_pads_less(rows: Path, tmp_path: Path) -> None:
    said: list[str] = []
    raw = packed("decoder", rows)
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path / "out", say=said.append)
    assert trained.loss < curve(tmp_path / "out")[0]["loss"]
    assert "200 samples" not in said[0] and " rows (" in said[0]
    share = int(said[0].split(";")[-1].split("%")[0])
    assert share >= 96


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("encoder-decoder", {}, "`training.packing` is for decoders: nothing keeps the examples"),
        ("encoder", {}, "`training.packing` is for decoders"),
        ("decoder", {"examples": 8, "tokens": None}, "bound a step by `training.tokens`"),
    ],
)
def test_packing_is_refused_where_it_cannot_be_right(
    family: str, changes: dict[str, Any], sentence: str, rows: Path, tmp_path: Path
) -> None:
    raw = packed(family, rows)
    raw["training"] = {k: v for k, v in (raw["training"] | changes).items() if v is not None}
    with pytest.raises(UserError, match=sentence):
        load_train_config(write_config(tmp_path / "run.toml", raw))


def test_an_architecture_that_was_not_tried_is_refused(rows: Path, tmp_path: Path) -> None:
    """BLOOM's attention counts distances by the mask, whatever positions it is given."""
    (tmp_path / "bloom").mkdir()
    path = tmp_path / "bloom" / "config.json"
    path.write_text(json.dumps({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}))
    raw = begun_from(packed("decoder", rows), path.parent)
    with pytest.raises(UserError, match="is of type bloom, and packed rows are right for gpt2"):
        train(msgspec.convert(raw, TrainConfig), tmp_path / "out", say=lambda _: None)
