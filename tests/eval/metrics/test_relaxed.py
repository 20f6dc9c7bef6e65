import pytest

from eval.metrics.relaxed import parse_number, score


@pytest.mark.parametrize(
    ("gold", "said", "official", "upstream"),
    [
        ("12", "11.4", 1, 0), ("12", "12.61", 0, 1), ("100", "105", 1, 1), ("100", "105.1", 0, 1), ("0", "0.0", 0, 0),
        ("0.0", "0", 0, 0), ("5%", "0.05", 1, 1), ("Yes", " yes\n", 1, 1), (" yes", "yes", 0, 0), ("-5", "5", 0, 0),
        ("-5", "-5.2", 1, 1),
    ],
)  # fmt: skip
def test_the_tolerance_is_relative_to_the_gold_or_upstream_to_the_response(gold, said, official, upstream):
    assert score(gold, said, protocol="official") == official
    assert score(gold, said, protocol="upstream") == upstream


def test_the_best_gold_counts():
    assert score(["6", "7.2"], "7", protocol="official") == 1
    assert score(["6", "8"], "7", protocol="official") == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("42 %", 0.42),
        ("5%%", 0.05),
        ("1_000", 1000),
        ("1,000", None),
        ("$5", None),
        ("", None),
        ("%", None),
    ],
)
def test_numbers_are_what_float_reads(text, number):
    assert parse_number(text) == number
