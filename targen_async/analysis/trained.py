"""Out-of-fold probabilities of a model that is fine-tuned for it, and how its training went."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from targen_async.analysis.crossfit import FOLDS, Crossfit, Dynamics, Unfit, deal
from targen_async.analysis.rows import Rows

Texts = Sequence[str]
Scorer = Callable[[Sequence[Texts]], NDArray[np.float64]]
"""The texts of rows, field by field, to probabilities of the labels, shape (rows, k)."""


class Trainer(Protocol):
    """What `finetune.classifier.Classifier` is: training begins anew with every call."""

    name: str

    def epochs(
        self, texts: Sequence[Texts], labels: Sequence[int], count: int, seed: int
    ) -> Iterator[Scorer]:
        """The model after each epoch; the last one is the trained model."""


def crossfit_trained(
    rows: Rows, trainer: Trainer, *, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> Crossfit | Unfit:
    """Five folds, as `crossfit`, and for each a model of texts and one of nothing.

    The second is trained in the same way on rows whose fields are all empty (Ethayarajh et al.
    2022, algorithm 1). Each row's dynamics are those of one model that was trained on it: the one
    that leaves out the fold before the row's own.
    """
    dealt = deal(rows, seed)
    if isinstance(dealt, Unfit):
        return dealt
    texts = [[row.fields.get(name, "") for name in rows.fields] for row in dealt.chosen.rows]
    empty = [""] * len(rows.fields)
    given, count = dealt.given, len(dealt.labels)
    probabilities = np.empty((len(given), count))
    null = np.empty_like(probabilities)
    of_given: list[NDArray[np.float64]] = []
    right: list[NDArray[np.bool_]] = []
    for fold, inside, outside in dealt.parts():
        say(f"{trainer.name}: fold {fold + 1} of {FOLDS}, {len(inside)} rows")
        labels = given[inside].tolist()
        watched = np.flatnonzero(dealt.folds == (fold + 1) % FOLDS)
        for epoch, score in enumerate(
            trainer.epochs([texts[at] for at in inside], labels, count, seed)
        ):
            if epoch == len(of_given):
                of_given.append(np.empty(len(given)))
                right.append(np.empty(len(given), dtype=bool))
            found = score([texts[at] for at in watched])
            of_given[epoch][watched] = found[np.arange(len(watched)), given[watched]]
            right[epoch][watched] = found.argmax(axis=1) == given[watched]
        probabilities[outside] = score([texts[at] for at in outside])
        *_, blind = trainer.epochs([empty] * len(inside), labels, count, seed)
        null[outside] = blind([empty])[0]
    return Crossfit(
        places=dealt.places,
        labels=dealt.labels,
        given=given,
        probabilities=probabilities,
        null=null,
        model=trainer.name,
        dynamics=Dynamics(of_given=np.array(of_given), right=np.array(right)),
    )
