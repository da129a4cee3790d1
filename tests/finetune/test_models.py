"""A model's folder against what the configuration says of it, before weights are looked for."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async.errors import UserError
from targen_async.finetune.config import ModelChoice
from targen_async.finetune.models import check_model

FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "roberta": (
        {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]},
        "encoder",
    ),
    "a bare bert": ({"model_type": "bert", "architectures": ["BertModel"]}, "encoder"),
    "a bert that sees what it is to say": (
        {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
        "encoder",
    ),
    "a bert that does not": (
        {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
        "decoder",
    ),
    "nothing but a type": ({"model_type": "electra"}, "encoder"),
    "t5": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        "encoder-decoder",
    ),
    "neox": ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, "decoder"),
    "a bare neox": ({"model_type": "gpt_neox", "architectures": ["GPTNeoXModel"]}, "decoder"),
    "gpt2 and nothing but a type": ({"model_type": "gpt2"}, "decoder"),
    "a decoder with a head for classes": (
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        "encoder",
    ),
}


def check(raw: dict[str, Any]) -> None:
    check_model(msgspec.convert(raw, ModelChoice), packing=False)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_family_has_to_be_the_models(name: str, tmp_path: Path) -> None:
    """A RoBERTa that is trained as a decoder sees the answer it is to give."""
    config, family = FOLDERS[name]
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    raw = {"init": str(tmp_path), "max_source": 64}
    check({**raw, "family": family})
    for other in {"encoder", "encoder-decoder", "decoder"} - {family}:
        sentence = f"`model.family` is {other}, and {tmp_path} is of type {config['model_type']}, "
        with pytest.raises(UserError, match=re.escape(sentence)) as told:
            check({**raw, "family": other})
        assert str(told.value).endswith(family)


@pytest.mark.parametrize(
    ("key", "value"), [("dropout", 0.0), ("size", "huge"), ("vocabulary", 99_999)]
)
def test_what_random_weights_are_told_is_refused_of_a_model(
    key: str, value: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FOLDERS["roberta"][0]), "utf-8")
    raw = {"family": "encoder", "init": str(tmp_path), "max_source": 64, key: value}
    with pytest.raises(UserError, match=f"`model.{key}` is for random weights, and .*: drop it"):
        check(raw)
