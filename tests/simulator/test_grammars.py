"""The three grammars: true labels, distinct texts, and texts the task accepts."""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest

from targen_async.simulator import SimulatorSettings, answer, boolq, cb, copa, gold
from targen_async.simulator.contexts import tags_of
from targen_async.tasks import load_task

from .asking import (
    HONEST,
    SMALL,
    content,
    correction_request,
    make_contexts,
    make_row,
    make_rows,
    make_seeds,
    request,
)

TASKS = ("copa", "cb", "boolq")


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


@pytest.mark.parametrize("settings", [HONEST, SMALL], ids=["full", "small"])
@pytest.mark.parametrize("name", TASKS)
def test_every_row_has_the_label_asked_for_and_passes_the_tasks_checks(
    name: str, settings: SimulatorSettings
) -> None:
    task = load_task(name)
    for row in make_rows(name, 1000, settings):
        assert gold({**row.fields, "task": name}, settings.lexicon) == row.label, row.fields
        assert task.objection(row.fields, row.label) is None, row.fields


@pytest.mark.parametrize("name", TASKS)
def test_label_noise_contradicts_the_label_at_its_rate(name: str) -> None:
    rows = make_rows(name, 1000, SimulatorSettings(label_noise=0.2))
    for row in rows:
        # The noise is in the text: the true label differs wherever it struck and nowhere else.
        assert (gold({**row.fields, "task": name}) != row.label) == ("label_noise" in row.faults)
        assert gold({**row.fields, "task": name}) in load_task(name).labels
    assert 0.16 < sum("label_noise" in row.faults for row in rows) / 1000 < 0.24


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
        assert all(item["label"] in task.labels for item in items)
        wrong += sum(item["label"] != row.label for item, row in zip(items, block, strict=True))
    assert least <= wrong <= most


@pytest.mark.parametrize("name", TASKS)
def test_five_thousand_rows_are_distinct(name: str) -> None:
    task = load_task(name)
    rows = make_rows(name, 5000)
    texts = ["\n".join(row.outputs[key] for key in task.instances.distinct_on) for row in rows]
    assert duplicates(texts) < 0.02
    assert near_duplicates(texts) < 0.05


@pytest.mark.parametrize("name", TASKS)
def test_contexts_and_seeds_are_distinct_and_in_bounds(name: str) -> None:
    task = load_task(name)
    contexts = make_contexts(task, 200)
    seeds = [text for _, text in make_seeds(task, contexts, 5000)]
    assert duplicates(contexts) < 0.02
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
    said = [
        copa.instance(rng, "Omar spilled tea over the laptop.", "effect", False, False)["right"]
        for _ in range(40)
    ]
    assert "The laptop stopped working." in said
    assert "He wiped the keys with a paper towel." in said
    assert not any("keyboard" in text or "She" in text for text in said)


def test_copa_seeds_fit_their_context() -> None:
    words = copa.grammar(False)
    context = "A ferry harbour on a foggy morning with two old friends"
    for seed in copa.seeds(random.Random(4), 20, context, small=False):
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
        said = cb.instance(rng, "Emil has never eaten rye bread.", "neutral", ["a question"], False)
        assert "?" in said["premise"]


def test_cb_keeps_a_statement_that_is_not_its_own() -> None:
    row = cb.instance(
        random.Random(7), "The {moon} is {{ made }} of cheese", "entailment", (), False
    )
    assert row["hypothesis"] == "The {moon} is {{ made }} of cheese."
    assert gold({**row, "task": "cb"}) == "entailment"


def test_boolq_follows_style_and_length() -> None:
    rng = random.Random(8)
    short = boolq.seeds(rng, 20, "a museum", ["50 to 70 words"], False)
    long = boolq.seeds(rng, 20, "a museum", ["150 to 200 words"], False)
    assert all("Museum" in text and 45 <= len(text.split()) <= 75 for text in short)
    assert all(len(text.split()) > 100 for text in long)
    query = boolq.instance(rng, short[0], True, ["a search query: lower case, no mark"], False)
    assert query["question"].islower() and not query["question"].endswith("?")
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
