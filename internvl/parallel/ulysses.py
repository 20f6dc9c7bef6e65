"""Ulysses: tokens are sharded outside attention, heads inside it (Jacobs et al., 2023, arXiv:2309.14509).

    before               all-to-all              attention                 all-to-all     after
    rank 0: tokens 0-3, heads a b     ->     rank 0: tokens 0-7, head a        ->     rank 0: tokens 0-3, heads a b
    rank 1: tokens 4-7, heads a b     ->     rank 1: tokens 0-7, head b        ->     rank 1: tokens 4-7, heads a b

Every rank then sees whole documents, for its own heads, and uses the ordinary local kernel. In the hybrid a rank sees
the shard that its ring gives it, and ring attention does the rest (Fang and Zhao, 2024, arXiv:2405.07719).

Queries, keys and values travel in one message, the output in another; gradients likewise, the other way round.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from internvl.errors import ParallelError
from internvl.parallel.grid import Grid
from internvl.parallel.kernels import AttentionKernel
from internvl.parallel.ring import ring_attention


def ulysses_attention(
    q: Float[Tensor, "tokens heads head_dim"],
    k: Float[Tensor, "tokens kv_heads head_dim"],
    v: Float[Tensor, "tokens kv_heads head_dim"],
    *,
    cu_seqlens: Tensor | Sequence[int],
    group: dist.ProcessGroup | None,
    softmax_scale: float | None = None,
    kernel: str | AttentionKernel | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Causal attention over a packed row whose equal contiguous pieces are held by the ranks of `group`.

    Collective over `group`, forward and backward.

    Args:
        q: Queries of this rank's tokens. `heads` is a multiple of the group's size and of `kv_heads`.
        k: Keys, in q's dtype.
        v: Values, in q's dtype.
        cu_seqlens: (documents + 1,) borders of the documents in the WHOLE row. Tokens behind the last border are
            padding. Best on the CPU, see `ring_attention`.
        group: The ranks that share the row, in row order; None: this rank holds all of it.
        softmax_scale: Factor of the scores; None: head_dim ** -0.5.
        kernel: As of `ring_attention`.

    Returns:
        Outputs of this rank's tokens, zero at padding.

    Raises:
        ParallelError: The group's size does not divide the query heads, or `cu_seqlens` does not fit the shards.
    """
    return _attend_over_heads(q, k, v, group, None, cu_seqlens=cu_seqlens, softmax_scale=softmax_scale, kernel=kernel)


def hybrid_attention(
    q: Float[Tensor, "tokens heads head_dim"],
    k: Float[Tensor, "tokens kv_heads head_dim"],
    v: Float[Tensor, "tokens kv_heads head_dim"],
    *,
    cu_seqlens: Tensor | Sequence[int],
    grid: Grid,
    softmax_scale: float | None = None,
    kernel: str | AttentionKernel | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Causal attention over a row sharded by `grid.shard`: all-to-all among neighbours, a ring over the rest.

    With `ulysses_degree` 1 this is ring attention, with `ulysses_degree == chunk_num` it is `ulysses_attention`;
    arguments, result and errors as there. Collective over the grid's group.
    """
    return _attend_over_heads(
        q,
        k,
        v,
        grid.ulysses_group,
        grid.ring_group if grid.ring_size > 1 else None,
        cu_seqlens=cu_seqlens,
        softmax_scale=softmax_scale,
        kernel=kernel,
    )


def kv_repeats(num_kv_heads: int, ulysses_degree: int) -> int:
    """How often every key/value head is repeated, so that each rank gets the same number of whole heads.

    The least such number: the heads become lcm(num_kv_heads, ulysses_degree). 8 heads among 4 ranks: 1; 2 heads
    among 4 ranks: 2; 2 heads among 3 ranks: 3.
    """
    return ulysses_degree // math.gcd(ulysses_degree, num_kv_heads)


def _attend_over_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ulysses_group: dist.ProcessGroup | None,
    ring_group: dist.ProcessGroup | None,
    **attention: Any,
) -> Tensor:
    if ulysses_group is None or ulysses_group.size() == 1:
        return ring_attention(q, k, v, group=ring_group, **attention)
    size = ulysses_group.size()
    if q.shape[1] % size:
        raise ParallelError(
            f"--ulysses_degree {size} does not divide the {q.shape[1]} attention heads; use a divisor, "
            "or let the ring take more of --chunk_num"
        )
    repeats = kv_repeats(k.shape[1], size)
    if repeats > 1:  # autograd adds the gradients of the copies up
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    heads = [x.shape[1] // size for x in (q, k, v)]
    by_rank = torch.cat([x.unflatten(1, (size, -1)).transpose(0, 1) for x in (q, k, v)], dim=2)
    whole = _AllToAll.apply(by_rank, ulysses_group).flatten(0, 1)
    out = ring_attention(*whole.split(heads, dim=1), group=ring_group, **attention)
    by_head = _AllToAll.apply(out.unflatten(0, (size, -1)), ulysses_group)
    return by_head.transpose(0, 1).flatten(1, 2)


class _AllToAll(torch.autograd.Function):
    """x[i] goes to rank i, result[i] comes from rank i; gradients go the same ways back, by the same exchange."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):
        return _exchange(grad, ctx.group), None


def _exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = x.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received
