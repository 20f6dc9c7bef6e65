import pytest

from eval.metrics.text import (
    CONTRACTIONS,
    NUMBERS_TO_NINETY,
    NUMBERS_TO_TEN,
    blank_articles,
    contains_word,
    drop_punctuation,
    flatten_whitespace,
    measure_word_f1,
    normalise_words,
    remove_punctuation,
    split_possessives,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs.", "2 dogs"), ("it's 1,000 dollars", "it 's 1000 dollars"), ("a b-c / d", "b c d"),
        ("Dont know", "don't know"), ("None", "0"), ("3.14.", "3.14"), ("U.S.A.", "usa"), ("What?!", "what"),
        ("10:30 am", "10:30 am"),
    ],
)  # fmt: skip
def test_full_chain_normalises_as_the_textvqa_scorer(text, expected):
    words = remove_punctuation(flatten_whitespace(split_possessives(text)))
    assert normalise_words(words, NUMBERS_TO_TEN) == expected


def test_contraction_table_is_complete_and_repairs_apostrophes():
    assert len(CONTRACTIONS) == 120
    odd = {"somebody'd"}  # the official table turns this one round
    assert all(key.replace("'", "") == value.replace("'", "") for key, value in CONTRACTIONS.items())
    assert {k for k, v in CONTRACTIONS.items() if v.count("'") < k.count("'")} == odd


def test_number_words_end_at_ninety():
    assert NUMBERS_TO_NINETY["nineteen"] == "19"
    assert NUMBERS_TO_NINETY["forty"] == "40"
    assert "none" not in NUMBERS_TO_NINETY
    assert len(NUMBERS_TO_NINETY) == 28


def test_punctuation_next_to_a_space_is_deleted_elsewhere_too():
    assert remove_punctuation("a-b c- d") == "ab c d"
    assert remove_punctuation("a-b") == "a b"
    assert remove_punctuation("x_y 1,000") == "xy 1000"


def test_only_the_first_32_periods_go():
    assert remove_punctuation("." * 40) == "." * 8
    assert remove_punctuation(".5") == ".5"


def test_words_count_as_often_as_they_occur_in_their_f1():
    assert measure_word_f1(["a", "a", "b"], ["a", "b", "b", "c"]) == pytest.approx(2 * 2 / 7)
    assert measure_word_f1([], []) == measure_word_f1(["a"], ["b"]) == 0


def test_articles_in_lower_case_leave_spaces_and_punctuation_leaves_none():
    assert blank_articles("an apple, the a-b, The") == "  apple,    -b, The"
    assert drop_punctuation("it's a-b: $5.0 – “x”") == "its ab 50 – “x”"


def test_words_are_found_between_boundaries_only():
    assert contains_word("the cat sat", "cat")
    assert not contains_word("concatenate", "cat")
    assert contains_word("a.c", "a.c")
    assert not contains_word("abc", "a.c")
