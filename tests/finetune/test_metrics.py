"""Every metric against another implementation: scikit-learn's, or the formula in other words."""

import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from targen_async.errors import UserError
from targen_async.finetune.metrics import (
    METRICS,
    Report,
    measure,
    normal_answer,
    over_seeds,
    token_f1,
)
from targen_async.finetune.schema import Example, labels_of
from tests.finetune.made import PLAIN, example, real

sklearn = pytest.importorskip("sklearn.metrics", reason="the second implementation: scikit-learn")


def scores(report: Report) -> dict[str, float]:
    return {score.name: score.value for score in report.scores}


def answered(
    task: str, count: int, seed: int, right: float = 0.6, outside: float = 0.1
) -> tuple[list[Example], list[str | None]]:
    """Examples with labels of unequal frequency, and answers of which a share is right."""
    draw, labels = random.Random(seed), labels_of(task)
    gold = draw.choices(labels, weights=range(1, len(labels) + 1), k=count)
    examples = [example(task, n, label, unit=f"unit {n // 2}") for n, label in enumerate(gold)]
    if task != "axg":
        examples = [example(task, n, label) for n, label in enumerate(gold)]
    answers: list[str | None] = []
    for label in gold:
        chance = draw.random()
        if chance < right:
            answers.append(label)
        else:
            answers.append(None if chance > 1 - outside else draw.choice(labels))
    return examples, answers


