"""Difficulty by a model that is fine-tuned for it, through the project's own training code."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from targen_async import cli
from targen_async.analysis.analyze import read_analysis
from targen_async.analysis.cartography import map_of, measure_cartography
from targen_async.analysis.crossfit import FOLDS, Crossfit, Unfit, deal
from targen_async.analysis.difficulty import Difficulty, measure_difficulty, pvi_of
from targen_async.analysis.rows import Row, Rows
from targen_async.analysis.trained import Scorer, Texts, crossfit_trained
from targen_async.errors import UserError
from tests.analysis.encoders import tiny_encoder
from tests.analysis.sets import learnable, rows_of, write_lines


class Memory:
    """Remembers the labels of the texts it was trained on, surer with every epoch."""

    name = "memory"

    def __init__(self) -> None:
        self.trained: list[set[str]] = []
        self.asked: list[tuple[int, set[str]]] = []

    def epochs(
        self, texts: Sequence[Texts], labels: Sequence[int], count: int, seed: int
    ) -> Iterator[Scorer]:
        known = {text[0]: label for text, label in zip(texts, labels, strict=True)}
        prior = np.bincount(labels, minlength=count) / len(labels)
        number = len(self.trained)
        self.trained.append(set(known))
        for epoch in range(3):

            def score(asked: Sequence[Texts], sure: float = 0.4 + epoch * 0.2) -> NDArray:
                self.asked.append((number, {text[0] for text in asked}))
                if "" in known:
                    return np.tile(prior, (len(asked), 1))
                found = np.full((len(asked), count), (1 - sure) / (count - 1))
                for place, text in enumerate(asked):
                    found[place, known.get(text[0], 0)] = sure
                return found

            yield score


def test_rows_are_scored_by_models_that_did_not_see_them_and_watched_by_one_that_did() -> None:
    rows, _ = learnable(60)
    memory = Memory()
    fit = crossfit_trained(rows, memory)
    dealt = deal(rows, 0)
    assert isinstance(fit, Crossfit) and isinstance(dealt, Unfit) is False
    # A model of the texts and one of nothing in each fold.
    assert [texts == {""} for texts in memory.trained] == [False, True] * FOLDS
    assert fit.null.sum(axis=1) == pytest.approx(1)
    scored = [texts for number, texts in memory.asked if number % 2 == 0]
    for fold in range(FOLDS):
        *watched, asked = scored[fold * 4 : fold * 4 + 4]
        assert not asked & memory.trained[2 * fold]
        assert len(watched) == 3 and all(texts <= memory.trained[2 * fold] for texts in watched)
    assert set().union(*(scored[fold * 4 + 3] for fold in range(FOLDS))) == set(rows.texts)
    found = map_of(fit)
    assert found is not None
    # 0.4, 0.6 and 0.8 of what it was taught; with two labels 0.4 is not the likelier one.
    assert found.confidence == pytest.approx(0.6)
    assert found.variability == pytest.approx(np.std([0.4, 0.6, 0.8]))
    assert found.correctness == pytest.approx(2 / 3)
    told = measure_cartography(fit)
    assert told is not None
    assert (told.model, told.epochs, told.correctness.value) == ("memory", 3, pytest.approx(2 / 3))


def test_rows_of_one_passage_have_no_folds() -> None:
    rows = Rows(
        [
            Row(key=str(n), fields={"p": "one passage for all of the rows"}, label="ab"[n % 2])
            for n in range(40)
        ]
    )
    found = crossfit_trained(rows, Memory())
    assert isinstance(found, Unfit)
    assert "fewer than 5 groups" in found.reason


def classifier(folder: Path, **training: float):
    module = pytest.importorskip("targen_async.finetune.classifier")
    return module.Classifier(str(folder), replace(module.TRAINING, **training))


def test_a_fine_tuned_encoder_finds_flipped_labels(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    rows, flipped = learnable(300, flipped=0.1)
    trainer = classifier(tiny_encoder(tmp_path, rows), epochs=6, learning_rate=5e-3)
    fit = crossfit_trained(rows, trainer)
    found = measure_difficulty(rows, fit)
    assert isinstance(found, Difficulty) and isinstance(fit, Crossfit)
    assert "fine-tuned for 6 epochs" in found.model
    assert found.labels == ("no", "yes")
    assert found.accuracy.value > 0.7
    lowest = np.argsort(pvi_of(fit))[: len(rows) // 5]
    assert flipped[lowest].sum() >= 0.7 * flipped.sum()
    # The null model knows nothing but the shares of the labels.
    assert np.abs(fit.null - 0.5).max() < 0.15
    mapped = map_of(fit)
    assert mapped is not None
    assert mapped.confidence[flipped].mean() < mapped.confidence[~flipped].mean() - 0.2


def test_training_and_scoring_cut_at_the_same_length(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    rows = rows_of(["a " * 300 + "end", "b c"] * 4, ["x", "y"] * 4)
    trainer = classifier(tiny_encoder(tmp_path, rows), epochs=1)
    assert "64 tokens at most" in trainer.name
    (score,) = trainer.epochs([[text] for text in rows.texts], [0, 1] * 4, 2, 0)
    long, same = score([["a " * 300 + "end"], ["a " * 200]])
    assert long == pytest.approx(same)
    assert score([]).shape == (0, 2)


def test_the_command_trains_an_encoder_and_writes_the_same_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    rows, _ = learnable(60)
    encoder = tiny_encoder(tmp_path / "encoder", rows)
    data = write_lines(
        tmp_path / "d.jsonl", ({"t": row.fields["text"], "y": row.label} for row in rows.rows)
    )
    lines = []
    for out in ("one", "two"):
        columns = ["--text", "t", "--label", "y", "--model", str(encoder)]
        assert cli.main(["analyze", str(data), *columns, "--out", str(tmp_path / out)]) == 0
        lines.append((tmp_path / out / "rows.jsonl").read_bytes())
    assert lines[0] == lines[1]
    assert "fold 5 of 5, 48 rows" in capsys.readouterr().err
    found = read_analysis(tmp_path / "one" / "analysis.json").data
    assert found.cartography is not None and found.cartography.epochs == 5
    assert isinstance(found.difficulty, Difficulty)
    assert found.difficulty.model.startswith(str(encoder))
    note = json.loads(lines[0].splitlines()[0])
    assert 0 <= note["confidence"] <= 1 and 0 <= note["correctness"] <= 1
    assert note["variability"] >= 0


def test_what_cannot_be_trained_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = learnable(30)
    data = write_lines(tmp_path / "d.jsonl", ({"t": t, "y": "a"} for t in rows.texts))
    arguments = ["analyze", str(data), "--text", "t", "--label", "y", "--out", str(tmp_path / "o")]
    with monkeypatch.context() as missing:
        missing.delitem(sys.modules, "targen_async.finetune.classifier", raising=False)
        missing.setitem(sys.modules, "torch", None)
        assert cli.main([*arguments, "--model", "any"]) == 2
        told = capsys.readouterr().err
        assert "pip install 'targen-async[train]'" in told and "(torch)" in told
    pytest.importorskip("torch")
    (tmp_path / "empty").mkdir()
    assert cli.main([*arguments, "--model", str(tmp_path / "empty")]) == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_a_model_that_writes_is_no_encoder(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(UserError, match="is no encoder"):
        classifier(tmp_path)
