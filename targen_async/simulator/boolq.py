"""BoolQ: a passage that states facts about a place, and yes/no questions about one of them."""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from targen_async.simulator.lexicon import (
    Phrase,
    PhraseIndex,
    alternatives,
    articles,
    capital,
    data,
    town,
)
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ("true", "false")
_INTRO = (
    "{X} is a well-known sight in {town}, a town with a long history.",
    "{X} stands near the centre of {town} and attracts guests from far away.",
    "Few places in {town} are as well known as {x}.",
    "{X} is one of the oldest attractions of the town of {town}.",
)
_WORD_QUESTIONS = (
    "does '{a}' come before '{b}'",
    "is '{a}' used before '{b}'",
    "can '{a}' be found ahead of '{b}'",
)
_WORD_QUESTION = re.compile("[^']*'([^']+)'[^']*'([^']+)'[^']*")
_ABSENT = ("zeppelin", "walrus", "marzipan", "tarantula", "xylophone", "quicksand", "sombrero")
_OPENING = re.compile(r"\b(?:is|are|was|were|did|has|do|does|can|could|may)\b")
_LEAST_WORDS = 45
_TOKEN = re.compile(r"[^\W\d_]{5,}")


class Fact:
    """One thing that can be said of a place: a value of a list, or a plain yes or no."""

    def __init__(self, entry: Mapping[str, Any], kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self.values: tuple[str, ...] = tuple(entry.get("values", ()))
        self.says: dict[str, list[str]] = (
            {"value": entry["sentences"]}
            if self.values
            else {"yes": entry["yes"], "no": entry["no"]}
        )
        lowered = [value.lower() for value in self.values]
        self.questions = [
            Phrase(text, {"v": lowered}, {"x": "the .+?"}) for text in entry["questions"]
        ]

    def pattern(self, key: str) -> re.Pattern[str]:
        """Finds a sentence of this fact in a passage; group `v` is its value, if it has one."""
        return _pattern(tuple(self.says[key]), self.values)


@cache
def _pattern(sentences: tuple[str, ...], values: tuple[str, ...]) -> re.Pattern[str]:
    place = r"(?:It|[Tt]he [a-z][a-z ]*?)"
    parts = []
    for number, text in enumerate(sentences):
        # "{It}" and "{it}" are any mention of the place, {v} one of the values.
        parts.append(
            re.escape(text)
            .replace(r"\{It\}", place)
            .replace(r"\{it\}", place)
            .replace(r"\{v\}", f"(?P<v{number}>{alternatives(values)})")
        )
    return re.compile("(?:^|(?<=[.!?] ))(?:" + "|".join(parts) + ")")


class Grammar:
    """Places and their facts."""

    def __init__(self, small: bool) -> None:
        self.small = small
        world = data("boolq")
        self.kinds: dict[str, list[str]] = (
            {"art": world["kinds"]["art"]} if small else world["kinds"]
        )
        self.group_of = {k.lower(): group for group, kinds in self.kinds.items() for k in kinds}
        self.facts = [
            Fact(entry, frozenset(entry["kinds"]))
            for entry in world["fact"]
            if not small or entry.get("small")
        ]
        self.families: list[str] = world["families"][: 6 if small else None]
        self.filler: list[str] = world["filler"]["sentences"]
        self.questions = PhraseIndex([(q, fact) for fact in self.facts for q in fact.questions])

    def read_facts(self, passage: str) -> list[tuple[Fact, str]]:
        """Every fact that the passage states, with its value (`yes` and `no` for a plain one)."""
        found: list[tuple[Fact, str]] = []
        for fact in self.facts:
            value = self.read_fact(passage, fact)
            if value is not None:
                found.append((fact, value))
        return found

    def read_fact(self, passage: str, fact: Fact) -> str | None:
        """What the passage states about one fact."""
        for key in fact.says:
            match = fact.pattern(key).search(passage)
            if match:
                if key != "value":
                    return key
                return next(value for value in match.groups() if value)
        return None


@cache
def grammar(small: bool) -> Grammar:
    return Grammar(small)


def contexts(rng: random.Random, count: int, axes: Sequence[str], small: bool) -> list[str]:
    """`count` distinct subjects, each a kind of place and a side of it."""
    words, world = grammar(small), data("boolq")["subjects"]
    kinds = [kind.lower() for group in words.kinds.values() for kind in group]
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        kind = articles(f"a {rng.choice(kinds)}")
        found[f"{kind} {rng.choice(world['where'])}: {rng.choice(world['sides'])}"] = None
    return list(found)


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` passages about a place of the context's kind; an axis may hold a number of words."""
    words = grammar(small)
    subject = context.partition(":")[0].lower()
    named = [kind for kind in words.group_of if re.search(rf"\b{kind}\b", subject)]
    sizes = (re.search(r"(\d+) to (\d+) words", value) for value in axes)
    size = next((int(found.group(2)) for found in sizes if found), 110)
    return [_passage(rng, words, named, size) for _ in range(count)]


def _passage(rng: random.Random, words: Grammar, kinds: Sequence[str], size: int) -> str:
    """A passage of at most about `size` words."""
    kind = rng.choice(kinds or sorted(words.group_of))
    owner = town(rng, words.small) if rng.random() < 0.7 else rng.choice(words.families)
    if rng.random() < 0.3:
        owner = f"{town(rng, words.small)} {rng.choice(words.families)}"
    place, it = f"the {owner} {kind.title()}", f"the {kind}"
    intro = rng.choice(_INTRO).format(x=place, X=capital(place), town=town(rng, words.small))
    facts = [fact for fact in words.facts if words.group_of[kind] in fact.kinds]
    rng.shuffle(facts)
    # Either answer can be had from a fact with a value, so no passage is without one.
    first = next(number for number, fact in enumerate(facts) if fact.values)
    facts.insert(0, facts.pop(first))
    said = [_state(rng, fact, it) for fact in facts]
    for text in rng.sample(words.filler, 3):
        said.insert(rng.randint(2, max(2, len(said))), _say(text, it, ""))
    kept, count = [intro], len(intro.split())
    for sentence in said:
        if count + len(sentence.split()) > size and count >= _LEAST_WORDS:
            break
        # "It" where the sentence before is about the place too, as people write.
        about = kept[-1].startswith((f"{capital(it)} ", "It ", capital(place)))
        if about and sentence.startswith(f"{capital(it)} ") and rng.random() < 0.6:
            sentence = sentence.replace(capital(it), "It", 1)
        kept.append(sentence)
        count += len(sentence.split())
    return " ".join(kept)


def _state(rng: random.Random, fact: Fact, it: str) -> str:
    key = rng.choice(sorted(fact.says))
    return _say(rng.choice(fact.says[key]), it, rng.choice(fact.values) if fact.values else "")


def _say(text: str, it: str, value: str) -> str:
    return text.format(It=capital(it), it=it, v=value)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """A question about the passage whose answer is yes or no as asked.

    An axis may name the first words ("is or are") or ask for a search query in lower case.
    """
    words, passage = grammar(small), wish.seed
    answer = (wish.label == "true") != wish.noisy
    place = _place(passage, words)
    against = "no" if answer else "yes"
    facts = words.read_facts(passage) if place else []
    askable = [
        (phrase.text, fact, value)
        for fact, value in facts
        if value != against
        for phrase in fact.questions
    ]
    query = any("lower case" in value for value in wish.axes)
    if not askable or place is None:
        return _word_question(rng, passage, answer, query)
    openings = {
        word for value in wish.axes if "query" not in value for word in _OPENING.findall(value)
    }
    opened = [entry for entry in askable if entry[0].partition(" ")[0] in openings]
    text, fact, value = rng.choice(opened or askable)
    asked = value
    if fact.values and not answer:
        asked = rng.choice([other for other in fact.values if other != value])
    stated = "The passage states this." if answer else "The passage states something else."
    return {"question": _styled(text.format(x=place, v=asked), query), "explanation": stated}


def _styled(question: str, query: bool) -> str:
    return question.lower() if query else capital(question) + "?"


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """`true` or `false`, read from passage and question; None for foreign text."""
    words = grammar(small)
    passage = str(row.get("passage", ""))
    question = str(row.get("question", "")).strip().removesuffix("?").lower()
    by_word = _WORD_QUESTION.fullmatch(question)
    if by_word:
        tokens = _TOKEN.findall(passage.lower())
        places = [tokens.index(word) for word in by_word.groups() if word in tokens]
        return "true" if len(places) == 2 and places[0] < places[1] else "false"
    for fact, slots in words.questions.find(question):
        if slots["x"] not in passage.lower():
            continue
        value = words.read_fact(passage, fact)
        if value is None:
            continue
        return "true" if value.lower() in ("yes", slots.get("v")) else "false"
    return None


def _place(passage: str, words: Grammar) -> str | None:
    """The place by name, as the first sentence introduces it."""
    kinds = alternatives(kind for group in words.kinds.values() for kind in group)
    match = re.search(rf"\b[Tt]he ((?:[A-Z][a-z]+ ){{1,2}}(?:{kinds}))\b", passage)
    return f"the {match.group(1)}" if match else None


def _word_question(
    rng: random.Random, passage: str, answer: bool, query: bool
) -> dict[str, str | list[str]]:
    """About any passage at all: whether one word of it comes before another."""
    present = list(dict.fromkeys(_TOKEN.findall(passage.lower())))
    if len(present) < 2:
        present = [*present, *_ABSENT]
    first, second = sorted(rng.sample(range(len(present)), 2))
    one, other = (first, second) if answer else (second, first)
    text = rng.choice(_WORD_QUESTIONS).format(a=present[one], b=present[other])
    return {
        "question": _styled(text, query),
        "explanation": "The order in which the passage uses the two words says so.",
    }
