"""Diversity against numbers worked out by hand, and against NLTK."""

import zlib
from collections import Counter

import numpy as np
import pytest
from msgspec import structs

from targen_async.analysis.diversity import (
    compression_ratio,
    distinct,
    mean_cosine,
    measure_diversity,
    mtld,
    nearest_cosine,
    vendi_score,
    vocabulary_by_row,
)
from targen_async.analysis.duplicates import clusters, measure_duplicates
from targen_async.analysis.embedding import similarities, tfidf
from targen_async.analysis.estimate import T_95
from targen_async.analysis.rows import Row, Rows
from targen_async.analysis.selfbleu import self_bleu
from targen_async.analysis.tokens import tokenise
from tests.analysis.sets import prose, rows_of

TWO = ["The cat sat on the mat.", "the cat ran"]


def test_words_are_folded_and_punctuation_counts_for_nothing() -> None:
    tokens = tokenise(["Don't! It's Café, 3 times.", "", "…"])
    assert [tokens.words[number] for number in tokens.ids] == [
        "don't",
        "it's",
        "café",
        "3",
        "times",
    ]
    assert tokens.lengths.tolist() == [5, 0, 0]


def test_distinct_n() -> None:
    """the cat sat on the mat | the cat ran: 6 of 9 words, 6 of 7 pairs ("the cat" twice)."""
    tokens = tokenise(TWO)
    assert distinct(tokens, 1) == pytest.approx(6 / 9)
    assert distinct(tokens, 2) == pytest.approx(6 / 7)
    assert distinct(tokens, 3) == 1.0


def test_the_vocabulary_sum_counts_each_row_by_itself() -> None:
    assert vocabulary_by_row(tokenise([*TWO, "cat cat cat", ""])).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([1, 1, 1, 1], 2.0),
        ([1, 2, 3, 4], 4.0),
        # A type-token ratio of 3/4 is (1 - 0.75) / 0.28 of a factor, in both directions.
        ([1, 2, 3, 1], 4 / (0.25 / 0.28)),
        # Forward: a factor of 2 words, then 1 of 2 words at ratio 1. Backward: 3 words at 2/3.
        ([1, 1, 2], (3 / 1 + 3 / 1) / 2),
    ],
)
def test_mtld(words: list[int], wanted: float) -> None:
    assert mtld(np.array(words, dtype=np.int32)) == pytest.approx(wanted)


def slow_bleu(texts: list[str]) -> list[float]:
    """BLEU-4 as it is written down (Papineni et al. 2002), smoothing method 1."""
    cut = [[tokenise([text]).words[n] for n in tokenise([text]).ids] for text in texts]

    def grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for at, words in enumerate(cut):
        others = cut[:at] + cut[at + 1 :]
        log, unigrams = 0.0, 0
        for n in range(1, 5):
            best: Counter[tuple[str, ...]] = Counter()
            for other in others:
                best |= grams(other, n)
            hits = (grams(words, n) & best).total()
            unigrams = hits if n == 1 else unigrams
            log += np.log((hits or 0.1) / max(grams(words, n).total(), 1)) / 4
        closest = min((abs(len(o) - len(words)), len(o)) for o in others)[1]
        penalty = 1.0 if len(words) > closest else np.exp(1 - closest / max(len(words), 1))
        scores.append(penalty * np.exp(log) if unigrams else 0.0)
    return scores


TEXTS = [
    *prose(40, 12, 5),
    "a a a b",
    "a a b b a a",
    "a",
    "entirely alone here",
    "a a a b",
    "word0 word0 word0 word1 word0 word0",
]


def test_self_bleu_is_bleu() -> None:
    assert self_bleu(tokenise(TEXTS)) == pytest.approx(slow_bleu(TEXTS))


def test_of_two_lengths_as_close_the_shorter_counts() -> None:
    texts = ["a b c", "a b c d", "a b c d e"]
    assert self_bleu(tokenise(texts)) == pytest.approx(slow_bleu(texts))
    assert self_bleu(tokenise(texts))[1] == pytest.approx(1)


def test_self_bleu_is_that_of_nltk() -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    cut = [text.split() for text in TEXTS]
    smooth = bleu.SmoothingFunction().method1
    theirs = [
        bleu.sentence_bleu(cut[:at] + cut[at + 1 :], words, smoothing_function=smooth)
        for at, words in enumerate(cut)
    ]
    assert self_bleu(tokenise(TEXTS)) == pytest.approx(theirs)


def test_a_repeated_text_has_a_self_bleu_of_1() -> None:
    assert self_bleu(tokenise(["one two three four five"] * 3)) == pytest.approx([1, 1, 1])


def test_vendi_counts_what_is_different() -> None:
    """n for n unrelated rows, 1 for n times the same, 2 for two kinds; else exp of the entropy."""
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.ones((7, 7))) == pytest.approx(1)
    assert vendi_score(np.kron(np.eye(2), np.ones((3, 3)))) == pytest.approx(2)
    # Two rows at cosine 0.5: eigenvalues 0.75 and 0.25.
    wanted = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert vendi_score(np.array([[1, 0.5], [0.5, 1]])) == pytest.approx(wanted)


def test_cosines() -> None:
    kernel = np.array([[1, 0.5, 0.1], [0.5, 1, 0.3], [0.1, 0.3, 1]])
    assert mean_cosine(kernel) == pytest.approx(0.3)
    assert nearest_cosine(kernel) == pytest.approx((0.5 + 0.5 + 0.3) / 3)


