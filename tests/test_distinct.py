"""The distinct gate: exact and near duplicates, groups, and its memory on disk."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.distinct import DistinctGate, Duplicate, banding, jaccard, normalised, shingles

LONG = "The ferry to the island was cancelled because of the storm that came in from the west."


def gate(tmp_path: Path, threshold: float = 0.8) -> DistinctGate:
    return DistinctGate(tmp_path / "distinct.sqlite", threshold)


def seen(one: DistinctGate, id_: int, group: int, texts: list[str]) -> Duplicate | None:
    """Pass a row through the gate, as the committer does."""
    sketch = one.sketch(texts)
    duplicate = one.duplicate_of(id_, group, sketch)
    if duplicate is None:
        one.add_row(id_, sketch)
    return duplicate


def test_case_space_punctuation_and_unicode_form_do_not_make_a_text_new(tmp_path: Path) -> None:
    one = gate(tmp_path)
    assert seen(one, 0, 1, ["It rained,  all day."]) is None
    assert seen(one, 1, 1, ["it rained all day"]) == (0, 1.0)
    assert seen(one, 2, 1, ["It rained \uff41ll day!"]) == (0, 1.0)
    assert seen(one, 3, 1, ["It rained all night."]) is None


@given(st.text(st.characters(max_codepoint=127)))
def test_texts_in_ascii_are_read_like_all_others(text: str) -> None:
    assert f"{normalised(text)} \u00e9".lstrip() == normalised(f"{text} \u00e9")


def test_a_near_duplicate_is_refused_at_the_threshold_and_not_below(tmp_path: Path) -> None:
    near = LONG.replace("west", "east")
    similarity = jaccard(shingles(normalised(LONG)), shingles(normalised(near)))
    assert 0.8 < similarity < 1
    strict, loose = gate(tmp_path), DistinctGate(tmp_path / "loose.sqlite", similarity + 0.01)
    for one in (strict, loose):
        assert seen(one, 0, 1, [LONG]) is None
    assert seen(strict, 1, 1, [near]) == (0, pytest.approx(similarity))
    assert seen(loose, 1, 1, [near]) is None


def test_bands_find_almost_every_pair_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands, width = banding(threshold)
        assert 1 - (1 - threshold**width) ** bands >= 0.98


def test_members_of_a_group_are_not_compared_for_nearness_but_exactly(tmp_path: Path) -> None:
    one = gate(tmp_path)
    assert seen(one, 0, 2, [LONG]) is None
    assert seen(one, 1, 2, [LONG.replace("west", "east")]) is None
    assert seen(one, 2, 2, [LONG.replace("west", "north")]) is not None
    assert seen(one, 3, 2, [LONG]) == (0, 1.0)


def test_a_threshold_of_one_asks_for_exact_duplicates_only(tmp_path: Path) -> None:
    one = gate(tmp_path, 1.0)
    assert seen(one, 0, 1, [LONG]) is None
    assert seen(one, 1, 1, [LONG.replace("west", "east")]) is None
    assert seen(one, 2, 1, [LONG]) == (0, 1.0)


def test_the_parts_of_a_row_are_not_run_together(tmp_path: Path) -> None:
    one = gate(tmp_path)
    assert seen(one, 0, 1, ["ab", "c"]) is None
    assert seen(one, 1, 1, ["a", "bc"]) is None


def test_rewinding_forgets_what_came_after_a_checkpoint_and_only_that(tmp_path: Path) -> None:
    one = gate(tmp_path)
    one.new_seed(0, "first seed")
    seen(one, 0, 1, ["first"])
    one.keep_surplus(0, "x", b"{}")
    one.save(1, 1)
    one.new_seed(1, "second seed")
    seen(one, 1, 1, ["second"])
    one.keep_surplus(1, "x", b"{}")
    one.adopt_surplus(0, 1)
    one.save(2, 2)
    one.close()
    again = gate(tmp_path)
    assert again.rewind(1, 1, 1)
    assert not again.new_seed(5, "first seed")
    assert again.new_seed(5, "second seed")
    assert seen(again, 5, 1, ["first"]) == (0, 1.0)
    assert seen(again, 5, 1, ["second"]) is None
    assert [row[0] for row in again.surplus()] == [0]


def test_what_was_not_saved_is_gone_and_a_state_too_old_says_so(tmp_path: Path) -> None:
    one = gate(tmp_path)
    seen(one, 0, 1, ["first"])
    one.save(1, 0)
    seen(one, 1, 1, ["second"])
    one.close()
    again = gate(tmp_path)
    assert again.rewind(1, 0, 0)
    assert seen(again, 1, 1, ["second"]) is None
    assert not again.rewind(7, 0, 0)
