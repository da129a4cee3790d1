"""Rows of any data set as the measures see them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from targen_async.analysis.tokens import Tokens, tokenise

LEAST_SHARED_WORDS = 5
"""A field of fewer words, such as a question word, does not bind two rows together."""


class Row(Struct, frozen=True, kw_only=True):
    """One row. `fields` are its texts, in the order of the task or of the columns."""

    key: str
    fields: Mapping[str, str]
    label: str | None
    """None: the row has no label, as in a test file."""
    label_before_correction: str | None = None
    votes: tuple[str, ...] = ()
    outcome: str | None = None
    seed: str = ""
    """What rows of one seed share; empty where there is no seed."""
    simulated: bool = False

    @property
    def text(self) -> str:
        """All its texts, a line each."""
        return "\n".join(self.fields.values())


class Rows:
    """The rows of one data set, with what more than one measure needs of them.

    `task` is "" where no task is known. `open_labels`: a label is a text of the row's own.
    `columns`: those of the file that the rows were read from, by its first line.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        name: str = "",
        task: str = "",
        open_labels: bool = False,
        columns: Iterable[str] = (),
    ) -> None:
        self.rows = rows
        self.name = name
        self.task = task
        self.open_labels = open_labels
        self.columns = tuple(columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Rows({self.name!r}, {len(self)})"

    @cached_property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows]

    @cached_property
    def tokens(self) -> Tokens:
        return tokenise(self.texts)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels that occur, sorted: the label map does not depend on the order of rows."""
        return tuple(sorted({row.label for row in self.rows if row.label is not None}))

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that occur, in order of first sight."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.fields))

    @property
    def simulated(self) -> bool:
        return any(row.simulated for row in self.rows)

    def take(self, places: Iterable[Any] | NDArray[Any]) -> "Rows":
        """The rows at these places, in this order."""
        places = np.asarray(list(places), dtype=np.int64)
        part = Rows(
            [self.rows[place] for place in places],
            name=self.name,
            task=self.task,
            open_labels=self.open_labels,
        )
        if "tokens" in self.__dict__:
            part.tokens = self.tokens.take(places)
        return part

    def sample(self, size: int, seed: int) -> "Rows":
        """`size` rows drawn without replacement, in their order; all where there are no more."""
        if size >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:size]))


def groups(rows: Rows) -> NDArray[np.int64]:
    """A number for each row; rows of one seed, or with one same long text, have the same number.

    What must not stand on both sides of a split: a model that has seen a passage would know it.
    """
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows.rows):
        marks = [("text", text) for text in row.fields.values() if _is_long(text)]
        if row.seed:
            marks.append(("seed", row.seed))
        for mark in marks:
            parent[root(place)] = root(first.setdefault(mark, place))
    return np.fromiter((root(place) for place in range(len(parent))), np.int64, len(parent))


def _is_long(text: str) -> bool:
    return len(text.split(maxsplit=LEAST_SHARED_WORDS)) >= LEAST_SHARED_WORDS
