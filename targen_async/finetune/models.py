"""Models and tokenizers of the three families: from a config, from a folder, from the hub.

Weights are loaded whole and in float32 on every rank, before anything of DeepSpeed exists:
transformers 5.23 loses an untied lm_head where it loads under a ZeRO-3 configuration.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from msgspec import Struct
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file

from targen_async.errors import RunStopped, UserError
from targen_async.finetune.config import ModelChoice
from targen_async.finetune.forms import Family
from targen_async.finetune.room import writing
from targen_async.finetune.shapes import own_positions
from targen_async.finetune.sizes import round_vocabulary, size_of

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
_WEIGHTS = "model.safetensors"
_UNSET = ModelChoice(family="encoder")
PACKED = ("gpt2", "gpt_neox", "llama", "qwen2")
"""Types of decoders that take positions and a mask of (rows, 1, width, width) as they are given,
so that several examples fit into a row: tested one by one."""
_READ, _WRITTEN = ("shared.weight",), ("lm_head.weight", "embed_out.weight")
"""Names in files of the embeddings that a loader which ties weights may lose."""
_DROPOUTS: Mapping[str, tuple[str, ...]] = {
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "t5": ("dropout_rate",),
    "gpt_neox": ("hidden_dropout", "attention_dropout"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
}
"""What an architecture calls its rates of dropout."""


class Model(Struct, frozen=True, kw_only=True):
    """A model with its tokenizer."""

    family: Family
    network: Any
    """A `transformers.PreTrainedModel` on the CPU, in float32."""
    tokenizer: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Of an encoder: what its logits stand for, see logits.py."""
        told = self.network.config.id2label
        return tuple(told[number] for number in range(len(told)))


def choose_tokenizer(choice: ModelChoice, texts: Iterable[str], folder: Path) -> Any:  # noqa: ANN401
    """The tokenizer of a run: one saved in `folder` by an earlier start, the model's own, or one
    trained on `texts` and saved there. Raises UserError where it cannot pad, RunStopped where the
    disk is full."""
    if choice.init != "config":
        return _pretrained_tokenizer(choice.init, choice.family)
    if not (folder / "tokenizer.json").is_file():
        tokenizer = train_tokenizer(texts, choice.vocabulary, choice.family)
        with writing(folder):
            tokenizer.save_pretrained(str(folder))
    return _pretrained_tokenizer(str(folder), choice.family)


def train_tokenizer(texts: Iterable[str], vocabulary: int, family: Family) -> Any:  # noqa: ANN401
    """A byte-level BPE (Radford et al. 2019), which no text is strange to."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    marks = [(mark, number) for number, mark in enumerate(_SPECIAL)]
    if family == "encoder":
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
        raw.post_processor = processors.TemplateProcessing(single, pair, marks)
    elif family == "encoder-decoder":
        raw.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", marks)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(
    choice: ModelChoice,
    tokenizer: Any,  # noqa: ANN401
    names: Sequence[str],
    random_seed: int,
) -> Model:
    """The model of a run; `names` are the logits of an encoder.

    Raises UserError for a size, folder or name that there is not; RunStopped where the embeddings
    in memory are not those of the file.
    """
    torch.manual_seed(random_seed)
    if choice.init == "config":
        config = _config(choice, len(tokenizer), names)
        network = _auto(choice.family).from_config(config)
    else:
        network = _load(choice.init, choice.family, names)
        if len(tokenizer) > network.get_input_embeddings().num_embeddings:
            raise UserError(
                f"{choice.init}: the tokenizer has {len(tokenizer)} entries and the model fewer: "
                "they do not belong together"
            )
    return Model(family=choice.family, network=network.float(), tokenizer=tokenizer)


def expected_parameters(choice: ModelChoice, vocabulary: int, names: Sequence[str]) -> int:
    """How many the model will have, before any of them takes memory; an untied lm_head that a
    config does not tell of is not counted. `vocabulary`: entries of the tokenizer where the weights
    are random. Raises UserError as `build_model`."""
    if choice.init == "config":
        config = _config(choice, vocabulary, names)
    else:
        config = open_config(choice.init)
    with torch.device("meta"):
        network = _asked(choice.init, _auto(choice.family).from_config, config)
    return sum(value.numel() for value in network.parameters())


def open_model(source: str, family: Family | None = None) -> Model:
    """A saved model, ready to be asked; the family is read off its config where it is not given.

    Raises UserError where it cannot be loaded.
    """
    config = open_config(source)
    family = family or family_of(config)
    network = _load(source, family, None)
    return Model(
        family=family,
        network=network.float().eval(),
        tokenizer=_pretrained_tokenizer(source, family),
    )


def open_config(source: str) -> Any:  # noqa: ANN401
    """The config of a saved model. Raises UserError where it cannot be loaded."""
    return _asked(source, transformers.AutoConfig.from_pretrained, source)


def family_of(config: Any) -> Family:  # noqa: ANN401
    """By what the config says of its architecture; of a body alone, by its kind."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    kind, built = config.model_type, " ".join(config.architectures or ())
    # BERT's kin can be called as causal models and look ahead unless their config says otherwise.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "encoder"
    if "For" in built and "CausalLM" not in built:
        return "encoder"
    return "decoder" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "encoder"


