"""The grammars of axb, multirc, record and rte, asked directly: true, sound and distinct rows.

Each makes its rows as the engine lays them out, from its own seeds or from texts that no grammar
wrote.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from targen_async.simulator import axb, foreign, multirc, record, rte
from targen_async.simulator.lexicon import Phrase
from targen_async.simulator.news import is_name, news
from targen_async.simulator.wish import Wish
from targen_async.tasks import Task, load_task

GRAMMARS: Mapping[str, Any] = {"axb": axb, "multirc": multirc, "record": record, "rte": rte}
SEED_FIELDS = {"multirc": "paragraph", "record": "passage", "rte": "premise"}
ANSWERS = {"right_1": "true", "right_2": "true", "wrong_1": "false", "wrong_2": "false"}
SMALL = pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
EVERY = pytest.mark.parametrize("name", sorted(GRAMMARS))

CORPUS = (
    "The ferry from Holm to Sandvik sank in the winter of 1911. Captain Ole Bratt stayed on board "
    "until every passenger had been rescued by fishermen from Sandvik. His daughter Liv later gave "
    "his watch to the Maritime Museum in Holm, where it can still be seen. The Royal Society of "
    "Mariners honoured him with a medal.",
    "When the rain stopped, we walked down to the mill.\n\nNobody had lived there for years, and "
    'the wheel was gone. "It was sold for scrap," said my aunt, who had grown up beside the river. '
    "She showed us the window of the room in which she was born. Later we ate plums from the tree "
    "that my uncle had planted, and she told us about the flood.",
    "Penguins huddle together against the cold wind of the southern winter, and each of them takes "
    "its turn on the outside, where it is coldest, before it moves back to the middle, so that "
    "the whole group can last for weeks without any food until the females come back from the sea.",
    "Dr. Emil Hassler met Ada Lindqvist in Turin in 1931. Ada Lindqvist wanted to build gliders; "
    "Hassler had the money. The firm of Hassler & Lindqvist opened in Novara a year later! Did it "
    "prosper? It did, until a fire destroyed the workshop in Novara. Turin then lent them a hall.",
)


@cache
def task_of(name: str) -> Task:
    return load_task(name)


class Row(NamedTuple):
    """One row as it would stand in a shard, with what it was asked to be."""

    fields: dict[str, str]
    outputs: dict[str, Any]
    label: str
    wanted: str
    noisy: bool

    def gold(self, name: str, small: bool = False) -> str | None:
        found: str | None = GRAMMARS[name].gold(self.fields, small)
        return found


def rows_of(
    name: str, seed: str, wanted: str, number: int, *, noisy: bool = False, small: bool = False
) -> list[Row]:
    """The rows of one instance: four for multirc, one for the others."""
    task, rng = task_of(name), random.Random(f"{name}{number}")
    axes = {of: rng.choice(values) for of, values in task.instances.axes.items()}
    wish = Wish(
        seed=seed,
        label=wanted,
        axes=tuple(value.lower() for value in axes.values()),
        values=axes,
        noisy=noisy,
    )
    said = GRAMMARS[name].instance(rng, wish, small)
    outputs = {key: "\n".join(v) if isinstance(v, list) else v for key, v in said.items()}
    assert outputs.keys() == task.instances.outputs.keys()
    fields = {SEED_FIELDS[name]: seed} if name in SEED_FIELDS else {}
    fields |= {of: axes[of] for of in task.fields if of in axes}
    fields |= {of: outputs[of] for of in task.fields if of in outputs}
    if name == "multirc":
        return [
            Row({**fields, "answer": outputs[slot]}, outputs, label, "", noisy)
            for slot, label in ANSWERS.items()
        ]
    return [Row(fields, outputs, outputs.get("answer", wanted), wanted, noisy)]


def wanted_of(name: str) -> tuple[str, ...]:
    answer = task_of(name).answer
    return tuple(answer.positions) if answer else ("",) if name == "multirc" else rte.LABELS


@cache
def groups(name: str, count: int, small: bool = False, noise: float = 0) -> tuple[list[Row], ...]:
    """The rows of `count` instances; two of rte and record share a seed."""
    task, rng = task_of(name), random.Random(f"{name}{count}{small}")
    luck, wanted = random.Random(f"{noise}"), wanted_of(name)
    found: list[list[Row]] = []
    while len(found) < count:
        axes = [rng.choice(values) for values in task.seeds.axes.values()]
        for seed in GRAMMARS[name].seeds(rng, task.seeds.per_call, "", axes, small):
            for _ in range(2 if name in ("record", "rte") else 1):
                number = len(found)
                noisy = luck.random() < noise
                asked = wanted[number % len(wanted)]
                found.append(rows_of(name, seed, asked, number, noisy=noisy, small=small))
    return tuple(found[:count])


def place(row: Row) -> int:
    """The place of a record's label among its entities, by first mention."""
    passage = row.fields["passage"]
    return sorted(row.fields["entities"].split("\n"), key=passage.index).index(row.label)


