"""Texts as arrays of word numbers, so that counting is numpy's work."""

import re
from array import array
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
"""Letters, digits and inner apostrophes; punctuation counts for nothing."""


class Tokens:
    """The words of n texts, one text after the other.

    `cased`: word numbers as written, shape (words,); `starts`: where each text begins, shape
    (n + 1,); `spellings`: the word of each number.
    """

    def __init__(
        self, cased: NDArray[np.int32], starts: NDArray[np.int64], spellings: Sequence[str]
    ) -> None:
        self.cased = cased
        self.starts = starts
        self.spellings = spellings

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def _folding(self) -> tuple[NDArray[np.int32], list[str]]:
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        folded = [numbers[word.lower()] for word in self.spellings]
        return np.array(folded, dtype=np.int32), list(numbers)

    @cached_property
    def ids(self) -> NDArray[np.int32]:
        """Word numbers with case folded, shape (words,)."""
        folding = self._folding[0]
        return folding[self.cased] if len(self.cased) else self.cased

    @property
    def words(self) -> list[str]:
        """The lower-case word of each of `ids`' numbers."""
        return self._folding[1]

    @cached_property
    def _digests(self) -> NDArray[np.uint64]:
        """64 bits of each of `words`, the same in every data set."""
        digests = (
            blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8) for word in self.words
        )
        return np.frombuffer(b"".join(d.digest() for d in digests), dtype=np.uint64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Words of each text, shape (n,)."""
        return np.diff(self.starts)

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        """Which text each word is in, shape (words,)."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.lengths)

    def take(self, places: NDArray[np.int64]) -> "Tokens":
        """The texts at these places, in this order; word numbers stay."""
        lengths = self.lengths[places]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        at = np.arange(starts[-1]) + np.repeat(self.starts[:-1][places] - starts[:-1], lengths)
        part = Tokens(self.cased[at], starts, self.spellings)
        part.__dict__.update(_folding=self._folding, _digests=self._digests)
        return part

    def grams(self, order: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """(hash, text) of every n-gram of `order` words within a text.

        The same words have the same hash in every data set. Hashes are of 64 bits: at ten million
        n-grams the chance of one collision is under 1 in 300,000.
        """
        positions = np.arange(len(self.ids) - order + 1) if len(self.ids) >= order else np.arange(0)
        inside = self.owners[positions] == self.owners[positions + order - 1]
        positions = positions[inside]
        hashes = np.zeros(len(positions), dtype=np.uint64)
        for offset in range(order):
            hashes = _mix(hashes ^ self._digests[self.ids[positions + offset]])
        return hashes, self.owners[positions]


def tokenise(texts: Sequence[str]) -> Tokens:
    """Every word of the texts; a text without words has none."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    flat = array("i")
    starts = [0]
    for text in texts:
        flat.extend(map(numbers.__getitem__, WORD.findall(text)))
        starts.append(len(flat))
    return Tokens(np.array(flat, dtype=np.int32), np.array(starts, dtype=np.int64), list(numbers))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of a value reaches every other."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
