"""Lexical and semantic diversity of a set of texts."""

import zlib
from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from targen_async.analysis.embedding import TFIDF, similarities
from targen_async.analysis.estimate import Estimate, bootstrap_mean, half_sampling
from targen_async.analysis.rows import Rows
from targen_async.analysis.selfbleu import self_bleu
from targen_async.analysis.tokens import Tokens

COUNTED = 20_000
"""Rows that distinct-n and the compression ratio are measured on at most."""
COMPARED = 5_000
"""Rows that Self-BLEU and MTLD are measured on at most."""
EMBEDDED = 1_000
"""Rows that the measures on embeddings see at most."""
MTLD_FACTOR = 0.72


class Diversity(Struct, frozen=True, kw_only=True):
    """How varied the texts are. Most of these change with the number of rows and their length:
    compare sets of one size. None: fewer than two rows, or no words."""

    words_per_row: Estimate
    vocabulary_sum: Estimate
    """The research code's measure under its own name: the distinct words of each row that are no
    stop words, summed over the rows; it grows with size and length. Stop words are
    scikit-learn's, where the research code takes spaCy's."""
    vocabulary: int
    """Different words in all rows."""
    distinct_1: Estimate | None
    """Different n-grams of all n-grams, as in Shaib et al. 2024; of 20,000 rows at most. Li et al.
    2016, whose name it is, divide by words: then short rows lower distinct-2 and -3."""
    distinct_2: Estimate | None
    distinct_3: Estimate | None
    mtld: Estimate | None
    """Measure of textual lexical diversity, words (McCarthy and Jarvis 2010), factor 0.72, both
    directions, of the rows one after another; of 5,000 rows at most. Higher is more varied."""
    self_bleu: Estimate | None
    """Mean BLEU-4 of a row against all others (Zhu et al. 2018); of 5,000 rows at most. Lower is
    more varied."""
    compression_ratio: Estimate | None
    """Bytes of the texts by bytes of them compressed with zlib (Shaib et al. 2024); of 20,000
    rows at most. Lower is more varied."""
    embedding: str
    """What the next three are measured on: a model, or `tf-idf`, which sees words only."""
    vendi: Estimate | None
    """Vendi score (Friedman and Dieng 2023), cosine kernel: the effective number of different
    rows, of 1,000 rows at most."""
    mean_cosine: Estimate | None
    """Over all pairs of 1,000 rows at most. Lower is more varied."""
    nearest_cosine: Estimate | None
    """Mean cosine to the most similar other row, of 1,000 rows at most. Lower is more varied."""


def measure_diversity(rows: Rows, *, seed: int = 0, embeddings: str | None = None) -> Diversity:
    """Diversity of a set of one row or more; samples are drawn by `seed`.

    `embeddings`: a sentence-transformers name or folder. UserError where it cannot be loaded.
    """
    tokens = rows.tokens
    counted = rows.sample(COUNTED, seed)
    compared = rows.sample(COMPARED, seed)
    per_row = bootstrap_mean(vocabulary_by_row(tokens).astype(np.float64), seed)
    kernel = _kernel(rows.sample(EMBEDDED, seed), embeddings)
    return Diversity(
        words_per_row=bootstrap_mean(tokens.lengths.astype(np.float64), seed),
        vocabulary_sum=_times(per_row, len(rows)),
        vocabulary=len(np.unique(tokens.ids)),
        distinct_1=_distinct(counted.tokens, 1, seed),
        distinct_2=_distinct(counted.tokens, 2, seed),
        distinct_3=_distinct(counted.tokens, 3, seed),
        mtld=_mtld(compared.tokens, seed),
        self_bleu=_self_bleu(compared.tokens, seed),
        compression_ratio=_compression(counted, seed),
        embedding=embeddings or TFIDF,
        vendi=_of_kernel(kernel, vendi_score, seed, grows=True),
        mean_cosine=_of_kernel(kernel, mean_cosine, seed),
        nearest_cosine=_of_kernel(kernel, nearest_cosine, seed),
    )


def _times(estimate: Estimate, factor: int) -> Estimate:
    low, high = (None if end is None else end * factor for end in (estimate.low, estimate.high))
    return Estimate(value=estimate.value * factor, low=low, high=high, rows=estimate.rows)


