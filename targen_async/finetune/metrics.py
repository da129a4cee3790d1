"""SuperGLUE's own metrics, with intervals, baselines and counts.

A metric is a few counts for each unit (an example, a question of MultiRC, a pair of twins) and a
function of their sums. So an interval is the same function of sums over units drawn with
replacement (Efron's percentile bootstrap), and costs one product of matrices.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.errors import UserError
from targen_async.finetune.schema import Example, entities_of, labels_of

Sums = NDArray[np.float64]
"""Shape (..., counts of the metric)."""
Answers = Sequence[str | None]
"""Labels, or entities; None: what the model said is none of them, which is never right."""

RESAMPLES = 1000
_LEVEL = 0.95
_CHUNK = 100
"""Resamples at a time: bounds the memory at 8 bytes x _CHUNK x units."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Score(Struct, frozen=True, kw_only=True):
    """One metric as a share, Matthews' in [-1, 1]."""

    name: str
    value: float
    low: float
    high: float
    """95 % bootstrap interval, over units."""
    baseline: float
    """The majority baseline: the best that one and the same answer to every item gives (the most
    frequent label, for accuracy); in ReCoRD, the entity that its passage names most often."""


class Report(Struct, frozen=True, kw_only=True):
    """How well the examples of one task were answered."""

    task: str
    items: int
    units: int
    """What the interval was drawn over: fewer than items where several belong together."""
    unanswered: int
    """Answers outside the options."""
    gold: Mapping[str, int]
    """Items by right label; empty where the label is open."""
    scores: tuple[Score, ...]

    @property
    def main(self) -> float:
        """The mean of the scores: what SuperGLUE enters into its average."""
        return mean(score.value for score in self.scores)


class Spread(Struct, frozen=True, kw_only=True):
    """One metric over runs with different seeds."""

    name: str
    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1); None for one run."""
    runs: int


class Metric(Struct, frozen=True):
    """`count` gives a unit's counts, `value` the metric of their sums."""

    name: str
    count: Callable[[Sequence[Example], Answers], tuple[float, ...]]
    value: Callable[[Sums], Sums]


def measure(
    task: str,
    examples: Sequence[Example],
    answers: Answers,
    *,
    random_seed: int = 0,
    resamples: int = RESAMPLES,
) -> Report:
    """The task's metrics over examples whose right answers are known, in any order.

    Raises UserError where there is none, where an example is another task's or has no label, and
    where the numbers of examples and answers differ.
    """
    if not examples or len(examples) != len(answers):
        raise UserError(f"{len(answers)} answers to {len(examples)} examples cannot be measured")
    for one in examples:
        if one.task != task or one.label is None:
            why = f"it is of {one.task}" if one.task != task else "its label is kept back"
            raise UserError(f"{one.key} cannot be measured for {task}: {why}")
    units: dict[str, list[int]] = {}
    for number, one in enumerate(examples):
        units.setdefault(one.unit, []).append(number)
    groups = list(units.values())
    scores = []
    for metric in METRICS[task]:
        counts = _counts(metric, examples, answers, groups)
        low, high = _interval(metric, counts, random_seed, resamples)
        constant = (_counts(metric, examples, same, groups) for same in _constants(task, examples))
        scores.append(
            Score(
                name=metric.name,
                value=float(metric.value(counts.sum(axis=0))),
                low=low,
                high=high,
                baseline=max(float(metric.value(found.sum(axis=0))) for found in constant),
            )
        )
    gold = Counter(one.label for one in examples if labels_of(task) and one.label is not None)
    return Report(
        task=task,
        items=len(examples),
        units=len(groups),
        unanswered=sum(answer is None for answer in answers),
        gold={label: gold[label] for label in labels_of(task)},
        scores=tuple(scores),
    )


def over_seeds(reports: Sequence[Report]) -> tuple[Spread, ...]:
    """Mean and standard deviation of each metric over runs on the same task and items.

    Raises UserError where the reports are of different ones.
    """
    if len({(report.task, report.items) for report in reports}) != 1:
        raise UserError("only reports on the same task and items can be put together")
    spreads = []
    for of_metric in zip(*(report.scores for report in reports), strict=True):
        values = [score.value for score in of_metric]
        deviation = stdev(values) if len(values) > 1 else None
        spreads.append(
            Spread(name=of_metric[0].name, mean=mean(values), deviation=deviation, runs=len(values))
        )
    return tuple(spreads)


def _counts(
    metric: Metric, examples: Sequence[Example], answers: Answers, groups: Sequence[list[int]]
) -> Sums:
    """Shape (units, counts)."""
    rows = [metric.count([examples[n] for n in g], [answers[n] for n in g]) for g in groups]
    return np.array(rows, np.float64)


