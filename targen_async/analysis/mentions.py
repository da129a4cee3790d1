"""Which rows name which entries of a kind, however they were found."""

from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import sparse

Phrase = tuple[str, ...]
Forms = Mapping[Phrase, str]
"""The words of a form to the entry it is a form of."""


class Mentions(Struct, frozen=True, kw_only=True):
    """Which rows name which entries."""

    entries: tuple[str, ...]
    """Sorted, those that are named at all."""
    found: sparse.csr_matrix
    """1 where a row names an entry, shape (rows, entries)."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows that name each entry, shape (entries,)."""
        return np.asarray(self.found.sum(axis=0), dtype=np.int64).ravel()

    @property
    def any(self) -> NDArray[np.bool_]:
        """Whether a row names one, shape (rows,)."""
        return np.asarray(np.diff(self.found.indptr) > 0)
