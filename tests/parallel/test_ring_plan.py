"""The plan of a ring: every pair of tokens is computed once, and both sides of a message agree on it."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.errors import ParallelError
from internvl.parallel.ring_plan import RingPlan, build_ring_plan
from internvl.parallel.shards import deal_padded

LENGTHS = st.lists(st.sampled_from([0, 1, 1, 2, 3, 4, 7, 16]), max_size=10)
ROWS = st.tuples(LENGTHS, st.integers(1, 8), st.integers(0, 20))


def build_plans(lengths: list[int], size: int, padding: int) -> tuple[list[RingPlan], list[list[int]]]:
    """The plan of every rank, and the place in the row of every token that it holds."""
    borders = [0, *accumulate(lengths)]
    shares = deal_padded(borders[-1] + padding, size=size, borders=borders)
    places = [[place for run in runs for place in range(run.start, run.stop)] for runs in shares]
    return [build_ring_plan(borders, num_tokens=len(places[0]), rank=rank, size=size) for rank in range(size)], places


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_every_visible_pair_of_tokens_is_computed_exactly_once(row):
    lengths, size, padding = row
    plans, places = build_plans(lengths, size, padding)
    computed = []
    for plan, own in zip(plans, places, strict=True):
        before = len(computed)
        for step in plan.steps:
            for a, b in pairwise(plan.documents) if step.has_diagonal else ():
                computed += [(own[i], own[j]) for i in range(a, b) for j in range(a, i + 1)]
            arrived = [place for loan in step.borrowed for place in places[loan.rank][loan.tokens.rows]]
            for block in step.blocks:
                queries, keys = own[block.queries.rows], [place for span in block.keys for place in arrived[span.rows]]
                assert queries
                assert keys
                computed += [(i, j) for i in queries for j in keys]
        assert len(computed) - before == sum(plan.count_pairs())
    visible = {(i, j) for a, b in pairwise([0, *accumulate(lengths)]) for i in range(a, b) for j in range(a, i + 1)}
    assert set(computed) == visible
    assert len(computed) == len(visible)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_what_one_rank_borrows_another_one_lends(row):
    plans, _ = build_plans(*row)
    for number in range(len(plans)):
        borrowed = [(p.rank, loan.rank, loan.tokens) for p in plans for loan in p.steps[number].borrowed]
        lent = [(loan.rank, p.rank, loan.tokens) for p in plans for loan in p.steps[number].lent]
        assert sorted(borrowed) == sorted(lent)
    assert len({plan.lead for plan in plans}) == 1


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_a_step_is_one_kernel_call(row):
    """So no query may be in two of its blocks; and the diagonal comes first."""
    plans, _ = build_plans(*row)
    for plan in plans:
        assert len(plan.steps) == plan.size
        assert [step.has_diagonal for step in plan.steps].count(True) == (plan.documents[-1] > 0)
        first = next((n for n, step in enumerate(plan.steps) if step.has_diagonal), plan.size)
        assert not any(step.blocks for step in plan.steps[:first])
        for step in plan.steps:
            assert all(a.queries.stop <= b.queries.start for a, b in pairwise(step.blocks))


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("lengths", [[100000], [30000, 70000], [9000, 1000] * 12, [1] * 99 + [50000]])
def test_ranks_work_in_step(lengths, size):
    """What a rank computes in a step ends within that step, if all ranks compute equally fast (and an eighth of it)."""
    plans, _ = build_plans(lengths, size, 0)
    length = sum(sum(plan.count_pairs()) for plan in plans) / size**2
    for plan in plans:
        ends = accumulate(plan.count_pairs())
        for number, (step, end) in enumerate(zip(plan.steps, ends, strict=True)):
            if step.has_diagonal or step.blocks:
                assert end >= (number - 0.13) * length
                assert end <= (number + 1.13) * length or number == size - 1


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_one_document_costs_every_rank_the_same(size):
    """Two chunks of 100 tokens: the diagonal, then in every step 2 x 1 chunks of pairs, of one other rank."""
    plans, _ = build_plans([200 * size], size, 0)
    for plan in plans:
        assert plan.documents == (0, 200)
        assert plan.count_pairs() == (20100, *[20000] * (size - 1))
        sources = [loan.rank for step in plan.steps for loan in step.borrowed]
        assert sources == [(plan.rank - distance) % size for distance in range(1, size)]
        assert all(len(step.blocks) == 1 for step in plan.steps[1:])
    # Half of the keys go to later ranks, all to earlier ones: three quarters of all, over the group.
    assert sum(sum(plan.count_sent_rows()) for plan in plans) == 0.75 * 200 * size * (size - 1)


def test_documents_that_end_where_runs_do_send_nothing():
    plans, _ = build_plans([10] * 4, 4, 0)
    assert [plan.count_sent_rows() for plan in plans] == [(0, 0, 0, 0)] * 4
    assert {plan.documents for plan in plans} == {(0, 10)}


def test_short_documents_send_only_what_runs_over_a_border():
    """The row of the picture in deal.py: tokens 4 and 5 of the first document need the four before them."""
    plans, _ = build_plans([6, 2, 4], 2, 0)
    assert [sum(plan.count_sent_rows()) for plan in plans] == [4, 2]


def test_keys_come_as_early_as_two_shards_have_room():
    plans, _ = build_plans([1200], 4, 0)
    assert plans[0].lead == 1  # a step borrows a shard
    plans, _ = build_plans([130] * 10, 4, 0)
    assert plans[0].lead == 4


def test_padding_belongs_to_no_document():
    plans, places = build_plans([3, 2], 2, 15)
    for plan, own in zip(plans, places, strict=True):
        assert plan.documents[-1] == sum(place < 5 for place in own)
    assert sum(sum(plan.count_pairs()) for plan in plans) == 9


def test_borders_may_be_a_tensor():
    expected = build_ring_plan([0, 3, 8], num_tokens=4, rank=1, size=2)
    assert build_ring_plan(torch.tensor([0, 3, 8], dtype=torch.int32), num_tokens=4, rank=1, size=2) == expected


@pytest.mark.parametrize("borders", [[], [1, 8], [0, 5, 3], [0, 9]])
def test_borders_that_do_not_fit_the_shards_are_refused(borders):
    with pytest.raises(ParallelError, match="does not fit 2 ranks x 4 tokens"):
        build_ring_plan(borders, num_tokens=4, rank=0, size=2)


def test_an_odd_shard_is_refused():
    with pytest.raises(ParallelError, match="even"):
        build_ring_plan([0, 6], num_tokens=3, rank=0, size=2)
