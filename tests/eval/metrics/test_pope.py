import pytest

from eval.metrics.estimate import bootstrap_stderr
from eval.metrics.pope import estimate_f1, parse_yes_no, summarise, summarise_category


@pytest.mark.parametrize(
    ("said", "parsed"),
    [("no", "no"), ("No, it is", "no"), ("Yes. No", "yes"), ("NO", "yes"), ("", "yes"), ("I do not know", "no")],
)
def test_a_negation_in_the_first_sentence_is_no(said, parsed):
    assert parse_yes_no(said) == parsed


def test_metrics_follow_from_labels_and_scores():
    metrics = summarise_category([("yes", 1), ("yes", 0), ("no", 1), ("no", 0), ("no", 1)])
    assert [metrics[key] for key in ("TP", "FN", "TN", "FP")] == [1, 1, 2, 1]
    assert metrics["acc"] == pytest.approx(3 / 5)
    assert metrics["precision"] == metrics["recall"] == metrics["f1"] == 0.5
    assert metrics["yes_ratio"] == pytest.approx(2 / 5)


def test_standard_error_of_f1_is_the_spread_of_drawn_answers():
    rows = [("yes", 1)] * 60 + [("yes", 0)] * 40 + [("no", 1)] * 85 + [("no", 0)] * 15
    estimate = estimate_f1(summarise_category(rows))
    drawn = bootstrap_stderr(rows, lambda drawn: summarise_category(drawn)["f1"], num_draws=1000)
    assert estimate.stderr == pytest.approx(drawn, rel=0.06)
    assert (estimate.score, estimate.count) == (pytest.approx(120 / 175), 200)
    assert estimate_f1(summarise_category([("no", 1), ("yes", 0)])).stderr == 0
    assert estimate_f1(summarise_category([])).count == 0


def test_nothing_to_divide_by_is_zero():
    assert summarise_category([("no", 1)])["f1"] == 0
    assert summarise([]) == {}


def test_every_category_has_its_own_metrics():
    summary = summarise([("random", "yes", 1), ("popular", "yes", 0), ("popular", "no", 1)])
    assert [metrics["f1"] for metrics in summary.values()] == [0, 1]
