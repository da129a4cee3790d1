"""Out-of-fold probabilities of a fast linear model, for difficulty, label noise and artefacts.

The model sees each field's own words and pairs of neighbouring words, and nothing of how two
fields go together: what it cannot learn may still be learnable.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from targen_async.analysis.rows import Rows, groups
from targen_async.analysis.tokens import tokenise

FOLDS = 5
MOST_LABELS = 50
MODEL = "hashed word 1- and 2-grams by field, logistic regression"
_BUCKETS = 1 << 18
_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
_TUNED_ON = 2_000
_MOST_STEPS = 200


class Unfit(Struct, frozen=True, kw_only=True, tag="unfit"):
    """A measure that these rows cannot have, and why."""

    reason: str


class Dynamics(Struct, frozen=True, kw_only=True):
    """What a model that was trained on a row thought of it after each epoch."""

    of_given: NDArray[np.float64]
    """Probability of the row's own label, shape (epochs, m)."""
    right: NDArray[np.bool_]
    """Whether that was the likeliest label, shape (epochs, m)."""


class Crossfit(Struct, frozen=True, kw_only=True):
    """Probabilities of m rows by models that have not seen them, nor a row of the same group."""

    places: NDArray[np.int64]
    """Of these m rows in the data set; rows of labels with fewer than five rows are left out."""
    labels: tuple[str, ...]
    """Sorted, k of them."""
    given: NDArray[np.int64]
    """The label of each row as a place in `labels`, shape (m,)."""
    probabilities: NDArray[np.float64]
    """Of the model that reads the row, shape (m, k)."""
    null: NDArray[np.float64]
    """Of the model that reads nothing, shape (m, k). Of the linear one: the labels' shares in the
    training folds, one row added to each."""
    model: str = MODEL
    dynamics: Dynamics | None = None
    """Of a model that is trained over epochs."""

    @property
    def null_of_given(self) -> NDArray[np.float64]:
        """The same of the model that reads nothing."""
        return np.asarray(self.null[np.arange(len(self.given)), self.given])

    @property
    def of_given(self) -> NDArray[np.float64]:
        """The model's probability of each row's own label, shape (m,)."""
        return np.asarray(self.probabilities[np.arange(len(self.given)), self.given])


