"""Paired differences: against known values, and against the spread of drawn samples."""

import random

import pytest

from eval.metrics.paired import compare_pairs
from internvl.errors import EvalError


def make_pairs(num_both, num_better, num_worse, num_neither):
    counts = {(1.0, 1.0): num_both, (0.0, 1.0): num_better, (1.0, 0.0): num_worse, (0.0, 0.0): num_neither}
    return [pair for pair, count in counts.items() for _ in range(count)]


def test_gains_and_losses_are_counted_and_the_test_is_mcnemars_exact_one():
    found = compare_pairs([make_pairs(50, 12, 3, 35)])
    assert (found.num_better, found.num_worse, found.count) == (12, 3, 100)
    assert (found.reference.score, found.score.score) == (0.53, 0.62)
    assert found.gain == pytest.approx(0.09)
    # 2 * (C(15,0) + C(15,1) + C(15,2) + C(15,3)) / 2**15
    assert found.p_value == pytest.approx(2 * (1 + 15 + 105 + 455) / 2**15)
    assert found.low < 0.09 < found.high
    assert found.verdict == "better"


def test_the_other_way_round_is_worse_by_as_much():
    found = compare_pairs([make_pairs(50, 3, 12, 35)])
    assert found.verdict == "worse"
    assert found.gain == pytest.approx(-0.09)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    rng = random.Random(3)
    covered = 0
    for _ in range(200):
        pairs = [rng.choices([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)], (50, 20, 10, 20))[0] for _ in range(60)]
        found = compare_pairs([pairs])
        covered += found.low <= 0.1 <= found.high
    assert 180 <= covered <= 199


def test_without_a_changed_answer_nothing_is_clear_and_the_interval_has_a_width():
    found = compare_pairs([make_pairs(20, 0, 0, 0)])
    assert (found.gain, found.p_value, found.verdict) == (0.0, 1.0, "no clear difference")
    assert found.low < 0 < found.high


def test_few_questions_are_no_proof():
    assert compare_pairs([make_pairs(0, 5, 0, 0)]).verdict == "no clear difference"
    assert compare_pairs([make_pairs(0, 9, 0, 0)]).verdict == "better"


def test_parts_of_a_point_are_better_or_worse_by_their_sign():
    found = compare_pairs([[(0.5, 0.75), (0.5, 0.25), (0.2, 0.9), (0.4, 0.4)]])
    assert (found.num_better, found.num_worse) == (2, 1)
    assert found.gain == pytest.approx(0.175)


def test_tasks_count_the_same_whatever_their_size():
    large, small = make_pairs(0, 100, 0, 300), make_pairs(0, 0, 0, 10)
    found = compare_pairs([large, small])
    assert found.gain == pytest.approx(0.125)
    assert (found.num_better, found.count) == (100, 410)
    alone = compare_pairs([large])
    assert found.high - found.low < alone.high - alone.low + 0.2


def test_the_interval_is_the_same_every_time():
    pairs = [make_pairs(51, 40, 30, 22)]
    assert compare_pairs(pairs) == compare_pairs(pairs)
    assert any(compare_pairs(pairs, seed=seed) != compare_pairs(pairs) for seed in range(1, 9))


def test_nothing_to_compare_is_an_error():
    for tasks in ([], [[]], [make_pairs(1, 0, 0, 0), []]):
        with pytest.raises(EvalError, match="both of them answered"):
            compare_pairs(tasks)
