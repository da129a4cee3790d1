"""Sentence embeddings come from the model that is named, and what is missing is told."""

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from targen_async.analysis.diversity import measure_diversity
from targen_async.analysis.embedding import TFIDF, open_encoder
from targen_async.errors import UserError
from tests.analysis.sets import prose, rows_of


class Encoder:
    """Stands in for a SentenceTransformer: every text is one of two directions."""

    def __init__(self, name: str) -> None:
        if name != "two-directions":
            raise OSError(f"{name} is not a local folder\nnor can it be fetched")

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        assert options["normalize_embeddings"]
        return np.array([[1, 0] if "left" in text else [0, 1] for text in texts], dtype=np.float32)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for both packages; what transformers was told stands in the list."""
    open_encoder.cache_clear()
    told: list[str] = []
    logging = SimpleNamespace(disable_progress_bar=lambda: told.append("no bar"))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(logging=logging))
    module = SimpleNamespace(SentenceTransformer=Encoder)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return told


def test_the_named_model_is_measured_on(library: list[str]) -> None:
    rows = rows_of([f"{'left' if n % 2 else 'right'} {text}" for n, text in enumerate(prose(40))])
    found = measure_diversity(rows, embeddings="two-directions")
    assert found.embedding == "two-directions"
    assert found.vendi is not None and found.nearest_cosine is not None
    assert found.vendi.value == pytest.approx(2)
    assert found.nearest_cosine.value == pytest.approx(1)
    assert library == ["no bar"]
    assert measure_diversity(rows).embedding == TFIDF


@pytest.mark.usefixtures("library")
def test_a_model_that_cannot_be_loaded_is_told() -> None:
    told = "the embedding model none cannot be loaded: none is not a local folder"
    with pytest.raises(UserError, match=f"^{told}$"):
        measure_diversity(rows_of(["a", "b"]), embeddings="none")


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None,
    reason="sentence-transformers is installed",
)
def test_the_package_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"targen-async\[embeddings\]"):
        measure_diversity(rows_of(["a", "b"]), embeddings="any")
