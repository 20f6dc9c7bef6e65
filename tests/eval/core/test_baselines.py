"""What constant answers get, by a task's own rule."""

import pytest

from eval.core.baselines import MAX_QUESTIONS, ConstantAnswer, find_majority, list_letters, measure_baselines, name_gold
from eval.core.sample import Prediction


def predict(index, answer, response="x", failure=None, **metadata):
    return Prediction(str(index), response, answer, metadata, 1, 0, 0.0, 0.0, failure)


def share_equal(predictions):
    return sum(p.answer == p.response for p in predictions) / len(predictions)


def test_constant_answers_are_scored_by_the_given_rule():
    golds = ["A", "B", "B", "C", "", "B"]
    baselines = measure_baselines([predict(i, gold) for i, gold in enumerate(golds)], share_equal)
    assert baselines.count == 6
    assert baselines.empty == pytest.approx(1 / 6)
    assert baselines.letters == pytest.approx({"A": 1 / 6, "B": 0.5, "C": 1 / 6, "D": 0.0})
    assert baselines.letter == ConstantAnswer("B", 0.5)
    assert baselines.majority == ConstantAnswer("B", 0.5)


def test_a_failed_answer_counts_as_a_constant_answer():
    seen = []
    measure_baselines([predict(0, "A", "", failure="out of memory")], lambda blind: seen.extend(blind) or 0.0)
    assert all(prediction.failure is None for prediction in seen)


def test_there_are_as_many_letters_as_options():
    assert list_letters([predict(0, "A")]) == "ABCD"
    assert list_letters([predict(0, "A", chance=1 / 2), predict(1, "A", chance=1 / 6)]) == "ABCDEF"
    assert list_letters([predict(0, "A", chance=0.001)])[-1] == "Z"
    assert list_letters([predict(0, "A", chance=0), predict(1, "A", chance=None)]) == "ABCD"


def test_no_gold_answer_twice_means_no_majority():
    assert find_majority([predict(i, gold) for i, gold in enumerate("abc")]) is None
    assert find_majority([predict(i, gold) for i, gold in enumerate([["x", "y"], ["y", "x", "x"], ["z"]])]) == "x"
    assert find_majority([]) is None


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("blue", "blue"),
        (2, "C"),
        (40, "40"),
        (-1, "-1"),
        (0.5, "0.5"),
        (True, None),
        ([3, 1], "[3, 1]"),
        (["no", "yes", "yes"], "yes"),
        ([], None),
        ({"letter": "B", "options": {}}, "B"),
        ({"text": ["red", "red", "blue"], "rule": "needle"}, "red"),
        ({"kind": "open"}, None),
    ],
)
def test_gold_answers_are_said_as_a_model_would(answer, name):
    assert name_gold(answer) == name


def test_large_sets_are_thinned_evenly():
    predictions = [predict(i, "A" if i % 2 else "B") for i in range(2 * MAX_QUESTIONS + 10)]
    taken = []
    baselines = measure_baselines(predictions, lambda blind: taken.append([int(p.id) for p in blind]) or 0.0)
    assert baselines.count == MAX_QUESTIONS == len(taken[0]) == len(set(taken[0]))
    assert taken[0][0] == 0
    assert taken[0][-1] > 2 * MAX_QUESTIONS - 10
