"""One loader for rows of a run, official SuperGLUE files and the hub; mixtures, cuts and splits."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from targen_async.errors import UserError
from targen_async.finetune.official import HUB, official_file, read_hub, read_official
from targen_async.finetune.runs import MANIFEST, read_run, read_run_manifest
from targen_async.finetune.schema import Example, check_trainable, content_digest
from targen_async.layouts import layout_of
from targen_async.splits import group_marked, share_out

Split = Literal["train", "validation", "test"]


class Loaded(Struct, frozen=True, kw_only=True):
    """Examples of one task and where they came from: what a model card names."""

    task: str
    split: Split
    origin: Literal["run", "official", "hub"]
    source: str
    examples: list[Example]
    digest: str
    """SHA-256 of the content, see `content_digest`."""
    manifest_sha256: str | None = None
    """Of a run: its manifest.json, byte by byte."""
    simulated: bool = False


def load_examples(source: str | Path, task: str, split: Split) -> Loaded:
    """Examples of a task from a run's folder, a folder of official JSONL or the hub.

    `source`: a folder, or `aps/super_glue` for the hub. A run has no splits of its own: all of it
    is `train`. AX-b and AX-g have one split, `test`, whatever name but `train` it is asked for by.
    Raises UserError, one sentence that names file and line, for what cannot be used.
    """
    layout = layout_of(task)
    if split not in get_args(Split):
        raise UserError(f"there is no split {split!r} (known: {', '.join(get_args(Split))})")
    folder = Path(source)
    if str(source) == HUB and not folder.is_dir():
        if split == "train":
            check_trainable(task)
        return _loaded(task, split, "hub", HUB, list(read_hub(task, split)))
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(source)!r}, and the hub's set is called {HUB!r}")
    if (folder / MANIFEST).is_file():
        if split != "train":
            raise UserError(
                f"{folder} is a run and has no split {split!r}: all of it is train (`--split train`"
                "); cut one off its rows, or export it with `targen export --to jsonl --split`"
            )
        manifest, digest = read_run_manifest(folder)
        loaded = _loaded(task, split, "run", str(folder), list(read_run(folder, task, manifest)))
        return replace(loaded, manifest_sha256=digest, simulated=manifest.simulated)
    if split == "train" and layout.only_test:
        check_trainable(task)
    path = official_file(folder, task, split)
    return _loaded(task, split, "official", str(path), list(read_official(path, task, split)))


def _loaded(
    task: str,
    split: Split,
    origin: Literal["run", "official", "hub"],
    source: str,
    examples: list[Example],
) -> Loaded:
    if not examples:
        raise UserError(f"{source} has no example of {task} in {split}")
    return Loaded(
        task=task,
        split=split,
        origin=origin,
        source=source,
        examples=examples,
        digest=content_digest(examples),
    )


# ---- cuts, splits, mixtures


class Part(Struct, frozen=True, kw_only=True):
    """A set of examples in a mixture; `weight` is its share, relative to the others'."""

    name: str
    examples: Sequence[Example]
    weight: float = 1.0


def sample_examples(examples: Sequence[Example], rows: int, random_seed: int) -> list[Example]:
    """`rows` different examples, in a seeded order; a smaller cut is the beginning of a larger one.

    Raises UserError where there are fewer.
    """
    if not 0 < rows <= len(examples):
        raise UserError(f"{rows} examples are wanted, and there are {len(examples)}")
    shuffled = list(examples)
    random.Random(f"sample:{random_seed}").shuffle(shuffled)
    return shuffled[:rows]


def equal_sizes(sets: Sequence[Sequence[Example]], random_seed: int) -> list[list[Example]]:
    """Every set cut to the size of the smallest, so that they differ in kind and not in number."""
    rows = min(map(len, sets), default=0)
    return [sample_examples(held, rows, random_seed) if rows else [] for held in sets]


def split_examples(
    examples: Sequence[Example], shares: Mapping[str, float], random_seed: int
) -> dict[str, list[Example]]:
    """Splits with nothing on both sides: examples of one seed, passage, premise, text or question
    stay together, labels are shared out as evenly as these groups allow.

    Raises UserError where a split would have no example.
    """
    groups = group_marked([one.bound for one in examples])
    names = [(one.task, one.key) for one in examples]
    labels = [one.label or "" for one in examples]
    parts = share_out(groups, names, labels, shares, random_seed)
    return {name: [examples[number] for number in numbers] for name, numbers in parts.items()}


def mix_examples(parts: Sequence[Part], random_seed: int, rows: int | None = None) -> list[Example]:
    """One epoch of a mixture in seeded order.

    Without `rows` every example stands in it once, and weights are not used. With `rows`, each part
    has its share of them: no example a second time before every other of its part had its turn.
    Raises UserError for a part without examples and for weights that are not above 0.
    """
    if not parts or not all(part.examples for part in parts):
        empty = next((part.name for part in parts if not part.examples), "the mixture")
        raise UserError(f"{empty} has no examples to mix")
    counts = [len(part.examples) for part in parts]
    if rows is not None:
        counts = _counts(parts, rows)
    mixed: list[Example] = []
    for part, count in zip(parts, counts, strict=True):
        turns, rest = divmod(count, len(part.examples))
        mixed += [*part.examples] * turns
        mixed += sample_examples(part.examples, rest, random_seed) if rest else []
    random.Random(f"mix:{random_seed}").shuffle(mixed)
    return mixed


def _counts(parts: Sequence[Part], rows: int) -> list[int]:
    """Whole numbers of rows by the largest remainder, so that they sum to `rows`."""
    if not all(part.weight > 0 for part in parts):
        bad = next(part for part in parts if not part.weight > 0)
        raise UserError(f"the weight of {bad.name} is {bad.weight:g} and has to be above 0")
    if rows < len(parts):
        raise UserError(f"a mixture of {len(parts)} parts needs more than {rows} rows")
    whole = sum(part.weight for part in parts)
    exact = [rows * part.weight / whole for part in parts]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(parts)), key=lambda n: (counts[n] - exact[n], n))
    for number in by_rest[: rows - sum(counts)]:
        counts[number] += 1
    return counts
