import pytest

from eval.metrics.mmmu import DOMAINS, find_option, find_subject, parse_open, score, score_open, summarise

OPTIONS = {"A": "cat", "B": "a large red dog", "C": "fish"}


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("(A) or (C)", "C"), ("B.", "B"), ("A B C", "C"), ("B)", None), ("A\nB", None), ("**C**", None), ("", None),
        ("it is not a cat but I would say a fish", "C"), ("a cat", None), ("I say this is a fish", "C"),
        ("I say it is fish", None),
    ],
)  # fmt: skip
def test_the_last_option_named_wins(said, letter):
    assert find_option(said, OPTIONS) == letter


def test_upstream_takes_the_first_character():
    assert score("A", "A or B", options=OPTIONS, protocol="upstream") == 1
    assert score("A", "A or B", options=OPTIONS, protocol="official") == 0


@pytest.mark.parametrize(
    ("said", "pieces"),
    [
        ("The answer is 1,234.5", {1234.5, 1234.0, 234.5}), ("x = 3", {3.0}), ("Paris", {"paris"}),
        ("So it could be 5%.", {"5%", 5.0}), ("1e3 units", {1000.0, 3.0, "1e3 units"}), ("c", {" c", "c "}),
        ("the answer is\nred", {"is"}),
    ],
)  # fmt: skip
def test_open_answers_are_cut_into_pieces(said, pieces):
    assert parse_open(said) == pieces


def test_open_texts_are_contained_and_numbers_equal():
    assert score_open("red", "it is reddish") == 1
    assert score_open("5", "-5") == 0
    assert score_open([7, "7 cm"], "7.001") == 1


def test_the_table_has_thirty_subjects_and_skips_others():
    assert sum(map(len, DOMAINS.values())) == 30
    assert find_subject("validation_Public_Health_12") == "Public_Health"
    table = summarise([("dev_Math_1", 1.0), ("dev_Math_2", 0.0), ("dev_Art_1", 1.0), ("dev_Cooking_1", 1.0)])
    assert table["Math"] == {"num": 2, "acc": 0.5}
    assert table["Overall"] == {"num": 3, "acc": 0.667}
    assert table["Overall-Business"] == {"num": 0, "acc": 0}
