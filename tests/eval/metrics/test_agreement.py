"""Agreement of two raters, against numbers worked out by hand and published ones."""

import pytest

from eval.metrics.agreement import measure_agreement
from internvl.errors import EvalError


def pairs(table):
    return [pair for pair, count in table.items() for _ in range(count)]


def test_kappa_of_a_published_table():
    """50 grant proposals read by two people, a common worked example: agreement 0.7, chance 0.5, kappa 0.4."""
    found = measure_agreement(pairs({("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}))
    assert (found.count, found.agreement, found.kappa) == (50, 0.7, pytest.approx(0.4))
    assert found.agreement_interval == pytest.approx((0.5625, 0.8090), abs=1e-4)
    assert found.kappa_interval == pytest.approx((0.1249, 0.6180), abs=1e-4)


def test_more_than_two_verdicts_count_by_their_own_shares():
    found = measure_agreement(pairs({(0, 0): 2, (0.5, 0.5): 3, (1, 1): 4, (1, 0): 1}))
    chance = (2 * 3 + 3 * 3 + 5 * 4) / 100
    assert found.kappa == pytest.approx((0.9 - chance) / (1 - chance))


def test_perfect_agreement_still_has_an_interval():
    found = measure_agreement([(0, 0), (1, 1)] * 5)
    assert (found.agreement, found.kappa) == (1.0, 1.0)
    assert found.kappa_interval[0] < 0.6
    assert found.kappa_interval[1] == 1.0


def test_kappa_is_unknown_where_everything_gets_the_same_verdict():
    found = measure_agreement([(1, 1)] * 4)
    assert (found.agreement, found.kappa, found.kappa_interval) == (1.0, None, None)


def test_systematic_disagreement_is_below_zero():
    assert measure_agreement([(0, 1), (1, 0)] * 3).kappa == -1.0


def test_no_pairs_are_refused():
    with pytest.raises(EvalError, match="without pairs"):
        measure_agreement([])
