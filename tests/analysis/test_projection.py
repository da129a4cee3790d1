"""The picture of the rows: one fit of both sets, the same each time."""

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from targen_async.analysis.projection import PROJECTED, Projection, project
from targen_async.analysis.rows import Rows
from tests.analysis.sets import prose, rows_of


def about(topic: str, count: int, seed: int) -> Rows:
    return rows_of([f"{topic} {topic}s of {topic} {text}" for text in prose(count, 4, seed)])


def points(rows: Rows, other: Rows) -> tuple[Projection, NDArray, NDArray]:
    found, placed = project(rows, other, seed=3)
    own = np.array([placed[place] for place in range(len(rows))])
    return found, own, np.array([(point.x, point.y) for point in found.other])


def nearer_their_own_kind(rows: Rows, other: Rows) -> bool:
    """Rows about two topics, half of each set: topics lie apart, and the two sets do not."""
    _, own, theirs = points(rows, other)
    topic = np.array([text.split()[0] == "ship" for text in (*rows.texts, *other.texts)])
    both = np.concatenate([own, theirs])
    ships, trees = both[topic], both[~topic]
    apart = np.linalg.norm(ships.mean(axis=0) - trees.mean(axis=0))
    sets = np.linalg.norm(own.mean(axis=0) - theirs.mean(axis=0))
    return bool(apart > 5 * sets)


def two_sets(count: int = 60) -> tuple[Rows, Rows]:
    half = count // 2
    first, second = (
        Rows([*about("ship", half, seed).rows, *about("tree", half, seed + 1).rows])
        for seed in (0, 2)
    )
    return first, second


def test_both_sets_have_one_fit() -> None:
    """Fitted apart, as in the research code, the same topic would lie in two places."""
    rows, other = two_sets()
    assert nearer_their_own_kind(rows, other)
    found, *_ = points(rows, other)
    assert found.method == "truncated SVD of tf-idf"
    assert [point.key for point in found.other] == [row.key for row in other.rows]


def test_the_picture_is_the_same_twice_and_alone() -> None:
    rows, other = two_sets()
    assert project(rows, other, seed=3) == project(rows, other, seed=3)
    alone, placed = project(rows, None)
    assert alone.other == () and len(placed) == len(rows)


def test_a_large_set_is_sampled_by_the_seed() -> None:
    rows = rows_of(prose(PROJECTED + 100, 5))
    found, placed = project(rows, None, seed=1)
    assert found.rows == PROJECTED == len(placed)
    _, with_other = project(rows, rows_of(prose(10, 5)), seed=1)
    assert len(with_other) == PROJECTED // 2
    assert set(project(rows, None, seed=2)[1]) != set(placed)


@pytest.mark.parametrize("texts", [["one"], ["", ""], ["a", "b"], ["same", "same", "same"]])
def test_odd_sets_have_a_picture(texts: list[str]) -> None:
    _, placed = project(rows_of(texts), None)
    assert len(placed) == len(texts)
    assert np.isfinite(list(placed.values())).all()


@pytest.mark.slow
def test_umap_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "umap")
    pytest.importorskip("umap")
    rows, other = two_sets(100)
    found, *_ = points(rows, other)
    assert found.method == "UMAP of tf-idf"
    assert nearer_their_own_kind(rows, other)
    assert project(rows, other, seed=3) == project(rows, other, seed=3)
