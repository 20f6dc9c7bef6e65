"""Ring attention: exact causal attention over packed rows that are shared by the ranks of a group.

Every rank holds queries, keys and values of its two chunks of the row (`zigzag.py`). At distance t, rank r computes
with keys and values of rank r - t while those of rank r - t - 1 are on their way to it, and lends its own to rank
r + t + 1. Which rows travel follows from the documents (`ring_plan.py`): a row that no other rank needs stays.

    P = 4, keys and values that rank 0 works with      distance 0  1  2  3
                                       of rank         0  3  2  1

Partial outputs are merged by their log-sum-exp (online softmax; Ring Attention, arXiv 2310.01889). The backward pass
visits the same blocks again. A block's dk and dv go straight back to the rank that owns its rows, while the next block
is computed, and are summed there in float32. Besides its own tokens a rank holds the current block, the next one, and
the gradients under way, however many ranks there are.

Unlike blocks passed from neighbour to neighbour, each row is sent only to ranks that read it (of one long document:
three quarters of all rows), and gradients are not rounded or summed on the way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from internvl.errors import ConfigError, MissingDependencyError

from .comm import AutogradContext, Exchange, Message, Messenger, get_rank_and_size
from .kernels import AttentionKernel, check_flash_dtype, select_kernel
from .recompute import compute_or_recall
from .ring_plan import RingPlan, RingStep, build_ring_plan, list_borders

LIBRARY = "ring_flash_attn"


def ring_attention(
    q: Float[Tensor, "tokens heads head_dim"],
    k: Float[Tensor, "tokens kv_heads head_dim"],
    v: Float[Tensor, "tokens kv_heads head_dim"],
    *,
    cu_seqlens: Int[Tensor, " borders"] | Sequence[int],
    group: dist.ProcessGroup | None,
    softmax_scale: float | None = None,
    kernel: str | AttentionKernel | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Causal attention inside every document of a row that the ranks of `group` share. All of them must call it.

    Args:
        q: This rank's shard by `zigzag.shard_row`: as many tokens on every rank, an even number (any number where one
            rank holds the row).
        k, v: Keys and values of the same tokens in the same dtype; heads is a multiple of kv_heads.
        cu_seqlens: Borders of the documents of the WHOLE row, one more than documents, the same on all ranks. Tokens
            after the last border are padding. Best on the CPU: a tensor on a GPU makes every call wait for it.
        group: The ranks that share the row; None means that this process holds all of it.
        softmax_scale: Factor of the scores; None means head_dim ** -0.5.
        kernel: A name of `kernels.KERNELS`, a kernel, or `ring_flash_attn` for that library's zigzag ring (rows of one
            document only). None takes torch's flash kernel for the device.

    Returns:
        In the dtype of `q`; 0 for padding, which gets no gradient either.

    Raises:
        ParallelError: `cu_seqlens` does not fit the shards.
        ConfigError: The kernel does not take these tensors.
        MissingDependencyError: The kernel cannot be imported.
    """
    _check_shapes(q, k, v)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    rank, size = get_rank_and_size(group)
    borders = list_borders(cu_seqlens)
    plan = build_ring_plan(borders, num_tokens=len(q), rank=rank, size=size)
    if kernel == LIBRARY:
        return _call_library(q, k, v, borders=borders, group=group, scale=scale, num_real=plan.documents[-1])
    if kernel is None or isinstance(kernel, str):
        kernel = select_kernel(kernel, q.device, q.dtype)
    return _RingAttention.apply(q, k, v, RingWork(plan, scale, kernel), group)


@dataclass(frozen=True)
class RingWork:
    """What one rank computes in one call, forward and backward."""

    plan: RingPlan  # its blocks and messages
    scale: float  # factor of the scores
    kernel: AttentionKernel  # what computes a block


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext, q: Tensor, k: Tensor, v: Tensor, work: RingWork, group: dist.ProcessGroup | None
    ) -> Tensor:
        k, v = k.contiguous(), v.contiguous()
        out, lse = compute_or_recall(partial(run_forward, q, k, v, work, Messenger(group)))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.work, ctx.group = work, group
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grads = run_backward(grad_out, q, k, v, out, lse, ctx.work, Messenger(ctx.group))
        return *grads, None, None


