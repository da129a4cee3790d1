"""Adapters: what is learnt, what is handed out, what cannot work."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed: pip install '.[lora]'")

from safetensors.torch import load_file  # noqa: E402

from targen_async.errors import UserError  # noqa: E402
from targen_async.finetune.config import Lora, TrainConfig, load_train_config  # noqa: E402
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.lora import add_lora, merge_lora  # noqa: E402
from targen_async.finetune.models import Model  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import begun_from, curve, settings, write_config  # noqa: E402


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grammar_run(tmp_path_factory.mktemp("rows") / "cb", "cb", 200)


def adapted(family: str, source: Path, begun: Path, **training: Any) -> dict[str, Any]:
    raw = settings(family, source, steps=24, learning_rate=3e-3, **training)
    raw = begun_from(raw, begun)
    raw["lora"] = {"rank": 4, "alpha": 8.0}
    return raw


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder-decoder"])
def test_adapters_are_learnt_and_handed_out_merged(family: str, rows: Path, tmp_path: Path) -> None:
    """What training measures with adapters, a plain `from_pretrained` measures without."""
    first = settings(family, rows, steps=2)
    begun = train(msgspec.convert(first, TrainConfig), tmp_path / "begun", say=lambda _: None)
    raw = adapted(family, rows, begun.folder, evaluate_every=24)
    raw["data"]["held_out"] = 0.2
    raw["data"]["train"][0]["rows"] = 40
    said: list[str] = []
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path / "out", say=said.append)
    told = curve(tmp_path / "out")
    losses = [line["loss"] for line in told if "loss" in line]
    assert "4 steps an epoch, 24 in all" in said[0]
    assert sum(losses[-4:]) < sum(losses[:4])  # Of the same examples, in two epochs.
    assert ", of which " in said[0] and " are learnt;" in said[0]

    before = load_file(begun.folder / "model.safetensors")
    after = load_file(trained.folder / "model.safetensors")
    assert set(before) == set(after) and not any("lora" in name for name in after)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    head = {name for name in after if name.startswith("classifier")}
    touched = {"encoder": ("query", "value"), "decoder": ("query_key_value",)}.get(
        family, (".q.", ".v.")
    )
    assert changed and head <= changed
    assert all(any(part in name for part in touched) for name in changed - head)
    assert all(name.endswith("weight") for name in changed - head)
    assert "with adapters of rank 4" in (trained.folder / "README.md").read_text("utf-8")
    # In the run with adapters, and of the folder without: the same answers.
    in_run = next(line["evaluation"] for line in told if "evaluation" in line)
    found = {score.name: score.value for score in trained.reports["cb"].scores}
    assert in_run == {"cb": found}


def test_merged_weights_think_what_adapted_layers_thought() -> None:
    """Also where layers hold transposed weights, and with every adapter far from zero."""
    ids = torch.arange(3, 13)[None]
    for kind, target in (("gpt2", ()), ("gpt_neox", ("dense_h_to_4h",)), ("llama", ())):
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
        if kind != "gpt2":
            sizes["intermediate_size"] = 32
        config = transformers.AutoConfig.for_model(kind, vocab_size=64, **sizes)
        network = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        plain = {name: value.clone() for name, value in network.state_dict().items()}
        begun = network(ids).logits
        model = Model(family="decoder", network=network, tokenizer=None)
        add_lora(model, Lora(rank=3, alpha=9.0, target=target))
        learnt = [name for name, value in network.named_parameters() if value.requires_grad]
        assert learnt and all("lora_" in name for name in learnt)
        with torch.no_grad():
            for name, value in network.named_parameters():
                if "lora_" in name:
                    value.copy_(torch.randn(value.shape))
        thought = network(ids).logits
        merged = merge_lora(network, network.state_dict())
        assert set(merged) == set(plain)
        again = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        again.load_state_dict(merged)
        # The product is taken in float32.
        torch.testing.assert_close(again(ids).logits, thought, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(thought, begun, atol=1e-2)


def test_an_adapted_run_that_was_stopped_goes_on_bit_for_bit(rows: Path, tmp_path: Path) -> None:
    from targen_async.errors import RunStopped

    begun = train(
        msgspec.convert(settings("decoder", rows, steps=1), TrainConfig),
        tmp_path / "begun",
        say=lambda _: None,
    )
    made = msgspec.convert(adapted("decoder", rows, begun.folder), TrainConfig)
    train(made, tmp_path / "whole", say=lambda _: None)
    calls = iter(range(100))
    with pytest.raises(RunStopped):
        train(made, tmp_path / "broken", say=lambda _: None, stopped=lambda: next(calls) == 4)
    train(made, tmp_path / "broken", say=lambda _: None)
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


def test_adapters_and_gradient_checkpointing_go_together(rows: Path, tmp_path: Path) -> None:
    """No input of a frozen network needs a gradient, and those of its adapters are not lost."""
    first = msgspec.convert(settings("encoder", rows, steps=1), TrainConfig)
    begun = train(first, tmp_path / "begun", say=lambda _: None)
    for name, more in (("plain", {}), ("saving", {"gradient_checkpointing": True})):
        raw = adapted("encoder", rows, begun.folder, **more)
        raw["training"]["steps"] = 3
        train(msgspec.convert(raw, TrainConfig), tmp_path / name, say=lambda _: None)
    for one, two in zip(curve(tmp_path / "plain"), curve(tmp_path / "saving"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-5)


def test_what_adapters_cannot_do_is_told(rows: Path, tmp_path: Path) -> None:
    raw = adapted("encoder", rows, tmp_path)
    raw["model"]["init"] = "config"
    with pytest.raises(UserError, match=r"`\[lora\]` leaves the weights as they are, and those of"):
        load_train_config(write_config(tmp_path / "run.toml", raw))
    raw = adapted("encoder", rows, tmp_path)
    raw["training"]["optimizer"] = "adafactor"
    with pytest.raises(
        UserError, match=r"half of the adapters of `\[lora\]` begin at zero: use `a"
    ):
        load_train_config(write_config(tmp_path / "run.toml", raw))
    begun = train(
        msgspec.convert(settings("encoder", rows, steps=1), TrainConfig),
        tmp_path / "begun",
        say=lambda _: None,
    )
    raw = adapted("encoder", rows, begun.folder)
    raw["lora"]["target"] = ["q_proj"]
    wanted = (
        r"`lora.target` names no layer of this model \(it has: dense, key, out_proj, query, value\)"
    )
    with pytest.raises(UserError, match=wanted):
        train(msgspec.convert(raw, TrainConfig), tmp_path / "out", say=lambda _: None)


def test_without_peft_the_package_is_named(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package `peft`.*targen-async\[lora\]"):
        add_lora(Model(family="encoder", network=None, tokenizer=None), Lora())