# ---- words


def vocabulary_by_row(tokens: Tokens) -> NDArray[np.int64]:
    """Distinct words of each row that are no stop words, shape (n,)."""
    said = np.array([word not in ENGLISH_STOP_WORDS for word in tokens.words], dtype=bool)
    kept = said[tokens.ids] if len(tokens.ids) else np.zeros(0, dtype=bool)
    pairs = np.unique(
        tokens.owners[kept].astype(np.int64) * (len(tokens.words) + 1) + tokens.ids[kept]
    )
    return np.bincount(pairs // (len(tokens.words) + 1), minlength=len(tokens))


def distinct(tokens: Tokens, order: int) -> float:
    """Different n-grams of all n-grams, from 0 to 1; 0 where there is none."""
    hashes, _ = tokens.grams(order)
    return len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def _distinct(tokens: Tokens, order: int, seed: int) -> Estimate | None:
    hashes, owners = tokens.grams(order)
    if not len(hashes):
        return None
    bounds = np.searchsorted(owners, np.arange(len(tokens) + 1))

    def of(places: NDArray[np.int64]) -> float:
        chosen = np.zeros(len(tokens), dtype=bool)
        chosen[places] = True
        part = hashes[np.repeat(chosen, np.diff(bounds))]
        return len(np.unique(part)) / len(part) if len(part) else 0.0

    return half_sampling(of, len(tokens), seed)


def mtld(ids: NDArray[np.int32]) -> float:
    """Words a run lasts on average until its type-token ratio has fallen to 0.72."""
    return (_mtld_one_way(ids) + _mtld_one_way(ids[::-1])) / 2


def _mtld_one_way(ids: NDArray[np.int32]) -> float:
    factors, types, length = 0.0, set[int](), 0
    ratio = 1.0
    for word in ids.tolist():
        types.add(word)
        length += 1
        ratio = len(types) / length
        if ratio <= MTLD_FACTOR:
            factors += 1
            types, length, ratio = set(), 0, 1.0
    if length:
        factors += (1 - ratio) / (1 - MTLD_FACTOR)
    return len(ids) / factors if factors else float(len(ids))


def _mtld(tokens: Tokens, seed: int) -> Estimate | None:
    if not len(tokens.ids):
        return None
    return half_sampling(lambda places: mtld(tokens.take(places).ids), len(tokens), seed)


def _self_bleu(tokens: Tokens, seed: int) -> Estimate | None:
    if len(tokens) < 2 or not len(tokens.ids):
        return None
    return half_sampling(
        lambda places: float(self_bleu(tokens.take(places)).mean()), len(tokens), seed
    )


def compression_ratio(texts: list[str]) -> float:
    """Bytes of the texts, a line each, by bytes of them compressed; 1 for no bytes."""
    raw = "\n".join(texts).encode("utf-8", "replace")
    return len(raw) / len(zlib.compress(raw)) if raw else 1.0


def _compression(rows: Rows, seed: int) -> Estimate | None:
    if len(rows) < 2:
        return None
    texts = rows.texts
    return half_sampling(
        lambda places: compression_ratio([texts[place] for place in places]), len(rows), seed
    )


# ---- embeddings


def _kernel(rows: Rows, embeddings: str | None) -> NDArray[np.float64] | None:
    return similarities(rows, embeddings) if len(rows) > 1 and len(rows.tokens.ids) else None


def _of_kernel(
    kernel: NDArray[np.float64] | None,
    measure: Callable[[NDArray[np.float64]], float],
    seed: int,
    *,
    grows: bool = False,
) -> Estimate | None:
    if kernel is None:
        return None
    return half_sampling(
        lambda places: measure(kernel[np.ix_(places, places)]), len(kernel), seed, grows=grows
    )


def vendi_score(kernel: NDArray[np.float64]) -> float:
    """exp of the entropy of the eigenvalues of kernel / n: from 1 (all the same) to n."""
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_cosine(kernel: NDArray[np.float64]) -> float:
    """Mean over all pairs of different rows."""
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def nearest_cosine(kernel: NDArray[np.float64]) -> float:
    """Mean over rows of the largest cosine to another row."""
    others = kernel - 3 * np.eye(len(kernel))
    return float(others.max(axis=1).mean())