def run_forward(
    q: Float[Tensor, "tokens heads head_dim"],
    k: Float[Tensor, "tokens kv_heads head_dim"],
    v: Float[Tensor, "tokens kv_heads head_dim"],
    work: RingWork,
    messenger: Messenger,
) -> tuple[Float[Tensor, "tokens heads head_dim"], Float[Tensor, "heads tokens"]]:
    """The forward pass of one rank, without autograd (see `ring_attention`; k and v must be contiguous).

    Returns:
        The output in the dtype of q, 0 for padding; the log-sum-exp in float32 (float64 for float64), -inf for padding.
    """
    plan, scale, kernel = work.plan, work.scale, work.kernel
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=wide)
    lse = q.new_full((q.shape[1], len(q)), -torch.inf, dtype=wide)
    real = slice(plan.documents[-1])
    for step, k_block, v_block in _visit_blocks(k, v, plan, messenger):
        if step is None and real.stop:
            tensors = (q[real], k_block[real], v_block[real])
            out[real], lse[:, real] = kernel.forward(*tensors, scale=scale, borders=plan.documents)
        elif step is not None and step.block is not None:
            rows = step.block.queries.rows
            of_block = kernel.forward(q[rows], k_block, v_block, scale=scale, borders=None)
            merge_partial(out[rows], lse[:, rows], *of_block)
    return out.to(q.dtype), lse


def run_backward(
    grad_out: Float[Tensor, "tokens heads head_dim"],
    q: Float[Tensor, "tokens heads head_dim"],
    k: Float[Tensor, "tokens kv_heads head_dim"],
    v: Float[Tensor, "tokens kv_heads head_dim"],
    out: Float[Tensor, "tokens heads head_dim"],
    lse: Float[Tensor, "heads tokens"],
    work: RingWork,
    messenger: Messenger,
) -> tuple[
    Float[Tensor, "tokens heads head_dim"],
    Float[Tensor, "tokens kv_heads head_dim"],
    Float[Tensor, "tokens kv_heads head_dim"],
]:
    """The backward pass of one rank; `out` and `lse` are what `run_forward` returned.

    Returns:
        dq, dk, dv in the dtypes of q, k and v, summed in float32 (float64 for float64); 0 for padding.
    """
    plan, scale, kernel = work.plan, work.scale, work.kernel
    wide = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_out = grad_out.contiguous()
    real = slice(plan.documents[-1])
    returning: _Returning | None = None
    for step, k_block, v_block in _visit_blocks(k, v, plan, messenger):
        if step is None:
            if real.stop:
                tensors = (grad_out[real], q[real], k_block[real], v_block[real], out[real], lse[:, real])
                dq[real], dk[real], dv[real] = kernel.backward(*tensors, scale=scale, borders=plan.documents)
            continue
        block_grads: list[Tensor] = []
        if step.block is not None:
            rows = step.block.queries.rows
            tensors = (grad_out[rows], q[rows], k_block, v_block, out[rows], lse[:, rows])
            block_dq, *block_grads = kernel.backward(*tensors, scale=scale, borders=None)
            dq[rows] += block_dq
        if returning:
            returning.add_to(dk, dv)
        returning = _return_gradients(step, block_grads, k, messenger)
    if returning:
        returning.add_to(dk, dv)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def merge_partial(
    out: Float[Tensor, "queries heads head_dim"],
    lse: Float[Tensor, "heads queries"],
    block_out: Float[Tensor, "queries heads head_dim"],
    block_lse: Float[Tensor, "heads queries"],
) -> None:
    """Merge attention over further keys into `out` and `lse`, in place. Both are float32 or wider.

    out = (e^lse out + e^block_lse block_out) / (e^lse + e^block_lse), written so that no exponential can overflow:
    the weight of the block is sigmoid(block_lse - lse). A log-sum-exp of -inf means "no key seen".
    """
    weight = torch.sigmoid(block_lse - lse).nan_to_num_(0.0)  # -inf minus -inf: neither saw a key
    out.lerp_(block_out.to(out.dtype), rearrange(weight, "heads queries -> queries heads 1"))
    lse.copy_(torch.logaddexp(lse, block_lse))


