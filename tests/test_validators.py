"""Validators reject what no judge is needed for. tests/test_real_rows.py has the real rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.tasks import FieldSpec
from targen_async.validators import (
    GAP,
    GROUP_VALIDATED_FIELDS,
    GROUP_VALIDATORS,
    VALIDATED_FIELDS,
    VALIDATORS,
    check_fields,
    label_leak,
)

ANY = FieldSpec(source="output")
COPA = ("choice1", "choice2")
CB = ("entailment", "contradiction", "neutral")
BOOLQ = ("true", "false")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a is empty"),
        (" \n\t ", "a is empty"),
        ("one", "a has 1 words, not 2 to 4"),
        ("one two three four five", "a has 5 words, not 2 to 4"),
        ("one two\x00", "a has the character U+0000"),
        ("one two\r\n", "a has the character U+000D"),
        ("one \x85two", "a has the character U+0085"),
        ("one \ud800two", "a has the character U+D800"),
        ("one two\ufffd", "a has the character U+FFFD"),
        ("one \u202etwo", "a has the character U+202E"),
        ("one \u2067two", "a has the character U+2067"),
        ("one two", None),
        ("one\ntwo\tthree four", None),
        ("naïve 日本 \u200f😀", None),
    ],
)
def test_fields_are_filled_bounded_and_clean(text: str, reason: str | None) -> None:
    spec = FieldSpec(source="output", words=(2, 4))
    assert check_fields({"a": spec}, {"a": text}) == reason


def test_a_missing_field_counts_as_empty() -> None:
    assert check_fields({"a": ANY, "b": ANY}, {"a": "x"}) == "b is empty"


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (COPA, "Answer: choice1"),
        (COPA, "The roof leaked (choice2)."),
        (COPA, "Choice 1: the roof leaked."),
        (CB, "Label: entailment. She knew it."),
        (CB, 'the label = "neutral"'),
        (CB, "This pair is labelled as neutral."),
        (CB, "the correct label is contradiction"),
        (BOOLQ, "is it open on sundays (answer: false)"),
        (("not_entailment", "entailment"), "label: not entailment"),
    ],
)
def test_a_label_called_a_label_gives_the_row_away(labels: tuple[str, ...], text: str) -> None:
    assert label_leak({"a": "fine", "b": text}, labels)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (BOOLQ, "is it true that a false positive is an error"),
        (BOOLQ, "The answer is true to the spirit of the law, and the label: Columbia, 1957."),
        (CB, "Switzerland stayed neutral; there is a contradiction in that."),
        (CB, "He gave an answer: neutrality was the only way."),
        (COPA, "She had a choice. 1 of them was wrong, the other was her first choice."),
        (COPA, "She made her choice10 years ago."),
        (COPA, "She was choice 1 of the coach."),
        (BOOLQ, "set the flag subclass: true and save"),
    ],
)
def test_ordinary_words_do_not(labels: tuple[str, ...], text: str) -> None:
    assert label_leak({"a": text}, labels) is None


def _copa(premise: str, choice1: str, choice2: str) -> str | None:
    fields = {"premise": premise, "choice1": choice1, "choice2": choice2}
    return VALIDATORS["choices_differ"](fields, "choice1")


def test_choices_differ_in_more_than_case_spaces_and_punctuation() -> None:
    assert (
        _copa("It rained.", "The roof leaked.", "the  roof leaked") == "both choices are the same"
    )
    assert _copa("It rained.", "It rained!", "The sun shone.") == "a choice repeats the premise"
    assert _copa("It rained.", "The sun shone.", "it RAINED") == "a choice repeats the premise"
    assert _copa("It rained.", "The roof leaked.", "The sun shone.") is None
    assert _copa("Which?", "+", "-") is None
    assert _copa("Which?", "...", "!") is None


@given(st.lists(st.text("abcxyz123", min_size=1), min_size=1), st.sampled_from([" ", "  ", ", "]))
def test_a_text_never_differs_from_itself_dressed_up(words: list[str], between: str) -> None:
    fields = {"premise": " ".join(words), "hypothesis": f"“{between.join(words).upper()}.”"}
    assert VALIDATORS["hypothesis_differs"](fields, "neutral")


def test_hypothesis_differs_but_may_stand_in_the_premise() -> None:
    check = VALIDATORS["hypothesis_differs"]
    assert check({"premise": "The shop is shut.", "hypothesis": "the shop is shut"}, "neutral")
    inside = {"premise": "He says the shop is shut.", "hypothesis": "the shop is shut"}
    assert check(inside, "neutral") is None


@pytest.mark.parametrize(
    ("question", "fine"),
    [
        ("is the tower open on sundays", True),
        ("Is the tower open on Sundays?", True),
        ("is it open in the u.s.", True),
        ("is it", False),
        ("is the tower open\non sundays", False),
        ("Here is the question:", False),
    ],
)
def test_a_question_is_one_line_of_three_words_or_more(question: str, fine: bool) -> None:
    assert (VALIDATORS["ends_like_question"]({"question": question}, "true") is None) is fine


def test_a_question_is_not_copied_from_the_passage() -> None:
    check = VALIDATORS["question_not_in_passage"]
    passage = "Visitors ask: is the tower\nopen on Sundays? It is."
    assert check({"passage": passage, "question": "Is the tower open on Sundays?"}, "true")
    assert check({"passage": passage, "question": "is the tower shut on mondays"}, "true") is None


def _wic(word: str, sentence1: str, sentence2: str, name: str = "word_in_both") -> str | None:
    return VALIDATORS[name]({"word": word, "sentence1": sentence1, "sentence2": sentence2}, "true")


def test_the_word_stands_in_both_sentences() -> None:
    assert _wic("run", "She ran home.", "The RUNS were long.") is None
    assert _wic("run", "She walked home.", "He runs.") == "the word does not stand in sentence1"
    assert _wic("run", "She ran home.", "A grunt.") == "the word does not stand in sentence2"


def test_the_two_sentences_differ() -> None:
    same = "both sentences are the same"
    assert _wic("run", "He runs.", "he runs", "sentences_differ") == same
    assert _wic("run", "He runs.", "He ran.", "sentences_differ") is None


@pytest.mark.parametrize(
    ("text", "span1", "span2", "reason"),
    [
        ("The cook met the clerk, and she left.", "The cook", "she", None),
        ("The cook met the clerk, and she left.", "the clerk", "she", None),
        ("(Ann) met Bo's aunt; it's her.", "Bo", "her", None),
        ("Ann lost her bag. She wept.", "her bag", "She", None),
        ("Ann lost her bag and her keys.", "her bag", "her", None),
        ("The cook met the clerk.", "the cook", "the clerk", "span1 does not stand in the text"),
        ("The cook shelved it.", "The cook", "he", "span2 does not stand in the text"),
        ("The cooks met him.", "The cook", "him", "span1 does not stand in the text"),
        ("Ann lost her bag.", "her bag", "her", "the spans overlap"),
        ("Ann lost her bag.", "her", "her", "the spans overlap"),
        ("AxB met him.", "A.B", "him", "span1 does not stand in the text"),
    ],
)
def test_spans_stand_in_the_text_side_by_side(
    text: str, span1: str, span2: str, reason: str | None
) -> None:
    fields = {"text": text, "span1": span1, "span2": span2}
    assert VALIDATORS["spans_in_text"](fields, "true") == reason


@given(st.lists(st.text("abcé'-", min_size=1, max_size=4), min_size=2, max_size=12), st.data())
def test_any_two_stretches_of_words_that_do_not_meet_are_spans(words, data) -> None:
    words = [f"x{word}{place}" for place, word in enumerate(words)]
    cut = data.draw(st.integers(1, len(words) - 1))
    first = data.draw(st.integers(0, cut - 1))
    last = data.draw(st.integers(cut + 1, len(words)))
    spans = [" ".join(words[first:cut]), " ".join(words[cut:last])]
    if data.draw(st.booleans()):
        spans.reverse()
    fields = {"text": " ".join(words), "span1": spans[0], "span2": spans[1]}
    assert VALIDATORS["spans_in_text"](fields, "true") is None


@pytest.mark.parametrize("span", ["he", "She", "THEIR", "itself", "me", "hers"])
def test_a_pronoun_is_one(span: str) -> None:
    assert VALIDATORS["pronoun_span"]({"span2": span}, "true") is None


@pytest.mark.parametrize("span", ["the cook", "this", "who", "he ", "she and he", "", "mr"])
def test_what_is_no_pronoun_is_none(span: str) -> None:
    assert VALIDATORS["pronoun_span"]({"span2": span}, "true") == "span2 is no pronoun"


@pytest.mark.parametrize(
    ("text", "span2", "count"),
    [
        ("The cook met the clerk. He left.", "He", 1),
        ("He met the clerk, and he left.", "he", 2),
        ("It's late, and it rains.", "it", 2),
        ("The other chef's shelf: he has it.", "he", 1),
        ("The cook left.", "he", 0),
    ],
)
def test_the_pronoun_stands_once_in_any_case(text: str, span2: str, count: int) -> None:
    reason = VALIDATORS["span2_once"]({"text": text, "span2": span2}, "true")
    assert reason == (None if count == 1 else f"span2 stands {count} times in the text")


@pytest.mark.parametrize(
    ("entities", "reason"),
    [
        ("Ann Lee\nBath", None),
        ("Bath\nAnn\nAnn Lee", None),
        ("Bath", "there is only one entity"),
        ("Bath\nBath", "an entity is listed twice"),
        ("Bath\nann lee", "the entity 'ann lee' does not stand in the passage"),
        ("Bath\n", "the entity '' does not stand in the passage"),
        ("Bath\n ", "the entity ' ' does not stand in the passage"),
        ("Bath\nYork", "the entity 'York' does not stand in the passage"),
    ],
)
def test_entities_are_distinct_names_of_the_passage(entities: str, reason: str | None) -> None:
    fields = {"passage": "Ann Lee went to Bath.", "entities": entities}
    assert VALIDATORS["entities_in_passage"](fields, "Bath") == reason


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("@placeholder went home.", 1),
        ("It was @placeholder's house.", 1),
        ("Ann-@placeholder wept", 1),
        ("Ann went home.", 0),
        ("@Placeholder went home.", 0),
        ("@placeholders went home.", 0),
        ("placeholder went home.", 0),
        ("@placeholder met @placeholder.", 2),
    ],
)
def test_a_query_has_one_gap(query: str, count: int) -> None:
    reason = VALIDATORS["one_placeholder"]({"query": query}, "Ann")
    assert reason == (None if count == 1 else f"the query has {count} times @placeholder")


@pytest.mark.parametrize(
    ("query", "copied"),
    [
        ("@placeholder went to Bath by train.", True),
        ("@placeholder WENT to  Bath", True),
        ("@placeholder went to Bath.", True),
        ("Ann Lee went to @placeholder by train.", True),
        ("Ann Lee went to @placeholder by bus.", False),
        ("A train took @placeholder there.", False),
    ],
)
def test_a_query_is_not_copied_from_the_passage(query: str, copied: bool) -> None:
    passage = "At nine Ann Lee went\nto Bath by train. It rained."
    fields = {"passage": passage, "entities": "Ann Lee\nBath", "query": query}
    reason = VALIDATORS["query_not_in_passage"](fields, "Bath")
    assert reason == ("the query stands in the passage" if copied else None)


@given(st.lists(st.sampled_from(["ann", "bo", "saw", "the", "sea"]), min_size=3), st.data())
def test_a_sentence_of_the_passage_with_any_name_cut_out_is_copied(words, data) -> None:
    place = data.draw(st.integers(0, len(words) - 1))
    query = " ".join([*words[:place], GAP, *words[place + 1 :]]) + "."
    passage = f"It began. {' '.join(words).title()}. It ended."
    fields = {"passage": passage, "entities": f"It\n{words[place]}", "query": query}
    assert VALIDATORS["query_not_in_passage"](fields, "It")


FOREIGN_TEXTS = {
    "German": "Am Montag kaufte Frau Keller in Stuttgart neue Schuhe, weil ihre alten völlig"
    " durchgelaufen waren.",
    "French": "Le boulanger a oublié hier soir d'éteindre le four, et c'est pourquoi le pain a"
    " brûlé.",
    "Spanish": "Ayer compré tres libros antiguos porque mi hermana quería leer algo durante"
    " nuestras vacaciones juntas.",
    "Italian": "Il fornaio ha dimenticato ieri sera di spegnere il forno e per questo il pane è"
    " bruciato.",
    "Portuguese": "O padeiro esqueceu ontem à noite de desligar o forno e por isso o pão queimou.",
    "Dutch": "De bakker is gisteravond vergeten de oven uit te zetten en daarom is het brood"
    " verbrand.",
    "Swedish": "Bagaren glömde att stänga av ugnen i går kväll och därför blev allt brödet bränt.",
    "Polish": "Piekarz zapomniał wczoraj wieczorem wyłączyć piec i dlatego cały chleb się spalił"
    " na węgiel.",
    "Finnish": "Leipuri unohti eilen illalla sammuttaa uunin ja siksi kaikki leivät paloivat aivan"
    " pilalle pohjasta.",
    "Chinese": "昨天晚上面包师忘记关烤箱了所以所有的面包都烤焦了。",
    "Russian": "Пекарь вчера вечером забыл выключить печь, и поэтому весь хлеб сгорел дотла.",
    "Russian, short": "Он забыл.",
    "English, half of it Russian": "The old baker said: пекарь забыл выключить печь.",
}
ENGLISH_TEXTS = {
    "plain": "The baker forgot to turn the oven off last night, and so all of the bread burnt.",
    "no small words, but short": "Mice eat cheese.",
    "few small words": "MCI shareholders accepted a $6.7 billion offer over Qwest's initial $8"
    " billion.",
    "names": "Ann Lee\nBath\nReal Madrid\nLa Liga\nLos Angeles\nDe la Cruz\nDie Zeit\nDer Spiegel",
    "figures": "1914 1918 1939 1945 3.14 42 7 8 9 10 11 12 A",
    "a foreign name": "The October Revolution (Russian: Октябрьская революция) was a coup in the"
    " city of Petrograd in 1917, led by the party of Lenin.",
    "a foreign title": "She read the novel Im Westen nichts Neues in the train to Bonn.",
    "sounds": "/kl\u0251\u02d0k/",
    "accents and signs": "The café\u2019s naïve owner paid €5 — or ¥800 — to the clerk"
    " /kl\u0251\u02d0k/ there.",
}


@pytest.mark.parametrize("name", FOREIGN_TEXTS)
def test_another_language_is_not_english(name: str) -> None:
    fields = {"premise": ENGLISH_TEXTS["plain"], "hypothesis": FOREIGN_TEXTS[name]}
    assert VALIDATORS["english"](fields, "neutral") == "not English"


@pytest.mark.parametrize("name", ENGLISH_TEXTS)
def test_english_may_hold_names_figures_and_words_of_others(name: str) -> None:
    fields = {"premise": ENGLISH_TEXTS["plain"], "hypothesis": ENGLISH_TEXTS[name]}
    assert VALIDATORS["english"](fields, "neutral") is None


def test_short_texts_of_another_language_are_read_together() -> None:
    fields = {"a": "Der Turm ist hoch.", "b": "Die Glocke ist alt und laut.", "c": "Wer hat sie?"}
    assert VALIDATORS["english"](fields, "true") == "not English"
    assert VALIDATORS["english"]({"a": fields["a"]}, "true") is None


def _twins(name: str, *texts: str) -> str | None:
    (field,) = GROUP_VALIDATED_FIELDS[name]
    return GROUP_VALIDATORS[name]([{field: text, "other": "x"} for text in texts])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("Ann said he left.", "Ann said she left.", None),
        ("The cook took his hat.", "The cook took her hat.", None),
        ("The hat is his.", "The hat is hers.", None),
        ("The cook saw him; he's ill.", "The cook saw her; she's ill.", None),
        ("He hurt himself.", "She hurt herself.", None),
        ("He left.", "He left.", "the premises are the same"),
        ("He left.", "he left", "the premises are not alike word by word"),
        ("He left.", "They left.", "the premises differ in 'he' and 'they'"),
        ("He saw him.", "He saw she.", "the premises differ in 'him' and 'she'"),
        ("He left him.", "She left it.", "the premises differ in 'him' and 'it'"),
        ("He left.", "She left early.", "the premises are not alike word by word"),
        ("The man left.", "The woman left.", "the premises differ in 'man' and 'woman'"),
        ("He left.", "She stayed.", "the premises differ in 'left' and 'stayed'"),
    ],
)
def test_twins_swap_gender_and_nothing_else(first: str, second: str, reason: str | None) -> None:
    assert _twins("twins_swap_gender", first, second) == reason
    other_way = _twins("twins_swap_gender", second, first)
    assert (other_way is None) is (reason is None)


SAME = "the texts are the same"
MORE = "the texts differ in more than one word"
UNLIKE = "the texts are not alike word by word"


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("It is too big.", "It is too small.", None),
        ("He has a red bag.", "He has an old bag.", None),
        ("An apple fell.", "A pear fell.", None),
        ("He isn't in.", "He wasn't in.", None),
        ("A well-known cook.", "A lonely cook.", None),
        ("It fell because it was big.", "It fell although it was big.", None),
        ("It is too big.", "it is too BIG.", SAME),
        ("It is too big.", "It was too small.", MORE),
        ("It is a big, old bag.", "It is an big, new bag.", MORE),
        ("It is a the bag.", "It is an a bag.", None),
        ("It fell.", "It fell!", MORE),
        ("It is too big.", "It is big.", UNLIKE),
        ("It is too big.", "It is too big and old.", UNLIKE),
    ],
)
def test_twins_change_one_word(first: str, second: str, reason: str | None) -> None:
    assert _twins("twins_change_one_word", first, second) == reason
    assert _twins("twins_change_one_word", second, first) == reason


@pytest.mark.parametrize("name", ["twins_swap_gender", "twins_change_one_word"])
def test_twins_are_two(name: str) -> None:
    assert _twins(name, "He left.")
    assert _twins(name, "He left.", "She left.", "He left.")


def test_no_answer_is_given_twice() -> None:
    assert _twins("answers_differ", "Ann", "Bo", "Ann and Bo") is None
    assert _twins("answers_differ", "Ann", "Bo", "the sea", "ann.") == "two answers are the same"


SOUND = {
    "entities": "text",
    "query": f"{GAP} wept at the shore",
    "span1": "some words",
    "span2": "it",
    "text": "some words about it",
    "word": "word",
}


@pytest.mark.parametrize("name", sorted(VALIDATORS))
def test_a_validator_reads_the_fields_it_says_it_reads(name: str) -> None:
    plain = {field: f"some words about {field}" for field in VALIDATED_FIELDS[name]}
    fields = {field: SOUND.get(field, text) for field, text in plain.items()}
    if name == "entities_in_passage":
        fields["entities"] = "some\npassage"
    assert VALIDATORS[name](fields, "true") is None
    for lacking in fields:
        with pytest.raises(KeyError):
            VALIDATORS[name]({k: v for k, v in fields.items() if k != lacking}, "true")


@pytest.mark.parametrize("name", sorted(GROUP_VALIDATORS))
def test_a_group_validator_reads_the_field_it_says_it_reads(name: str) -> None:
    (field,) = GROUP_VALIDATED_FIELDS[name]
    GROUP_VALIDATORS[name]([{field: "he"}, {field: "she"}])
    with pytest.raises(KeyError):
        GROUP_VALIDATORS[name]([{"x": "he"}, {"x": "she"}])


def test_every_validator_says_what_it_reads() -> None:
    assert set(VALIDATORS) == set(VALIDATED_FIELDS)
    assert set(GROUP_VALIDATORS) == set(GROUP_VALIDATED_FIELDS)
