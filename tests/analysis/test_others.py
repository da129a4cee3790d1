"""The same numbers as packages of others give, where they are installed.

Seen equal to cleanlab 2.9.0, lexicalrichness 0.5.1 and vendi-score 0.0.3.
"""

import numpy as np
import pytest

from targen_async.analysis.diversity import mtld, vendi_score
from targen_async.analysis.labels import calibrated, confident_joint


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_the_confident_joint_is_that_of_cleanlab(labels: int) -> None:
    count = pytest.importorskip("cleanlab.count")
    rng = np.random.default_rng(labels)
    given = rng.integers(0, labels, 3000)
    true = np.where(rng.random(3000) < 0.2, rng.integers(0, labels, 3000), given)
    probabilities = rng.dirichlet(np.ones(labels), 3000)
    probabilities[np.arange(3000), true] += 0.8
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    counts, _ = confident_joint(given, probabilities)
    raw = count.compute_confident_joint(given, probabilities, calibrate=False)
    assert counts.tolist() == raw.tolist()
    scaled = count.compute_confident_joint(given, probabilities, calibrate=True)
    # Theirs is rounded to whole rows.
    assert calibrated(counts, given) == pytest.approx(scaled / scaled.sum(), abs=1e-3)


def test_mtld_is_that_of_lexicalrichness() -> None:
    package = pytest.importorskip("lexicalrichness")
    numbers = np.random.default_rng(0).zipf(1.3, 5000) % 300
    words = ["".join(chr(97 + int(digit)) for digit in str(number)) for number in numbers]
    ids = {word: place for place, word in enumerate(dict.fromkeys(words))}
    ours = mtld(np.array([ids[word] for word in words], dtype=np.int32))
    assert ours == pytest.approx(package.LexicalRichness(" ".join(words)).mtld(threshold=0.72))


def test_the_vendi_score_is_that_of_its_authors() -> None:
    package = pytest.importorskip("vendi_score.vendi")
    vectors = np.random.default_rng(0).normal(size=(80, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel = vectors @ vectors.T
    assert vendi_score(kernel) == pytest.approx(package.score_K(kernel))
