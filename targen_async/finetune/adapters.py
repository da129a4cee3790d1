"""How many parameters low-rank adapters have, without torch and without peft."""

from collections.abc import Mapping

from targen_async.errors import UserError
from targen_async.finetune.config import Lora
from targen_async.finetune.shapes import Shape
from targen_async.finetune.sizes import Kind

_USUAL: Mapping[Kind, tuple[str, ...]] = {
    "roberta": ("query", "value"),
    "bert": ("query", "value"),
    "t5": ("q", "v"),
    "gpt_neox": ("query_key_value",),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
}
"""What peft takes where `lora.target` is empty."""


def learnt_with(lora: Lora, shape: Shape, logits: int) -> int:
    """Parameters that are learnt: the adapters' and, of an encoder, the head's.

    Raises UserError for a layer of `lora.target` that is not known here: the attention's are.
    """
    layers = _attention(shape)
    names = lora.target or _USUAL[shape.kind]
    strange = next((name for name in names if name not in layers), None)
    if strange:
        raise UserError(
            f"`lora.target`: adapters of {strange!r} cannot be planned (of a {shape.kind}: "
            f"{', '.join(layers)})"
        )
    # The decoder of an encoder-decoder has attention of its own and to what was read.
    times = shape.layers + 2 * shape.written
    adapters = sum(lora.rank * sum(layers[name]) for name in names) * times
    head = shape.width * logits + logits
    if shape.kind == "roberta":
        head += shape.width * (shape.width + 1)
    return adapters + (head if shape.family == "encoder" else 0)


def _attention(shape: Shape) -> dict[str, tuple[int, int]]:
    """Layers of the attention: what goes in, what comes out."""
    width, inner, shared = shape.width, shape.inner, shape.shared
    if shape.kind == "gpt_neox":
        return {"query_key_value": (width, 3 * width)}
    if shape.kind == "gpt2":
        return {"c_attn": (width, 3 * width)}
    ends = {
        "t5": ("q", "k", "v", "o"),
        "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    }.get(shape.kind, ("query", "key", "value"))
    dims = ((width, inner), (width, shared), (width, shared), (inner, width))
    return dict(zip(ends, dims, strict=False))
