"""Texts for a task without a grammar: made-up words, some from a lexicon of the label's own.

The judge counts whose words a row holds, so the label can be recovered from the text alone.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from targen_async.simulator.lexicon import capital

_SHARED = "*"
_WORD = re.compile(r"[a-z]+")


@cache
def words_of(label: str) -> tuple[str, ...]:
    """The made-up words of a label, always the same."""
    rng = random.Random(f"filler:{label}")
    count = 300 if label == _SHARED else 60
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))] = None
    return tuple(found)


def sentence(rng: random.Random, label: str | None, count: int = 9) -> str:
    """A sentence of `count` made-up words, a third of them the label's own."""
    marked = max(1, count // 3) if label else 0
    words = [rng.choice(words_of(label)) for _ in range(marked)] if label else []
    words += [rng.choice(words_of(_SHARED)) for _ in range(count - marked)]
    rng.shuffle(words)
    return capital(" ".join(words)) + "."


def seeds(rng: random.Random, count: int, kind: str) -> list[str]:
    """Seeds of a kind: `word`, `sentence`, `pair` or `passage`. They belong to no label."""
    if kind == "word":
        return rng.sample(words_of(_SHARED), min(count, 300))
    sentences = {"passage": 7, "pair": 2}.get(kind, 1)
    return [" ".join(sentence(rng, None) for _ in range(sentences)) for _ in range(count)]


def instance(
    rng: random.Random,
    outputs: Sequence[str],
    label: str | None,
    words: Mapping[str, tuple[int, int] | None],
) -> dict[str, str]:
    """One text an output. `words` bounds the outputs' lengths where the task is known."""
    texts: dict[str, str] = {}
    for name in outputs:
        least, most = words.get(name) or (6, 12)
        count = rng.randint(least, min(most, least + 6))
        texts[name] = (
            "These words go together." if name == "explanation" else sentence(rng, label, count)
        )
    return texts


def judge(row: Mapping[str, Any], labels: Sequence[str]) -> str | None:
    """The label whose words the row holds most of; None where it holds none."""
    text = " ".join(str(value) for name, value in row.items() if name not in ("id", "label"))
    found = set(_WORD.findall(text.lower()))
    shared = set(words_of(_SHARED))
    hits = {label: len(found & (set(words_of(label)) - shared)) for label in labels}
    best = max(hits, key=lambda label: hits[label], default=None)
    return best if best is not None and hits[best] else None


def of_schema(rng: random.Random, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Some value that a JSON schema allows: for a question that belongs to no task."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {name: of_schema(rng, part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [of_schema(rng, schema.get("items", {})) for _ in range(schema.get("minItems", 1))]
    plain = {"integer": 1, "number": 1.0, "boolean": True, "null": None}
    return plain[kind] if kind in plain else rng.choice(words_of(_SHARED))
