"""Small data sets with faults planted in them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
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


def learnable(
    count: int, *, flipped: float = 0.0, told: float = 1.0, labels: int = 2, seed: int = 0
) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows of labels that words tell apart, and which rows had their label changed for another.

    `told`: in this share of the rows; the words of the others are of no label.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: round(count * flipped)]] = True
    texts, given = [], []
    for number in range(count):
        true = int(rng.integers(labels))
        words = [f"w{word}" for word in rng.integers(0, 2000, 24)]
        cues = [f"{'abc'[true]}{word}" for word in rng.integers(0, 15, 6)]
        if told == 1 or rng.random() < told:
            words[::4] = cues
        other = chosen[number] * (1 if labels == 2 else int(rng.integers(1, labels)))
        texts.append(" ".join(words))
        given.append(("no", "yes", "maybe")[(true + other) % labels])
    return rows_of(texts, given), chosen


def prose(count: int, words: int = 25, seed: int = 0) -> list[str]:
    """Texts of words that are drawn as Zipf would."""
    rng = np.random.default_rng(seed)
    drawn = (rng.zipf(1.4, (count, words)) - 1) % 5000
    return [" ".join(f"word{number}" for number in line) for line in drawn]


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in objects), "utf-8")
    return path


def planted(count: int) -> tuple[Rows, Rows]:
    """Rows with every fault, and the evaluation set that leaked into them.

    The words of the right choice tell it; 10 % of the labels are flipped, choice1 is right in 70 %
    of the rows, 5 % are near duplicates of others and 3 % are rows of the evaluation set.
    """
    rng = np.random.default_rng(5)
    leaked, copied = round(count * 0.03), round(count * 0.05)
    theirs = [_choice(rng, f"e{number}", first=0.5) for number in range(max(60, leaked))]
    made = [_choice(rng, f"r{number}", first=0.75) for number in range(count - leaked - copied)]
    flipped = set(rng.permutation(len(made))[: round(len(made) * 0.1)].tolist())
    own = [_flip(row) if place in flipped else row for place, row in enumerate(made)]
    twins = [_near(row, f"n{place}") for place, row in enumerate(own[:copied])]
    from_theirs = [structs.replace(row, key=f"l{n}") for n, row in enumerate(theirs[:leaked])]
    return Rows([*own, *twins, *from_theirs], name="made"), Rows(theirs, name="evaluation")


def _choice(rng: np.random.Generator, key: str, first: float) -> Row:
    right = "choice1" if rng.random() < first else "choice2"
    fields = {"premise": " ".join(f"w{word}" for word in rng.integers(0, 3000, 12))}
    for name in ("choice1", "choice2"):
        words = [f"w{word}" for word in rng.integers(0, 3000, 10)]
        words[::2] = [f"{'ab'[name == right]}{word}" for word in rng.integers(0, 15, 5)]
        fields[name] = " ".join(words)
    return Row(key=key, fields=fields, label=right)


def _flip(row: Row) -> Row:
    return structs.replace(row, label="choice2" if row.label == "choice1" else "choice1")


def _near(row: Row, key: str) -> Row:
    return structs.replace(
        row, key=key, fields={**row.fields, "premise": row.fields["premise"] + " so"}
    )


HOSTILE = (
    "<script>window.acted = 1</script> \u202egnirts\u202c",
    "</script><img src=x onerror='window.acted = 1'>",
    "\"quotes\" 'and' `more` \\ {data} {{x}} %s ${window.acted = 1}",
    "lines\u2028and\u2029paragraphs\x00\x1b[31m\ufeff",
    "<!--<script> ]]> &lt;b&gt; <style>*{display:none}</style>",
    "\u2066isolated\u2069 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \U000e0041",
)


def hostile(count: int) -> Rows:
    """Rows whose texts, keys, labels and names of fields try to act in a page."""
    rows = [
        Row(
            key=f"<b>{number}</b>\u202e",
            fields={"text": HOSTILE[number % len(HOSTILE)], "</script>": f"plain words {number}"},
            label=("<i>yes</i>", '"no\u202e"')[number % 2],
        )
        for number in range(count)
    ]
    return Rows(rows, name="</title><script>window.acted = 1</script>")