def _visit_blocks(
    k: Tensor, v: Tensor, plan: RingPlan, messenger: Messenger
) -> Iterator[tuple[RingStep | None, Tensor, Tensor]]:
    """This rank's keys and values first (step None), then a block per step, while the next one is on its way."""
    step, block_k, block_v = None, k, v
    for following in plan.steps:
        num_keys = len(following.block.keys) if following.block else 0
        next_k, next_v = (x.new_empty(num_keys, *x.shape[1:]) for x in (k, v))
        lent = following.lent.rows if following.lent else slice(0)
        exchange = messenger.post(
            sends=[Message(following.target, k[lent]), Message(following.target, v[lent])],
            receives=[Message(following.source, next_k), Message(following.source, next_v)],
        )
        yield step, block_k, block_v
        exchange.wait()
        step, block_k, block_v = following, next_k, next_v
    yield step, block_k, block_v


@dataclass(frozen=True)
class _Returning:
    """Gradients of lent rows on their way back to their owner."""

    exchange: Exchange
    rows: slice
    dk: Tensor
    dv: Tensor

    def add_to(self, dk: Tensor, dv: Tensor) -> None:
        self.exchange.wait()
        dk[self.rows] += self.dk
        dv[self.rows] += self.dv


def _return_gradients(step: RingStep, block_grads: Sequence[Tensor], k: Tensor, messenger: Messenger) -> _Returning:
    """Send a block's gradients to the owner of its rows; expect those of the rows that were lent in the same step."""
    rows = step.lent.rows if step.lent else slice(0)
    dk, dv = torch.empty_like(k[rows]), torch.empty_like(k[rows])
    exchange = messenger.post(
        sends=[Message(step.source, grad.contiguous()) for grad in block_grads],
        receives=[Message(step.target, dk), Message(step.target, dv)],
    )
    return _Returning(exchange, rows, dk, dv)


def _call_library(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    borders: Sequence[int],
    group: dist.ProcessGroup | None,
    scale: float,
    num_real: int,
) -> Tensor:
    """The zigzag ring of ring-flash-attn: the row is one document; the outputs of padding are set to 0."""
    if len(set(borders)) != 2 or group is None:
        raise ConfigError(
            f"attention kernel {LIBRARY} takes rows of one document that several ranks share, got "
            f"{len(set(borders)) - 1} documents and {'no' if group is None else 'a'} group; leave the kernel out"
        )
    check_flash_dtype(LIBRARY, q.dtype)
    function = import_library().zigzag_ring_flash_attn_func
    out = function(q[None], k[None], v[None], softmax_scale=scale, causal=True, group=group)[0]
    return torch.nn.functional.pad(out[:num_real], (0, 0, 0, 0, 0, len(q) - num_real))


def import_library() -> ModuleType:
    """Return the module `ring_flash_attn`. Raises MissingDependencyError if it cannot be imported."""
    try:
        return import_module(LIBRARY)
    except ImportError as error:
        raise MissingDependencyError(
            f"attention kernel {LIBRARY} cannot be imported ({error}). It needs flash-attn (pip install flash-attn "
            "ring-flash-attn) and a transformers it knows: 0.1.8 imports beside 4.57 but not beside 5.23, which this "
            "project needs. Leave the kernel out: our ring computes the same and takes packed rows"
        ) from error


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    fits = q.dim() == k.dim() == 3 and k.shape == v.shape and (len(q), q.shape[2]) == (len(k), k.shape[2])
    if not fits or q.shape[1] % k.shape[1] or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q {tuple(q.shape)} {q.dtype}, k {tuple(k.shape)} {k.dtype}, v {tuple(v.shape)} {v.dtype}: expected "
            "(tokens, heads, head_dim) and twice (tokens, kv_heads, head_dim), kv_heads dividing heads, one dtype"
        )
