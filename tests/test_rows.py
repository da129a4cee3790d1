"""What the judges' votes make of a label."""

import pytest

from targen_async.rows import decide


@pytest.mark.parametrize(
    ("votes", "voters", "outcome", "label"),
    [
        ("", 0, "keep", "yes"),
        ("yes", 1, "keep", "yes"),
        ("no", 1, "relabel", "no"),
        ("none", 1, "drop", "yes"),
        ("yes yes no", 3, "keep", "yes"),
        ("no no yes", 3, "relabel", "no"),
        ("none none no", 3, "drop", "yes"),
        ("yes no none", 3, "review", "yes"),
        ("yes yes no no none", 5, "review", "yes"),
        ("", 1, "review", "yes"),
        ("no", 3, "review", "yes"),
        ("no no", 3, "relabel", "no"),
    ],
)
def test_a_strict_majority_of_all_judges_decides(
    votes: str, voters: int, outcome: str, label: str
) -> None:
    """A judgement that failed is a vote for nothing: two of three must agree all the same."""
    assert decide("yes", votes.split(), voters) == (outcome, label)
