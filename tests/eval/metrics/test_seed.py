from eval.metrics.seed import score, summarise


def test_official_forgives_case_and_spaces():
    assert score("A", " a.", protocol="official") == 1
    assert score("A", "a", protocol="upstream") == score("A", " A", protocol="upstream") == 0
    assert score("A", "Apple", protocol="upstream") == 1


def test_an_empty_answer_field_is_never_right():
    assert score("", "", protocol="upstream") == 0


def test_types_without_questions_do_not_divide_by_zero():
    summary = summarise([(1, 1.0), (1, 0.0), (9, 1.0)])
    assert summary["by_type"] == {1: 0.5, 9: 1.0}
    assert summary["image"] == summary["total"]
    assert summary["video"] is None
