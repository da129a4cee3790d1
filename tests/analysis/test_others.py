"""The same numbers as packages of others give.

Theirs were computed once, by cleanlab 2.9.0, lexicalrichness 0.5.1 and vendi-score 0.0.3, of the
data that these functions make; Python draws the same numbers in every version.
"""

from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from targen_async.analysis.diversity import mtld, vendi_score
from targen_async.analysis.labels import calibrated, confident_joint

JOINTS: dict[int, tuple[list[list[int]], list[list[int]]]] = {
    2: ([[776, 84], [90, 795]], [[1347, 146], [153, 1354]]),
    3: (
        [[511, 47, 37], [41, 516, 39], [37, 46, 526]],
        [[845, 78, 61], [69, 864, 65], [62, 77, 879]],
    ),
    5: (
        [
            [362, 14, 16, 20, 24],
            [17, 403, 23, 21, 23],
            [17, 15, 392, 21, 26],
            [14, 17, 23, 378, 19],
            [18, 9, 23, 18, 370],
        ],
        [
            [487, 19, 22, 27, 32],
            [23, 542, 31, 28, 31],
            [20, 18, 469, 25, 31],
            [19, 23, 31, 506, 25],
            [24, 12, 31, 25, 499],
        ],
    ),
}
"""By the number of labels: `compute_confident_joint(given, probabilities, calibrate=False)` of
cleanlab.count, and with calibrate=True, which rounds to whole rows."""
MTLD = 8.021702756227164
"""`LexicalRichness(" ".join(words)).mtld(threshold=0.72)`"""
VENDI = 14.688391283067164
"""`vendi_score.vendi.score_K(kernel)`"""


def drawn(count: int, seed: int) -> NDArray[np.float64]:
    """Even from 0 to 1, shape (count,)."""
    random = Random(seed)
    return np.array([random.random() for _ in range(count)])


def noisy(labels: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels of 3,000 rows, a fifth of them drawn anew, and what a model makes of the rest."""
    numbers = drawn(3000 * (labels + 3), labels).reshape(3000, -1)
    given = (numbers[:, 0] * labels).astype(np.int64)
    true = np.where(numbers[:, 1] < 0.2, (numbers[:, 2] * labels).astype(np.int64), given)
    probabilities = -np.log(numbers[:, 3:])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities[np.arange(3000), true] += 0.8
    return given, probabilities / probabilities.sum(axis=1, keepdims=True)


def words() -> list[str]:
    """5,000 words in letters, few of them often."""
    numbers = (1 / drawn(5000, 0) ** 2).astype(np.int64) % 300
    return ["".join(chr(97 + int(digit)) for digit in str(number)) for number in numbers]


def kernel() -> NDArray[np.float64]:
    """Cosines of 80 vectors."""
    vectors = drawn(80 * 16, 0).reshape(80, 16) - 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors @ vectors.T)


@pytest.mark.parametrize("labels", JOINTS)
def test_the_confident_joint_is_that_of_cleanlab(labels: int) -> None:
    given, probabilities = noisy(labels)
    raw, scaled = JOINTS[labels]
    counts, _ = confident_joint(given, probabilities)
    assert counts.tolist() == raw
    assert calibrated(counts, given) * 3000 == pytest.approx(np.array(scaled), abs=1)


def test_mtld_is_that_of_lexicalrichness() -> None:
    ids = {word: place for place, word in enumerate(dict.fromkeys(words()))}
    assert mtld(np.array([ids[word] for word in words()], dtype=np.int32)) == pytest.approx(MTLD)


def test_the_vendi_score_is_that_of_its_authors() -> None:
    assert vendi_score(kernel()) == pytest.approx(VENDI)
