"""The shape of a transformer as its config.json tells it: parameters and FLOPs, without torch.

Checked in the tests against the published counts, and against transformers on the meta device.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.config import ModelChoice
from targen_async.finetune.forms import Family
from targen_async.finetune.sizes import Kind, Size, published, round_vocabulary, size_of

_FAMILIES: Mapping[Kind, Family] = {
    "roberta": "encoder",
    "bert": "encoder",
    "t5": "encoder-decoder",
}
"""The others are decoders."""


class Shape(Struct, frozen=True, kw_only=True):
    """What memory and time of a model depend on."""

    kind: Kind
    vocabulary: int
    width: int
    layers: int
    """Of an encoder-decoder: of its encoder."""
    written: int = 0
    """Layers of the decoder of an encoder-decoder."""
    heads: int
    inner: int
    """Heads times the width of one."""
    shared: int
    """As `inner`, of keys and values, where several heads share one."""
    ff: int
    gated: bool = False
    activation: str
    dropout: float
    parameters: int
    """Each once, however often it is used."""

    @property
    def family(self) -> Family:
        return _FAMILIES.get(self.kind, "decoder")

    @property
    def attention(self) -> int:
        """Weights of a layer's attention."""
        return 2 * self.width * (self.inner + self.shared)

    @property
    def feed_forward(self) -> int:
        """Weights of a layer's feed-forward network."""
        return (3 if self.gated else 2) * self.width * self.ff

    def flops(self, source: float, target: float = 0.0) -> float:
        """FLOPs of forward and backward pass over one sequence, without what is computed a second
        time. A multiplication and an addition are two; the backward pass is twice the forward pass
        (Kaplan et al. 2020, section 2.1); what a causal mask hides does not count.

        `target`: tokens that an encoder-decoder writes. Embeddings are looked up and cost nothing.
        """
        layer = 2 * (self.attention + self.feed_forward)
        scores = 4.0 * self.inner * source * source * self.layers
        forward = source * layer * self.layers
        if self.family == "encoder":
            return 3 * (forward + scores)
        if self.family == "decoder":
            return 3 * (forward + scores / 2 + 2 * source * self.width * self.vocabulary)
        cross = 2 * 2 * self.width * self.inner
        """Queries and output of the written tokens; as much for keys and values of those read."""
        forward += source * cross * self.written + scores
        forward += target * ((layer + cross) * self.written + 2 * self.width * self.vocabulary)
        forward += 4 * self.inner * (target * target / 2 + target * source) * self.written
        return 3 * forward


def shape_of_choice(choice: ModelChoice, logits: int) -> Shape:
    """The shape of the model that a configuration begins with; `logits`: of an encoder's head.

    Raises UserError for a folder whose config.json is not known here, and for a model on the hub
    that is not in the table of sizes.
    """
    if choice.init == "config":
        size = size_of(choice.family, choice.size)
        raw = {
            **size.settings,
            "vocab_size": round_vocabulary(choice.vocabulary),
            "type_vocab_size": 1,
            **own_positions(size.kind, choice.max_source),
        }
        if choice.dropout is not None:
            raw["dropout"] = choice.dropout
        return shape_of(size.kind, raw, logits)
    path = Path(choice.init) / "config.json"
    if path.is_file():
        found = _read(path)
        kind: Any = found.get("model_type")
        if kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise UserError(f"{path}: `model_type` is {kind!r}, and the shapes known are {known}")
        return shape_of(kind, found, logits)
    listed = published(choice.init)
    if listed is None:
        raise UserError(
            f"`model.init`: there is no folder {choice.init!r}, and the model's shape is not known "
            "without its config.json: download it, and name its folder"
        )
    return shape_of(listed.kind, _published(listed), logits)


def own_positions(kind: Kind, longest: int) -> dict[str, int]:
    """Positions of a model with random weights, under the name that its config has for them."""
    if kind == "t5":
        return {}
    if kind == "roberta":
        return {"max_position_embeddings": longest + 1}  # Counted from behind the padding's.
    return {"n_positions" if kind == "gpt2" else "max_position_embeddings": max(longest, 2048)}


def shape_of(kind: Kind, raw: Mapping[str, Any], logits: int = 0) -> Shape:
    """The shape that a config.json describes. Raises UserError where a key of its kind lacks."""
    try:
        return {"t5": _t5, "gpt2": _gpt2, "llama": _llama, "gpt_neox": _gpt_neox}.get(kind, _bert)(
            kind, raw, logits
        )
    except KeyError as error:
        raise UserError(f"the model's config.json has no {error}") from None


