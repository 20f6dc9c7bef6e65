"""Standard errors: known formulas, and formulas against the spread of drawn samples."""

import math
import random

import pytest

from eval.metrics.estimate import (
    Estimate,
    average_estimates,
    bootstrap_stderr,
    estimate_clusters,
    estimate_groups,
    estimate_mean,
    estimate_share,
    pool_estimates,
    wilson_interval,
)
from internvl.errors import EvalError


def test_standard_error_of_right_or_wrong_is_binomial():
    estimate = estimate_mean([1.0] * 30 + [0.0] * 10)
    assert estimate.score == 0.75
    assert estimate.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 40))
    assert estimate.count == 40


def test_standard_error_of_shares_is_that_of_a_mean():
    estimate = estimate_mean([0.0, 0.5, 1.0])
    assert estimate.stderr == pytest.approx(math.sqrt((0.25 + 0 + 0.25) / 3 / 3))


def test_nothing_to_average_is_an_error():
    for average in (estimate_mean, estimate_clusters, average_estimates, pool_estimates):
        with pytest.raises(EvalError, match="zero"):
            average([])


def test_the_interval_of_an_estimate_is_wilsons_and_wider_where_questions_depend_on_each_other():
    right = Estimate(0.75, math.sqrt(0.75 * 0.25 / 40), 40)
    assert right.interval == pytest.approx(wilson_interval(0.75, 40))
    low, high = Estimate(0.75, 2 * right.stderr, 40).interval
    assert low < right.interval[0] < right.interval[1] < high
    assert Estimate(1.0, 0.0, 40).interval == wilson_interval(1.0, 40)
    low, high = Estimate(0.5, 0.0, 3).interval
    assert low < 0.5 < high


def test_wilson_interval_matches_a_published_value_and_stays_inside():
    low, high = wilson_interval(0.9, 10)
    assert (low, high) == (pytest.approx(0.5958, abs=1e-3), pytest.approx(0.9821, abs=1e-3))
    assert wilson_interval(1.0, 5)[1] == 1.0
    assert wilson_interval(1.0, 5)[0] < 0.6


def test_bootstrap_of_a_mean_is_its_standard_error():
    values = [0.0] * 50 + [1.0] * 50
    spread = bootstrap_stderr(values, lambda drawn: sum(drawn) / len(drawn), num_draws=400)
    assert spread == pytest.approx(estimate_mean(values).stderr, rel=0.15)
    assert bootstrap_stderr([1.0, 1.0], lambda drawn: sum(drawn) / len(drawn)) == 0.0


def draw_scores(share, count, *, seed=0):
    generator = random.Random(seed)
    return [float(generator.random() < share) for _ in range(count)]


PARTS = [draw_scores(share, count, seed=count) for share, count in ((0.9, 40), (0.5, 160), (0.2, 80))]


def resample(statistic):
    """Spread of a statistic of several tasks, each of which is drawn anew from its own questions."""
    generator = random.Random(1)
    values = [statistic([generator.choices(part, k=len(part)) for part in PARTS]) for _ in range(2000)]
    return estimate_mean(values).stderr * math.sqrt(len(values))


def test_mean_of_means_has_the_spread_of_drawn_tasks():
    average = average_estimates([estimate_mean(part) for part in PARTS])
    assert average.score == pytest.approx(sum(sum(part) / len(part) for part in PARTS) / 3)
    assert average.stderr == pytest.approx(resample(lambda parts: sum(sum(p) / len(p) for p in parts) / 3), rel=0.05)
    assert average.count == 280


def test_pooled_mean_has_the_spread_of_drawn_tasks():
    pooled = pool_estimates([estimate_mean(part) for part in PARTS])
    assert pooled.score == pytest.approx(sum(map(sum, PARTS)) / 280)
    assert pooled.stderr == pytest.approx(resample(lambda parts: sum(map(sum, parts)) / 280), rel=0.05)


def test_answers_of_one_cluster_are_no_independent_ones():
    alone = [[score] for score in PARTS[1]]
    assert estimate_clusters(alone) == estimate_mean(PARTS[1])
    fourfold = [[score] * 4 for score in PARTS[1]]  # says no more than one answer each
    assert estimate_clusters(fourfold).stderr == pytest.approx(estimate_mean(PARTS[1]).stderr)
    assert estimate_clusters(fourfold).count == 640


def test_clusters_of_different_size_have_the_spread_of_drawn_clusters():
    clusters = [[score] * (1 + place % 3) for place, score in enumerate(PARTS[1])]
    spread = bootstrap_stderr(clusters, lambda drawn: sum(map(sum, drawn)) / sum(map(len, drawn)), num_draws=2000)
    assert estimate_clusters(clusters).stderr == pytest.approx(spread, rel=0.05)


def test_groups_keep_their_order():
    groups = estimate_groups([("b", 1.0), ("a", 0.0), ("b", 0.0)])
    assert list(groups.items()) == [("b", vars(estimate_mean([1.0, 0.0]))), ("a", vars(estimate_mean([0.0])))]


def test_a_share_is_the_mean_of_right_and_wrong():
    share, mean = estimate_share(30, 40), estimate_mean([1.0] * 30 + [0.0] * 10)
    assert (share.score, share.count) == (mean.score, mean.count)
    assert share.stderr == pytest.approx(mean.stderr)
    assert estimate_share(0, 0) == Estimate(0.0, 0.0, 0)