def grams(text: str) -> frozenset[str]:
    lowered = " ".join(text.lower().split())
    return frozenset(lowered[at : at + 5] for at in range(max(1, len(lowered) - 4)))


def near_duplicates(texts: Sequence[str]) -> float:
    """The share of texts that are at least 0.8 like an earlier one. Exact.

    Two sets of that similarity share one of their rarest elements, so only those are looked up.
    """
    sets = [grams(text) for text in texts]
    counts = Counter(gram for found in sets for gram in found)
    known: dict[str, list[int]] = {}
    near = 0
    for number, found in enumerate(sets):
        rarest = sorted(found, key=lambda gram: (counts[gram], gram))
        rarest = rarest[: len(rarest) - math.ceil(0.8 * len(rarest)) + 1]
        others = {other for gram in rarest for other in known.get(gram, ())}
        near += any(len(found & sets[n]) >= 0.8 * len(found | sets[n]) for n in others)
        for gram in rarest:
            known.setdefault(gram, []).append(number)
    return near / len(texts)


@SMALL
@EVERY
def test_every_row_has_the_label_asked_for_and_passes_the_tasks_checks(
    name: str, small: bool
) -> None:
    task = task_of(name)
    for group in groups(name, 1000, small):
        for row in group:
            assert row.gold(name, small) == row.label, row
            assert task.objection(row.fields, row.label) is None, row
        assert len({row.fields.get("answer", "").lower() for row in group}) == len(group)


@EVERY
def test_noise_makes_one_label_of_an_instance_wrong_and_no_other(name: str) -> None:
    task, struck = task_of(name), 0
    for group in groups(name, 1000, noise=0.2):
        golds = [row.gold(name) for row in group]
        wrong = sum(gold != row.label for gold, row in zip(golds, group, strict=True))
        assert None not in golds and wrong == group[0].noisy, group
        assert all(task.objection(row.fields, row.label) is None for row in group), group
        assert len({row.fields.get("answer", "").lower() for row in group}) == len(group), group
        struck += group[0].noisy
    assert 160 < struck < 240


@SMALL
def test_a_record_answer_has_the_wanted_place_noise_or_not(small: bool) -> None:
    positions = wanted_of("record")
    for group in groups("record", 1000, small, noise=0.2):
        row = group[0]
        assert positions[min(place(row), 3)] == row.wanted, row


@EVERY
def test_five_thousand_rows_are_distinct(name: str) -> None:
    if name == "multirc":
        # Each answer with its question. Those of one seed are never compared with each other.
        made = groups(name, 1250)
        texts = [
            [f"{group[at].fields['question']}\n{group[at].fields['answer']}" for group in made]
            for at in range(len(ANSWERS))
        ]
    else:
        on = task_of(name).instances.distinct_on
        texts = [["\n".join(g[0].outputs[key] for key in on) for g in groups(name, 5000)]]
    every = [" ".join(text.lower().split()) for part in texts for text in part]
    assert len(every) == 5000 and len(set(every)) > 0.98 * 5000
    assert all(near_duplicates(part) < 0.05 for part in texts)


