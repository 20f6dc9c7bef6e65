"""The output layer's work is shared evenly; over ranks see tests/distributed/test_row_sharing.py."""

from itertools import accumulate

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.parallel import predictions
from internvl.parallel.grid import GridShape
from internvl.parallel.predictions import count_share, send_predictions, take_share
from internvl.parallel.vision import locate_wanted


class Ranks:
    """Ranks that exchange rows, one after the other: a first round notes what each sends, a second one delivers it."""

    def __init__(self, size: int) -> None:
        self.posts: list[list[torch.Tensor]] = [[] for _ in range(size)]

    def exchange(self, x, order, *, sent, received, group):
        rank = group.rank()
        self.posts[rank] = list(x[order].split(sent))
        arrived = [post[rank] for post in self.posts if post]
        if len(arrived) == len(self.posts):
            assert [len(rows) for rows in arrived] == list(received)
            return torch.cat(arrived)
        return x.new_zeros(sum(received), x.shape[1])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(1, 5),
)
def test_every_rank_gets_as_many_predictions_in_row_order(flags, lengths, size):
    length = len(flags)
    borders = [0, *(min(border, length) for border in accumulate(lengths)), length]
    predicts, shape = torch.tensor(flags), GridShape(size, size)
    row = torch.arange(1.0, length + 1).unsqueeze(1)
    held = locate_wanted(predicts, shape=shape, borders=borders)
    ranks = Ranks(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "exchange_rows", ranks.exchange)
        for _ in range(2):
            found = []
            for rank in range(size):
                states = shape.shard(row, group_rank=rank, borders=borders)
                own = shape.shard(predicts, group_rank=rank, borders=borders).nonzero().squeeze(1)
                group = dist.ProcessGroup(rank, size)
                found.append(send_predictions(states, own, held=held, group=group))
    for rank, share in enumerate(found):
        assert torch.equal(share[:, 0], take_share(row[:, 0], predicts, rank=rank, size=size, pad_value=0))
        assert len(share) == count_share(sum(flags), size)
    assert torch.equal(torch.cat(found)[torch.cat(found) > 0], row[predicts][:, 0])


def test_a_row_without_predictions_leaves_a_padding_token_each():
    nothing = torch.zeros(5, dtype=torch.bool)
    assert take_share(torch.arange(5), nothing, rank=1, size=2, pad_value=-100).tolist() == [-100]


def test_gradients_come_back_to_the_tokens_that_predict():
    states = torch.randn(6, 3, requires_grad=True)
    own = torch.tensor([1, 4])
    share = send_predictions(states, own, held=[torch.arange(2)], group=None)
    share.square().sum().backward()
    expected = torch.zeros(6, 3)
    expected[own] = 2 * states.detach()[own]
    assert torch.equal(states.grad, expected)
