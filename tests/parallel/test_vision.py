from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.parallel.grid import GridShape
from internvl.parallel.vision import agree_on_batches, exchange_features, locate_wanted, split_tiles

VISUAL = 9


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9))
def test_tiles_are_dealt_out_in_order_and_evenly(num_tiles, size):
    owners = split_tiles(num_tiles, size)
    assert [tile for tiles in owners for tile in tiles] == list(range(num_tiles))
    assert all(a.stop == b.start for a, b in pairwise(owners))
    sizes = [len(tiles) for tiles in owners]
    assert len(sizes) == size
    assert max(sizes) - min(sizes) <= 1


def test_wanted_tokens_of_the_picture():
    """A and B after two words, C after one: 16 tokens, quarters of 4."""
    ids = torch.tensor([1, 1, *[VISUAL] * 8, 1, *[VISUAL] * 4, 1])
    first, second = locate_wanted(ids == VISUAL, shape=GridShape(2, 2))
    assert first.tolist() == [0, 1, 9, 10, 11]
    assert second.tolist() == [2, 3, 4, 5, 6, 7, 8]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([1, VISUAL]), min_size=1, max_size=50), st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 3)])
)
def test_every_visual_token_is_wanted_once(ids, sizes):
    shape = GridShape(sizes[0], *sizes)
    wanted = locate_wanted(torch.tensor(ids) == VISUAL, shape=shape)
    assert len(wanted) == shape.chunk_num
    assert sorted(torch.cat(wanted).tolist()) == list(range(ids.count(VISUAL)))
    for rank, numbers in enumerate(wanted):
        shard = shape.shard(torch.tensor(ids), group_rank=rank)
        assert len(numbers) == int((shard == VISUAL).sum())
        assert torch.equal(numbers, numbers.sort().values)


def test_a_rank_on_its_own_keeps_its_features():
    features = torch.randn(2, 3, 5, requires_grad=True)
    out = exchange_features(features, owner_ranges=split_tiles(2, 1), wanted=[torch.arange(6)], group=None)
    assert torch.equal(out, features.flatten(0, 1))
    weight = torch.randn(6, 5)
    (out * weight).sum().backward()
    assert torch.equal(features.grad, weight.reshape(2, 3, 5))


def test_counts_that_disagree_are_an_error():
    features = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match="the text has 5 visual tokens but the images give 6 features"):
        exchange_features(features, owner_ranges=split_tiles(2, 1), wanted=[torch.arange(5)], group=None)
    with pytest.raises(ValueError, match=r"owns tiles range\(0, 2\) but has features of 1 tiles"):
        exchange_features(features[:1], owner_ranges=split_tiles(2, 1), wanted=[torch.arange(6)], group=None)


@pytest.mark.parametrize(("num_tiles", "num_batches"), [(0, 1), (1, 1), (4, 1), (5, 2)])
def test_batches_of_a_rank_on_its_own(num_tiles, num_batches):
    assert agree_on_batches(num_tiles, 4) == num_batches
