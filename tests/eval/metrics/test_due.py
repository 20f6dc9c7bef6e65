import pytest

from eval.metrics.due import Annotation, compute_f1


def test_a_value_is_used_once():
    value = Annotation("a", frozenset({"1"}))
    assert compute_f1([value, value], [value]) == pytest.approx({"precision": 1 / 2, "recall": 1, "F1": 2 / 3})


def test_keys_of_other_documents_do_not_match():
    one, other = (Annotation((document, "a"), frozenset({"1"})) for document in (0, 1))
    assert compute_f1([one], [other])["F1"] == 0


def test_nothing_is_zero():
    assert compute_f1([], []) == {"precision": 0, "recall": 0, "F1": 0}
    assert compute_f1([Annotation("k", frozenset({"x"}))], [])["precision"] == 0
