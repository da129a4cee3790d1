"""A training run's configuration: one TOML file, every key known."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from targen_async.errors import UserError
from targen_async.finetune.forms import Family
from targen_async.finetune.schema import check_trainable
from targen_async.layouts import layout_of

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]

NO_FLOAT16 = (
    "T5's activations overflow float16, whose largest number is 65,504, and no loss is scaled "
    'here: use `training.precision = "bfloat16"`, or `"float32"`'
)
"""Why there is none (transformers#5651; T5 was trained in bfloat16)."""


class ModelChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which weights to begin with."""

    family: Family
    init: Annotated[str, Meta(min_length=1)] = "config"
    """`config`: random weights of `size`, with a tokenizer trained on the training split. Else a
    folder or a name on the hub, with weights as safetensors."""
    size: str = "tiny"
    """Of `init = "config"`: a name of the table in finetune/sizes.py."""
    vocabulary: Annotated[int, Meta(ge=300, le=1_000_000)] = 2000
    """Of `init = "config"`: entries of the byte-level BPE."""
    max_source: Annotated[int, Meta(ge=16)] = 256
    """Most tokens of what a model reads: a pair, a source, or a prompt with its answer."""
    max_target: Annotated[int, Meta(ge=2)] = 32
    """Most tokens of what an encoder-decoder writes."""
    dropout: Share | None = None
    """Of `init = "config"`; the architecture's own where unset."""


class Source(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Examples of one task, from a run, official files or the hub."""

    task: str
    source: Annotated[str, Meta(min_length=1)]
    split: Literal["train", "validation", "test"] = "train"
    rows: Count | None = None
    """A seeded cut; all of them where unset."""
    weight: Positive = 1.0
    """Share in the mixture, relative to the others'; only with `data.rows`."""


class DataChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    train: Annotated[tuple[Source, ...], Meta(min_length=1)]
    validation: tuple[Source, ...] = ()
    held_out: Share = 0.0
    """Share of each training source cut off for validation, with nothing on both sides."""
    rows: Count | None = None
    """Rows of an epoch of the mixture, dealt out by weight; every row once where unset."""
    equal_sizes: bool = False
    """Cut every training source, by seed, to as many rows as the smallest one has."""
    instructed: bool = False
    """Put definition, labels and examples before every instance (Natural Instructions)."""
    demonstrations: Annotated[int, Meta(ge=0, le=32)] = 0
    """Of an instruction: examples of each label, taken out of the training set."""


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    epochs: Positive = 3.0
    steps: Count | None = None
    """In place of epochs."""
    examples: Count | None = None
    """Examples of a step, over all ranks and accumulation steps. One of this and `tokens`."""
    tokens: Count | None = None
    """Most padded tokens of a batch of one rank."""
    accumulation: Count = 1
    """Batches of one rank in a step."""
    learning_rate: Positive = 3e-4
    """Of Adafactor it is times the root mean square of each weight: T5 was trained at 1e-2 and
    fine-tuned at 1e-3 (Raffel et al. 2020, section 3.1)."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Share = 0.06
    """Share of the steps in which the rate rises from 0."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    """Not for biases and norms."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, else float32."""
    gradient_checkpointing: bool = False
    packing: bool = False
    """Of a decoder: rows of `model.max_source` tokens are filled with several examples, which do
    not see each other. Only with `tokens`."""
    compile: bool = False
    """torch.compile: minutes at the start for faster steps. Not with ZeRO-3."""
    random_seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    save_every: Count = 500
    """Steps between checkpoints."""
    keep: Annotated[int, Meta(ge=2)] = 2
    """Checkpoints on disk: two at least, so that a damaged one has one before it."""
    evaluate_every: Count | None = None
    """Steps between evaluations of the validation examples; the best weights are what is kept."""
    patience: Count | None = None
    """Evaluations without a better one after which training ends."""
    deepspeed: str | None = None
    """A DeepSpeed JSON, from the configuration's folder; plain torch where unset."""


class Lora(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters (Hu et al. 2022) are learnt in place of the weights, and added to them in
    the model that is handed out."""

    rank: Annotated[int, Meta(ge=1, le=4096)] = 8
    alpha: Positive = 16.0
    """The product of the two small matrices counts alpha / rank times."""
    target: tuple[str, ...] = ()
    """Ends of the names of the layers that get one; those that peft knows for the architecture
    where empty."""


class Hardware(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the run is meant for: `targen plan-training` counts with it. The run itself looks at
    what is there."""

    gpus: Annotated[int, Meta(ge=1, le=100_000)] = 1
    gpu_memory: Positive = 80.0
    """GiB of each."""


class TrainConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelChoice
    data: DataChoice
    training: Training = field(default_factory=Training)
    lora: Lora | None = None
    """All weights are trained where unset."""
    hardware: Hardware = field(default_factory=Hardware)


def load_train_config(path: Path) -> TrainConfig:
    """The checked configuration; relative folders in it are as from its own folder where they
    exist there, else from the working folder.

    Raises UserError, one sentence that names the file and the key.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    _anchor(raw, path.parent)
    training = raw.get("training")
    if isinstance(training, dict) and training.get("precision") in ("float16", "fp16", "half"):
        raise UserError(f"{path}: `training.precision`: {NO_FLOAT16}")
    try:
        config = msgspec.convert(raw, TrainConfig)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {fault_of(error)}") from error
    try:
        check_train_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def check_train_config(config: TrainConfig) -> None:
    """Raises UserError for what can be told before anything is read."""
    training, data, model = config.training, config.data, config.model
    if (training.examples is None) == (training.tokens is None):
        raise UserError("a step is bounded by `training.examples` or `training.tokens`: give one")
    for source in data.train:
        layout_of(source.task)
        check_trainable(source.task)
    for source in data.validation:
        layout_of(source.task)
    if data.rows is None and any(source.weight != 1 for source in data.train):
        raise UserError("weights share out `data.rows`, which is not given")
    if data.equal_sizes and data.rows:
        raise UserError("`data.equal_sizes` and `data.rows` both say how many rows: give one")
    if data.demonstrations and not data.instructed:
        raise UserError("`data.demonstrations` belong to `data.instructed = true`")
    if data.instructed and model.family == "encoder":
        raise UserError("an encoder reads pairs and no instructions: drop `data.instructed`")
    if training.evaluate_every and not (data.validation or data.held_out):
        raise UserError(
            "`training.evaluate_every` needs `data.validation` or a share `data.held_out`"
        )
    if training.packing and model.family != "decoder":
        raise UserError(
            f"`training.packing` is for decoders: nothing keeps the examples in a row of an "
            f"{model.family} from seeing each other"
        )
    if training.packing and training.tokens is None:
        raise UserError(
            "`training.packing` fills rows with as many examples as fit: bound a step by "
            "`training.tokens`, not by `training.examples`"
        )
    if config.lora and model.init == "config":
        raise UserError(
            '`[lora]` leaves the weights as they are, and those of `model.init = "config"` are '
            "random: name a trained model there, or drop `[lora]`"
        )
    if config.lora and training.optimizer == "adafactor":
        raise UserError(
            "Adafactor takes steps in proportion to each weight, and half of the adapters of "
            "`[lora]` begin at zero: use `adamw`"
        )
    if training.patience and not training.evaluate_every:
        raise UserError("`training.patience` counts evaluations: give `training.evaluate_every`")


def _anchor(raw: dict[str, Any], home: Path) -> None:
    """Make paths that exist beside the configuration whole."""
    data = raw.get("data")
    parts = [data.get("train"), data.get("validation")] if isinstance(data, dict) else []
    tables = [one for part in parts if isinstance(part, list) for one in part]
    places = [(table, "source") for table in tables]
    places += [(raw.get("model"), "init"), (raw.get("training"), "deepspeed")]
    for table, key in places:
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(value, str) and value and (home / value).exists():
            table[key] = str((home / value).absolute())


def fault_of(error: msgspec.ValidationError) -> str:
    """What msgspec says of a value, the place first."""
    what, at, key = str(error).partition(" - at `$.")
    unknown = re.search(r"unknown field `(.+)`", what)
    place = key.removesuffix("`")
    if unknown:
        return f"there is no key `{'.'.join(filter(None, (place, unknown[1])))}`"
    return f"`{place}`: {what[:1].lower()}{what[1:]}" if at else what
