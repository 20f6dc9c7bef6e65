import pytest

from eval.metrics.mmbench import find_question, merge_passes, summarise


def test_rotations_belong_to_one_question():
    assert find_question("3000007") == find_question(7) == 7
    assert find_question(1_234_567) == 234_567


def test_one_wrong_pass_makes_the_question_wrong():
    assert merge_passes([(1, 1.0), (1000001, 1.0), (2, 1.0), (1000002, 0.0)]) == {1: 1.0, 2: 0.0}


def test_categories_are_circular_too():
    fields = {"category": "ocr", "l2-category": None}
    summary = summarise([(1, 1.0, fields), (1000001, 0.0, fields), (2, 1.0, {"category": "colour"})])
    assert (summary["accuracy"], summary["num_questions"], summary["num_passes"]) == (0.5, 2, 3)
    assert {name: entry["score"] for name, entry in summary["by_category"].items()} == {"colour": 1.0, "ocr": 0.0}
    assert summary["stderr"] == pytest.approx((0.25 / 2) ** 0.5)
    assert summary["vanilla_stderr"] == pytest.approx(((1 - 2 / 3 * 2) ** 2 + (1 - 2 / 3) ** 2) ** 0.5 / 3)
    assert summary["by_l2_category"] == {}


def test_nothing_gives_zero():
    assert summarise([])["accuracy"] == summarise([])["vanilla_stderr"] == 0
