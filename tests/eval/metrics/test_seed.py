import pytest

from eval.metrics.seed import score, summarise


def test_official_forgives_case_and_spaces():
    assert score("A", " a.", protocol="official") == 1
    assert score("A", "a", protocol="upstream") == score("A", " A", protocol="upstream") == 0
    assert score("A", "Apple", protocol="upstream") == 1


def test_an_empty_answer_field_is_never_right():
    assert score("", "", protocol="upstream") == 0


def test_types_without_questions_do_not_divide_by_zero():
    summary = summarise([(1, 1.0), (1, 0.0), (9, 1.0)])
    assert {kind: entry["score"] for kind, entry in summary["by_type"].items()} == {1: 0.5, 9: 1.0}
    assert summary["by_type"][1]["stderr"] == pytest.approx((0.25 / 2) ** 0.5)
    assert summary["image"] == summary["total"]
    assert summary["total"]["stderr"] == pytest.approx((2 / 9 / 3) ** 0.5)
    assert summary["video"] is None
    assert summarise([]) == {"by_type": {}, "total": None, "image": None, "video": None}
