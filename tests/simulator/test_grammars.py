"""The grammars, asked as an endpoint: true labels, distinct texts, and texts the task accepts."""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest

from targen_async.simulator import SimulatorSettings, answer, axg, boolq, cb, copa, gold, wic, wsc
from targen_async.simulator.answers import GRAMMARS
from targen_async.simulator.contexts import tags_of
from targen_async.simulator.wish import Wish
from targen_async.tasks import list_tasks, load_task
from targen_async.words import inflections

from .asking import (
    HONEST,
    SMALL,
    Made,
    content,
    correction_request,
    distinct_text,
    make_contexts,
    make_group,
    make_row,
    make_rows,
    make_seeds,
    request,
)

TASKS = tuple(GRAMMARS)


def grams(text: str) -> frozenset[str]:
    lowered = text.lower()
    return frozenset(lowered[at : at + 5] for at in range(max(1, len(lowered) - 4)))


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> float:
    """The share of texts that are at least `threshold` like an earlier one. Exact.

    Two sets of that similarity share one of their rarest elements, so only those are looked up.
    """
    sets = [grams(text) for text in texts]
    counts = Counter(gram for found in sets for gram in found)
    known: dict[str, list[int]] = {}
    near = 0
    for number, found in enumerate(sets):
        rarest = sorted(found, key=lambda gram: (counts[gram], gram))
        rarest = rarest[: len(rarest) - math.ceil(threshold * len(rarest)) + 1]
        others = {other for gram in rarest for other in known.get(gram, ())}
        near += any(
            len(found & sets[other]) / len(found | sets[other]) >= threshold for other in others
        )
        for gram in rarest:
            known.setdefault(gram, []).append(number)
    return near / len(texts)


def duplicates(texts: Sequence[str]) -> float:
    return 1 - len({" ".join(text.lower().split()) for text in texts}) / len(texts)


def test_the_near_duplicate_measure_is_exact() -> None:
    rng = random.Random(5)
    base = ["".join(rng.choice("abcdef ") for _ in range(40)) for _ in range(30)]
    texts = [text[: rng.randint(28, 40)] + rng.choice(["", "xyz"]) for text in base * 8]
    slow = 0
    for number, text in enumerate(texts):
        mine = grams(text)
        slow += any(
            len(mine & grams(other)) / len(mine | grams(other)) >= 0.8 for other in texts[:number]
        )
    assert 0 < near_duplicates(texts) == slow / len(texts) < 1


def test_the_ten_superglue_tasks_have_a_grammar() -> None:
    assert len(GRAMMARS) == 10 and set(GRAMMARS) <= set(list_tasks())
    for name, grammar in GRAMMARS.items():
        assert tuple(load_task(name).labels) == grammar.LABELS


def groups_of(name: str, rows: Sequence[Made]) -> list[list[Made]]:
    size = load_task(name).rows_per_call
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@pytest.mark.parametrize("settings", [HONEST, SMALL], ids=["full", "small"])
@pytest.mark.parametrize("name", TASKS)
def test_every_row_has_the_label_asked_for_and_passes_the_tasks_checks(
    name: str, settings: SimulatorSettings
) -> None:
    task = load_task(name)
    rows = make_rows(name, 1000, settings)
    for row in rows:
        assert gold({**row.fields, "task": name}, settings.lexicon) == row.label, row.fields
        assert task.objection(row.fields, row.label) is None, row.fields
        if task.answer:
            assert task.class_of(row.fields, row.label) == row.planned
    for members in groups_of(name, rows):
        assert task.group_objection([row.fields for row in members]) is None, members[0].fields


@pytest.mark.parametrize("name", TASKS)
def test_label_noise_contradicts_the_label_at_its_rate(name: str) -> None:
    task = load_task(name)
    rows = make_rows(name, 1000, SimulatorSettings(label_noise=0.2))
    groups = groups_of(name, rows)
    for members in groups:
        wrong = [gold({**row.fields, "task": name}) != row.label for row in members]
        # The noise is in the text: a true label differs wherever it struck and nowhere else.
        assert any(wrong) == ("label_noise" in members[0].faults)
        for row in members:
            assert task.objection(row.fields, row.label) is None, row.fields
            found = gold({**row.fields, "task": name})
            choices = row.fields["entities"].splitlines() if task.answer else task.labels
            assert found in choices
        assert task.group_objection([row.fields for row in members]) is None, members[0].fields
    struck = sum("label_noise" in members[0].faults for members in groups)
    assert 0.16 < struck / len(groups) < 0.25