def _published(size: Size) -> dict[str, Any]:
    places = "n_positions" if size.kind == "gpt2" else "max_position_embeddings"
    return {
        **size.settings,
        "vocab_size": size.vocabulary,
        places: size.positions,
        "type_vocab_size": size.types,
        **({"tie_word_embeddings": False} if size.untied else {}),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no config of a model")
    return found


# ---- one function a kind: which keys there are, and which tensors


def _bert(kind: Kind, raw: Mapping[str, Any], logits: int) -> Shape:
    """RoBERTa has a head of two layers, BERT a pooler before one."""
    width, ff, layers = raw["hidden_size"], raw["intermediate_size"], raw["num_hidden_layers"]
    rows = raw["vocab_size"] + raw["max_position_embeddings"] + raw.get("type_vocab_size", 2)
    layer = 4 * (width * width + width) + 2 * width * ff + ff + width + 4 * width
    head = width * width + width + width * logits + logits
    return Shape(
        kind=kind,
        vocabulary=raw["vocab_size"],
        width=width,
        layers=layers,
        heads=raw["num_attention_heads"],
        inner=width,
        shared=width,
        ff=ff,
        activation=raw.get("hidden_act", "gelu"),
        dropout=raw.get("dropout", raw.get("hidden_dropout_prob", 0.1)),
        parameters=rows * width + 2 * width + layers * layer + head,
    )


def _t5(kind: Kind, raw: Mapping[str, Any], _: int) -> Shape:
    width, ff, layers, heads = raw["d_model"], raw["d_ff"], raw["num_layers"], raw["num_heads"]
    written = raw.get("num_decoder_layers") or layers
    inner, gated = heads * raw["d_kv"], raw.get("feed_forward_proj", "relu").startswith("gated")
    feed = (3 if gated else 2) * width * ff + width
    attention = 4 * width * inner + width
    biases = raw.get("relative_attention_num_buckets", 32) * heads
    tables = raw["vocab_size"] * width * (1 if raw.get("tie_word_embeddings", True) else 2)
    stacks = layers * (attention + feed) + written * (2 * attention + feed)
    return Shape(
        kind=kind,
        vocabulary=raw["vocab_size"],
        width=width,
        layers=layers,
        written=written,
        heads=heads,
        inner=inner,
        shared=inner,
        ff=ff,
        gated=gated,
        activation="gelu_new" if gated else "relu",
        dropout=raw.get("dropout", raw.get("dropout_rate", 0.1)),
        parameters=tables + stacks + 2 * (biases + width),
    )


def _gpt2(kind: Kind, raw: Mapping[str, Any], _: int) -> Shape:
    width, layers = raw["n_embd"], raw["n_layer"]
    ff = raw.get("n_inner") or 4 * width
    return Shape(
        kind=kind,
        vocabulary=raw["vocab_size"],
        width=width,
        layers=layers,
        heads=raw["n_head"],
        inner=width,
        shared=width,
        ff=ff,
        activation=raw.get("activation_function", "gelu_new"),
        dropout=raw.get("dropout", raw.get("resid_pdrop", 0.1)),
        parameters=(raw["vocab_size"] + raw["n_positions"]) * width
        + layers * _gpt_layer(width, ff)
        + 2 * width,
    )


def _gpt_neox(kind: Kind, raw: Mapping[str, Any], _: int) -> Shape:
    width, ff, layers = raw["hidden_size"], raw["intermediate_size"], raw["num_hidden_layers"]
    tables = 1 if raw.get("tie_word_embeddings", False) else 2
    return Shape(
        kind=kind,
        vocabulary=raw["vocab_size"],
        width=width,
        layers=layers,
        heads=raw["num_attention_heads"],
        inner=width,
        shared=width,
        ff=ff,
        activation=raw.get("hidden_act", "gelu"),
        dropout=raw.get("dropout", raw.get("hidden_dropout", 0.0)),
        parameters=tables * raw["vocab_size"] * width + layers * _gpt_layer(width, ff) + 2 * width,
    )


def _gpt_layer(width: int, ff: int) -> int:
    return 4 * (width * width + width) + 2 * width * ff + ff + width + 4 * width


def _llama(kind: Kind, raw: Mapping[str, Any], _: int) -> Shape:
    width, ff, layers = raw["hidden_size"], raw["intermediate_size"], raw["num_hidden_layers"]
    heads = raw["num_attention_heads"]
    one = raw.get("head_dim") or width // heads
    inner, shared = heads * one, (raw.get("num_key_value_heads") or heads) * one
    tables = raw["vocab_size"] * width * (1 if raw.get("tie_word_embeddings", False) else 2)
    layer = 2 * width * (inner + shared) + 3 * width * ff + 2 * width
    return Shape(
        kind=kind,
        vocabulary=raw["vocab_size"],
        width=width,
        layers=layers,
        heads=heads,
        inner=inner,
        shared=shared,
        ff=ff,
        gated=True,
        activation=raw.get("hidden_act", "silu"),
        dropout=0.0,
        parameters=tables + layers * layer + width,
    )