def _interval(
    metric: Metric, counts: Sums, random_seed: int, resamples: int
) -> tuple[float, float]:
    draw, units = np.random.default_rng(random_seed), len(counts)
    even = np.full(units, 1 / units)
    values: list[Sums] = []
    for done in range(0, resamples, _CHUNK):
        times = draw.multinomial(units, even, size=min(_CHUNK, resamples - done))
        values.append(metric.value(times @ counts))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(np.concatenate(values), (tail, 1 - tail))
    return float(low), float(high)


def _constants(task: str, examples: Sequence[Example]) -> list[Answers]:
    labels = labels_of(task)
    if labels:
        return [[label] * len(examples) for label in labels]
    return [[_most_named(one) for one in examples]]


def _most_named(example: Example) -> str:
    return max(entities_of(example), key=example.fields["passage"].count)


# ---- the metrics


def _ratio(above: Sums, below: Sums) -> Sums:
    """0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _share(sums: Sums) -> Sums:
    return _ratio(sums[..., 0], sums[..., 1])


def _f1(sums: Sums) -> Sums:
    """Of true positives, predicted positives and positives."""
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _right(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    hits = sum(one.label == answer for one, answer in zip(examples, answers, strict=True))
    return (hits, len(examples))


def _by_label(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    """For each label: right ones, predicted ones, true ones."""
    counts: list[float] = []
    for label in labels_of(examples[0].task):
        true = [one.label == label for one in examples]
        said = [answer == label for answer in answers]
        counts += (sum(t and s for t, s in zip(true, said, strict=True)), sum(said), sum(true))
    return tuple(counts)


def _macro_f1(sums: Sums) -> Sums:
    """The unweighted mean of the labels' F1, over those that occur or were predicted."""
    each = sums.reshape(*sums.shape[:-1], -1, 3)
    occurs = each[..., 1] + each[..., 2] > 0
    return _ratio(np.where(occurs, _f1(each), 0.0).sum(-1), occurs.sum(-1).astype(np.float64))


def _matthews(sums: Sums) -> Sums:
    """The correlation for any number of classes (Gorodkin 2004); 0 where a side is constant.

    Answers outside the labels are a class of their own."""
    each = sums[..., :-1].reshape(*sums.shape[:-1], -1, 3)
    right, total = each[..., 0].sum(-1), sums[..., -1]
    said = np.concatenate([each[..., 1], (total - each[..., 1].sum(-1))[..., None]], -1)
    true = each[..., 2]
    above = right * total - (each[..., 1] * true).sum(-1)
    below = (total**2 - (said**2).sum(-1)) * (total**2 - (true**2).sum(-1))
    return _ratio(above, np.sqrt(np.maximum(below, 0)))


def _by_label_and_all(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    return (*_by_label(examples, answers), len(examples))


def _positives(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    """Of MultiRC's answers that are right: found, predicted, all."""
    true = [one.label == "true" for one in examples]
    said = [answer == "true" for answer in answers]
    return (sum(t and s for t, s in zip(true, said, strict=True)), sum(said), sum(true))


def _all_right(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    hits, count = _right(examples, answers)
    return (float(hits == count), 1)


def _parity(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    """Are both genders of a pair answered alike? A row whose twin is missing does not count."""
    if len(examples) != 2:
        return (0, 0)
    return (float(answers[0] is not None and answers[0] == answers[1]), 1)


def normal_answer(text: str) -> str:
    """As SQuAD's evaluation compares answers (Rajpurkar et al. 2016), and ReCoRD's after it.

    Case, punctuation, articles and extra blanks do not count."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def token_f1(said: str, right: str) -> float:
    """F1 of the words that two answers share, each as often as both have it."""
    a, b = normal_answer(said).split(), normal_answer(right).split()
    shared = (Counter(a) & Counter(b)).total()
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def _best_f1(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    told = zip(examples, answers, strict=True)
    scores = (max(token_f1(said or "", right) for right in one.answers) for one, said in told)
    return (sum(scores), len(examples))


def _best_match(examples: Sequence[Example], answers: Answers) -> tuple[float, ...]:
    hits = 0
    for one, said in zip(examples, answers, strict=True):
        right = {normal_answer(answer) for answer in one.answers}
        hits += said is not None and normal_answer(said) in right
    return (hits, len(examples))


_ACCURACY = Metric("accuracy", _right, _share)
METRICS: Mapping[str, tuple[Metric, ...]] = {
    "axb": (Metric("matthews", _by_label_and_all, _matthews),),
    "axg": (_ACCURACY, Metric("gender_parity", _parity, _share)),
    "boolq": (_ACCURACY,),
    "cb": (_ACCURACY, Metric("macro_f1", _by_label, _macro_f1)),
    "copa": (_ACCURACY,),
    "multirc": (Metric("f1a", _positives, _f1), Metric("em", _all_right, _share)),
    "record": (Metric("f1", _best_f1, _share), Metric("em", _best_match, _share)),
    "rte": (_ACCURACY,),
    "wic": (_ACCURACY,),
    "wsc": (_ACCURACY,),
}
"""By task, as SuperGLUE scores them (Wang et al. 2019, table 1 and section 3.3)."""
