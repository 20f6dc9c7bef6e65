import pytest

from eval.metrics.numeric import find_numbers, read_number, score


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3-4", [3, 4]),
        ("-5 and −6, +7", [-5, -6, 7]),
        ("1,234.5", [1234.5]),
        ("1,234,567", [1234567]),
        ("3, 4", [3, 4]),
        ("1,23", [1, 23]),
        (".5 or 1e-3", [0.5, 0.001]),
        ("v2 of $5, 10% and 5kg.", [5, 10, 5]),
        ("no number", []),
        ("", []),
    ],
)
def test_numbers_in_text(text, numbers):
    assert find_numbers(text) == numbers


@pytest.mark.parametrize(
    ("answer", "response", "options", "expected"),
    [
        (42, "first 41, then 42.", {}, 1),
        (42, "42, not 41", {}, 0),
        (42, "42, not 41", {"take": "first"}, 1),
        ("1,000", "1000.0", {}, 1),
        (100, "104", {"relative": 0.04}, 1),
        (100, "105", {"relative": 0.04}, 0),
        (0, "0.01", {"relative": 0.5}, 0),
        (0, "0.01", {"absolute": 0.01}, 1),
        (-10, "-9.5", {"relative": 0.05}, 1),
        ([1, "2"], "2", {}, 1),
        (3, "three", {}, 0),
        (3, None, {}, 0),
    ],
)
def test_the_number_of_a_response_is_close_enough(answer, response, options, expected):
    assert score(answer, response, **options) == expected


@pytest.mark.parametrize("text", ["many", "2 or 3"])
def test_an_answer_without_one_number_is_refused(text):
    with pytest.raises(ValueError, match="expected one"):
        read_number(text)
