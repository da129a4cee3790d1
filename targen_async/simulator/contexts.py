"""Settings in which things happen: the answer to the first stage, for any task."""

import random
from collections.abc import Iterable
from functools import cache
from typing import Any

from targen_async.simulator.lexicon import data


def contexts(rng: random.Random, count: int, axes: Iterable[str]) -> list[str]:
    """`count` distinct settings, of the topics that the first axis value to name any names."""
    world = data("contexts")
    named = (_topics_named(value.lower()) for value in axes)
    topics = next((topics for topics in named if topics), tuple(world["topic"]))
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        place = rng.choice(rng.choice(topics)["places"])
        found[f"{place} {rng.choice(world['whens'])} {rng.choice(world['people'])}"] = None
    return [text[0].upper() + text[1:] for text in found]


def tags_of(context: str) -> frozenset[str]:
    """The tags that fit a setting; empty where it names no place we know."""
    lowered = context.lower()
    for place, tags in _places():
        if lowered.startswith(place):
            return tags
    named = _topics_named(lowered)
    return frozenset(tag for topic in named for tag in topic["tags"])


@cache
def _topics_named(text: str) -> tuple[dict[str, Any], ...]:
    return tuple(
        topic for topic in data("contexts")["topic"] if any(word in text for word in topic["words"])
    )


@cache
def _places() -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple(
        (place, frozenset(topic["tags"]))
        for topic in data("contexts")["topic"]
        for place in topic["places"]
    )
