import pytest

from eval.metrics.anls import score, score_due


def test_half_a_match_counts_unless_due_decides():
    assert score("abxy", "abcd") == 0.5
    assert score_due("abxy", "abcd") == 0
    assert score("abcxyz", "abd") == 0


def test_case_and_spaces_are_ignored_except_in_the_length():
    assert score("Invoice  No", "invoice\nno") == 1
    assert score("ab", "     xb") == pytest.approx(1 - 1 / 7)  # one wrong letter of seven, padding included
    assert score("ss", "ß") == 0


def test_due_is_literal():
    assert score_due("abc", "ABC") == 0
    assert score_due(["x", "abc"], "abc ") == 0.75