class Dealt(Struct, frozen=True, kw_only=True):
    """The m rows that can be classified, dealt out to folds."""

    chosen: Rows
    places: NDArray[np.int64]
    labels: tuple[str, ...]
    given: NDArray[np.int64]
    folds: NDArray[np.int64]

    def parts(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(fold, rows to train on, rows to ask for) of each fold."""
        for fold in range(FOLDS):
            yield fold, np.flatnonzero(self.folds != fold), np.flatnonzero(self.folds == fold)


def deal(rows: Rows, seed: int) -> Dealt | Unfit:
    """Five folds with groups of rows whole, or why there is nothing to classify."""
    given = np.array([row.label or "" for row in rows.rows], dtype=object)
    counts = Counter(given.tolist())
    kept = [label for label in rows.labels if counts[label] >= FOLDS]
    if rows.open_labels or len(kept) > MOST_LABELS:
        return Unfit(reason="the labels are texts of the rows' own: there is nothing to classify")
    if not rows.labels:
        return Unfit(reason="the rows have no labels")
    if len(rows.labels) == 1:
        return Unfit(reason=f"all rows have one label, {rows.labels[0]!r}")
    if len(kept) < 2:
        return Unfit(reason=f"fewer than two labels have {FOLDS} rows or more")
    places = np.flatnonzero(np.isin(given, kept))
    numbers = np.searchsorted(np.array(kept, dtype=object), given[places]).astype(np.int64)
    chosen = rows.take(places)
    folds = deal_folds(groups(chosen), numbers, seed)
    if len(np.unique(folds)) < FOLDS:
        return Unfit(reason=f"rows of one seed or text make fewer than {FOLDS} groups")
    return Dealt(chosen=chosen, places=places, labels=tuple(kept), given=numbers, folds=folds)


def crossfit(rows: Rows, *, seed: int = 0, fields: Sequence[str] | None = None) -> Crossfit | Unfit:
    """Five folds; groups of rows are kept in one fold. `fields`: what the model reads (all).

    The strength of regularisation is chosen inside the training folds, by the log loss on one of
    them, from 2,000 rows.
    """
    dealt = deal(rows, seed)
    if isinstance(dealt, Unfit):
        return dealt
    features = _features(dealt.chosen, fields or rows.fields)
    probabilities = np.empty((len(dealt.places), len(dealt.labels)))
    null = np.empty_like(probabilities)
    for fold, inside, outside in dealt.parts():
        counts = np.bincount(dealt.given[inside], minlength=len(dealt.labels)) + 1
        null[outside] = counts / counts.sum()
        held = dealt.folds[inside] == (fold + 1) % FOLDS
        probabilities[outside] = _predict(
            features[inside], dealt.given[inside], held, features[outside], null[outside], seed
        )
    return Crossfit(
        places=dealt.places,
        labels=dealt.labels,
        given=dealt.given,
        probabilities=probabilities,
        null=null,
    )


def deal_folds(group: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A fold from 0 to 4 for each row: groups whole, the largest first, each to the fold that has
    the fewest rows of its most common label, and of all rows where that is a draw."""
    _, members, sizes = np.unique(group, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    by_group = np.split(np.argsort(members, kind="stable"), np.cumsum(sizes)[:-1])
    held = np.zeros((FOLDS, labels.max() + 1), dtype=np.int64).tolist()
    totals = [0] * FOLDS
    folds = np.empty(len(group), dtype=np.int64)
    known = labels.tolist()
    for number in order.tolist():
        places = by_group[number].tolist()
        own = [known[place] for place in places]
        main = own[0] if len(own) == 1 else max(sorted(set(own)), key=own.count)
        fold = min(range(FOLDS), key=lambda f: (held[f][main], totals[f], f))
        folds[places] = fold
        totals[fold] += len(places)
        for label in own:
            held[fold][label] += 1
    return folds


def _features(rows: Rows, fields: Sequence[str]) -> sparse.csr_matrix:
    """Which hashed 1- and 2-grams a row has, by field; unit rows, shape (rows, 262,144)."""
    owners, buckets = [], []
    for number, name in enumerate(fields):
        tokens = tokenise([row.fields.get(name, "") for row in rows.rows])
        for order in (1, 2):
            hashes, owner = tokens.grams(order)
            salt = np.uint64(number * 2 + order)
            mixed = (hashes ^ salt) * np.uint64(0x9E3779B97F4A7C15)
            buckets.append((mixed >> np.uint64(46)).astype(np.int32))
            owners.append(owner)
    places = (np.concatenate(owners), np.concatenate(buckets))
    ones = np.ones(len(places[0]), dtype=np.float64)
    found = sparse.csr_matrix((ones, places), shape=(len(rows), _BUCKETS))
    found.sum_duplicates()
    found.data[:] = 1.0
    counts = np.diff(found.indptr)
    found.data /= np.repeat(np.sqrt(np.maximum(counts, 1)), counts)
    return found


def _predict(
    train: sparse.csr_matrix,
    labels: NDArray[np.int64],
    held: NDArray[np.bool_],
    test: sparse.csr_matrix,
    null: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """Probabilities of the test rows; of a label not trained on, those of the null model.

    `held`: which training rows the strength of regularisation is chosen by.
    """
    used = np.flatnonzero(np.bincount(train.indices, minlength=_BUCKETS))
    if len(np.unique(labels)) < 2 or not len(used):
        return null
    train, test = train[:, used], test[:, used]
    model = _fit(train, labels, _strength(train, labels, held, seed))
    found = null.copy()
    found[:, model.classes_] = model.predict_proba(test)
    absent = np.setdiff1d(np.arange(null.shape[1]), model.classes_)
    found[:, model.classes_] *= 1 - null[:, absent].sum(axis=1, keepdims=True)
    return found


def _fit(
    features: sparse.csr_matrix, labels: NDArray[np.int64], strength: float
) -> LogisticRegression:
    """Until the loss is a tenth as steep as it is at the null model.

    scikit-learn's bound is absolute: where thousands of words tell a little each, no single slope
    is above it, and it takes the model without one step, and without a warning.
    """
    given = np.eye(int(labels.max()) + 1)[labels]
    steepest = np.abs(features.T @ (given - given.mean(axis=0))).max() / len(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=_MOST_STEPS, tol=max(0.1 * steepest, 1e-9))
        return model.fit(features, labels)


def _strength(
    features: sparse.csr_matrix,
    labels: NDArray[np.int64],
    held: NDArray[np.bool_],
    seed: int,
) -> float:
    """The inverse of the regularisation that leaves the least log loss on the held rows.

    These are a whole fold: with rows of one group on both sides, memory would win.
    """
    drawn = np.random.default_rng(seed).permutation(len(labels))[:_TUNED_ON]
    fitted, asked = drawn[~held[drawn]], drawn[held[drawn]]
    known = np.unique(labels[fitted])
    asked = asked[np.isin(labels[asked], known)]
    part = features[fitted]
    used = np.flatnonzero(np.bincount(part.indices, minlength=features.shape[1]))
    if len(known) < 2 or not len(asked) or not len(used):
        return 1.0
    part, rest = part[:, used], features[asked][:, used]
    at = np.searchsorted(known, labels[asked])
    losses = []
    for strength in _STRENGTHS:
        found = _fit(part, labels[fitted], strength).predict_proba(rest)
        losses.append(-np.log(np.maximum(found[np.arange(len(asked)), at], 1e-12)).mean())
    return _STRENGTHS[int(np.argmin(losses))]