def check_model(choice: ModelChoice, packing: bool) -> None:
    """Raises UserError for what the model's config says cannot work, before there is a model."""
    if choice.init == "config":
        size_of(choice.family, choice.size)
        return
    for key in ("size", "vocabulary", "dropout"):
        if getattr(choice, key) != getattr(_UNSET, key):
            raise UserError(
                f"`model.{key}` is for random weights, and {choice.init} has its own: drop it"
            )
    config = open_config(choice.init)
    family = family_of(config)
    if family != choice.family:
        raise UserError(
            f"`model.family` is {choice.family}, and {choice.init} is of type "
            f"{config.model_type}, which is of family {family}"
        )
    check_length(config, choice)
    if packing and config.model_type not in PACKED:
        raise UserError(
            f"`training.packing`: {choice.init} is of type {config.model_type}, and packed rows "
            f"are right for {', '.join(PACKED)}: drop `training.packing`"
        )


def check_length(config: Any, choice: ModelChoice) -> None:  # noqa: ANN401
    """Raises UserError where `max_source` is over what the model has positions for."""
    places = places_of(config)
    if places is None or choice.family == "encoder-decoder":
        return
    if choice.max_source > places:
        raise UserError(
            f"`model.max_source` is {choice.max_source}, and {choice.init} reads {places} tokens "
            "at most"
        )


def places_of(config: Any) -> int | None:  # noqa: ANN401
    """How many tokens a model has positions for; None where it counts none."""
    places: int | None = getattr(config, "max_position_embeddings", None)
    if places is None:
        return None
    # RoBERTa's kin count positions from behind the padding's.
    return places - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)


def _config(choice: ModelChoice, vocabulary: int, names: Sequence[str]) -> Any:  # noqa: ANN401
    size = size_of(choice.family, choice.size)
    settings: dict[str, Any] = {
        **size.settings,
        "vocab_size": round_vocabulary(vocabulary),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **own_positions(size.kind, choice.max_source),
    }
    if size.kind == "roberta":
        settings |= {"type_vocab_size": 1, **_head(names)}
    elif size.kind == "t5":
        settings["decoder_start_token_id"] = 0
    if choice.dropout is not None:
        settings |= dict.fromkeys(_DROPOUTS[size.kind], choice.dropout)
    return transformers.AutoConfig.for_model(size.kind, **settings)


def _head(names: Sequence[str]) -> Mapping[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _auto(family: Family) -> Any:  # noqa: ANN401
    return {
        "encoder": transformers.AutoModelForSequenceClassification,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        "decoder": transformers.AutoModelForCausalLM,
    }[family]


def _asked(source: str, call: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
    """What transformers raises has many classes; the first line says what is wrong."""
    try:
        return call(*arguments, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the model {source!r} cannot be loaded: {reason}") from error


def _load(source: str, family: Family, names: Sequence[str] | None) -> Any:  # noqa: ANN401
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if family == "encoder" and names is not None:
        # A head of another number of logits is begun anew.
        options |= {**_head(names), "ignore_mismatched_sizes": True}
    network = _asked(source, _auto(family).from_pretrained, source, **options)
    check_embeddings(network, source)
    return network


def check_embeddings(network: Any, source: str) -> None:  # noqa: ANN401
    """Raises RunStopped where lm_head or the shared embeddings are not those of the file."""
    held = {name: network.get_input_embeddings() for name in _READ}
    held |= {name: network.get_output_embeddings() for name in _WRITTEN}
    for name, path in _files_of(source, set(held)).items():
        layer = held[name]
        with safe_open(path, "pt") as file:
            own = file.get_tensor(name).float()
        if layer is None or not torch.equal(layer.weight, own):
            raise RunStopped(
                f"{source}: {name} in memory is not that of the file: this version of "
                "transformers ties it to another; training would begin with wrong weights"
            )
    own = network.state_dict()
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if "shared.weight" in own and not torch.equal(own[name], own["shared.weight"]):
            raise RunStopped(f"{source}: {name} is not the shared embedding that it should be")


def _files_of(source: str, names: set[str]) -> dict[str, str]:
    """Which of a model's files has which of the tensors, where it has them at all."""

    def there(name: str) -> str | None:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else str(found)

    if path := there(_WEIGHTS):
        with safe_open(path, "pt") as file:
            return dict.fromkeys(names & set(file.keys()), path)
    if path := there(f"{_WEIGHTS}.index.json"):
        places = msgspec.json.decode(Path(path).read_bytes())["weight_map"]
        found = {name: there(places[name]) for name in names & set(places)}
        return {name: file for name, file in found.items() if file}
    return {}


def _pretrained_tokenizer(source: str, family: Family) -> Any:  # noqa: ANN401
    tokenizer = _asked(source, transformers.AutoTokenizer.from_pretrained, source)
    if tokenizer.pad_token_id is None:
        if family == "encoder" or tokenizer.eos_token_id is None:
            raise UserError(f"{source}: its tokenizer has no padding token, and batches need one")
        # GPT-NeoX and Llama have none; what is padded is masked, so any token does.
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.is_fast:
        raise UserError(f"{source}: its tokenizer has no tokenizer.json, which is needed here")
    return tokenizer
