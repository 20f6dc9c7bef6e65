"""Attention over keys and values that stay where they are: queries travel, partial results come back.

The cache of a long sequence is shared by the ranks of a group and never moves. A chunk of new tokens is dealt out in
zigzag order (`deal.py`), so that all have equal work; then, in every layer:

    cache       rank 0 | 1 | 0 | 1 | ...    of every earlier chunk the tokens that the rank had of it
    queries     all ranks get those of the whole chunk                                       all-gather
    partial     each rank: softmax over ITS keys alone, with the log-sum-exp of every query
                    earlier chunks            every query sees them: one dense block
                    own tokens of this chunk  two runs: causal within a run, dense for the later queries
    merge       each rank: partial results of its own queries, from all ranks                all-to-all

A single new token (decoding) is on all ranks at once: each computes over its keys, and all merge the same results in
the same order. That is one message per layer, of a size that does not depend on the length of the sequence. Merging by
log-sum-exp is online softmax (arXiv 2112.05682) in float32; a rank without a visible key contributes -inf.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from internvl.parallel.comm import get_rank_and_size
from internvl.parallel.kernels import AttentionKernel
from internvl.parallel.ring import merge_partial, ring_attention
from internvl.parallel.shards import deal_padded, shard_row, unshard_row


def count_shard_tokens(length: int, *, rank: int, size: int) -> int:
    """How many of `length` sharded tokens `rank` holds, without the padding after them."""
    return sum(stop - start for start, stop in _list_runs(length, rank=rank, size=size))


def attend_first_chunk(
    q: Float[Tensor, "padded heads head_dim"],
    k: Float[Tensor, "own kv_heads head_dim"],
    v: Float[Tensor, "own kv_heads head_dim"],
    *,
    length: int,
    group: dist.ProcessGroup | None,
    scale: float,
    kernel: AttentionKernel,
) -> Float[Tensor, "padded heads head_dim"]:
    """Causal attention among the tokens of the first chunk of a sequence: ring attention.

    Arguments and result as in `attend_chunk`. Memory stays that of a shard, however long the chunk is.
    """
    num_padding = len(q) - len(k)
    keys, values = (torch.cat([x, x.new_zeros(num_padding, *x.shape[1:])]) for x in (k, v))
    return ring_attention(q, keys, values, cu_seqlens=(0, length), group=group, softmax_scale=scale, kernel=kernel)


def attend_chunk(
    q: Float[Tensor, "padded heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads head_dim"],
    *,
    length: int,
    group: dist.ProcessGroup | None,
    scale: float,
    kernel: AttentionKernel,
) -> Float[Tensor, "padded heads head_dim"]:
    """Attention of a chunk's tokens over everything up to them. Collective over `group`.

    Needs room for the queries of the whole chunk, and for as many outputs three times over in float32.

    Args:
        q: Queries of this rank's share of the chunk, by `shards.shard_row`, padding included: 2 * chunk tokens, the
            same number on every rank.
        k, v: Keys and values that this rank holds: of earlier chunks in any order, then of its share, without padding.
        length: Tokens of the whole chunk, without padding.
        group: The ranks that share the sequence; None: this process alone.

    Returns:
        Outputs of this rank's share, in the dtype of `q`; those of padding mean nothing.
    """
    rank, size = get_rank_and_size(group)
    runs = list(_list_runs(length, rank=rank, size=size))
    num_earlier = len(k) - count_shard_tokens(length, rank=rank, size=size)
    queries = _gather_row(q, group)
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(queries.shape, dtype=wide)
    lse = q.new_full((queries.shape[1], len(queries)), -torch.inf, dtype=wide)

    def see(first: int, last: int, keys: slice, *, is_causal: bool) -> None:
        if first == last or keys.start == keys.stop:
            return
        borders = (0, last - first) if is_causal else None
        rows = slice(first, last)
        result = kernel.forward(queries[rows], k[keys], v[keys], scale=scale, borders=borders)
        merge_partial(out[rows], lse[:, rows], *result)

    see(0, len(queries), slice(0, num_earlier), is_causal=False)
    first_key = num_earlier
    for start, stop in runs:
        keys = slice(first_key, first_key + stop - start)
        see(start, stop, keys, is_causal=True)
        see(stop, len(queries), keys, is_causal=False)
        first_key = keys.stop
    return _return_partials(out, lse, group).to(q.dtype)


def attend_token(
    q: Float[Tensor, "queries heads head_dim"],
    k: Float[Tensor, "keys kv_heads head_dim"],
    v: Float[Tensor, "keys kv_heads head_dim"],
    *,
    group: dist.ProcessGroup | None,
    scale: float,
    kernel: AttentionKernel,
) -> Float[Tensor, "queries heads head_dim"]:
    """Attention of queries that all ranks have over all keys that any rank has. Collective over `group`.

    Args:
        q: Queries, the same on every rank.
        k, v: Keys and values that this rank holds, any number from 0.
        group: The ranks that share the sequence; None: this process alone.

    Returns:
        Outputs, the same on every rank, in the dtype of `q`. 0 when no rank holds a key.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=wide)
    lse = q.new_full((q.shape[1], len(q)), -torch.inf, dtype=wide)
    if len(k):
        merge_partial(out, lse, *kernel.forward(q, k, v, scale=scale, borders=None))
    own = _pack(out, lse)
    partials = [own]
    if group is not None:
        partials = [torch.empty_like(own) for _ in range(group.size())]
        dist.all_gather(partials, own, group=group)
    return merge_packed(torch.stack(partials)).to(q.dtype)


def merge_packed(
    partials: Float[Tensor, "ranks queries heads head_dim_and_lse"],
) -> Float[Tensor, "queries heads head_dim"]:
    """Merge partial results: sum(e^lse out) / sum(e^lse), written so that no exponential can overflow.

    The last entry of the last dimension is the log-sum-exp: -inf where no key was seen, with a finite output.
    """
    out, lse = partials[..., :-1], partials[..., -1:]
    weights = lse.softmax(dim=0).nan_to_num(0.0)  # all -inf: no rank saw a key
    return (weights * out).sum(dim=0)


def _list_runs(length: int, *, rank: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of a chunk that `rank` holds, without padding; they may be empty."""
    for run in deal_padded(length, size=size)[rank]:
        yield min(run.start, length), min(run.stop, length)


def _gather_row(shard: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The whole row, padding included, from the shards of all ranks."""
    if group is None:
        return shard
    parts = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, shard.contiguous(), group=group)
    return unshard_row(parts)


def _return_partials(out: Tensor, lse: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """What all ranks computed for this rank's queries, merged: (2 * chunk, heads, head_dim)."""
    if group is None:
        return out
    packed = _pack(out, lse)
    size = group.size()
    sent = torch.stack([shard_row(packed, rank=rank, size=size) for rank in range(size)])
    del packed
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return merge_packed(received)


def _pack(out: Tensor, lse: Tensor) -> Tensor:
    """(queries, heads, head_dim) and (heads, queries) -> (queries, heads, head_dim + 1)."""
    return torch.cat([out, lse.T.unsqueeze(-1)], dim=-1)