@EVERY
def test_seeds_are_distinct_and_in_bounds(name: str) -> None:
    task, rng = task_of(name), random.Random(3)
    texts: list[str] = []
    for number in range(1000):
        axes = [rng.choice(values) for values in task.seeds.axes.values()]
        context = ("An airport terminal on a foggy morning", "A play", "")[number % 3]
        texts += GRAMMARS[name].seeds(rng, 5, context, axes, False)
    assert len(set(texts)) > 0.98 * len(texts) == 0.98 * 5000
    least, most = task.seeds.words
    assert all(least <= len(text.split()) <= most for text in texts)


@EVERY
def test_the_small_lexicon_has_few_words(name: str) -> None:
    def words(small: bool) -> set[str]:
        rows = [row for group in groups(name, 1000, small) for row in group]
        return {word for row in rows for text in row.fields.values() for word in text.split()}

    assert len(words(True)) < len(words(False)) / 2
    rows = {tuple(sorted(g[0].fields.items())) for g in groups(name, 1000, small=True)}
    assert len(rows) > 900


@EVERY
def test_the_same_wish_is_answered_alike(name: str) -> None:
    seed = GRAMMARS[name].seeds(random.Random(5), 1, "", [], False)[0]
    first, second = (rows_of(name, seed, wanted_of(name)[0], 7) for _ in range(2))
    assert first == second


# ---- texts that no grammar wrote


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("name", sorted(SEED_FIELDS))
def test_a_text_of_the_users_own_gives_sound_rows_that_can_be_judged(
    name: str, noisy: bool
) -> None:
    task = task_of(name)
    wanted = wanted_of(name)
    for text in CORPUS:
        for number in range(40):
            group = rows_of(name, text, wanted[number % len(wanted)], number, noisy=noisy)
            wrong = 0
            for row in group:
                assert task.objection(row.fields, row.label) is None, row
                assert row.gold(name) is not None, row
                wrong += row.gold(name) != row.label
                if name == "record":
                    assert wanted[min(place(row), 3)] == row.wanted, row
            assert wrong == noisy, group


def test_a_record_query_fits_one_entity_only() -> None:
    text = "Anna Berg sang in Turin. Emil Hassler sang in Turin. Ida Moll danced for Anna Berg."
    for number in range(60):
        row = rows_of("record", text, wanted_of("record")[number % 4], number)[0]
        assert row.gold("record") == row.label, row
        assert "@placeholder sang" not in row.fields["query"], row


@pytest.mark.parametrize("name", sorted(SEED_FIELDS))
@pytest.mark.parametrize("text", ["", "Rain.", "one two three", "\u96e8\u304c\u964d\u308b\u3002"])
def test_a_text_with_nothing_in_it_still_gets_an_answer(name: str, text: str) -> None:
    for number, wanted in enumerate(wanted_of(name)):
        for row in rows_of(name, text, wanted, number):
            assert all(value for key, value in row.outputs.items() if key != "entities")
            row.gold(name)


@EVERY
def test_foreign_rows_have_no_gold(name: str) -> None:
    row = dict.fromkeys(task_of(name).fields, "Lorem ipsum dolor sit amet.")
    assert GRAMMARS[name].gold(row, False) is None
    assert GRAMMARS[name].gold({}, False) is None


def test_names_of_a_text_stand_in_it_and_not_in_each_other() -> None:
    assert foreign.names(CORPUS[0])[:3] == ["Holm", "Sandvik", "Captain Ole Bratt"]
    assert "Royal Society of Mariners" in foreign.names(CORPUS[0])
    for text in CORPUS:
        found = foreign.names(text)
        assert len(found) >= 6
        assert all(name in text for name in found)
        assert all(text.index(one) < text.index(two) for one, two in pairwise(found))
        assert not any(one in two for one in found for two in found if one != two)


