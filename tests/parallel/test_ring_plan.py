"""The plan of a ring: every pair of tokens is computed once, and both sides of a message agree on it."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.errors import ParallelError
from internvl.parallel.ring_plan import RingPlan, build_ring_plan
from internvl.parallel.zigzag import build_local_indices, count_chunk_tokens

LENGTHS = st.lists(st.sampled_from([0, 1, 1, 2, 3, 4, 7, 16]), max_size=10)
ROWS = st.tuples(LENGTHS, st.integers(1, 8), st.integers(0, 20))


def build_plans(lengths: list[int], size: int, padding: int) -> tuple[list[RingPlan], list[list[int]]]:
    """The plan of every rank, and the place in the row of every token that it holds."""
    borders = [0, *accumulate(lengths)]
    num_tokens = 2 * count_chunk_tokens(borders[-1] + padding, size)
    plans = [build_ring_plan(borders, num_tokens=num_tokens, rank=rank, size=size) for rank in range(size)]
    return plans, [build_local_indices(num_tokens * size, rank=r, size=size).tolist() for r in range(size)]


@settings(max_examples=150)
@given(ROWS)
def test_every_visible_pair_of_tokens_is_computed_exactly_once(row):
    lengths, size, padding = row
    plans, places = build_plans(lengths, size, padding)
    computed = []
    for plan, own in zip(plans, places, strict=True):
        for a, b in pairwise(plan.documents):
            computed += [(own[i], own[j]) for i in range(a, b) for j in range(a, i + 1)]
        for step in filter(lambda step: step.block, plan.steps):
            queries, keys = own[step.block.queries.rows], places[step.source][step.block.keys.rows]
            assert queries
            assert keys
            computed += [(i, j) for i in queries for j in keys]
    visible = {(i, j) for a, b in pairwise([0, *accumulate(lengths)]) for i in range(a, b) for j in range(a, i + 1)}
    assert set(computed) == visible
    assert len(computed) == len(visible)


@settings(max_examples=100)
@given(ROWS)
def test_every_row_that_is_fetched_is_sent(row):
    plans, _ = build_plans(*row)
    for plan in plans:
        for number, step in enumerate(plan.steps):
            receiver = plans[step.target].steps[number]
            assert receiver.source == plan.rank
            assert step.lent == (receiver.block.keys if receiver.block else None)
    sent = sum(sum(plan.count_sent_rows()) for plan in plans)
    assert sent == sum(sum(plan.count_received_rows()) for plan in plans)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_one_document_costs_every_rank_the_same(size):
    """Two chunks of 10 tokens: in every step 2 x 1 chunks of pairs."""
    plans, _ = build_plans([20 * size], size, 0)
    for plan in plans:
        assert plan.documents == (0, 20)
        assert [len(step.block.queries) * len(step.block.keys) for step in plan.steps] == [200] * (size - 1)
    # Half of the keys go to later ranks, all to earlier ones: three quarters of all, over the group.
    assert sum(sum(plan.count_sent_rows()) for plan in plans) == 0.75 * 20 * size * (size - 1)


def test_documents_that_end_on_chunk_borders_send_nothing():
    plans, _ = build_plans([5] * 8, 4, 0)
    assert [plan.count_sent_rows() for plan in plans] == [(0, 0, 0)] * 4
    assert {plan.documents for plan in plans} == {(0, 5, 10)}


def test_short_documents_send_only_what_runs_over_a_border():
    plans, _ = build_plans([7, 6, 7], 2, 0)  # chunks of 5: documents run over 5 (from 0), 10 (from 7) and 15 (from 13)
    assert [plan.count_sent_rows() for plan in plans] == [(5,), (2,)]


def test_padding_belongs_to_no_document():
    plans, _ = build_plans([3, 2], 2, 15)  # chunks of 5
    assert [plan.documents for plan in plans] == [(0, 3, 5), (0,)]
    assert [plan.count_sent_rows() for plan in plans] == [(0,), (0,)]


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