@pytest.mark.parametrize(("error", "least", "most"), [(0.0, 0, 0), (0.2, 160, 240)])
@pytest.mark.parametrize("name", TASKS)
def test_the_judge_errs_at_its_rate(name: str, error: float, least: int, most: int) -> None:
    task, rows = load_task(name), make_rows(name, 1000)
    settings = SimulatorSettings(corrector_error=error)
    wrong = 0
    for start in range(0, 1000, 10):
        block = rows[start : start + 10]
        asked = correction_request(task, [row.fields for row in block], seed=start)
        items = content(answer(asked, settings))["items"]
        assert [item["id"] for item in items] == [f"r{n}" for n in range(10)]
        for item, row in zip(items, block, strict=True):
            choices = row.fields["entities"].splitlines() if task.answer else task.labels
            assert item["label"] in choices
        wrong += sum(item["label"] != row.label for item, row in zip(items, block, strict=True))
    assert least <= wrong <= most


@pytest.mark.parametrize("many", [1000, pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", TASKS)
def test_thousands_of_rows_are_distinct(name: str, many: int) -> None:
    task = load_task(name)
    rows = make_rows(name, many)
    texts = [distinct_text(task, row) for row in rows]
    # The members of a group are not compared with each other: one after the other is looked at.
    for member in range(task.rows_per_call):
        own = texts[member :: task.rows_per_call]
        assert duplicates(own) < 0.02
        assert near_duplicates(own) < 0.05


@pytest.mark.parametrize("name", TASKS)
def test_contexts_and_seeds_are_distinct_and_in_bounds(name: str) -> None:
    task = load_task(name)
    contexts = make_contexts(task, 200)
    seeds = [text for _, text in make_seeds(task, contexts, 5000)]
    assert duplicates(contexts) < 0.02
    if task.seeds.kind == "word":
        # There are only so many words: enough for a run of a thousand rows.
        assert len(set(seeds)) > 800
    else:
        assert duplicates(seeds) < 0.02
    for texts, (least, most) in ((contexts, task.contexts.words), (seeds, task.seeds.words)):
        assert all(least <= len(text.split()) <= most for text in texts)


@pytest.mark.parametrize("name", TASKS)
def test_the_small_lexicon_has_few_words(name: str) -> None:
    def words(settings: SimulatorSettings) -> set[str]:
        rows = make_rows(name, 500, settings)
        return {word for row in rows for text in row.fields.values() for word in text.split()}

    assert len(words(SMALL)) < len(words(HONEST)) / 2


@pytest.mark.parametrize("small", [False, True])
def test_no_copa_choice_can_be_read_as_another_frames(small: bool) -> None:
    words = copa.grammar(small)
    rng = random.Random(1)
    for frame in words.frames:
        assert len(words.far[frame.name]) >= 2
        for relation, phrases in frame.choices.items():
            assert len(phrases) >= 3
            for phrase in phrases:
                text = words.draw(rng, phrase, copa.person_slots("Sofia", he=False))
                assert words.read_choice(text) == {(frame.name, relation)}, text


def test_a_copa_premise_reads_back_with_and_without_its_opening() -> None:
    words = copa.grammar(False)
    rng = random.Random(2)
    for frame in words.frames:
        text = words.draw(rng, frame.premise, copa.person_slots("Omar", he=True))
        for premise in (
            text,
            f"Last week, {text if text[0] == 'O' else text[0].lower() + text[1:]}",
        ):
            read = words.read_premise(premise)
            assert read is not None and read[0] is frame, premise


def test_copa_choices_speak_of_what_the_premise_speaks_of() -> None:
    rng = random.Random(3)
    wish = Wish(seed="Omar spilled tea over the laptop.", variant="effect")
    said = [str(copa.instance(rng, wish, False)["right"]) for _ in range(40)]
    assert "The laptop stopped working." in said
    assert "He wiped the keys with a paper towel." in said
    assert not any("keyboard" in text or "She" in text for text in said)


def test_copa_seeds_fit_their_context() -> None:
    words = copa.grammar(False)
    context = "A ferry harbour on a foggy morning with two old friends"
    for seed in copa.seeds(random.Random(4), 20, context, [], False):
        read = words.read_premise(seed)
        assert read is not None and read[0].tags & tags_of(context)


def test_cb_reads_every_frame_back() -> None:
    words = cb.grammar(False)
    for label, forms in words.frames.items():
        for phrases in forms.values():
            for phrase in phrases:
                slots = cb.person_slots("Greta", he=False)
                premise = phrase.fill({**slots, "s": "the bakery in Elmham has closed for good"})
                row = {
                    "premise": f"{words.openers[0]} {premise} {words.closers[0]}",
                    "hypothesis": "The bakery in Elmham has closed for good.",
                }
                assert gold({**row, "task": "cb"}) == label, premise


def test_cb_takes_the_environment_asked_for() -> None:
    rng = random.Random(6)
    for _ in range(20):
        wish = Wish(seed="Emil has never eaten rye bread.", label="neutral", axes=("a question",))
        said = cb.instance(rng, wish, False)
        assert "?" in said["premise"]


def test_cb_keeps_a_statement_that_is_not_its_own() -> None:
    wish = Wish(seed="The {moon} is {{ made }} of cheese", label="entailment")
    row = cb.instance(random.Random(7), wish, False)
    assert row["hypothesis"] == "The {moon} is {{ made }} of cheese."
    assert gold({**row, "task": "cb"}) == "entailment"


def test_boolq_follows_style_and_length() -> None:
    rng = random.Random(8)
    short = boolq.seeds(rng, 20, "a museum", ["50 to 70 words"], False)
    long = boolq.seeds(rng, 20, "a museum", ["150 to 200 words"], False)
    assert all("Museum" in text and 45 <= len(text.split()) <= 75 for text in short)
    assert all(len(text.split()) > 100 for text in long)
    axes = ("a search query: lower case, no mark",)
    query = boolq.instance(rng, Wish(seed=short[0], label="true", axes=axes), False)
    assert str(query["question"]).islower() and not str(query["question"]).endswith("?")
    assert gold({"task": "boolq", "passage": short[0], **query}) == "true"


@pytest.mark.parametrize("label", ["true", "false"])
def test_boolq_asks_about_a_foreign_passage_what_it_can_judge(label: str) -> None:
    passage = "Penguins huddle together against the cold wind of the southern winter."
    task = load_task("boolq")
    row = make_row(task, "penguins", passage, label, seed=9)
    assert gold({**row.fields, "task": "boolq"}) == label


@pytest.mark.parametrize("label", ["choice1", "choice2"])
def test_copa_judges_a_foreign_premise_as_it_was_written(label: str) -> None:
    task = load_task("copa")
    row = make_row(task, "an office", "The queen sold her last giraffe.", label, seed=10)
    assert gold({**row.fields, "task": "copa"}) is None
    items = content(answer(correction_request(task, [row.fields]), HONEST))["items"]
    assert items[0]["label"] == label


def test_an_axg_seed_is_taken_up_and_the_gender_tells_nothing() -> None:
    rng, first = random.Random(11), Counter[str]()
    seed = "a baker and a judge: the baker lends the judge a ladder"
    for number in range(200):
        label = axg.LABELS[number % 2]
        said = axg.instance(rng, Wish(seed=seed, label=label), False)
        assert "judge" in said["premise"] and "baker" in said["premise"]
        pronouns = Counter(word for word in str(said["premise"]).split() if word in ("he", "she"))
        first.update({f"{label} {pronoun}": count for pronoun, count in pronouns.items()})
    assert len(first) == 4 and min(first.values()) > 30


def test_the_noise_of_twins_breaks_a_twin_or_swaps_the_texts() -> None:
    kinds = Counter()
    for rows in groups_of("wsc", make_rows("wsc", 600, SimulatorSettings(label_noise=1.0))):
        kinds[tuple(gold({**row.fields, "task": "wsc"}) for row in rows)] += 1
    assert set(kinds) == {("false", "true"), ("true", "true"), ("false", "false")}
    assert 0.4 < kinds["false", "true"] / kinds.total() < 0.6


def test_every_wsc_word_decides_for_one_participant() -> None:
    for frame in wsc.grammar(False).frames:
        assert all(len(set(words)) >= 2 for words in frame.deciders.values())
        assert not set(frame.deciders["a"]) & set(frame.deciders["b"])


def test_wsc_takes_the_participant_asked_for() -> None:
    for place, name in (("first", "Rosa"), ("second", "Jasmin")):
        seed = "Rosa and Jasmin: Rosa apologised to Jasmin, and one of them is rude or insulted"
        said = wsc.instance(random.Random(12), Wish(seed=seed, axes=(place,)), False)
        assert (said["span1"], said["span2"]) == (name, "she")
        assert "Rosa apologised to Jasmin because she had been" in said["text"]


def test_every_sentence_of_a_wic_word_shows_one_sense() -> None:
    words, rng = wic.grammar(False), random.Random(13)
    for word in words.words.values():
        assert len(set(word.senses)) == 2
        assert not {"s", "ed", "ing"} & {
            form
            for form, text in word.forms.items()
            if form not in ("W", "of") and text not in inflections(word.base)
        }
        for sense in word.senses:
            for phrase in words.sentences[sense]:
                text = words.draw(rng, phrase, word)
                assert words.read(text, word) == {sense}, text


def test_wic_words_are_many_and_of_the_part_of_speech_and_letter_asked_for() -> None:
    words, rng = wic.grammar(False), random.Random(14)
    assert min(len(found) for found in words.parts.values()) > 400
    assert len(words.words) == sum(len(found) for found in words.parts.values())
    verbs = {word.base for word in words.parts["verb"]}
    for letters, pattern in (("c or d", "[cd]"), ("e to h", "[e-h]"), ("s", "s")):
        found = wic.seeds(rng, 10, "", ["verb", letters, "known to every child"], False)
        assert len(set(found)) == 10 and set(found) <= verbs
        assert all(re.match(pattern, base) for base in found)


@pytest.mark.parametrize("label", ["true", "false"])
def test_a_word_that_wic_does_not_know_is_used_all_the_same(label: str) -> None:
    task = load_task("wic")
    row = make_row(task, "an office", "gizmo", label, seed=15)
    assert gold({**row.fields, "task": "wic"}) == label
    assert task.objection(row.fields, label) is None


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_of_another_hand_still_brings_sound_rows(name: str) -> None:
    task = load_task(name)
    seed = "The ferry from Holm sank in 1911. Ole Bratt and Liv Bratt were saved by Emil Aas."
    if task.seeds.kind == "word":
        seed = "gizmo"
    for number in range(8):
        planned = task.classes[number % len(task.classes)]
        for row in make_group(task, "a harbour", seed, planned, seed=number):
            assert gold({**row.fields, "task": name}) in (None, row.label)


@pytest.mark.parametrize("name", TASKS)
def test_foreign_text_has_no_gold_and_the_judge_says_none(name: str) -> None:
    task = load_task(name)
    row = dict.fromkeys(task.fields, "Lorem ipsum dolor sit amet.")
    assert gold({**row, "task": name}) is None
    items = content(answer(correction_request(task, [row]), HONEST))["items"]
    assert items[0]["label"] == "none"


def test_contexts_belong_to_the_domain_asked_for() -> None:
    task = load_task("copa")
    values = {"count": "10", "domain": "animals and pets"}
    for context in content(answer(request(task, "contexts", values), HONEST))["contexts"]:
        assert "animal" in tags_of(context)


@pytest.mark.parametrize("name", TASKS)
def test_articles_fit_their_nouns(name: str) -> None:
    for row in make_rows(name, 600):
        for text in row.fields.values():
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [bcdfgjklmnpqrstvwxz]", text), text
