"""Small data sets with faults planted in them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targen_async.analysis.rows import Row, Rows


def rows_of(texts: Iterable[str], labels: Sequence[str | None] | None = None) -> Rows:
    """One field, `text`."""
    return Rows(
        [
            Row(key=f"r{number}", fields={"text": text}, label=labels[number] if labels else None)
            for number, text in enumerate(texts)
        ],
        name="made",
    )


def learnable(count: int, *, flipped: float = 0.0, seed: int = 0) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows of two labels that words tell apart, and which rows had their label flipped."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: round(count * flipped)]] = True
    texts, labels = [], []
    for number in range(count):
        true = int(rng.integers(2))
        words = [f"w{word}" for word in rng.integers(0, 2000, 24)]
        words[::4] = [f"{'ab'[true]}{word}" for word in rng.integers(0, 15, 6)]
        texts.append(" ".join(words))
        labels.append(("no", "yes")[true ^ int(chosen[number])])
    return rows_of(texts, labels), chosen


def prose(count: int, words: int = 25, seed: int = 0) -> list[str]:
    """Texts of words that are drawn as Zipf would."""
    rng = np.random.default_rng(seed)
    drawn = (rng.zipf(1.4, (count, words)) - 1) % 5000
    return [" ".join(f"word{number}" for number in line) for line in drawn]


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in objects), "utf-8")
    return path
