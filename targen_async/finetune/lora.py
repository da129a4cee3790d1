"""Low-rank adapters (Hu et al. 2022) by peft, put into a network in place and taken out again.

The network keeps its class and its forward pass, so nothing else here knows of them; what is handed
out has the products added to the weights they stand beside, under the names of the plain model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from targen_async.errors import UserError
from targen_async.finetune.config import Lora
from targen_async.finetune.models import Model

_ADAPTER = "default"


def add_lora(model: Model, lora: Lora) -> None:
    """Freeze the network and put adapters beside its layers. An encoder's head stays as it is and
    is learnt: it begins anew for every run.

    Raises UserError where peft is not installed and where the network has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            "`[lora]` needs the package `peft`, which is not installed; pip install "
            "'targen-async[lora]'"
        ) from error
    network = model.network
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.target) or None,
        fan_in_fan_out=network.config.model_type == "gpt2",  # Its layers hold transposed weights.
    )
    try:
        inject_adapter_in_model(settings, network)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name in _linear_layers(network)})
        raise UserError(
            f"`lora.target` names no layer of this model (it has: {', '.join(known)})"
        ) from error
    if model.family == "encoder":
        body = f"{network.base_model_prefix}."
        for name, value in network.named_parameters():
            if not name.startswith(body):
                value.requires_grad_(True)


def merge_lora(network: Any, weights: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """The weights of the plain model: W + alpha / rank * B A in place of W, A and B."""
    merged = dict(weights)
    for name, layer in _adapted(network):
        a, b = (merged.pop(f"{name}.lora_{x}.{_ADAPTER}.weight") for x in "AB")
        added = (b.float() @ a.float()) * layer.scaling[_ADAPTER]
        base = f"{name}.base_layer."
        merged[f"{base}weight"] = merged[f"{base}weight"] + (
            added.T if layer.fan_in_fan_out else added
        ).to(merged[f"{base}weight"].dtype)
        for key in [key for key in merged if key.startswith(base)]:
            merged[f"{name}.{key.removeprefix(base)}"] = merged.pop(key)
    return merged


def count_learnt(network: Any) -> str:  # noqa: ANN401
    """How many of the parameters are learnt, in words; nothing where all are."""
    learnt = sum(value.numel() for value in network.parameters() if value.requires_grad)
    return f", of which {learnt:,} are learnt" if any(_adapted(network)) else ""


def _adapted(network: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    for name, layer in network.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            yield name, layer


def _linear_layers(network: Any) -> Iterator[str]:  # noqa: ANN401
    for name, layer in network.named_modules():
        if type(layer).__name__ in ("Linear", "Conv1D"):  # GPT-2's are of the second kind.
            yield name
