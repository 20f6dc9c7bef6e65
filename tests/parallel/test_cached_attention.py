"""Partial attention and its merge on one process; over ranks see tests/distributed/test_context_parallel.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.parallel.cached_attention import (
    attend_chunk,
    attend_first_chunk,
    attend_token,
    count_shard_tokens,
    merge_packed,
)
from internvl.parallel.kernels import CpuFlash
from internvl.parallel.shards import shard_row

HEAD_DIM = 16
OPTIONS = {"group": None, "scale": HEAD_DIM**-0.5, "kernel": CpuFlash()}


def random_states(num_tokens: int, num_heads: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, num_heads, HEAD_DIM, generator=generator, dtype=torch.float64)


def dense(q, k, v):
    """Softmax over everything up to a query, which are the last tokens of the keys."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * HEAD_DIM**-0.5
    hidden = torch.ones(len(q), len(k)).triu(1 + len(k) - len(q)).bool()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def with_padding(q):
    return torch.cat([q, q.new_full((len(q) % 2, *q.shape[1:]), 3.0)])


@pytest.mark.parametrize("num_earlier", [0, 1, 30])
@pytest.mark.parametrize("length", [1, 2, 13])
def test_a_chunk_sees_everything_up_to_itself(num_earlier, length):
    q, k = random_states(length, 4), random_states(num_earlier + length, 2, seed=1)
    v = random_states(num_earlier + length, 2, seed=2)
    found = attend_chunk(with_padding(q), k, v, length=length, **OPTIONS)
    torch.testing.assert_close(found[:length], dense(q, k, v))


@pytest.mark.parametrize("length", [1, 2, 13])
def test_the_first_chunk_goes_round_the_ring_to_the_same_end(length):
    q, k, v = random_states(length, 4), random_states(length, 2, seed=1), random_states(length, 2, seed=2)
    found = attend_first_chunk(with_padding(q), k, v, length=length, **OPTIONS)
    torch.testing.assert_close(found[:length], dense(q, k, v))


def test_a_token_sees_all_keys():
    q, k, v = random_states(1, 4), random_states(30, 2, seed=1), random_states(30, 2, seed=2)
    torch.testing.assert_close(attend_token(q, k, v, **OPTIONS), dense(q, k, v))


def test_nothing_to_see_is_zero_not_nan():
    nothing = random_states(0, 2)
    assert torch.equal(attend_token(random_states(1, 4), nothing, nothing, **OPTIONS), torch.zeros(1, 4, HEAD_DIM))


def test_merge_equals_one_softmax_and_never_overflows():
    """Scores of a thousand, whose exponentials no float can hold; some ranks see nothing, one query sees nothing."""
    scores, values = 1000 * random_states(3, 12)[..., 0], random_states(12, 1, seed=1)[:, 0]  # (queries, keys)
    scores[1, :8] = -torch.inf
    scores[2] = -torch.inf
    partials = []
    for keys in (slice(0, 4), slice(4, 8), slice(8, 12)):
        lse = scores[:, keys].logsumexp(-1, keepdim=True)
        out = scores[:, keys].softmax(-1).nan_to_num(0.0) @ values[keys]
        partials.append(torch.cat([out, lse], dim=-1).unsqueeze(1))
    expected = scores.softmax(-1).nan_to_num(0.0) @ values
    torch.testing.assert_close(merge_packed(torch.stack(partials))[:, 0], expected)


@given(length=st.integers(0, 40), size=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_real_tokens_of_a_shard_come_first(length, size):
    """So that padding is cut off at the end of what a rank holds."""
    for rank in range(size):
        is_real = shard_row(torch.ones(length), rank=rank, size=size).bool()
        num_real = count_shard_tokens(length, rank=rank, size=size)
        assert is_real[:num_real].all()
        assert not is_real[num_real:].any()
