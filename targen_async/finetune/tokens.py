"""Examples as token ids: made once, cached by content, cut where a form says that it may be."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.config import ModelChoice
from targen_async.finetune.forms import form_digest, pose, pose_pairs
from targen_async.finetune.instructions import Instruction, pose_instructed
from targen_async.finetune.logits import logits_of
from targen_async.finetune.posed import Pairs, Posed
from targen_async.finetune.schema import Example, content_digest


class Item(Struct, frozen=True, array_like=True):
    """One example for a model. Ids are without padding."""

    sources: tuple[tuple[int, ...], ...]
    """What is read: one sequence, or of an encoder one for each option that is compared."""
    types: tuple[tuple[int, ...], ...]
    """Segment numbers beside `sources`, where the model reads them; else empty."""
    choices: tuple[tuple[int, ...], ...]
    """What can be written, in the order of the options; of an encoder, empty."""
    logits: tuple[int, ...]
    """Of an encoder: the logit of each option, or the one that is compared."""
    right: tuple[int, ...]
    """Places of the right options."""
    by_length: bool


class Tokens(Struct, frozen=True, kw_only=True):
    items: tuple[Item, ...]
    cut: int
    """Examples that were too long and lost a part."""


def token_cache() -> Path | None:
    """The folder that all runs of a user share: `TARGEN_CACHE`, else targen-async in the user's
    cache folder (XDG Base Directory Specification). None where the user has no home."""
    if own := os.environ.get("TARGEN_CACHE"):
        return Path(own) / "tokens"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return home / "targen-async" / "tokens"


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401
    choice: ModelChoice,
    names: Sequence[str] = (),
    instructions: Mapping[str, Instruction] | None = None,
    cache: Path | None = None,
) -> Tokens:
    """`names`: an encoder's logits. `cache`: a folder that may hold the same from before, of
    whatever run, and in whatever order the examples were.

    Raises UserError where what may not be cut is longer than the model reads.
    """
    order = sorted(range(len(examples)), key=lambda n: (examples[n].task, examples[n].key))
    made = _cached(
        [examples[n] for n in order], tokenizer, choice, names, instructions or {}, cache
    )
    items = dict(zip(order, made.items, strict=True))
    return Tokens(items=tuple(items[n] for n in range(len(examples))), cut=made.cut)


def _cached(
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401
    choice: ModelChoice,
    names: Sequence[str],
    instructions: Mapping[str, Instruction],
    cache: Path | None,
) -> Tokens:
    path = cache and cache / f"{_key(examples, tokenizer, choice, names, instructions)}.tokens"
    if path:
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.msgpack.decode(path.read_bytes(), type=Tokens)
    if choice.family == "encoder":
        made = _encode_pairs(examples, tokenizer, choice.max_source, names)
    else:
        made = _encode_texts(examples, tokenizer, choice, instructions)
    if path:
        _keep(path, msgspec.msgpack.encode(made))
    return made


def _keep(path: Path, content: bytes) -> None:
    """Written beside and renamed: another process reads all of it or nothing. Where it cannot be
    written the ids are made anew each time, and nothing else is lost."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.stem}.{uuid4().hex}")
        try:
            half.write_bytes(content)
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)


def _key(
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401
    choice: ModelChoice,
    names: Sequence[str],
    instructions: Mapping[str, Instruction],
) -> str:
    """Of all that the ids depend on, this package's version and that of the tokenizers included."""
    family = choice.family
    forms = [form_digest(task, family) for task in sorted({one.task for one in examples})]
    told = [instructions[task].digest for task in sorted(instructions)]
    lengths = (choice.max_source, choice.max_target)
    spans = [sorted(one.spans.items()) for one in examples]
    versions = [version(name) for name in ("targen-async", "tokenizers")]
    ends = (tokenizer.eos_token_id, tokenizer.model_input_names)
    content = (content_digest(examples), spans, forms, told, list(names))
    digest = sha256(msgspec.json.encode((versions, family, content, lengths, ends)))
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:32]


# ---- encoders


