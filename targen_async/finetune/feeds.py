"""Token ids as tensors, the loss of a batch, and what a model thinks of each option.

The loss is a sum, and its divisor is counted before anything runs, over all ranks and accumulation
steps: whoever calls divides by that, and no split of a step into batches changes its gradient.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from msgspec import Struct
from torch import Tensor
from torch.nn import functional

from targen_async.errors import RunStopped
from targen_async.finetune.batches import BatchPlan, plan_batches
from targen_async.finetune.forms import Family
from targen_async.finetune.models import Model
from targen_async.finetune.tokens import Item

Text = tuple[Sequence[int], Sequence[int]]
"""Ids of what is read and of what is written."""
_IGNORED = -100
_MULTIPLE = 8
_TOKENS_AT_ONCE = 8192
"""Padded tokens of a batch that is only read."""
_Found = TypeVar("_Found")


class Sample(Struct, frozen=True, array_like=True):
    """What one loss is taken of: an item, and of models that write one right choice of it."""

    item: Item
    choice: int | None


class Pack(Struct, frozen=True, array_like=True):
    """Samples of a decoder that share a row and do not see each other."""

    samples: tuple[Sample, ...]


class Feed(Struct, frozen=True, kw_only=True):
    """One batch on a device. `inputs`: what the network is called with, ids of shape (rows, width).

    Of an encoder, `rows` and `logits` of shape (items, options) say which logit each option has,
    `open` which options there are and `right` which are right. Of the others, `labels` of the shape
    of the ids that are written, -100 where nothing is learnt.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None = None
    rows: Tensor | None = None
    logits: Tensor | None = None
    open: Tensor | None = None
    right: Tensor | None = None


def samples_of(items: Iterable[Item], family: Family) -> list[Sample]:
    """T5 and decoders learn every right choice of an item, as T5 does for ReCoRD."""
    if family == "encoder":
        return [Sample(item, None) for item in items]
    return [Sample(item, choice) for item in items for choice in item.right]


