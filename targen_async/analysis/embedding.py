"""Texts as unit vectors: TF-IDF without a download, or a sentence-transformers model."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from targen_async.analysis.rows import Rows
from targen_async.analysis.tokens import Tokens
from targen_async.errors import UserError

TFIDF = "tf-idf"
"""The fallback: it sees shared words, not shared meaning."""


def similarities(rows: Rows, model: str | None) -> NDArray[np.float64]:
    """Cosine of every pair of rows, shape (n, n); 1 on the diagonal.

    `model`: a name or folder that sentence-transformers can load; None for TF-IDF. Raises UserError
    where it cannot be loaded.
    """
    if model is None:
        vectors = tfidf(rows.tokens)
        found = np.asarray((vectors @ vectors.T).toarray())
    else:
        dense = sentence_vectors(rows.texts, model)
        found = np.asarray(dense @ dense.T, dtype=np.float64)
    np.fill_diagonal(found, 1.0)
    return np.asarray(np.clip(found, -1.0, 1.0))


def tfidf(tokens: Tokens) -> sparse.csr_matrix:
    """Unit vectors, shape (n, words), with scikit-learn's smoothed idf; zeros for no words."""
    ones = np.ones(len(tokens.ids))
    shape = (len(tokens), max(len(tokens.words), 1))
    counts = sparse.csr_matrix((ones, (tokens.owners, tokens.ids)), shape=shape)
    counts.sum_duplicates()
    found_in = np.bincount(counts.indices, minlength=shape[1])
    idf = np.log((1 + len(tokens)) / (1 + found_in)) + 1
    weighted = counts.multiply(idf).tocsr()
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    norms[norms == 0] = 1
    return sparse.csr_matrix(sparse.diags(1 / norms) @ weighted)


def sentence_vectors(texts: list[str], model: str) -> NDArray[np.float32]:
    """Unit vectors by a sentence-transformers model, shape (n, dimensions)."""
    encoder = open_encoder(model)
    return np.asarray(encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False))


@cache
def open_encoder(model: str) -> Any:  # noqa: ANN401
    """A SentenceTransformer by name or folder. Raises UserError where it cannot be loaded."""
    try:
        import transformers
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"embeddings by {model} need `pip install 'targen-async[embeddings]'`; without "
            "--embeddings TF-IDF is taken"
        ) from error
    transformers.logging.disable_progress_bar()
    try:
        return SentenceTransformer(model)
    except (OSError, ValueError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the embedding model {model} cannot be loaded: {why}") from error
