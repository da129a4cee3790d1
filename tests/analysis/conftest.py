"""The linear algebra of these tests is small: threads would only wait for each other."""

import os
import sys
from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits

# Before torch is loaded, which asks once.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def _no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn by SVD: UMAP compiles itself for a quarter of a minute first."""
    monkeypatch.setitem(sys.modules, "umap", None)
