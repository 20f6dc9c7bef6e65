"""The deal of a row: equal tokens, equal attention, few runs; zigzag for one document."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.parallel.deal import TOLERANCE, Documents, Runs, Span, deal_row

LENGTHS = st.one_of(
    st.lists(st.sampled_from([0, 1, 1, 2, 3, 7, 16, 100, 1000]), min_size=1, max_size=40),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    st.tuples(st.integers(1, 40), st.integers(1, 20000)).map(lambda x: [1] * x[0] + [x[1]]),
)


def deal(lengths: list[int], size: int) -> tuple[tuple[Runs, ...], int]:
    """What every rank holds of the row, padded as it is for `size` ranks, and the tokens of each."""
    num_tokens = 2 * -(-sum(lengths) // (2 * size))
    return deal_row((0, *accumulate(lengths)), num_tokens=num_tokens, size=size), num_tokens


def count_work(lengths: list[int], size: int) -> list[int]:
    shares, num_tokens = deal(lengths, size)
    documents = Documents((0, *accumulate(lengths)), size * num_tokens)
    return [sum(documents.count_pairs(run) for run in runs) for runs in shares]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 17))
def test_every_token_is_held_once_and_every_rank_holds_as_many(lengths, size):
    shares, num_tokens = deal(lengths, size)
    assert len(shares) == size
    tokens = [[place for run in runs for place in range(run.start, run.stop)] for runs in shares]
    assert {len(own) for own in tokens} == {num_tokens}
    assert all(own == sorted(own) for own in tokens)
    assert sorted(place for own in tokens for place in own) == list(range(size * num_tokens))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 17))
def test_ranks_hold_as_few_runs_as_zigzag_chunks(lengths, size):
    shares, _ = deal(lengths, size)
    assert sum(map(len, shares)) <= 2 * size - 1
    assert list(shares) == sorted(shares)
    assert all(a.stop < b.start for runs in shares for a, b in pairwise(runs))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 17))
def test_every_rank_has_as_much_attention(lengths, size):
    """Each of log2(size) cuts is unfair by the tolerance at most, or where tokens are coarse by one token's keys."""
    work = count_work(lengths, size)
    cuts = size.bit_length()
    one_token = 2 * max(*lengths, 2 * size) * cuts
    assert max(work) <= sum(work) / size * (1 + TOLERANCE) ** cuts + one_token


@pytest.mark.parametrize("size", [2, 3, 4, 8, 16])
@pytest.mark.parametrize(
    "lengths",
    [
        [1] * 200 + [60000],
        [60000] + [1] * 200,
        [2**power for power in range(17)],
        [2**power for power in reversed(range(17))],
        [30000, 70000],
        [70000, 30000, 1000],
        [9000] * 14,
        list(range(10, 500)),
    ],
)
def test_adversarial_rows_are_balanced(lengths, size):
    work = count_work(lengths, size)
    assert max(work) * size <= 1.1 * sum(work)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 31, 64])
@pytest.mark.parametrize("chunk", [1, 2, 3, 64, 1001])
def test_one_document_is_held_in_zigzag_order(size, chunk):
    shares = deal_row((0, 2 * size * chunk), num_tokens=2 * chunk, size=size)
    for rank, runs in enumerate(shares):
        tokens = [place for run in runs for place in range(run.start, run.stop)]
        last = 2 * size - 1 - rank
        expected = [*range(rank * chunk, (rank + 1) * chunk), *range(last * chunk, (last + 1) * chunk)]
        assert tokens == expected


@pytest.mark.parametrize("size", [2, 3, 8])
def test_padding_counts_as_the_last_document(size):
    """So a padded row of one document is zigzag too, and its real tokens come first on every rank."""
    assert deal([20 * size - 3], size) == deal([20 * size], size)


def test_the_row_of_the_picture():
    assert deal_row((0, 6, 8, 12), num_tokens=6, size=2) == ((Span(0, 4), Span(10, 12)), (Span(4, 10),))


def test_borders_that_divide_work_and_tokens_send_nothing():
    assert deal_row((0, 50, 100, 150, 200), num_tokens=50, size=4) == tuple(
        (Span(start, start + 50),) for start in (0, 50, 100, 150)
    )


def test_a_row_without_tokens():
    assert deal_row((0,), num_tokens=0, size=3) == ((), (), ())