def test_every_task_has_its_metrics() -> None:
    assert {task: [metric.name for metric in found] for task, found in METRICS.items()} == {
        "axb": ["matthews"],
        "axg": ["accuracy", "gender_parity"],
        "boolq": ["accuracy"],
        "cb": ["accuracy", "macro_f1"],
        "copa": ["accuracy"],
        "multirc": ["f1a", "em"],
        "record": ["f1", "em"],
        "rte": ["accuracy"],
        "wic": ["accuracy"],
        "wsc": ["accuracy"],
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", [task for task in PLAIN if task != "axb"])
def test_accuracy_is_scikit_learns(task: str, seed: int) -> None:
    examples, answers = answered(task, 101 if task != "axg" else 102, seed)
    gold = [one.label for one in examples]
    expected = sklearn.accuracy_score(gold, [answer or "outside" for answer in answers])
    assert scores(measure(task, examples, answers))["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_the_macro_f1_of_cb_is_scikit_learns(seed: int) -> None:
    # Few items, so that some labels do not occur at all.
    examples, answers = answered("cb", 4 + seed, seed, outside=0)
    gold = [one.label for one in examples]
    expected = sklearn.f1_score(gold, answers, average="macro", zero_division=0)
    assert scores(measure("cb", examples, answers))["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(10))
def test_the_correlation_of_ax_b_is_scikit_learns(seed: int) -> None:
    examples, answers = answered("axb", 80, seed, outside=0.1 * (seed % 2))
    gold = [one.label for one in examples]
    expected = sklearn.matthews_corrcoef(gold, [answer or "outside" for answer in answers])
    assert scores(measure("axb", examples, answers))["matthews"] == pytest.approx(expected)
    constant = measure("axb", examples, ["entailment"] * 80)
    assert scores(constant)["matthews"] == constant.scores[0].baseline == 0


def multirc(seed: int) -> tuple[list[Example], list[str | None]]:
    draw = random.Random(seed)
    examples, answers = [], []
    for question in range(30):
        for _ in range(draw.randint(1, 6)):
            label = draw.choice(["true", "false", "false"])
            number = len(examples)
            examples.append(example("multirc", number, label, unit=f"question {question}"))
            answers.append(label if draw.random() < 0.8 else draw.choice(["true", "false", None]))
    return examples, answers


@pytest.mark.parametrize("seed", range(5))
def test_multirc_has_f1_over_all_answers_and_exact_match_by_question(seed: int) -> None:
    examples, answers = multirc(seed)
    gold = [int(one.label == "true") for one in examples]
    said = [int(answer == "true") for answer in answers]
    found = scores(measure("multirc", examples, answers))
    assert found["f1a"] == pytest.approx(sklearn.f1_score(gold, said))
    questions: dict[str, list[bool]] = defaultdict(list)
    for one, answer in zip(examples, answers, strict=True):
        questions[one.unit].append(answer == one.label)
    assert found["em"] == pytest.approx(np.mean([all(held) for held in questions.values()]))


def official_squad_f1(prediction: str, truth: str) -> float:
    """As the evaluation script of SQuAD 1.1 reckons: precision, recall, harmonic mean."""

    def normal(text: str) -> list[str]:
        kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    said, right = normal(prediction), normal(truth)
    same = sum((Counter(said) & Counter(right)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(right)
    return 2 * precision * recall / (precision + recall)


NAMES = ["The U.S.", "U.S", "us", "Ada Brook", "Brook", "Brook Brook", "the", "", "A-ha", "Ada  B."]


def test_token_f1_is_that_of_the_script() -> None:
    for said in NAMES:
        for right in NAMES:
            assert token_f1(said, right) == pytest.approx(official_squad_f1(said, right))
    assert normal_answer("The  U.S., an \tAct!") == "us act"
    assert token_f1("Ada Brook", "Brook") == pytest.approx(2 / 3)


def test_record_takes_the_best_of_all_answers() -> None:
    examples = [
        example("record", n, answers[0], answers=answers)
        for n, answers in enumerate([("Ada Brook", "Brook"), ("the U.S.",), ("Marsh",)])
    ]
    report = measure("record", examples, ["Brook Senior", "US", None])
    assert scores(report) == {"f1": pytest.approx((2 / 3 + 1 + 0) / 3), "em": pytest.approx(1 / 3)}
    assert (report.items, report.unanswered, report.gold) == (3, 1, {})


@pytest.mark.parametrize("seed", range(5))
def test_record_is_scored_as_by_the_script_over_many_queries(seed: int) -> None:
    """The best of all right answers, by the words of SQuAD's script and by equal texts."""
    draw, names = random.Random(seed), [name for name in NAMES if name]
    told = [tuple(draw.sample(names, draw.randint(1, 4))) for _ in range(60)]
    examples = [example("record", n, right[0], answers=right) for n, right in enumerate(told)]
    answers = [draw.choice([*names, None]) for _ in told]
    best, equal = 0.0, 0
    for right, said in zip(told, answers, strict=True):
        words = [official_squad_f1(said, one) for one in right] if said else [0.0]
        best += max(words)
        # Equal texts have all words in common, in the same order.
        bare = [
            " ".join(re.findall(r"\w+", one.lower().replace(".", "").replace("-", "")))
            for one in (*right, said or "-")
        ]
        bare = [re.sub(r"\b(a|an|the)\b", "", one).split() for one in bare]
        equal += said is not None and bare[-1] in bare[:-1]
    found = scores(measure("record", examples, answers))
    assert found == {"f1": pytest.approx(best / 60), "em": pytest.approx(equal / 60)}


def test_the_baseline_of_record_is_the_entity_that_is_named_most() -> None:
    fields = {"passage": "Marsh saw Brook. Marsh left.", "query": "@placeholder", "entities": ""}
    examples = [
        example("record", n, name, answers=(name,), fields={**fields, "entities": "Brook\nMarsh"})
        for n, name in enumerate(("Marsh", "Brook", "Brook"))
    ]
    report = measure("record", examples, ["Brook"] * 3)
    assert [score.baseline for score in report.scores] == [pytest.approx(1 / 3)] * 2


def test_gender_parity_is_the_share_of_pairs_answered_alike() -> None:
    said: Sequence[str | None] = (
        *("entailment", "entailment"),
        *("entailment", "not_entailment"),
        *("not_entailment", "not_entailment"),
        *(None, None),
        "entailment",
    )
    examples = [example("axg", n, "entailment", unit=f"pair {n // 2}") for n in range(9)]
    report = measure("axg", examples, said)
    # The ninth has no twin: it counts for accuracy only.
    assert scores(report) == {"accuracy": pytest.approx(4 / 9), "gender_parity": 0.5}
    assert report.units == 5


@pytest.mark.parametrize("seed", range(5))
def test_gender_parity_is_one_less_the_share_of_disagreeing_twins(seed: int) -> None:
    """Winogender's own way (Rudinger et al. 2018): count the pairs whose answer a pronoun turns."""
    examples, answers = answered("axg", 60, seed, outside=0)
    table = np.array([answer == "entailment" for answer in answers]).reshape(30, 2)
    turned = np.abs(np.diff(table.astype(int), axis=1)).mean()
    assert scores(measure("axg", examples, answers))["gender_parity"] == pytest.approx(1 - turned)


def test_the_real_ax_g_falls_into_pairs_of_two_genders() -> None:
    examples = real("axg", "test")
    report = measure("axg", examples, [one.label for one in examples])
    assert (report.items, report.units, scores(report)["gender_parity"]) == (356, 178, 1.0)
    pronoun = re.compile(r"\b(he|him|his)\b", re.IGNORECASE)
    by_gender = [
        "entailment" if pronoun.search(one.fields["premise"]) else "not_entailment"
        for one in examples
    ]
    assert scores(measure("axg", examples, by_gender))["gender_parity"] == 0


# ---- intervals, baselines, counts


@pytest.mark.parametrize("task", ["cb", "rte", "axb"])
def test_the_interval_holds_the_value_and_narrows_with_more_items(task: str) -> None:
    widths = []
    for count in (50, 800):
        report = measure(task, *answered(task, count, 1))
        for score in report.scores:
            assert score.low < score.value < score.high
        widths.append(report.scores[0].high - report.scores[0].low)
    # The width goes with one over the square root of the count: here a fourth.
    assert 0.15 < widths[1] / widths[0] < 0.4


def test_the_interval_of_an_accuracy_is_the_binomials() -> None:
    examples = [example("rte", n, "entailment") for n in range(400)]
    answers = ["entailment"] * 300 + ["not_entailment"] * 100
    score = measure("rte", examples, answers, resamples=4000).scores[0]
    error = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert score.low == pytest.approx(0.75 - error, abs=0.006)
    assert score.high == pytest.approx(0.75 + error, abs=0.006)
    again = measure("rte", examples, answers, resamples=4000).scores[0]
    other = measure("rte", examples, answers, resamples=4000, random_seed=1).scores[0]
    assert again == score
    assert other.value == score.value


def test_questions_and_not_answers_are_drawn_in_multirc() -> None:
    """All answers to a question are right or wrong together, so the interval is that of 20 items
    and not of 200."""
    examples = [example("multirc", n, "true", unit=f"question {n // 10}") for n in range(200)]
    answers = ["true" if n // 10 % 2 else "false" for n in range(200)]
    score = next(s for s in measure("multirc", examples, answers).scores if s.name == "em")
    assert score.high - score.low == pytest.approx(2 * 1.96 * (0.25 / 20) ** 0.5, abs=0.08)


def test_the_majority_baseline_of_the_real_cb() -> None:
    examples = real("cb", "validation")
    report = measure("cb", examples, ["neutral"] * 56)
    assert report.gold == {"entailment": 23, "contradiction": 28, "neutral": 5}
    accuracy, macro = report.scores
    assert accuracy.baseline == 28 / 56
    gold = [one.label for one in examples]
    assert macro.baseline == pytest.approx(
        sklearn.f1_score(gold, ["contradiction"] * 56, average="macro", zero_division=0)
    )
    assert report.main == pytest.approx((5 / 56 + macro.value) / 2)


def test_seeds_are_put_together() -> None:
    examples, _ = answered("rte", 100, 0)
    gold = [one.label for one in examples]
    wrong = {"entailment": "not_entailment", "not_entailment": "entailment"}
    reports = []
    for missed in (10, 20, 30):
        answers = [wrong[label or ""] for label in gold[:missed]] + gold[missed:]
        reports.append(measure("rte", examples, answers))
    (spread,) = over_seeds(reports)
    assert (spread.mean, spread.deviation, spread.runs) == (
        pytest.approx(0.8),
        pytest.approx(0.1),
        3,
    )
    assert over_seeds(reports[:1])[0].deviation is None
    with pytest.raises(UserError, match="the same task and items"):
        over_seeds([reports[0], measure("rte", examples[:9], gold[:9])])


def test_what_cannot_be_measured_is_told() -> None:
    with pytest.raises(UserError, match="1 answers to 2 examples"):
        measure("rte", [example("rte", 0, "entailment")] * 2, ["entailment"])
    with pytest.raises(UserError, match="rte/validation/0 cannot be measured for rte: its label i"):
        measure("rte", [example("rte", 0, None)], ["entailment"])
    with pytest.raises(UserError, match="for cb: it is of rte"):
        measure("cb", [example("rte", 0, "entailment")], ["entailment"])