# ---- what the word lists promise


def phrases(of: Sequence[Phrase]) -> Iterator[tuple[Phrase, set[str]]]:
    for phrase in of:
        yield phrase, set(phrase.slots)


@SMALL
def test_every_fact_reads_back_in_all_its_wordings(small: bool) -> None:
    words, rng = news(small), random.Random(8)
    for fact in words.facts:
        told = set(fact.says[0].slots)
        repeated = {slot for phrase in fact.also for slot in phrase.slots}
        assert {slot for slot in told if is_name(slot)} | fact.only <= repeated <= told
        for phrase, slots in phrases(fact.says):
            values = words.fill(rng, phrase.slots, fact.topic, [], 1)
            assert slots == told and words.read(phrase.fill(values)) == [(fact, values)]
            assert not words.repeats(phrase.fill(values))
        for phrase, slots in phrases([*fact.also, *fact.against]):
            values = words.fill(rng, phrase.slots, fact.topic, [], 1)
            text = phrase.fill(values)
            assert slots <= told
            assert words.repeats(text) == [(fact, values)][: phrase in fact.also], text
            assert words.denies(text) == (phrase in fact.against), text


@SMALL
def test_every_pair_of_axb_reads_back_as_one_label(small: bool) -> None:
    words, rng = axb.grammar(small), random.Random(9)
    for name, pairs in words.pairs.items():
        assert {pair.label for pair in pairs} == set(axb.LABELS), name
        for pair in pairs:
            for _ in range(20):
                text = words.fill(rng, pair.phrase, {})
                assert {label for label, _ in words.index.find(text)} == {pair.label}, text


def test_axb_knows_every_phenomenon_of_its_task_and_keeps_to_it() -> None:
    asked = task_of("axb").instances.axes["phenomenon"]
    words = axb.grammar(False)
    assert [value.partition(":")[0] for value in asked] == list(words.pairs)
    for group in groups("axb", 1000):
        fields = group[0].fields
        own = words.pairs[fields["phenomenon"].partition(":")[0]]
        text = f"{fields['sentence1']}\n{fields['sentence2']}"
        assert any(pair.phrase.regex.fullmatch(text) for pair in own), fields


def test_axb_builds_on_the_statement() -> None:
    wish = Wish(seed="On Friday, Olga hid the rusty drill in Foxdale.", label="entailment")
    countries = {country for _, country in axb.grammar(False).places}
    for number in range(50):
        said = axb.instance(random.Random(number), wish, False)
        text = f"{said['sentence1']} {said['sentence2']}"
        assert "Foxdale" in text or any(country in text for country in countries)
        assert "drill" in text or "tool" in text


@pytest.mark.parametrize("gap", ["contradicts: at odds", "leaves open: not told"])
def test_rte_heeds_the_gap(gap: str) -> None:
    seed = "Novak Foods has bought its rival Barlow Glass for 12 million euros."
    words = news(False)
    told = words.read(seed)[0]
    for number in range(60):
        wish = Wish(seed=seed, label="not_entailment", values={"gap": gap})
        text = str(rte.instance(random.Random(number), wish, False)["hypothesis"])
        about = {one.fact for one in words.repeats(text)}
        assert (told.fact in about or words.denies(text)) == gap.startswith("contra"), text


def test_multirc_right_answers_come_from_more_than_one_sentence() -> None:
    asked = groups("multirc", 300)
    apart = 0
    for group in asked:
        parts = foreign.sentences(group[0].fields["paragraph"])
        first, second = (
            {n for n, part in enumerate(parts) if row.fields["answer"].lower() in part.lower()}
            for row in group[:2]
        )
        apart += not first & second
    assert apart > 90
    # Some wrong answers are told of somebody else.
    lures = [row for g in asked for row in g[2:] if row.fields["answer"] in row.fields["paragraph"]]
    assert len(lures) > 60
