"""Ulysses attention: tokens are sharded outside attention, heads inside it (Jacobs et al., 2023, arXiv:2309.14509).

    before               all-to-all              attention                 all-to-all     after
    rank 0: tokens 0-3, heads a b     ->     rank 0: tokens 0-7, head a        ->     rank 0: tokens 0-3, heads a b
    rank 1: tokens 4-7, heads a b     ->     rank 1: tokens 0-7, head b        ->     rank 1: tokens 4-7, heads a b

Every rank then sees whole documents, for its own heads, and uses the ordinary local kernel. In the hybrid form a rank
sees the shard of its ring, and ring attention does the rest (Fang and Zhao, 2024, arXiv:2405.07719).

Queries, keys and values travel in one message, the output in another; their gradients take the same ways back.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from internvl.errors import ParallelError
from internvl.parallel.comm import AutogradContext
from internvl.parallel.grid import Grid
from internvl.parallel.kernels import AttentionKernel
from internvl.parallel.ring import ring_attention


def ulysses_attention(
    q: Float[Tensor, "tokens heads head_dim"],
    k: Float[Tensor, "tokens kv_heads head_dim"],
    v: Float[Tensor, "tokens kv_heads head_dim"],
    *,
    cu_seqlens: Int[Tensor, " borders"] | Sequence[int],
    group: dist.ProcessGroup | None,
    softmax_scale: float | None = None,
    kernel: str | AttentionKernel | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Causal attention over a packed row whose equal contiguous pieces are held by the ranks of `group`.

    Collective over `group`, forward and backward.

    Args:
        q: Queries of this rank's tokens. `heads` is a multiple of the group's size and of `kv_heads`.
        k, v: Keys and values, in q's dtype.
        cu_seqlens: Borders of the documents of the WHOLE row. Tokens after the last border are padding. Best on the
            CPU, see `ring_attention`.
        group: The ranks that share the row, in row order; None: this rank holds all of it.
        softmax_scale: Factor of the scores; None: head_dim ** -0.5.
        kernel: As in `ring_attention`.

    Returns:
        Outputs of this rank's tokens, zero at padding.

    Raises:
        ParallelError: The group's size does not divide the query heads, or `cu_seqlens` does not fit the shards.
    """
    attend = partial(ring_attention, cu_seqlens=cu_seqlens, group=None, softmax_scale=softmax_scale, kernel=kernel)
    return _attend_over_heads(q, k, v, group, attend)


def hybrid_attention(
    q: Float[Tensor, "tokens heads head_dim"],
    k: Float[Tensor, "tokens kv_heads head_dim"],
    v: Float[Tensor, "tokens kv_heads head_dim"],
    *,
    cu_seqlens: Int[Tensor, " borders"] | Sequence[int],
    grid: Grid,
    softmax_scale: float | None = None,
    kernel: str | AttentionKernel | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Causal attention over a row sharded by `grid.shard`: all-to-all among neighbours, a ring over the rest.

    With `ulysses_degree` 1 this is ring attention, with `ulysses_degree == chunk_num` it is `ulysses_attention`;
    arguments, result and errors as there. Collective over the grid's group.
    """
    group = grid.ring_group if grid.shape.ring_size > 1 else None
    attend = partial(ring_attention, cu_seqlens=cu_seqlens, group=group, softmax_scale=softmax_scale, kernel=kernel)
    return _attend_over_heads(q, k, v, grid.ulysses_group, attend)


def kv_repeats(num_kv_heads: int, ulysses_degree: int) -> int:
    """How often every key/value head is repeated, so that each rank gets the same number of whole heads.

    The least such number: the heads become lcm(num_kv_heads, ulysses_degree). 8 heads among 4 ranks: 1; 2 heads
    among 4 ranks: 2; 2 heads among 3 ranks: 3.
    """
    return ulysses_degree // math.gcd(ulysses_degree, num_kv_heads)


def _attend_over_heads(
    q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup | None, attend: Callable[..., Tensor]
) -> Tensor:
    if group is None or group.size() == 1:
        return attend(q, k, v)
    size = group.size()
    if q.shape[1] % size:
        raise ParallelError(
            f"--ulysses_degree {size} does not divide the {q.shape[1]} attention heads; use a divisor, "
            "or let the ring take more of --chunk_num"
        )
    copies = kv_repeats(k.shape[1], size)
    if copies > 1:  # autograd adds up the gradients of the copies
        k, v = (repeat(x, "tokens heads head_dim -> tokens (heads copies) head_dim", copies=copies) for x in (k, v))
    heads = [x.shape[1] // size for x in (q, k, v)]
    split = "tokens (ranks heads) head_dim -> ranks tokens heads head_dim"
    by_rank = torch.cat([rearrange(x, split, ranks=size) for x in (q, k, v)], dim=2)
    received = _AllToAll.apply(by_rank, group)
    whole = rearrange(received, "ranks tokens heads head_dim -> (ranks tokens) heads head_dim")
    out = attend(*whole.split(heads, dim=1))
    by_rank = rearrange(out, "(ranks tokens) heads head_dim -> ranks tokens heads head_dim", ranks=size)
    received = _AllToAll.apply(by_rank, group)
    return rearrange(received, "ranks tokens heads head_dim -> tokens (ranks heads) head_dim")


class _AllToAll(torch.autograd.Function):
    """x[i] goes to rank i, result[i] comes from rank i; gradients go back by the same exchange."""

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


def _exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = x.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received
