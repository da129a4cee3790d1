"""From a configuration to the examples of a run: what is trained on, what is held out."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.config import Source, TrainConfig
from targen_async.finetune.data import (
    Loaded,
    Part,
    equal_sizes,
    load_examples,
    mix_examples,
    sample_examples,
    split_examples,
)
from targen_async.finetune.instructions import Instruction, take_demonstrations
from targen_async.finetune.schema import Example


class Prepared(Struct, frozen=True, kw_only=True):
    train: list[Example]
    """One epoch."""
    validation: Mapping[str, list[Example]]
    """By task."""
    instructions: Mapping[str, Instruction]
    sources: list[dict[str, Any]]
    """For the model card: task, source, split, rows, digests."""
    simulated: bool

    @property
    def digest(self) -> str:
        """SHA-256 over the content of every source, in order."""
        return sha256("".join(one["digest"] for one in self.sources).encode()).hexdigest()

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.task for one in self.train))


def prepare(config: TrainConfig) -> Prepared:
    """Raises UserError, one sentence that names the place, for what cannot be trained on."""
    data, seed = config.data, config.training.random_seed
    loaded = [_load(source, seed) for source in data.train]
    parts = [list(one.examples) for one in loaded]
    validation: dict[str, list[Example]] = {}
    if data.held_out:
        parts, validation = _hold_out(parts, data.held_out, seed)
    checks = [_load(source, seed) for source in data.validation]
    _check_apart(list(zip(loaded, parts, strict=True)), checks)
    for one in checks:
        validation.setdefault(one.task, []).extend(one.examples)
    for held in (*parts, *validation.values()):
        lacking = next((one for one in held if one.label is None), None)
        if lacking is not None:
            raise UserError(f"{lacking.key} has no label: its split is not for training")
    instructions: dict[str, Instruction] = {}
    if data.instructed:
        parts, instructions = _instruct(parts, data.demonstrations, seed)
        for task in validation:
            instructions.setdefault(task, Instruction(task=task))
    if data.equal_sizes:
        parts = equal_sizes(parts, seed)
    mixed = mix_examples(
        [
            Part(name=one.source, examples=part, weight=source.weight)
            for one, part, source in zip(loaded, parts, data.train, strict=True)
        ],
        seed,
        data.rows,
    )
    return Prepared(
        train=mixed,
        validation=validation,
        instructions=instructions,
        sources=[
            *(_told(one, "training", len(p)) for one, p in zip(loaded, parts, strict=True)),
            *(_told(one, "validation", len(one.examples)) for one in checks),
        ],
        simulated=any(one.simulated for one in loaded),
    )


def _load(source: Source, random_seed: int) -> Loaded:
    loaded = load_examples(source.source, source.task, source.split)
    if source.rows is None:
        return loaded
    try:
        cut = sample_examples(loaded.examples, source.rows, random_seed)
    except UserError as error:
        raise UserError(f"{source.source} ({source.task}): {error}") from error
    loaded.examples[:] = cut
    return loaded


def _told(one: Loaded, use: str, rows: int) -> dict[str, Any]:
    return {
        "use": use,
        "task": one.task,
        "origin": one.origin,
        "source": one.source,
        "split": one.split,
        "rows": rows,
        "digest": one.digest,
        "manifest_sha256": one.manifest_sha256,
        "simulated": one.simulated,
    }


def _hold_out(
    parts: Sequence[list[Example]], share: float, random_seed: int
) -> tuple[list[list[Example]], dict[str, list[Example]]]:
    """Sources of one task are split together: a text may stand in two of them."""
    home = {id(one): number for number, part in enumerate(parts) for one in part}
    by_task: dict[str, list[Example]] = {}
    for part in parts:
        by_task.setdefault(part[0].task, []).extend(part)
    kept: list[list[Example]] = [[] for _ in parts]
    validation: dict[str, list[Example]] = {}
    for task, examples in by_task.items():
        shares = {"train": 1 - share, "validation": share}
        found = split_examples(examples, shares, random_seed)
        validation[task] = found["validation"]
        for one in found["train"]:
            kept[home[id(one)]].append(one)
    return kept, validation


def _check_apart(trained: Sequence[tuple[Loaded, list[Example]]], checks: Sequence[Loaded]) -> None:
    """Raises UserError where what is measured on has an example that is trained on, or a passage or
    seed of one. Splits of the release may share passages, as those of BoolQ and RTE do."""
    owners: dict[tuple[str, bool, str], str] = {}
    for source, part in trained:
        for one in part:
            for mark in (_content(one), *one.bound):
                place = (one.task, source.origin == "run", mark)
                owners.setdefault(place, f"{one.key} of {source.source}")
    for source in checks:
        for one in source.examples:
            content = _content(one)
            for mark, made in ((m, r) for m in (content, *one.bound) for r in (True, False)):
                owner = owners.get((one.task, made, mark))
                released = not made and source.origin != "run"
                if owner is None or (released and mark != content):
                    continue
                shared = (
                    "trained on, as"
                    if mark == content
                    else ("has a passage, premise, text or seed of")
                )
                raise UserError(
                    f"{source.source}: {one.key} is measured on and {shared} {owner}: take it out "
                    "of one of them, or cut validation off with `data.held_out`"
                )


def _content(example: Example) -> str:
    return sha256(msgspec.json.encode(sorted(example.fields.items()))).hexdigest()


def _instruct(
    parts: Sequence[list[Example]], per_label: int, random_seed: int
) -> tuple[list[list[Example]], dict[str, Instruction]]:
    """Instructions by task, and the parts without what they show."""
    instructions: dict[str, Instruction] = {}
    by_task: dict[str, list[Example]] = {}
    for part in parts:
        by_task.setdefault(part[0].task, []).extend(part)
    left: set[int] = set()
    for task, examples in by_task.items():
        instructions[task], rest = take_demonstrations(examples, per_label, random_seed)
        left |= {id(one) for one in rest}
    return [[one for one in part if id(one) in left] for part in parts], instructions