def _encode_pairs(
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401
    longest: int,
    names: Sequence[str],
) -> Tokens:
    forms = [pose_pairs(one) for one in examples]
    pairs = [(first, second or "") for form in forms for first, second in form.texts]
    with_second = [second is not None for form in forms for _, second in form.texts]
    if not all(with_second):
        raise UserError("a form of one segment is not known here")
    made = tokenizer([p[0] for p in pairs], [p[1] for p in pairs], return_attention_mask=False)
    typed = "token_type_ids" in tokenizer.model_input_names
    items, cut, at = [], 0, 0
    for one, form in zip(examples, forms, strict=True):
        end = at + len(form.texts)
        ids = [tuple(made["input_ids"][n]) for n in range(at, end)]
        types = [tuple(made["token_type_ids"][n]) for n in range(at, end)] if typed else []
        if any(len(sequence) > longest for sequence in ids):
            cut += 1
            shorter = [_shorter(pair, form, tokenizer, longest) for pair in pairs[at:end]]
            ids = [tuple(found["input_ids"]) for found in shorter]
            types = [tuple(found["token_type_ids"]) for found in shorter] if typed else []
        logits = logits_of(names, one.task)
        items.append(Item(tuple(ids), tuple(types), (), logits, form.right, False))
        at = end
    return Tokens(items=tuple(items), cut=cut)


def _shorter(
    pair: tuple[str, str],
    form: Pairs,
    tokenizer: Any,  # noqa: ANN401
    longest: int,
) -> Any:  # noqa: ANN401
    """The pair within the limit: its longer segment cut, or both where the other fills the limit"""
    other = len(tokenizer(pair[1 - form.longer], add_special_tokens=False)["input_ids"])
    room = longest - other - tokenizer.num_special_tokens_to_add(pair=True)
    how = ("only_first", "only_second")[form.longer] if room > 0 else "longest_first"
    return tokenizer(*pair, truncation=how, max_length=longest)


# ---- models that write


def pose_text(example: Example, choice: ModelChoice, told: Mapping[str, Instruction]) -> Posed:
    """The form of an example for a model that writes. One that was instructed is so in every task:
    in those it was not taught, without demonstrations."""
    if told:
        return pose_instructed(example, told.get(example.task, Instruction(task=example.task)))
    if choice.family == "encoder":
        raise UserError("an encoder writes nothing")
    return pose(example, choice.family)


def _encode_texts(
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401
    choice: ModelChoice,
    told: Mapping[str, Instruction],
) -> Tokens:
    forms = [pose_text(one, choice, told) for one in examples]
    decoder = choice.family == "decoder"
    made = tokenizer([form.source for form in forms], return_offsets_mapping=True)
    # What follows a prompt begins with a blank.
    words = {(" " if decoder else "") + text for form in forms for text in form.choices}
    listed = sorted(words)
    ids = tokenizer(listed, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    written = {word: (*found, end) for word, found in zip(listed, ids, strict=True)}
    items, cut = [], 0
    for number, (one, form) in enumerate(zip(examples, forms, strict=True)):
        choices = tuple(written[(" " if decoder else "") + text] for text in form.choices)
        deepest = max(map(len, choices))
        room = choice.max_source - (deepest if decoder else 0)
        source = list(made["input_ids"][number])
        if len(source) > room:
            cut += 1
            source = _cut_text(source, made["offset_mapping"][number], form, room, one.key)
        items.append(Item((tuple(source),), (), choices, (), form.right, form.by_length))
    return Tokens(items=tuple(items), cut=cut)


def check_targets(examples: Sequence[Example], tokens: Tokens, choice: ModelChoice) -> None:
    """Raises UserError where an answer that is to be learnt is longer than an encoder-decoder is to
    write. What is only ranked may have any length."""
    if choice.family != "encoder-decoder":
        return
    for one, item in zip(examples, tokens.items, strict=True):
        longest = max((len(item.choices[number]) for number in item.right), default=0)
        if longest > choice.max_target:
            raise UserError(
                f"{one.key}: an answer has {longest} tokens, and `model.max_target` is "
                f"{choice.max_target}"
            )


def _cut_text(
    ids: list[int], offsets: Sequence[tuple[int, int]], form: Posed, room: int, key: str
) -> list[int]:
    """Without the last tokens of the text that may be cut, as many as are too many."""
    start, end = form.cut or (0, 0)
    loose = [n for n, (a, b) in enumerate(offsets) if a < b and start <= a and b <= end]
    spare = len(ids) - room
    if spare > len(loose):
        raise UserError(
            f"{key} has {len(ids)} tokens, the model reads {room}, and only {len(loose)} of them "
            "may be cut: raise `model.max_source`, or show fewer examples in the instruction"
        )
    gone = set(loose[len(loose) - spare :])
    return [one for n, one in enumerate(ids) if n not in gone]
