"""Texts for a task without a grammar: made-up words, some from a lexicon of the label's own.

The judge counts whose words a row holds, so the label can be recovered from the text alone. Where
the label is open, the answer is the word or choice of the least checksum.
"""

import random
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from targen_async.simulator.lexicon import capital
from targen_async.simulator.recognise import Ask
from targen_async.simulator.wish import Wish
from targen_async.tasks import GOOD

_ENGLISH = ("the", "of", "and", "to", "in", "is")
_SHARED = "*"
_CANDIDATES = 60
_CHOICES = 5
_ENTRIES = 3
_WORD = re.compile(r"[a-z]+")
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")


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
    """A sentence of `count` made-up words, a third of them the label's own.

    Some are English, so that a check for the language has nothing to say.
    """
    marked = max(1, count // 3) if label else 0
    words = [rng.choice(words_of(label)) for _ in range(marked)] if label else []
    words += [rng.choice(_ENGLISH) for _ in range(count // 6)]
    words += [rng.choice(words_of(_SHARED)) for _ in range(count - len(words))]
    rng.shuffle(words)
    return capital(" ".join(words)) + "."


def seeds(rng: random.Random, count: int, kind: str) -> list[str]:
    """Seeds of a kind: `word`, `sentence`, `pair` or `passage`. They belong to no label."""
    if kind == "word":
        return rng.sample(words_of(_SHARED), min(count, 300))
    sentences = {"passage": 7, "pair": 2}.get(kind, 1)
    return [" ".join(sentence(rng, None) for _ in range(sentences)) for _ in range(count)]


def instance(rng: random.Random, ask: Ask, wish: Wish) -> dict[str, str | list[str]]:
    """One text an output, in the words of its row's label and within the bounds of its field."""
    task, texts = ask.known, dict[str, str | list[str]]()
    answer = task.answer if task else None
    members = _member_labels(rng, ask, wish)
    bounds = {
        output: field.words
        for name, field in (task.fields.items() if task else ())
        for output in (field.outputs or (name,))
    }
    for name in ask.outputs:
        least, most = bounds.get(name) or (6, 12)
        count = rng.randint(least, min(most, least + 6))
        # The words of a bound of 0 to 0 are none, and an output needs some.
        text = sentence(rng, members.get(name, members[""]), max(1, count))
        texts[name] = "These words go together." if name == "explanation" else text
    if answer and answer.kind == "free":
        texts[answer.output] = sentence(rng, None if wish.noisy else GOOD)
    elif task and answer:
        given = texts.get(answer.text) if task.fields[answer.text].source == "output" else wish.seed
        words = list(dict.fromkeys(_LONG_WORD.findall(str(given)))) or str(given).split()
        if answer.kind == "choice":
            position = answer.positions.index(wish.label) if wish.label in answer.positions else 0
            words = _chosen(rng, words, str(given), position) if words else []
            texts[answer.choices] = "\n".join(words)
        texts[answer.output] = _pick(rng, words, wish.noisy)
    for name in ask.lists:
        texts[name] = _entries(str(texts[name]))
    return texts


def _member_labels(rng: random.Random, ask: Ask, wish: Wish) -> dict[str, str | None]:
    """Output to the label in whose words it is written; "" is what is not named.

    What members of different labels share is written in words of no label.
    """
    group = ask.known.group if ask.known else None

    def written(label: str) -> str | None:
        others = [name for name in ask.labels if name != label]
        return (rng.choice(others) if wish.noisy and others else label) or None

    if ask.known and ask.known.answer:
        return {"": None}
    if ask.known is None or group is None or not group.labels:
        return {"": written(wish.label)}
    labels: dict[str, str | None] = {"": None}
    said = [written(label) for label in group.labels]
    for field in ask.known.fields.values():
        labels.update(zip(field.outputs, said, strict=False))
    return labels


def _chosen(rng: random.Random, words: Sequence[str], text: str, position: int) -> list[str]:
    """Some of the words, so that the one to answer stands at that position among them.

    In any order: the position is the one of the first mentions in the text. Where no word has
    enough others before it, the answer is as late as can be.
    """
    # Every word is compared with every other, and a passage may be long.
    ordered = sorted(rng.sample(words, min(len(words), _CANDIDATES)), key=text.find)
    offers: list[tuple[str, list[str], list[str]]] = []
    for place, word in enumerate(ordered):
        before, after = (
            [other for other in part if _checksum(other) > _checksum(word)]
            for part in (ordered[:place], ordered[place + 1 :])
        )
        first = rng.sample(before, min(position, len(before)))
        wanted = max(1, _CHOICES - 1 - len(first))
        offers.append((word, first, rng.sample(after, min(wanted, len(after)))))
    most = max(len(first) for _, first, _ in offers)
    offers = [offer for offer in offers if len(offer[1]) == most]
    most = max(len(later) for _, _, later in offers)
    answer, first, later = rng.choice([offer for offer in offers if len(offer[2]) == most])
    chosen = [answer, *first, *later]
    rng.shuffle(chosen)
    return chosen


def _checksum(word: str) -> int:
    return zlib.crc32(word.encode())


def _least(words: Iterable[str]) -> str | None:
    return min(words, key=_checksum, default=None)


def _pick(rng: random.Random, words: Sequence[str], noisy: bool) -> str:
    """The answer among the words, or one that is not."""
    answer = _least(words) or ""
    others = [word for word in words if word != answer]
    return rng.choice(others) if noisy and others else answer


def _entries(text: str) -> list[str]:
    """The lines of a text, or parts of its one line."""
    lines = text.split("\n")
    if len(lines) > 1:
        return lines
    words = text.rstrip(".").split()
    size = -(-len(words) // _ENTRIES)
    return [" ".join(words[start : start + size]) for start in range(0, len(words), size)]


def judge(ask: Ask, labels: Sequence[str], row: Mapping[str, Any]) -> str | None:
    """The label whose words the row holds most of, or the answer; None where it holds none."""
    answer = ask.known.answer if ask.known else None
    if answer and answer.kind == "choice":
        return _least(str(row.get(answer.choices, "")).splitlines())
    if answer and answer.kind == "extract":
        text = str(row.get(answer.text, ""))
        return _least(_LONG_WORD.findall(text) or text.split())
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
