"""Words are found in any inflection, and only there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.words import find_word, inflections, mentions

FORMS = """
dog: dogs, box: boxes, quiz: quizzes, hero: heroes, fly: flies, day: days, soliloquy: soliloquies,
knife: knives, bookshelf: bookshelves, chairman: chairmen, child: children, criterion: criteria,
basis: bases, focus: foci, index: indices, larva: larvae, walk: walked, bake: baking, bake: baked,
plan: planning, quit: quitting, offer: offered, refer: referring, travel: travelled, travel:
traveled, fuel: fuelled, panic: panicked, lie: lying, die: dying, tie: tied, see: seeing,
dye: dyeing, carry: carried, carry: carrying, play: played, fix: fixing, bow: bowed,
go: went, be: were, undergo: underwent, withdraw: withdrew,
rewrite: rewrote, misunderstand: misunderstood, forget: forgotten, overcome:
overcame, big: bigger, happy: happiest, large: larger, good: best, look after: looked after,
look_after: looks after, give up: gave up, ice cream: ice creams, mother-in-law: mothers-in-law,
mother-in-law: mother-in-laws, check-in: check in, e-mail: emails
"""
PAIRS = [tuple(pair.split(": ")) for pair in " ".join(FORMS.split()).split(", ")]
PAIRS.append(("o'clock", "o\u2019clock"))


@pytest.mark.parametrize(("word", "form"), PAIRS)
@pytest.mark.parametrize("dress", ["{}", "The {} there.", "“{}”, he said", "({}s' x) {}", "x-{}-x"])
def test_a_word_is_found_in_its_inflections(word: str, form: str, dress: str) -> None:
    for text in (form, form.upper(), form.capitalize()):
        sentence = dress.format(*[text] * dress.count("{}"))
        found = find_word(word, sentence)
        assert found is not None
        assert sentence[slice(*found)] in (text, f"{text}s")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("hop", "She was hoping."),
        ("see", "A seed fell."),
        ("corn", "Round the corner."),
        ("man", "His manner was odd."),
        ("dye", "She is dying."),
        ("carry", "The carrier left."),
        ("cat", "The scat and the cattle."),
        ("look after", "She looked. After that she left."),
        ("every day", "It is an everyday thing."),
        ("run", ""),
        ("", "She ran."),
        (" - ", "She ran - home."),
        ("c.t", "A cat."),
    ],
)
def test_a_word_is_not_found_elsewhere(word: str, sentence: str) -> None:
    assert find_word(word, sentence) is None


def test_the_base_form_comes_before_an_earlier_inflection() -> None:
    assert find_word("case", "The two cases: a case.") == (17, 21)
    assert find_word("case", "The two cases: the cases.") == (8, 13)
    assert find_word("be", "It isn't to be.") == (12, 14)
    assert find_word("be", "It isn't.") == (3, 5)
    assert find_word("do", "I don't.") == (2, 4)


WORDS = st.one_of(
    st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9),
    st.sampled_from(["run", "be", "go", "undergo", "child", "happy", "quiz", "lie", "offer"]),
)


@given(WORDS, st.data(), st.sampled_from(["", "the ", "“", "a-"]), st.sampled_from(["", ".", " x"]))
def test_every_inflection_is_found_where_it_stands(word, data, before, after) -> None:
    form = data.draw(st.sampled_from(sorted(inflections(word))))
    if find_word(word, before) or find_word(word, after):
        return
    assert find_word(word, before + form + after) == (len(before), len(before) + len(form))


@given(WORDS, st.lists(WORDS, max_size=8))
def test_what_is_found_is_an_inflection(word: str, others: list[str]) -> None:
    sentence = " ".join(others)
    found = find_word(word, sentence)
    forms = inflections(word)
    assert word in forms
    assert (found is not None) is any(other in forms for other in others)
    if found:
        assert sentence[slice(*found)] in forms


@given(st.lists(st.sampled_from(["he", "she", "the", "he's", "(he)", "x.he"]), max_size=9))
def test_mentions_are_the_whole_words(words: list[str]) -> None:
    text = " ".join(words)
    found = list(mentions(text, "he"))
    assert all(text[start:end] == "he" for start, end in found)
    assert len(found) == sum("he" in word and word not in ("she", "the") for word in words)
