"""Self-BLEU (Zhu et al. 2018, Texygen): how well each text is told by the others."""

import numpy as np
from numpy.typing import NDArray

from targen_async.analysis.tokens import Tokens

EPSILON = 0.1
"""NLTK's smoothing method 1 (Chen and Cherry 2014): what stands for no match at all."""


def self_bleu(tokens: Tokens, order: int = 4) -> NDArray[np.float64]:
    """BLEU of each text against all others as references, shape (n,), each from 0 to 1.

    The same number as NLTK's `sentence_bleu` with equal weights up to `order` and smoothing
    method 1, in time that is linear in the words: of every n-gram only the two largest counts in
    any text matter. Needs two texts or more; a text without words has 0.
    """
    count = len(tokens)
    lengths = tokens.lengths
    logs = np.zeros(count)
    matched_words = np.zeros(count)
    for n in range(1, order + 1):
        matches = _clipped_matches(*tokens.grams(n), count)
        if n == 1:
            matched_words = matches
        total = np.maximum(lengths - n + 1, 1)
        logs += np.log(np.where(matches > 0, matches, EPSILON) / total) / order
    scores = _brevity(lengths) * np.exp(logs)
    return np.asarray(np.where(matched_words > 0, scores, 0.0))


def _clipped_matches(
    hashes: NDArray[np.uint64], owners: NDArray[np.int32], count: int
) -> NDArray[np.float64]:
    """By text: its n-grams, each counted at most as often as the other text that has most of it."""
    if not len(hashes):
        return np.zeros(count)
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    new = np.r_[True, (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])]
    at = np.flatnonzero(new)
    counts = np.diff(np.r_[at, len(hashes)])
    hashes, owners = hashes[at], owners[at]
    # By n-gram, the text that has most of it last.
    order = np.lexsort((counts, hashes))
    hashes, owners, counts = hashes[order], owners[order], counts[order]
    last = np.r_[hashes[1:] != hashes[:-1], True]
    ends = np.flatnonzero(last)
    runs = np.diff(np.r_[-1, ends])
    second = np.where(runs > 1, counts[np.maximum(ends - 1, 0)], 0)
    elsewhere = np.repeat(counts[ends], runs)
    elsewhere[ends] = second
    clipped = np.minimum(counts, elsewhere).astype(np.float64)
    return np.bincount(owners, weights=clipped, minlength=count).astype(np.float64)


def _brevity(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """BLEU's brevity penalty against the closest other length, the shorter of two as close."""
    different, inverse, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    values = different.astype(np.float64)
    below = np.r_[-np.inf, values[:-1]]
    above = np.r_[values[1:], np.inf]
    neighbour = np.asarray(np.where(values - below <= above - values, below, above))
    closest = np.asarray(np.where(counts > 1, values, neighbour))
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = np.where(values > closest, 1.0, np.exp(1 - closest / values))
    return np.asarray(np.where(values > 0, penalty, 0.0)[inverse])
