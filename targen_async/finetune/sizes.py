"""Sizes of models with random weights, so that everything runs with no download; and those of the
published models that they are named after, so that a run can be planned with no download either."""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.forms import Family

Kind = Literal["roberta", "bert", "t5", "gpt_neox", "gpt2", "llama"]
"""`model_type` of a config.json whose shape is known here."""


class Size(Struct, frozen=True, kw_only=True):
    kind: Kind
    settings: Mapping[str, Any]
    """As in a config.json, without vocabulary and positions."""
    hub: str = ""
    """The published model; its own vocabulary and positions follow."""
    vocabulary: int = 0
    positions: int = 0
    types: int = 1
    """Kinds of segments."""
    untied: bool = False
    """The published weights have an lm_head of their own; from a config it is tied."""


def _roberta(width: int, layers: int, heads: int, ff: int, **more: Any) -> Size:  # noqa: ANN401
    settings = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ff,
    }
    return Size(kind="roberta", settings=settings, **more)


def _t5(
    width: int,
    layers: int,
    heads: int,
    inner: int,
    ff: int,
    gated: bool = False,
    **more: Any,  # noqa: ANN401
) -> Size:
    settings = {
        "d_model": width,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "d_kv": inner,
        "d_ff": ff,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }
    return Size(kind="t5", settings=settings, vocabulary=32128 if "hub" in more else 0, **more)


def _pythia(width: int, layers: int, heads: int, **more: Any) -> Size:  # noqa: ANN401
    settings = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": more.pop("ff", 4 * width),
    }
    return Size(kind="gpt_neox", settings=settings, positions=2048, **more)


def _gpt2(width: int, layers: int, heads: int, ff: int, **more: Any) -> Size:  # noqa: ANN401
    settings = {
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": ff,
        "activation_function": "gelu",
    }
    return Size(kind="gpt2", settings=settings, positions=2048, **more)


def _llama(width: int, layers: int, heads: int, ff: int, **more: Any) -> Size:  # noqa: ANN401
    settings = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": ff,
        "rms_norm_eps": 1e-5,
    }
    return Size(kind="llama", settings=settings, positions=4096, **more)


SIZES: Mapping[Family, Mapping[str, Size]] = {
    "encoder": {
        "tiny": _roberta(128, 2, 4, 256),
        "roberta-base": _roberta(
            768, 12, 12, 3072, hub="FacebookAI/roberta-base", vocabulary=50265, positions=514
        ),
        "roberta-large": _roberta(
            1024, 24, 16, 4096, hub="FacebookAI/roberta-large", vocabulary=50265, positions=514
        ),
    },
    "encoder-decoder": {
        "tiny": _t5(128, 2, 4, 32, 256),
        "tiny-gated": _t5(128, 2, 4, 32, 256, gated=True),
        "t5-base": _t5(768, 12, 12, 64, 3072, hub="google-t5/t5-base"),
        "t5-large": _t5(1024, 24, 16, 64, 4096, hub="google-t5/t5-large"),
        "t5-3b": _t5(1024, 24, 32, 128, 16384, hub="google-t5/t5-3b"),
        "t5-11b": _t5(1024, 24, 128, 128, 65536, hub="google-t5/t5-11b"),
        "flan-t5-large": _t5(
            1024, 24, 16, 64, 2816, gated=True, hub="google/flan-t5-large", untied=True
        ),
        "flan-t5-xl": _t5(2048, 24, 32, 64, 5120, gated=True, hub="google/flan-t5-xl", untied=True),
        "flan-t5-xxl": _t5(
            4096, 24, 64, 64, 10240, gated=True, hub="google/flan-t5-xxl", untied=True
        ),
    },
    "decoder": {
        "tiny": _pythia(128, 2, 4, ff=256),
        "tiny-gpt2": _gpt2(128, 2, 4, 256),
        "tiny-llama": _llama(128, 2, 4, 256),
        "pythia-410m": _pythia(1024, 24, 16, hub="EleutherAI/pythia-410m", vocabulary=50304),
        "pythia-1.4b": _pythia(2048, 24, 16, hub="EleutherAI/pythia-1.4b", vocabulary=50304),
        "pythia-2.8b": _pythia(2560, 32, 32, hub="EleutherAI/pythia-2.8b", vocabulary=50304),
        "pythia-6.9b": _pythia(4096, 32, 32, hub="EleutherAI/pythia-6.9b", vocabulary=50432),
        "cerebras-gpt-590m": _gpt2(
            1536, 18, 12, 6144, hub="cerebras/Cerebras-GPT-590M", vocabulary=50257
        ),
        "llama-2-7b": _llama(4096, 32, 32, 11008, hub="meta-llama/Llama-2-7b-hf", vocabulary=32000),
    },
}
"""A name that does not begin with `tiny` is that of the model whose published configuration gave
the numbers. With `init = "config"` the vocabulary is our own, so embeddings differ in size."""

OTHERS = (
    Size(
        kind="bert",
        settings={
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
        hub="sentence-transformers/all-MiniLM-L6-v2",
        vocabulary=30522,
        positions=512,
        types=2,
    ),
)
"""Published models that a configuration names, and that are not made with random weights."""


def size_of(family: Family, name: str) -> Size:
    """Raises UserError with the names there are."""
    try:
        return SIZES[family][name]
    except KeyError:
        known = ", ".join(SIZES[family])
        raise UserError(f"`model.size`: there is no {family} {name!r} (known: {known})") from None


def published(hub: str) -> Size | None:
    """The size of a model on the hub, by its name with or without its owner; None: not known."""
    listed = [size for held in SIZES.values() for size in held.values() if size.hub]
    sizes = (*listed, *OTHERS)
    names = {name: size for size in sizes for name in (size.hub, size.hub.partition("/")[2])}
    return names.get(hub)


def round_vocabulary(vocabulary: int) -> int:
    """Rows of our own embeddings: a multiple of 64, as matrix units want; those over the
    tokenizer's are never asked for."""
    return -(-vocabulary // 64) * 64
