"""Configurations for models with random weights, so that everything runs with no download."""

from collections.abc import Mapping
from typing import Any

from targen_async.errors import UserError
from targen_async.finetune.forms import Family

SIZES: Mapping[Family, Mapping[str, Mapping[str, Any]]] = {
    "encoder": {
        "tiny": {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
        },
        "roberta-base": {},
        "roberta-large": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    },
    "encoder-decoder": {
        "tiny": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4},
        "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        "t5-3b": {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32},
        "flan-t5-large": {
            "d_model": 1024,
            "d_kv": 64,
            "d_ff": 2816,
            "num_layers": 24,
            "num_heads": 16,
            "feed_forward_proj": "gated-gelu",
        },
        "flan-t5-xl": {
            "d_model": 2048,
            "d_kv": 64,
            "d_ff": 5120,
            "num_layers": 24,
            "num_heads": 32,
            "feed_forward_proj": "gated-gelu",
        },
    },
    "decoder": {
        "tiny": {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
        },
        "pythia-410m": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    },
}
"""RoBERTa, T5 and GPT-NeoX by family; a name other than `tiny` is that of the model whose published
configuration gave the numbers. The vocabulary is our own, so embeddings differ in size."""


def size_of(family: Family, name: str) -> Mapping[str, Any]:
    """Raises UserError with the names there are."""
    try:
        return SIZES[family][name]
    except KeyError:
        known = ", ".join(SIZES[family])
        raise UserError(f"`model.size`: there is no {family} {name!r} (known: {known})") from None
