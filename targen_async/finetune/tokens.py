"""Examples as token ids: made once, cached by content, cut where a form says that it may be."""

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.config import ModelChoice
from targen_async.finetune.forms import form_digest, pose, pose_pairs
from targen_async.finetune.instructions import Instruction, pose_instructed
from targen_async.finetune.logits import logits_of
from targen_async.finetune.posed import Pairs, Posed
from targen_async.finetune.schema import Example, content_digest

_FORMAT = 1


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


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401
    choice: ModelChoice,
    names: Sequence[str] = (),
    instructions: Mapping[str, Instruction] | None = None,
    cache: Path | None = None,
) -> Tokens:
    """`names`: an encoder's logits. `cache`: a folder that may hold the same from before.

    Raises UserError where what may not be cut is longer than the model reads.
    """
    told = instructions or {}
    path = cache and cache / f"{_key(examples, tokenizer, choice, names, told)}.tokens"
    if path and path.is_file():
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=Tokens)
        except msgspec.DecodeError:
            pass  # Half written by a start that died: it is made again.
    if choice.family == "encoder":
        made = _encode_pairs(examples, tokenizer, choice.max_source, names)
    else:
        made = _encode_texts(examples, tokenizer, choice, told)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")
        half.write_bytes(msgspec.msgpack.encode(made))
        half.replace(path)
    return made


def _key(
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401
    choice: ModelChoice,
    names: Sequence[str],
    instructions: Mapping[str, Instruction],
) -> str:
    family = choice.family
    forms = [form_digest(task, family) for task in sorted({one.task for one in examples})]
    told = [instructions[task].digest for task in sorted(instructions)]
    lengths = (choice.max_source, choice.max_target)
    spans = [sorted(one.spans.items()) for one in examples]
    of = (_FORMAT, family, content_digest(examples), spans, forms, told, list(names), lengths)
    digest = sha256(msgspec.json.encode(of))
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
