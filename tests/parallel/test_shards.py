import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.parallel.deal import deal_row
from internvl.parallel.shards import shard_row, unshard_row

SIZES = st.integers(1, 9)
DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.bool]


@settings(max_examples=60)
@given(
    size=SIZES,
    length=st.integers(0, 90),
    shape=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    dim=st.integers(-3, 2),
    dtype=st.sampled_from(DTYPES),
    cuts=st.lists(st.integers(0, 90), max_size=4),
)
def test_unsharding_the_shards_gives_the_row(size, length, shape, dim, dtype, cuts):
    dim = max(-1 - len(shape), min(dim, len(shape)))
    full = list(shape)
    full.insert(dim % (len(shape) + 1), length)
    row = torch.randint(0, 2 if dtype == torch.bool else 100, full).to(dtype)
    borders = [0, *sorted(min(cut, length) for cut in cuts), length]
    parts = [shard_row(row, rank=rank, size=size, dim=dim, borders=borders) for rank in range(size)]
    assert len({part.shape for part in parts}) == 1
    assert parts[0].shape[dim] % 2 == 0
    assert parts[0].shape[dim] * size - length < 2 * size
    assert torch.equal(unshard_row(parts, dim=dim, length=length, borders=borders), row)
    assert (
        not unshard_row(parts, dim=dim, borders=borders).narrow(dim, length, parts[0].shape[dim] * size - length).any()
    )


def test_shards_are_the_runs_of_the_deal():
    row = torch.arange(11)
    deal = deal_row((0, 6, 8, 11), num_tokens=6, size=2)
    for rank, runs in enumerate(deal):
        expected = [place if place < 11 else -7 for run in runs for place in range(run.start, run.stop)]
        assert shard_row(row, rank=rank, size=2, pad_value=-7, borders=[0, 6, 8, 11]).tolist() == expected


def test_ranks_hold_chunks_of_one_document_from_both_ends():
    row = torch.arange(12)
    shards = [shard_row(row, rank=rank, size=3).tolist() for rank in range(3)]
    assert shards == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]


def test_one_rank_holds_the_row_padded_to_an_even_length():
    assert shard_row(torch.arange(5), rank=0, size=1).tolist() == [0, 1, 2, 3, 4, 0]
    assert shard_row(torch.arange(6), rank=0, size=1).tolist() == [0, 1, 2, 3, 4, 5]


def test_labels_are_padded_with_what_is_asked_for():
    labels = torch.tensor([[4, 5, 6]])
    parts = [shard_row(labels, rank=rank, size=2, dim=1, pad_value=-100) for rank in range(2)]
    assert unshard_row(parts, dim=1).tolist() == [[4, 5, 6, -100]]


def test_gradients_go_back_to_their_tokens():
    row = torch.arange(7.0, requires_grad=True)
    weights = torch.arange(1.0, 8.0)
    parts = [shard_row(row, rank=rank, size=2) for rank in range(2)]
    (unshard_row(parts, length=7) * weights).sum().backward()
    assert torch.equal(row.grad, weights)


def test_wrong_shards_are_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        shard_row(torch.arange(4), rank=2, size=2)
    with pytest.raises(ValueError, match=r"\[3, 4\] tokens"):
        unshard_row([torch.arange(3), torch.arange(4)])
    with pytest.raises(ValueError, match="length 9"):
        unshard_row([torch.arange(4), torch.arange(4)], length=9)