def pack_samples(samples: Sequence[Sample], width: int) -> list[Pack]:
    """Rows of at most `width` tokens, longest sample first, each in the first row with room for it
    (first-fit decreasing, Johnson 1973)."""
    lengths = [sum(lengths_of(sample, "decoder")) for sample in samples]
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(samples)), key=lambda n: -lengths[n]):
        length = lengths[number]
        row = next((n for n, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(number)
        room[row] -= length
    return [Pack(tuple(samples[n] for n in row)) for row in rows]


def lengths_of(sample: Sample | Pack, family: Family) -> tuple[int, int]:
    """Source and target tokens of a sample's longest row."""
    if isinstance(sample, Pack):
        return sum(sum(lengths_of(one, family)) for one in sample.samples), 0
    if sample.choice is None:
        return max(map(len, sample.item.sources)), 0
    source, target = len(sample.item.sources[0]), len(sample.item.choices[sample.choice])
    return (source, target) if family == "encoder-decoder" else (source + target, 0)


def plan_samples(
    samples: Sequence[Sample] | Sequence[Pack],
    family: Family,
    *,
    tokens: int | None = None,
    examples: int | None = None,
    batches: int = 1,
    random_seed: int = 0,
) -> BatchPlan:
    """`plan_batches` over the shapes that `feed_of` gives these samples."""
    lengths = [lengths_of(sample, family) for sample in samples]
    rows = [_rows_of(sample) for sample in samples]
    return plan_batches(
        [source for source, _ in lengths],
        [target for _, target in lengths],
        rows=[len(own) or 1 for own in rows],
        real=[sum(own) or sum(all_of) for own, all_of in zip(rows, lengths, strict=True)],
        tokens=tokens,
        examples=examples,
        batches=batches,
        random_seed=random_seed,
    )


def _rows_of(sample: Sample | Pack) -> list[int]:
    """Tokens of the rows of what an encoder reads; empty for others, which have one row."""
    if isinstance(sample, Pack) or sample.choice is not None:
        return []
    return [len(ids) for ids in sample.item.sources]


def weight_of(sample: Sample | Pack) -> int:
    """What the loss of a sample is a sum over: its items, or the tokens of its answer."""
    if isinstance(sample, Pack):
        return sum(map(weight_of, sample.samples))
    return 1 if sample.choice is None else len(sample.item.choices[sample.choice])


def feed_of(samples: Sequence[Sample] | Sequence[Pack], model: Model, device: torch.device) -> Feed:
    """One batch of samples."""
    packs = [one.samples for one in samples if isinstance(one, Pack)]
    if packs:
        return _packed_feed([[_text_of(one) for one in pack] for pack in packs], model, device)
    alone = [one for one in samples if isinstance(one, Sample)]
    if model.family == "encoder":
        return _pairs_feed([one.item for one in alone], model, device)
    return _text_feed([_text_of(one) for one in alone], model, device)


def _text_of(sample: Sample) -> Text:
    return sample.item.sources[0], sample.item.choices[sample.choice or 0]


def loss_sum(call: Callable[..., Any], feed: Feed) -> Tensor:
    """The summed loss of a batch, in float32: cross-entropy of the right option, or tokens.

    `call`: the network, or an engine around it.
    """
    if feed.labels is None:
        scores, right = _option_scores(call, feed), feed.right
        assert right is not None
        wanted = scores.masked_fill(~right, -torch.inf)
        return (scores.logsumexp(-1) - wanted.logsumexp(-1)).sum()
    logits = call(**feed.inputs, use_cache=False).logits.float()
    return functional.cross_entropy(
        logits.flatten(0, 1), feed.labels.flatten(), ignore_index=_IGNORED, reduction="sum"
    )


def score_items(model: Model, items: Sequence[Item], device: torch.device) -> list[list[float]]:
    """For each item a figure for each option, the higher the likelier: logits of an encoder, else
    the log-likelihood of the choice, per token where the form says so. Longest batches first."""
    network = model.network
    was_training = network.training
    network.eval()
    found: list[list[float]] = [[] for _ in items]
    score = _score_pairs if model.family == "encoder" else _score_texts
    with torch.inference_mode():
        for numbers in batches_by_length(items):
            some = [items[number] for number in numbers]
            scored = in_memory(lambda part: score(model, part, device), some)
            for number, scores in zip(numbers, scored, strict=True):
                found[number] = scores
    network.train(was_training)
    return found


def in_memory(
    read: Callable[[Sequence[Item]], list[_Found]], items: Sequence[Item]
) -> list[_Found]:
    """What `read` finds for each item, in halves where a batch does not fit: within a run little
    memory is left. Raises RunStopped where one item does not."""
    try:
        return read(items)
    except torch.OutOfMemoryError as error:
        if len(items) == 1:
            raise RunStopped(
                f"one example of {max(map(len, items[0].sources))} tokens does not fit into the "
                "memory to be measured: shorten examples with `max_source`"
            ) from error
    half = len(items) // 2
    return [*in_memory(read, items[:half]), *in_memory(read, items[half:])]


def batches_by_length(items: Sequence[Item]) -> Iterator[list[int]]:
    """Numbers of items, the longest first: what does not fit into memory fails at once."""

    def width(item: Item) -> int:
        return max(map(len, item.sources)) + max(map(len, item.choices), default=0)

    batch: list[int] = []
    rows = widest = 0
    for number in sorted(range(len(items)), key=lambda n: -width(items[n])):
        item = items[number]
        more = max(len(item.sources), len(item.choices))
        widest = widest or width(item)
        if batch and (rows + more) * widest > _TOKENS_AT_ONCE:
            yield batch
            batch, rows, widest = [], 0, width(item)
        batch.append(number)
        rows += more
    if batch:
        yield batch


# ---- encoders


def _pairs_feed(items: Sequence[Item], model: Model, device: torch.device) -> Feed:
    sources = [ids for item in items for ids in item.sources]
    inputs = padded_inputs(sources, model, device)
    if items[0].types:
        types = [ids for item in items for ids in item.types]
        inputs["token_type_ids"] = _padded(types, 0, device)
    options = max(max(len(item.sources), len(item.logits)) for item in items)
    rows, logits = torch.zeros(2, len(items), options, dtype=torch.long).unbind()
    is_open, right = torch.zeros(2, len(items), options, dtype=torch.bool).unbind()
    first = 0
    for n, item in enumerate(items):
        count = max(len(item.sources), len(item.logits))
        compared = len(item.sources) > 1
        rows[n, :count] = torch.arange(first, first + count) if compared else first
        logits[n, :count] = item.logits[0] if compared else torch.tensor(item.logits)
        is_open[n, :count] = True
        right[n, list(item.right)] = True
        first += len(item.sources)
    return Feed(
        inputs=inputs,
        rows=rows.to(device),
        logits=logits.to(device),
        open=is_open.to(device),
        right=right.to(device),
    )


def _option_scores(call: Callable[..., Any], feed: Feed) -> Tensor:
    """Of shape (items, options), -inf where there is no option."""
    assert feed.rows is not None and feed.open is not None
    logits = call(**feed.inputs).logits.float()
    scores: Tensor = logits[feed.rows, feed.logits]
    return scores.masked_fill(~feed.open, -torch.inf)


def _score_pairs(model: Model, items: Sequence[Item], device: torch.device) -> list[list[float]]:
    feed = _pairs_feed(items, model, device)
    scores = _option_scores(model.network, feed).tolist()
    counts = [max(len(item.sources), len(item.logits)) for item in items]
    return [row[:count] for row, count in zip(scores, counts, strict=True)]


# ---- models that write


def _text_feed(pairs: Sequence[Text], model: Model, device: torch.device) -> Feed:
    """An encoder-decoder reads a source and writes a target; a decoder has both in one."""
    if model.family == "encoder-decoder":
        inputs = padded_inputs([source for source, _ in pairs], model, device)
        labels = _padded([target for _, target in pairs], _IGNORED, device)
        inputs["decoder_input_ids"] = _shifted(labels, model)
        return Feed(inputs=inputs, labels=labels)
    inputs = padded_inputs([(*source, *target) for source, target in pairs], model, device)
    learnt = [_learnt(source, target) for source, target in pairs]
    return Feed(inputs=inputs, labels=_padded(learnt, _IGNORED, device))


def _learnt(source: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """The labels of one text: the logits at a place are of the token after it."""
    return (*(_IGNORED,) * (len(source) - 1), *target, _IGNORED)


def _packed_feed(packs: Sequence[Sequence[Text]], model: Model, device: torch.device) -> Feed:
    """Several texts a row, each with positions from 0. The mask, of shape (rows, 1, width, width),
    lets a token see what stands before it in its own text; padding is a text of its own."""
    ids = [[token for text in pack for part in text for token in part] for pack in packs]
    learnt = [[label for text in pack for label in _learnt(*text)] for pack in packs]
    sizes = [[sum(map(len, text)) for text in pack] for pack in packs]
    places = [[place for size in row for place in range(size)] for row in sizes]
    owners = [[number for number, size in enumerate(row) for _ in range(size)] for row in sizes]
    owner = _padded(owners, -1, device)
    same = owner[:, None, :, None] == owner[:, None, None, :]
    inputs = {
        "input_ids": _padded(ids, model.tokenizer.pad_token_id, device),
        "position_ids": _padded(places, 0, device),
        "attention_mask": same.tril(),
    }
    return Feed(inputs=inputs, labels=_padded(learnt, _IGNORED, device))


def _shifted(labels: Tensor, model: Model) -> Tensor:
    """What the decoder is given: a start, then all tokens but the last."""
    config = model.network.config
    shifted = labels.new_full(labels.shape, config.decoder_start_token_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == _IGNORED, model.tokenizer.pad_token_id)


def _score_texts(model: Model, items: Sequence[Item], device: torch.device) -> list[list[float]]:
    pairs = [(item.sources[0], choice) for item in items for choice in item.choices]
    feed = _text_feed(pairs, model, device)
    inputs = dict(feed.inputs)
    if model.family == "encoder-decoder":
        # A source is read once, however many choices it has.
        once = padded_inputs([item.sources[0] for item in items], model, device)
        read = model.network.get_encoder()(**once, return_dict=True)
        times = torch.tensor([len(item.choices) for item in items], device=device)
        del inputs["input_ids"]
        read.last_hidden_state = read.last_hidden_state.repeat_interleave(times, 0)
        inputs |= {
            "encoder_outputs": read,
            "attention_mask": once["attention_mask"].repeat_interleave(times, 0),
        }
    logits = model.network(**inputs, use_cache=False).logits.float()
    assert feed.labels is not None
    losses = functional.cross_entropy(
        logits.transpose(1, 2), feed.labels, ignore_index=_IGNORED, reduction="none"
    )
    sums = (-losses.sum(-1)).tolist()
    found, at = [], 0
    for item in items:
        own = zip(sums[at : at + len(item.choices)], item.choices, strict=True)
        found.append([total / len(c) if item.by_length else total for total, c in own])
        at += len(item.choices)
    return found


# ---- padding


def _padded(
    sequences: Sequence[Sequence[int]], filling: int, device: torch.device, left: bool = False
) -> Tensor:
    """Of shape (sequences, longest to a multiple of 8)."""
    width = -(-max(map(len, sequences)) // _MULTIPLE) * _MULTIPLE
    rows = [
        [*filled, *ids] if left else [*ids, *filled]
        for ids in sequences
        for filled in [(filling,) * (width - len(ids))]
    ]
    return torch.tensor(rows, dtype=torch.long).to(device, non_blocking=True)


def padded_inputs(
    sequences: Sequence[Sequence[int]], model: Model, device: torch.device, left: bool = False
) -> dict[str, Any]:
    """Ids and mask, padded on the right; on the `left` for what goes on writing where they end."""
    ones = [(1,) * len(ids) for ids in sequences]
    return {
        "input_ids": _padded(sequences, model.tokenizer.pad_token_id, device, left),
        "attention_mask": _padded(ones, 0, device, left),
    }
