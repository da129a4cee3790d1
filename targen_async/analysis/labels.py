"""Label quality: estimated noise, self-correction, votes, and truth where it is known."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.analysis.crossfit import Crossfit, Unfit
from targen_async.analysis.difficulty import pvi_of
from targen_async.analysis.estimate import Estimate, bootstrap_mean, bounded, half_sampling
from targen_async.analysis.rows import Row, Rows

_LISTED = 100
LEAST_LEARNT = 0.1
"""Of the entropy of the labels: with less, a model's mistakes would be taken for the labels'. Two
balanced labels of which 30 % are wrong leave 0.12."""
LEAST_NOISE = 0.02
"""Of the labels: fewer are not told as a fault, whatever they are."""
_NO_SURER = 0.55
"""How often at most a model may be surer of a row it agrees with than of one it does not, 0.5 being
what wrong labels give: the rest is for models that have not learnt all there is."""

Gold = Callable[[str, Mapping[str, str]], str | None]
"""The true label of a row of a task, from its fields; None where it is not known."""


class Suspect(Struct, frozen=True, kw_only=True):
    key: str
    label: str
    likely: str
    margin: float
    """Probability of the likely label less that of the given one."""


class Noise(Struct, frozen=True, kw_only=True, tag="measured"):
    """Confident learning (Northcutt, Jiang and Chuang 2021)."""

    share: Estimate
    """Rows with a wrong label: what is off the diagonal of the calibrated joint."""
    joint: Mapping[str, Mapping[str, float]]
    """Given label to likely true label to share of all rows."""
    suspected: int
    """Rows off the diagonal of the confident joint."""
    listed: tuple[Suspect, ...]
    """The 100 with the largest margin."""


class Correction(Struct, frozen=True, kw_only=True):
    """What self-correction did to the rows that were delivered; rows that it dropped are in the
    run's manifest."""

    transitions: Mapping[str, Mapping[str, int]]
    """Label before to label after to rows."""
    changed: Estimate
    """Share of rows."""


class Votes(Struct, frozen=True, kw_only=True):
    """How far judges agree, on rows with two votes or more."""

    votes_per_row: float
    unanimous: Estimate
    """Share of rows."""
    agreement: Estimate
    """Mean over rows of the share of pairs of votes that agree (Fleiss 1971)."""


class Truth(Struct, frozen=True, kw_only=True):
    """Against labels that are known: of simulated rows, read off their grammar."""

    known: int
    unknown: int
    correct: Estimate | None
    correct_before_correction: Estimate | None


class LabelQuality(Struct, frozen=True, kw_only=True):
    """None where the rows do not tell."""

    shares: Mapping[str, float]
    """Label to share of the labelled rows; empty where each row has a label of its own."""
    unlabelled: int
    noise: Noise | Unfit
    correction: Correction | None
    votes: Votes | None
    simulator_gold: Truth | None


def measure_labels(
    rows: Rows, fit: Crossfit | Unfit, *, seed: int = 0, gold: Gold | None = None
) -> LabelQuality:
    """Label quality; `gold` is asked for simulated rows only."""
    given = Counter(row.label for row in rows.rows if row.label is not None)
    total = given.total()
    return LabelQuality(
        shares={} if rows.open_labels else {name: given[name] / total for name in sorted(given)},
        unlabelled=len(rows) - total,
        noise=_noise(rows, fit, seed),
        correction=_correction(rows, seed),
        votes=_votes(rows, seed),
        simulator_gold=_truth(rows, gold, seed) if gold and rows.simulated else None,
    )


# ---- confident learning


