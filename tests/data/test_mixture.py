import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.mixture import count_documents, order_epoch


def as_tuples(order):
    return list(zip(order.source.tolist(), order.row.tolist(), order.repeat.tolist(), strict=True))


def order(lengths, repeats, *, seed=0, epoch=0, data_order="shuffle"):
    names = [f"set{index}" for index in range(len(lengths))]
    counts = count_documents(lengths, repeats)
    return as_tuples(order_epoch(names, lengths, counts, seed=seed, epoch=epoch, data_order=data_order))


@pytest.mark.parametrize(
    ("length", "repeat", "expected"),
    [(10, 1, 10), (10, 0.3, 3), (10, 2.1, 21), (10, 4.6, 46), (3000, 1.233, 3699), (7, 0.5, 3), (5, 0, 0)],
)
def test_repeat_time_rounds_down_to_whole_documents(length, repeat, expected):
    assert count_documents([length], [repeat]) == [expected]


def test_resampling_deals_the_same_total_by_square_roots():
    assert count_documents([100, 400, 900], [1, 1, 1], use_data_resampling=True) == [233, 467, 700]
    assert count_documents([50, 0], [2, 1], use_data_resampling=True) == [100, 0]
    assert count_documents([0], [1], use_data_resampling=True) == [0]


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 4)), min_size=1, max_size=4), st.integers(0, 3))
def test_every_row_comes_as_often_as_repeat_time_says(sources, epoch):
    lengths, repeats = zip(*sources, strict=True)
    documents = order(lengths, repeats, epoch=epoch)
    assert len(documents) == len(set(documents)) == sum(count_documents(lengths, repeats))
    for index, (length, repeat) in enumerate(sources):
        per_row = np.bincount([row for source, row, _ in documents if source == index], minlength=length)
        total = count_documents([length], [repeat])[0]
        assert all(total // length <= copies <= -(-total // length) for copies in per_row)


def test_an_order_is_reproducible_and_new_in_every_epoch():
    assert order([20, 5], [1, 2.5]) == order([20, 5], [1, 2.5])
    assert order([20, 5], [1, 2.5]) != order([20, 5], [1, 2.5], epoch=1)
    assert order([20, 5], [1, 2.5]) != order([20, 5], [1, 2.5], seed=1)


def test_a_random_share_changes_from_epoch_to_epoch():
    rows = [{row for _, row, _ in order([100], [0.2], epoch=epoch)} for epoch in range(2)]
    assert len(rows[0]) == len(rows[1]) == 20
    assert rows[0] != rows[1]


def test_sequential_order_is_that_of_the_meta_file():
    documents = order([3, 2], [1, 2.5], data_order="sequential")
    assert documents[:3] == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
    assert documents[3:7] == [(1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)]
    assert documents[7][0] == 1
    assert documents[7][2] == 2


def test_shuffling_mixes_sources_and_loses_nothing():
    shuffled, sequential = order([50, 50], [1, 1]), order([50, 50], [1, 1], data_order="sequential")
    assert sorted(shuffled) == sorted(sequential)
    assert len({source for source, _, _ in shuffled[:20]}) == 2


def test_large_mixtures_stay_compact():
    documents = order_epoch(["big"], [1_500_000], [2_000_000], seed=0, epoch=0)
    assert sum(array.nbytes for array in (documents.source, documents.row, documents.repeat)) == 2_000_000 * 12
