"""A picture of the rows in two dimensions. Distances in it are no measure of anything."""

import warnings
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD

from targen_async.analysis.embedding import TFIDF, sentence_vectors, tfidf
from targen_async.analysis.rows import Rows
from targen_async.analysis.tokens import tokenise

PROJECTED = 5_000
"""Rows in the picture, of both sets together, at most."""
_LEAST_FOR_UMAP = 50
"""UMAP lays out by 15 neighbours, and has nothing to tell of a handful of rows."""


class OtherPoint(Struct, frozen=True, kw_only=True):
    """A row of the other set."""

    key: str
    x: float
    y: float


class Projection(Struct, frozen=True, kw_only=True):
    """One fit of both sets, by the random seed: where they lie apart, a model told them apart.
    The places of the data's own rows stand in rows.jsonl."""

    method: str
    """UMAP (McInnes et al. 2018) where umap-learn is installed, else truncated SVD (Deerwester et
    al. 1990); of TF-IDF or of the embedding model."""
    rows: int
    """Of each set at most; drawn by the seed."""
    other: tuple[OtherPoint, ...]


Places = dict[int, tuple[float, float]]
"""Place of a row in its set to its place in the picture."""


def project(
    rows: Rows, other: Rows | None, *, seed: int = 0, embeddings: str | None = None
) -> tuple[Projection, Places]:
    """The picture, and where the data's rows are in it. Raises UserError as `similarities` does."""
    most = PROJECTED if other is None else PROJECTED // 2
    drawn = _drawn(len(rows), most, seed)
    theirs = _drawn(len(other), most, seed) if other is not None else np.zeros(0, dtype=np.int64)
    texts = [rows.texts[at] for at in drawn]
    texts += [other.texts[at] for at in theirs] if other is not None else []
    vectors = sentence_vectors(texts, embeddings) if embeddings else tfidf(tokenise(texts))
    how, points = _flattened(vectors, seed)
    placed = [(float(x), float(y)) for x, y in points]
    projection = Projection(
        method=f"{how} of {embeddings or TFIDF}",
        rows=most,
        other=tuple(
            OtherPoint(key=other.rows[at].key, x=x, y=y)
            for at, (x, y) in zip(theirs, placed[len(drawn) :], strict=True)
        )
        if other is not None
        else (),
    )
    return projection, dict(zip(drawn.tolist(), placed, strict=False))


def _drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _flattened(vectors: Any, seed: int) -> tuple[str, NDArray[np.float64]]:  # noqa: ANN401
    """(method, points of shape (n, 2))."""
    if vectors.shape[0] >= _LEAST_FOR_UMAP:
        try:
            from umap import UMAP
        except ImportError:
            pass
        else:
            with warnings.catch_warnings():
                # It tells that a fixed seed means one thread.
                warnings.simplefilter("ignore")
                layout = UMAP(metric="cosine", random_state=seed, n_jobs=1)
                return "UMAP", np.asarray(layout.fit_transform(vectors), dtype=np.float64)
    flat = np.zeros((vectors.shape[0], 2))
    if min(vectors.shape) > 2:
        flat = np.asarray(TruncatedSVD(2, random_state=seed).fit_transform(vectors))
    return "truncated SVD", flat