def confident_joint(
    given: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(counts of shape (k, k): given by likely label; each row's likely label, or -1).

    A row counts for the most probable of the labels whose probability reaches the mean
    probability that rows of that label have of it.
    """
    labels = probabilities.shape[1]
    means = [
        probabilities[given == label, label].mean() if np.any(given == label) else np.inf
        for label in range(labels)
    ]
    reached = np.where(probabilities >= np.array(means), probabilities, -1.0)
    likely = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)
    counts = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(counts, (given[likely >= 0], likely[likely >= 0]), 1)
    return counts, likely


def calibrated(counts: NDArray[np.int64], given: NDArray[np.int64]) -> NDArray[np.float64]:
    """The joint of given and true labels: it sums to 1, its rows to the labels' shares."""
    sums = counts.sum(axis=1, keepdims=True)
    rows = np.where(sums > 0, counts / np.maximum(sums, 1), np.eye(len(counts)))
    shares = np.bincount(given, minlength=len(counts)) / len(given)
    return np.asarray(rows * shares[:, None])


def surer(
    given: NDArray[np.int64], likely: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each suspected row, the share of rows given its likely label, and confirmed in it, that
    the model is surer of than of the suspected row; a draw is a half. Rows whose likely label no
    row is confirmed in are left out."""
    found: list[NDArray[np.float64]] = []
    for label in range(probabilities.shape[1]):
        column, is_likely = probabilities[:, label], likely == label
        confirmed = np.sort(column[is_likely & (given == label)])
        suspected = column[is_likely & (given != label)]
        if len(confirmed):
            below = np.searchsorted(confirmed, suspected, side="left")
            up_to = np.searchsorted(confirmed, suspected, side="right")
            found.append(1 - (below + up_to) / 2 / len(confirmed))
    return np.concatenate([np.empty(0), *found])


def why_not(fit: Crossfit) -> str | None:
    """Why the model's disagreement with the labels says nothing of the labels; None where it does.

    Confident learning takes it that whether a label is wrong depends on the true label and not on
    the row (Northcutt et al. 2021, section 2). Then a model is as sure of the rows it disagrees
    with as of those of the same likely label that it agrees with. Where the labels are right and
    some rows do not tell them, it disagrees where it is unsure.
    """
    learnt = pvi_of(fit).mean()
    if learnt < LEAST_LEARNT * -np.log2(fit.null_of_given).mean():
        return (
            f"the model learns too little of the labels ({learnt:.3f} bits a row) to tell "
            "wrong ones"
        )
    counts, likely = confident_joint(fit.given, fit.probabilities)
    if np.trace(calibrated(counts, fit.given)) >= 1 - LEAST_NOISE:
        return None
    shares = surer(fit.given, likely, fit.probabilities)
    # A rank among many is spread evenly, with a variance of 1/12; 1.96 of its standard errors.
    if not len(shares) or shares.mean() - 1.96 * np.sqrt(1 / 12 / len(shares)) <= _NO_SURER:
        return None
    return (
        f"the model is unsure of the {len(shares):,} rows whose labels it doubts, surer of "
        f"{shares.mean():.0%} of the others: they may be wrong, or the text does not tell them"
    )


def likely_labels(fit: Crossfit | Unfit) -> dict[int, str]:
    """Place of each suspected row in the data set to its likely true label."""
    if isinstance(fit, Unfit) or why_not(fit) is not None:
        return {}
    _, likely = confident_joint(fit.given, fit.probabilities)
    wrong = np.flatnonzero(_suspected(fit, likely))
    return {int(fit.places[at]): fit.labels[likely[at]] for at in wrong}


def _suspected(fit: Crossfit, likely: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray((likely >= 0) & (likely != fit.given))


def _noise(rows: Rows, fit: Crossfit | Unfit, seed: int) -> Noise | Unfit:
    if isinstance(fit, Unfit):
        return fit
    if (reason := why_not(fit)) is not None:
        return Unfit(reason=reason)

    def share(places: NDArray[np.int64]) -> float:
        counts, _ = confident_joint(fit.given[places], fit.probabilities[places])
        return 1 - float(np.trace(calibrated(counts, fit.given[places])))

    counts, likely = confident_joint(fit.given, fit.probabilities)
    joint = calibrated(counts, fit.given)
    wrong = np.flatnonzero(_suspected(fit, likely))
    margins = fit.probabilities[wrong, likely[wrong]] - fit.of_given[wrong]
    order = wrong[np.argsort(-margins, kind="stable")[:_LISTED]]
    return Noise(
        share=bounded(half_sampling(share, len(fit.given), seed), 0.0, 1.0),
        joint={
            label: dict(zip(fit.labels, joint[number].tolist(), strict=True))
            for number, label in enumerate(fit.labels)
        },
        suspected=len(wrong),
        listed=tuple(
            Suspect(
                key=rows.rows[fit.places[at]].key,
                label=fit.labels[fit.given[at]],
                likely=fit.labels[likely[at]],
                margin=float(fit.probabilities[at, likely[at]] - fit.of_given[at]),
            )
            for at in order
        ),
    )


# ---- what the rows themselves tell


def _correction(rows: Rows, seed: int) -> Correction | None:
    told = [row for row in rows.rows if row.label_before_correction is not None]
    if not told or all(row.outcome is None for row in told):
        return None
    changed = np.array([row.label_before_correction != row.label for row in told], dtype=float)
    pairs = Counter(_transition(row, rows.open_labels) for row in told)
    transitions: dict[str, dict[str, int]] = {}
    for before, after in sorted(pairs):
        transitions.setdefault(before, {})[after] = pairs[before, after]
    return Correction(transitions=transitions, changed=bootstrap_mean(changed, seed))


def _transition(row: Row, open_labels: bool) -> tuple[str, str]:
    if open_labels:
        return "answer", "kept" if row.label == row.label_before_correction else "changed"
    return str(row.label_before_correction), str(row.label)


def _votes(rows: Rows, seed: int) -> Votes | None:
    counts = [Counter(row.votes) for row in rows.rows if len(row.votes) > 1]
    if not counts:
        return None
    unanimous = np.array([len(count) == 1 for count in counts], dtype=float)
    pairs = [
        sum(n * (n - 1) for n in count.values()) / (count.total() * (count.total() - 1))
        for count in counts
    ]
    return Votes(
        votes_per_row=sum(count.total() for count in counts) / len(counts),
        unanimous=bootstrap_mean(unanimous, seed),
        agreement=bootstrap_mean(np.array(pairs), seed),
    )


def _truth(rows: Rows, gold: Gold, seed: int) -> Truth:
    now: list[bool] = []
    before: list[bool] = []
    for row in rows.rows:
        true = gold(rows.task, row.fields) if row.simulated else None
        if true is not None:
            now.append(row.label == true)
            before.append(row.label_before_correction == true)
    return Truth(
        known=len(now),
        unknown=len(rows) - len(now),
        correct=bootstrap_mean(np.array(now, dtype=float), seed) if now else None,
        correct_before_correction=bootstrap_mean(np.array(before, dtype=float), seed)
        if before
        else None,
    )
