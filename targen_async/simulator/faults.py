"""What is wrong with an answer on purpose. Each function takes a sound answer and spoils it."""

import random
from collections.abc import Callable
from typing import Any

import orjson

REFUSALS = (
    "I'm sorry, but I can't help with that request.",
    "I cannot assist with generating this content.",
    "As an AI language model, I am unable to produce that.",
)
_HOSTILE = (
    "<script>alert('x')</script><img src=x onerror=alert(1)>",
    "\x00\x07\x1b[31mred\x1b[0m\x7f",
    "\u202egnirts desrever\u202c\u2066\u2069\u200b",
    "{{ seed }} {{ label }} {{ name }} {% raw %} ${HOME} %s",
    "\"'`;--\\n</td></table>&amp;&#x202e;",
    "\ufdfa\u0301\u0301\u0301\ud83d\ude00\ufffd".encode("utf-16", "surrogatepass").decode("utf-16"),
    "very long " * 100,
    "very, very long " * 2000,
)


def dump(answer: Any) -> str:  # noqa: ANN401
    """The answer as JSON text."""
    return orjson.dumps(answer).decode()


def _cut(rng: random.Random, answer: dict[str, Any]) -> str:
    text = dump(answer)
    return text[: rng.randint(1, max(1, len(text) - 2))]


def _missing_key(rng: random.Random, answer: dict[str, Any]) -> str:
    kept = dict(answer)
    kept.pop(rng.choice(sorted(kept)), None)
    return dump(kept)


def _wrong_type(rng: random.Random, answer: dict[str, Any]) -> str:
    spoilt = dict(answer)
    spoilt[rng.choice(sorted(spoilt))] = rng.choice((17, None, {"value": "text"}, [[]]))
    return dump(spoilt)


def _prose_around(rng: random.Random, answer: dict[str, Any]) -> str:
    opening = rng.choice(("Sure! Here is what you asked for:", "Certainly. The JSON:"))
    return f"{opening}\n\n```json\n{dump(answer)}\n```\n\nLet me know if you need more."


_MALFORMED: tuple[tuple[str, Callable[[random.Random, dict[str, Any]], str]], ...] = (
    ("cut", _cut),
    ("missing_key", _missing_key),
    ("wrong_type", _wrong_type),
    ("prose", _prose_around),
)


def malformed(rng: random.Random, answer: dict[str, Any]) -> tuple[str, str]:
    """Text that is not the JSON asked for, and the fault's name."""
    name, spoil = rng.choice(_MALFORMED)
    return spoil(rng, answer), f"malformed/{name}"


def free_text(answer: dict[str, Any]) -> str:
    """The same content as prose with a numbered list."""
    lines: list[str] = []
    for name, value in answer.items():
        entries = value if isinstance(value, list) else [f"{name}: {value}"]
        lines += [
            " - ".join(f"{k}: {v}" for k, v in entry.items()) if isinstance(entry, dict) else entry
            for entry in entries
        ]
    numbered = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    return f"Here is what I came up with:\n\n{numbered}\n\nI hope this helps!"


def hostile(rng: random.Random, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with a hostile text joined to every value that is free text."""

    def spoil(name: str, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, str):
            return value if name in ("id", "label") else f"{value} {rng.choice(_HOSTILE)}"
        if isinstance(value, list):
            return [spoil(name, entry) for entry in value]
        return {key: spoil(key, entry) for key, entry in value.items()}

    return {key: spoil(key, value) for key, value in answer.items()}


def missing_ids(
    rng: random.Random, items: list[dict[str, str]]
) -> tuple[list[dict[str, str]], str]:
    """The judge's items with one lacking, doubled or under an invented id, and the fault's name."""
    kind = rng.choice(("lacking", "doubled", "invented"))
    spoilt = list(items)
    place = rng.randrange(len(spoilt))
    if kind == "lacking":
        del spoilt[place]
    elif kind == "doubled":
        spoilt.insert(rng.randint(0, len(spoilt)), spoilt[place])
    else:
        taken = {item["id"] for item in items}
        invented = next(i for i in (f"x{n}" for n in range(len(items) + 1)) if i not in taken)
        spoilt[place] = {**spoilt[place], "id": invented}
    return spoilt, f"missing_ids/{kind}"
