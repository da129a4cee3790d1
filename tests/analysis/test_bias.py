"""Names of countries, people and jobs, by whole words; distributions by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from targen_async.analysis.bias import (
    Frequencies,
    diverge,
    entropy,
    jensen_shannon,
    measure_bias,
)
from targen_async.analysis.entities import find_entities
from targen_async.analysis.estimate import difference
from tests.analysis.sets import rows_of


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("A woman and a roman in Oman.", "countries", {"Oman"}),
        ("The woman read a romance.", "countries", set()),
        ("They ate turkey from china.", "countries", set()),
        ("Turkey and China signed.", "countries", {"Türkiye", "China"}),
        ("The US, the USA and the United States.", "countries", {"United States"}),
        ("Let us go.", "countries", set()),
        (
            "Papua New Guinea is not Guinea-Bissau.",
            "countries",
            {"Papua New Guinea", "Guinea-Bissau"},
        ),
        (
            "The United States Minor Outlying Islands.",
            "countries",
            {"United States Minor Outlying Islands"},
        ),
        ("FRANCE WINS", "countries", {"France"}),
        ("North Korea spoke to South Korea.", "countries", {"North Korea", "South Korea"}),
        ("South\nKorea", "countries", {"South Korea"}),
        ("Finns and a Swede speak English.", "nationalities", {"Finnish", "Swedish", "English"}),
        ("The Polish polish a table.", "nationalities", {"Polish"}),
        ("Maria saw JOHN; a john is no name.", "names", {"Maria", "John"}),
        ("She gave him theirs.", "pronouns", {"female", "male", "neutral"}),
        ("Two nurses and an Engineer.", "occupations", {"nurse", "engineer"}),
        ("The waitress left.", "female", {"female"}),
        ("Sheila's brother", "male", {"male"}),
        ("Sheila's book", "female", {"female"}),
        ("France's president met Iraq\u2019s army.", "countries", {"France", "Iraq"}),
        ("FRANCE'S LOSS IS SOUTH KOREA'S GAIN", "countries", {"France", "South Korea"}),
        ("The Lao People's Democratic Republic's", "countries", {"Laos"}),
        ("C\u00f4te d'Ivoire's coast", "countries", {"C\u00f4te d'Ivoire"}),
        ("The Finns' boat, a Swede's oar.", "nationalities", {"Finnish", "Swedish"}),
        ("Maria's book", "names", {"Maria"}),
        ("She's gone and they'll come.", "pronouns", {"female", "neutral"}),
        ("He\u2019d have left.", "pronouns", {"male"}),
        ("The nurse's bag", "occupations", {"nurse"}),
        ("Let's go; we can't.", "countries", set()),
    ],
)
def test_what_a_text_names(text: str, kind: str, wanted: set[str]) -> None:
    assert set(find_entities(rows_of([text]))[kind].entries) == wanted


def test_a_name_does_not_reach_into_the_next_row() -> None:
    found = find_entities(rows_of(["We saw South", "Korea won"]))["countries"]
    assert found.entries == ()


def shares(frequencies: Frequencies) -> dict[str, float]:
    return {entry: share.value for entry, share in frequencies.per_1000.items()}


def test_frequencies_count_rows_and_gender_stands_beside_labels_and_jobs() -> None:
    rows = rows_of(
        ["She is a nurse, she is.", "He is a nurse.", "Her doctor.", "Nothing."],
        ["a", "b", "a", "b"],
    )
    found = measure_bias(rows, find_entities(rows))
    assert shares(found.pronouns) == {"female": 500, "male": 250}
    assert found.pronouns.rows_per_1000.value == 750
    assert shares(found.occupations) == {"nurse": 500, "doctor": 250}
    assert found.occupations.entropy.value == pytest.approx(np.log2(3) - 2 / 3)
    assert found.countries.different == 0 and found.countries.entropy.value == 0
    assert (found.gender.female, found.gender.male, found.gender.both) == (2, 1, 0)
    assert found.gender.share_female is not None
    assert found.gender.share_female.value == pytest.approx(2 / 3)
    assert (found.gender_by_label["a"].female, found.gender_by_label["b"].male) == (2, 1)
    nurse = found.gender_by_occupation["nurse"]
    assert (nurse.rows, nurse.female, nurse.male) == (2, 1, 1)


def test_entropy_and_divergence_by_hand() -> None:
    assert entropy(np.array([4, 4])) == 1
    assert entropy(np.array([5])) == 0
    assert entropy(np.array([2, 1, 1])) == 1.5
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert jensen_shannon(np.array([3.0, 1]), np.array([6.0, 2])) == 0
    # p = (1, 0), q = (1/2, 1/2): H(3/4, 1/4) - H(q) / 2.
    middle = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert jensen_shannon(np.array([2.0, 0]), np.array([1.0, 1])) == pytest.approx(middle - 0.5)


def test_divergence_is_that_of_scipy() -> None:
    distance = pytest.importorskip("scipy.spatial.distance").jensenshannon
    rng = np.random.default_rng(0)
    p, q = rng.random(9), rng.random(9)
    assert jensen_shannon(p, q) == pytest.approx(distance(p, q, base=2) ** 2)


def test_what_differs_is_told_from_chance() -> None:
    rng = np.random.default_rng(0)

    def named(count: int, often: float) -> list[str]:
        return [f"In {'France' if rng.random() < often else 'Kenya'}." for _ in range(count)]

    half, other, skewed = (
        find_entities(rows_of(named(300, p)))["countries"] for p in (0.5, 0.5, 0.9)
    )
    same, apart = diverge(half, other), diverge(half, skewed)
    assert same is not None and apart is not None
    assert same.jensen_shannon.value <= same.by_chance
    assert same.p_value > 0.05 > apart.p_value == 1 / 1001
    assert apart.jensen_shannon.value > 3 * apart.by_chance
    itself = diverge(half, half)
    assert itself is not None and itself.jensen_shannon.value == 0
    assert diverge(half, find_entities(rows_of(["nothing"]))["countries"]) is None


def test_chance_is_that_of_exchanging_rows_one_by_one() -> None:
    """Rows that are alike are drawn as a number of their kind: no other chance than row by row."""
    rng = np.random.default_rng(0)
    places = ("France", "Kenya", "France and Kenya", "Peru", "no place")
    texts = [f"In {places[n]}." for n in rng.integers(0, 5, 240)]
    a, b = (find_entities(rows_of(part))["countries"] for part in (texts[:100], texts[100:]))
    found = diverge(a, b)
    named = np.array([[place in text for place in ("France", "Kenya", "Peru")] for text in texts])

    def apart(order: NDArray[np.int64]) -> float:
        return jensen_shannon(named[order[:100]].sum(axis=0), named[order[100:]].sum(axis=0))

    exchanged = [apart(rng.permutation(240)) for _ in range(4000)]
    value = apart(np.arange(240))
    assert found is not None
    assert found.jensen_shannon.value == pytest.approx(value)
    assert found.by_chance == pytest.approx(np.quantile(exchanged, 0.95), rel=0.15)
    assert found.p_value == pytest.approx(np.mean(np.array(exchanged) >= value), abs=0.04)


def test_intervals_of_entropy_and_divergence_hold_between_parts_of_one_set() -> None:
    """Over pairs of disjoint sets of one kind, as often as 95 % of the time, roughly."""
    rng = np.random.default_rng(0)
    lands = ["France", "Kenya", "Peru", "Japan", "Chad"]
    covered = 0
    for seed in range(20):
        parts = [
            rows_of([f"In {lands[n]}." for n in rng.choice(5, 300, p=[0.5, 0.2, 0.1, 0.1, 0.1])])
            for _ in range(2)
        ]
        a, b = (
            measure_bias(part, find_entities(part), seed=seed).countries.entropy for part in parts
        )
        apart = difference(a, b)
        assert apart.low is not None and apart.high is not None
        covered += apart.low <= 0 <= apart.high
    assert covered >= 17
    divergence = diverge(*(find_entities(part)["countries"] for part in parts))
    assert divergence is not None and divergence.jensen_shannon.high is not None
    assert 0 <= (divergence.jensen_shannon.low or 0) <= divergence.jensen_shannon.value
