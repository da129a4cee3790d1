"""ReCoRD: news with names of people, places and organisations, and a statement with a gap.

The query repeats a fact of the passage in other words. On a passage of another's hand it quotes a
sentence between a lead-in and a remark, and the passage tells what belongs in the gap.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from targen_async.simulator.foreign import clause, holds, names, sentences
from targen_async.simulator.lexicon import alternatives
from targen_async.simulator.news import PLACEHOLDER, Told, is_name, news
from targen_async.simulator.wish import Wish

LABELS: tuple[str, ...] = ()
_LEADS = ("Readers learned that ", "It was reported that ", "The news is that ", "We hear that ")
_REMARKS = (", of all things.", ", nothing less.", ", and many took note.", ", so the report goes.")
_QUOTED = re.compile(
    f"(?:{alternatives(_LEADS)})(?P<before>.*?){PLACEHOLDER}(?P<after>.*)"
    f"(?:{alternatives(_REMARKS)})",
    re.DOTALL,
)
_NO_QUERY = f"Of {PLACEHOLDER} there is nothing to tell."
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_SIZE = re.compile(r"(\d+) to (\d+) words")
_JOINED = "; meanwhile, "
_FACT_WORDS = 15
_QUOTED_WORDS = 16
_LEAST_WORDS = 8
_MOST_WORDS = 40


def seeds(
    rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool
) -> list[str]:
    """`count` passages; an axis may hold a number of words, such as "90 to 120 words"."""
    words = news(small)
    sizes = (_SIZE.search(value) for value in axes)
    size = next((int(found.group(2)) for found in sizes if found), 5 * _FACT_WORDS)
    facts = 4 if small else max(4, min(6, size // _FACT_WORDS))
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        topic = words.topic_for(rng, context)
        found[words.passage(rng, topic, facts, names=5, words=55)] = None
    return list(found)


def instance(rng: random.Random, wish: Wish, small: bool) -> dict[str, str | list[str]]:
    """Entities, query and answer; the answer has the wanted place among the entities.

    Noise claims an answer at that place, too, but asks for another entity.
    """
    page = _Page(wish.seed, small)
    entities, answer = page.placed(rng, wish.label)
    query = page.query(rng, answer)
    if wish.noisy:
        others = [name for name in entities if name != answer]
        rng.shuffle(others)
        query = next((text for name in others if (text := page.query(rng, name))), None)
    return {
        "entities": entities,
        "query": query or _NO_QUERY,
        "answer": answer,
        "explanation": "This is what the passage says, and of nobody and nothing else.",
    }


def gold(row: Mapping[str, Any], small: bool) -> str | None:
    """The entity that belongs in the gap; None where none does, or several."""
    listed = row.get("entities", "")
    entities = listed.splitlines() if isinstance(listed, str) else [str(name) for name in listed]
    page = _Page(str(row.get("passage", "")), small)
    fits = page.fitting(str(row.get("query", "")).strip(), entities)
    return fits[0] if len(fits) == 1 else None


class _Page:
    """One passage with what it tells."""

    def __init__(self, passage: str, small: bool) -> None:
        self.passage = passage
        self.news = news(small)
        self.told = self.news.read(passage)

    def entities(self) -> list[str]:
        """What it names, in the order of first mention."""
        mentioned = {name for one in self.told for name in one.names().values()}
        return sorted(mentioned, key=self.passage.find) or names(self.passage)

    def placed(self, rng: random.Random, position: str) -> tuple[list[str], str]:
        """Entities in their order and, at the wanted position, one that can be asked for."""
        entities = self.entities()
        first, _, rest = position.partition(" ")
        place = _ORDINALS.index(first) if first in _ORDINALS else rng.randrange(4)
        while len(entities) > place:
            end = len(entities) if rest else place + 1
            there = rng.sample(entities[place:end], end - place)
            answer = next((name for name in there if self.query(rng, name)), None)
            if answer:
                return entities, answer
            # Without those that no query asks for, the next ones stand at the place.
            entities = [name for name in entities if name not in there]
        entities = self.entities() or [PLACEHOLDER]
        asked = [name for name in entities if self.query(rng, name)]
        return entities, rng.choice(asked or entities)

    def query(self, rng: random.Random, entity: str) -> str | None:
        """A query that asks for this entity and for no other, if there is one."""
        texts = _repeated(rng, self.told, entity) if self.told else self._quoted(rng, entity)
        rng.shuffle(texts)
        entities = self.entities()
        return next((text for text in texts if self.fitting(text, entities) == [entity]), None)

    def fitting(self, query: str, entities: Sequence[str]) -> list[str]:
        """The entities that the gap can hold, by the passage."""
        said = self.news.repeats(query.partition(_JOINED)[0].rstrip(".") + ".")
        if said:
            fits = {name for one in said for other in self.told for name in _gap(one, other)}
            return [name for name in entities if name in fits]
        quoted = _QUOTED.fullmatch(query)
        if quoted is None:
            return []
        before, after = quoted["before"], quoted["after"]
        return [name for name in entities if holds(self.passage, f"{before}{name}{after}")]

    def _quoted(self, rng: random.Random, entity: str) -> list[str]:
        texts: list[str] = []
        for sentence in sentences(self.passage):
            if sentence.count(entity) != 1 or PLACEHOLDER in sentence:
                continue
            words = sentence.replace(entity, PLACEHOLDER).split()
            at = next(n for n, word in enumerate(words) if PLACEHOLDER in word)
            start = 0 if at < _QUOTED_WORDS else at - _QUOTED_WORDS // 2
            part = clause(" ".join(words[start:]), _QUOTED_WORDS)
            texts.append(f"{rng.choice(_LEADS)}{part}{rng.choice(_REMARKS)}")
        return texts


def _repeated(rng: random.Random, told: Sequence[Told], entity: str) -> list[str]:
    """Every fact about the entity in other words, with a gap in its place.

    What says little beside the gap is joined to another fact of the passage.
    """
    texts: list[str] = []
    for one in told:
        others = [other for other in told if entity not in other.slots.values()]
        for slot in [slot for slot, name in one.names().items() if name == entity]:
            for phrase in one.fact.also:
                if slot not in phrase.slots:
                    continue
                text = phrase.fill({**one.slots, slot: PLACEHOLDER})
                bare = len(text.split()) < _LEAST_WORDS or sum(map(is_name, phrase.slots)) < 2
                if others and (bare or rng.random() < 0.3):
                    other = rng.choice(others)
                    more = rng.choice(other.fact.also).fill(other.slots)
                    text = f"{text[:-1]}{_JOINED}{clause(more, _MOST_WORDS)}."
                texts.append(text)
    return texts


def _gap(said: Told, told: Told) -> list[str]:
    """What a told fact has in the gap of one that repeats it; nothing where they differ."""
    if said.fact is not told.fact:
        return []
    gaps = [slot for slot, value in said.slots.items() if value == PLACEHOLDER]
    same = all(told.slots[s] == value for s, value in said.slots.items() if s not in gaps)
    return [told.slots[slot] for slot in gaps] if same and len(gaps) == 1 else []
