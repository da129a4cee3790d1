"""Named entities by a spaCy model, where one is named."""

import sys
from pathlib import Path

import pytest

from targen_async.analysis.bias import measure_bias
from targen_async.analysis.entities import find_entities
from targen_async.errors import UserError
from tests.analysis.sets import rows_of

PATTERNS = {
    "GPE": ["Oman", "the United States", "Paris", "Georgia"],
    "NORP": ["Americans", "Normans"],
    "PERSON": ["Ada Lovelace"],
    "EVENT": ["World War II"],
    "PRODUCT": ["Xbox One"],
    "DATE": ["Monday"],
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A pipeline that knows a few names, saved as an installed model is."""
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns(
        [{"label": kind, "pattern": name} for kind, names in PATTERNS.items() for name in names]
    )
    pipeline.to_disk(tmp_path / "model")
    return str(tmp_path / "model")


def test_spans_become_mentions_by_kind(model: str) -> None:
    rows = rows_of(
        [
            "A woman in Oman met Americans in the United States.",
            "Ada Lovelace of Paris had an Xbox One on Monday.",
            "The Normans fought World War II, the Normans did. He knew.",
        ]
    )
    found = find_entities(rows, model)
    entries = {kind: mentions.entries for kind, mentions in found.items()}
    # Paris is a place and no country; a nationality of the list goes by its entry.
    assert entries["countries"] == ("Oman", "United States")
    assert entries["nationalities"] == ("American", "Normans")
    assert entries["names"] == ("Ada Lovelace",)
    assert entries["events"] == ("World War II",)
    assert entries["products"] == ("Xbox One",)
    assert found["nationalities"].counts.tolist() == [1, 1]
    assert found["male"].any.tolist() == [False, False, True]
    bias = measure_bias(rows, found, model=model)
    assert bias.method == f"spaCy, {model}"
    assert bias.events is not None and bias.events.per_1000["World War II"].value == (
        pytest.approx(1000 / 3)
    )
    by_rules = measure_bias(rows, find_entities(rows))
    assert (by_rules.method, by_rules.events) == ("rules", None)


def test_a_model_that_is_not_there_is_told_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spacy = pytest.importorskip("spacy")
    rows = rows_of(["a", "b"])
    with pytest.raises(UserError, match="`python -m spacy download en_core_web_sm`"):
        find_entities(rows, "en_core_web_sm")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="finds no entities"):
        find_entities(rows, str(tmp_path / "blank"))
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"targen-async\[entities\]"):
        find_entities(rows, "any")
