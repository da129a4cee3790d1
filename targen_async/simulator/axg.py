"""AX-g: what two people do, and a reason with a pronoun that fits only one of them.

The hypothesis says the reason of one of the two by role. Frame and reason tell whom the pronoun
means, whatever its gender, so `gold` reads premise and hypothesis back.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from targen_async.simulator.lexicon import (
    Phrase,
    PhraseIndex,
    alternatives,
    capital,
    data,
)
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("entailment", "not_entailment")
_SMALL_ROLES = 12
_SMALL_THINGS = 4


class Frame:
    """One thing that joins two people, `a` who acts and `b`, and each one's reasons for it."""

    def __init__(self, entry: Mapping[str, Any], roles: Sequence[str], small: bool) -> None:
        self.things: list[str] = entry["things"][: _SMALL_THINGS if small else None]
        self.reasons: dict[str, list[str]] = {"a": entry["a"], "b": entry["b"]}
        words = {"a": roles, "b": roles, "t": self.things}
        self.tie = Phrase(f"{{any}}: {entry['tie']}", words, {"any": "[^:]+"})
        self.events = [Phrase(f"The {{a}} {text}", words, {}) for text in entry["events"]]

    def person_of(self, reason: str) -> str | None:
        """Whose reason it is: `a`, `b` or nobody's."""
        return next((who for who, texts in self.reasons.items() if reason in texts), None)


class Grammar:
    """All frames over one list of roles."""

    def __init__(self, small: bool) -> None:
        world = data("axg")
        self.roles: list[str] = world["roles"][: _SMALL_ROLES if small else None]
        self.joints: list[str] = world["joints"][: 1 if small else None]
        self.leads: list[str] = [] if small else data("lexicon")["leads"]
        self.frames = [
            Frame(entry, self.roles, small)
            for entry in world["frame"]
            if not small or entry.get("small")
        ]
        self.ties = PhraseIndex([(frame.tie, frame) for frame in self.frames])
        self.events = PhraseIndex([(e, frame) for frame in self.frames for e in frame.events])
        joints, roles = alternatives(self.joints), alternatives(self.roles)
        self.premise = re.compile(rf"(.+) (?:{joints}) (?:he|she) (.+)\.")
        self.hypothesis = re.compile(rf"(?:The|It was the) ({roles}) (?:who )?(.+)\.")

    def read_event(self, text: str) -> tuple[Frame, dict[str, str]] | None:
        """The frame of a premise's first half, and the two people."""
        lead, comma, rest = text.partition(", ")
        if comma and lead in self.leads:
            text = capital(rest)
        found = self.events.find(text)
        return found[0] if found else None


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` distinct pairs: two roles and what joins them."""
    words = grammar(small)
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        frame = rng.choice(words.frames)
        a, b = rng.sample(words.roles, 2)
        values = {"any": f"a {a} and a {b}", "a": a, "b": b, "t": rng.choice(frame.things)}
        found[frame.tie.fill(values)] = None
    return list(found)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """A premise with either gender of the pronoun, and the hypothesis that has the label."""
    words = grammar(small)
    read = words.ties.find(wish.seed)
    if read:
        frame, people = read[0]
    else:
        frame, (a, b) = rng.choice(words.frames), rng.sample(words.roles, 2)
        people = {"a": a, "b": b, "t": rng.choice(frame.things)}
    who = rng.choice("ab")
    reason = rng.choice(frame.reasons[who])
    event = rng.choice(frame.events).fill(people)
    if words.leads and rng.random() < 0.5:
        event = f"{rng.choice(words.leads)}, {event[0].lower()}{event[1:]}"
    joint = rng.choice(words.joints)
    twins = [f"{event} {joint} {pronoun} {reason}." for pronoun in rng.sample(("he", "she"), 2)]
    same = (wish.label != "not_entailment") != wish.noisy
    named = people[who if same else "b" if who == "a" else "a"]
    hypothesis = f"The {named} {reason}."
    if words.leads and rng.random() < 0.3:
        hypothesis = f"It was the {named} who {reason}."
    return {
        "premise": twins[0],
        "twin_premise": twins[1],
        "hypothesis": hypothesis,
        "explanation": f"The reason is the {people[who]}'s, whichever the pronoun is.",
    }


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """The label, read from premise and hypothesis; None for foreign text."""
    words = grammar(small)
    premise = words.premise.fullmatch(str(row.get("premise", "")).strip())
    hypothesis = words.hypothesis.fullmatch(str(row.get("hypothesis", "")).strip())
    read = words.read_event(premise.group(1)) if premise else None
    if premise is None or hypothesis is None or read is None:
        return None
    frame, people = read
    named, reason = hypothesis.groups()
    who = frame.person_of(premise.group(2))
    if who is None or reason != premise.group(2) or named not in (people["a"], people["b"]):
        return None
    return "entailment" if named == people[who] else "not_entailment"