def test_tf_idf_is_that_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = prose(30, 15)
    theirs = TfidfVectorizer(token_pattern=r"\w+").fit_transform(texts)
    ours = similarities(rows_of(texts), None)
    assert ours == pytest.approx((theirs @ theirs.T).toarray())
    assert tfidf(tokenise(["", "a"])).toarray()[0].tolist() == [0]


def test_the_compression_ratio() -> None:
    texts = ["abc " * 50, "xyz"]
    raw = "\n".join(texts).encode()
    assert compression_ratio(texts) == len(raw) / len(zlib.compress(raw))


def test_a_copied_set_is_seen_to_be_less_varied() -> None:
    texts = prose(200)
    varied, copied = (measure_diversity(rows_of(t)) for t in (texts, texts[:50] * 4))
    for name, less in (
        ("distinct_2", True),
        ("vendi", True),
        ("self_bleu", False),
        ("compression_ratio", False),
        ("nearest_cosine", False),
    ):
        a, b = getattr(varied, name), getattr(copied, name)
        assert (b.high < a.low) if less else (b.low > a.high), name


def test_near_duplicates_are_found_and_others_are_not() -> None:
    texts = prose(500, 40)
    changed = [" ".join(["other", *text.split()[1:]]) for text in texts[:25]]
    found, cluster = measure_duplicates(rows_of([*texts, *changed, texts[0].upper()]))
    assert (found.surplus, found.clusters, found.rows) == (26, 25, 51)
    assert found.listed[0] == ("r0", "r500", "r525")
    assert cluster[500] == 0 and cluster[499] == -1


def test_many_equal_texts_are_one_cluster() -> None:
    assert set(clusters(rows_of(["the same text again and again"] * 300)).tolist()) == {0}


def test_what_rows_have_in_common_by_design_is_no_duplicate() -> None:
    """Two questions to one passage, two twins of one seed; not so a question asked again."""
    passage = " ".join(str(number**3) for number in range(100, 180))

    def row(question: str, seed: str = "") -> Row:
        return Row(key=question, fields={"p": passage, "q": question}, label=None, seed=seed)

    asked = [row("does the red boat sink at once"), row("who has built the town hall")]
    again = row("does the red boat sink at once then")
    assert clusters(Rows([*asked, again])).tolist() == [0, 1, 0]
    long = (
        "sell the old house by the lake to a friend from school who had nowhere else to live then"
    )
    twins = [row(f"did {who} {long}", "s") for who in ("she", "he")]
    assert clusters(Rows(twins)).tolist() == [0, 1]
    strangers = [row(twin.fields["q"], seed) for twin, seed in zip(twins, "st", strict=True)]
    assert clusters(Rows(strangers)).tolist() == [0, 0]
    assert clusters(Rows([twins[0], twins[0]])).tolist() == [0, 0]


def test_exact_copies_are_found_among_many_rows_that_are_nearly_alike() -> None:
    """Sixty questions to one long passage fill the buckets: a copy is met behind all of them."""
    rng = np.random.default_rng(0)
    passage = " ".join(f"w{number}" for number in rng.integers(0, 10**6, 300))
    words = ("who", "what", "when", "did", "the", "cat", "town", "hall", "king", "river", "near")
    asked = [
        Row(
            key=f"q{number}",
            fields={"p": passage, "q": " ".join([*rng.choice(words, 6), str(number)])},
            label=None,
        )
        for number in range(60)
    ]
    copies = [structs.replace(row, key=f"c{row.key}") for row in asked[20:40]]
    found, cluster = measure_duplicates(Rows([*asked, *copies]))
    assert cluster[60:].tolist() == list(range(20, 40))
    assert found.surplus == 20


def test_the_share_of_copies_is_as_sure_as_copies_spread() -> None:
    """Rows drawn from a pool of texts, some of them again: disjoint parts against intervals."""
    pool, rng = prose(1200, 40), np.random.default_rng(0)
    values, errors = [], []
    for seed in range(24):
        share = measure_duplicates(rows_of(pool[n] for n in rng.integers(0, 1200, 120)), seed=seed)
        value, low, high = (getattr(share[0].share, name) for name in ("value", "low", "high"))
        values.append(value)
        errors.append((high - value) / T_95)
        assert 0 <= low <= value <= high
    assert np.mean(errors) / np.std(values, ddof=1) == pytest.approx(1, abs=0.35)


def test_a_text_of_several_seeds_is_compared_with_the_rows_of_each() -> None:
    """Twins of one seed are near by design; not so where another seed wrote one of them too."""
    long = "sold the old house by the lake to a friend of his who had nowhere else to live then"
    own, twin = (Row(key=who, fields={"t": f"{who} {long}"}, label=None, seed="s") for who in "xy")
    assert clusters(Rows([own, twin])).tolist() == [0, 1]
    assert clusters(Rows([own, twin, structs.replace(own, seed="t")])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "texts", [["one row"], [""], ["", ""], ["…", "a b"], ["x " * 500_000, "y"]]
)
def test_odd_sets_have_an_outcome(texts: list[str]) -> None:
    found = measure_diversity(rows_of(texts))
    assert found.words_per_row.rows == len(texts)
    assert (found.self_bleu is None) == (len(texts) == 1 or not any(t.strip() for t in texts))
    measure_duplicates(rows_of(texts))
