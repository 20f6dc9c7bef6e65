"""Ring attention: exact causal attention over packed rows that are shared by the ranks of a group.

Every rank holds queries, keys and values of its runs of the row (`deal.py`). In every step of the ring it computes
an equal part of its attention (`ring_plan.py`), while keys and values of the steps to come are on their way to it. What
travels follows from the documents: a row that no other rank needs stays.

    P = 4, one document: keys and values that rank 0 works with      step 0  1  2  3
                                                           of rank        0  3  2  1

Partial outputs are merged by their log-sum-exp (online softmax; Ring Attention, arXiv 2310.01889). The backward pass
visits the same blocks again. A block's dk and dv go straight back to the rank that owns its rows, while the next step
is computed, and are summed there in float32. Besides its own tokens a rank holds the keys and values of this step and
the next ones, and the gradients under way: about two shards, see `RingPlan.lead`.

Unlike blocks passed from neighbour to neighbour, each row is sent only to ranks that read it (of one long document:
three quarters of all rows), and gradients are not rounded or summed on the way.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import accumulate
from types import ModuleType

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from internvl.errors import ConfigError, MissingDependencyError

from .comm import AutogradContext, Exchange, Message, Messenger, get_rank_and_size
from .deal import Span, join_spans
from .kernels import AttentionKernel, Blocks, check_flash_dtype, select_kernel
from .recompute import compute_or_recall
from .ring_plan import Block, Loan, RingPlan, RingStep, build_ring_plan, list_borders

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
        q: This rank's shard by `shards.shard_row` with the same borders: as many tokens on every rank, an even number
            (any number where one rank holds the row).
        k: Keys of the same tokens in the same dtype; heads is a multiple of kv_heads.
        v: Values, likewise.
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
    for step, borrowed in _visit_steps(k, v, plan, messenger):
        if step.has_diagonal:
            out[real], lse[:, real] = kernel.forward(q[real], k[real], v[real], scale=scale, borders=plan.documents)
        if step.blocks:
            call = _Call(step.blocks)
            k_block, v_block = (call.take_keys(x) for x in borrowed.wait())
            found, found_lse = kernel.forward(call.take(q), k_block, v_block, scale=scale, borders=call.borders)
            for rows, own in call.list_queries():
                merge_partial(out[own], lse[:, own], found[rows], found_lse[:, rows])
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
    returning: list[_Returning] = []
    for step, borrowed in _visit_steps(k, v, plan, messenger):
        grads: tuple[Tensor, ...] = ()
        if step.has_diagonal:
            tensors = (grad_out[real], q[real], k[real], v[real], out[real], lse[:, real])
            dq[real], dk[real], dv[real] = kernel.backward(*tensors, scale=scale, borders=plan.documents)
        if step.blocks:
            call = _Call(step.blocks)
            k_block, v_block = borrowed.wait()
            keys = call.take_keys(k_block), call.take_keys(v_block)
            tensors = (call.take(grad_out), call.take(q), *keys, call.take(out), call.take(lse, dim=1))
            found, *of_keys = kernel.backward(*tensors, scale=scale, borders=call.borders)
            for rows, own in call.list_queries():
                dq[own] += found[rows]
            grads = tuple(call.return_keys(x, len(k_block)) for x in of_keys)
        if step.has_diagonal or step.blocks:  # a rank that has computed nothing need not wait for those that compute
            while returning:
                returning.pop(0).add_to(dk, dv)
        returning.append(_return_gradients(step, grads, k, messenger))
    for last in returning:
        last.add_to(dk, dv)
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


@dataclass(frozen=True)
class _Borrowed:
    """Keys and values of one step on their way."""

    exchange: Exchange
    k: Tensor
    v: Tensor

    def wait(self) -> tuple[Tensor, Tensor]:
        self.exchange.wait()
        return self.k, self.v


def _visit_steps(k: Tensor, v: Tensor, plan: RingPlan, messenger: Messenger) -> Iterator[tuple[RingStep, _Borrowed]]:
    """The steps of a rank one by one, while keys and values of the next ones are on their way."""
    under_way = deque(_borrow(step, k, v, messenger) for step in plan.steps[: plan.lead])
    only_lent = []
    for number, step in enumerate(plan.steps):
        under_way.extend(_borrow(ahead, k, v, messenger) for ahead in plan.steps[number + plan.lead :][:1])
        borrowed = under_way.popleft()
        if not step.blocks:
            only_lent.append(borrowed.exchange)  # others wait for it, this rank does not need to
        yield step, borrowed
    for exchange in only_lent:
        exchange.wait()


def _borrow(step: RingStep, k: Tensor, v: Tensor, messenger: Messenger) -> _Borrowed:
    """Send what is lent in a step, expect what is borrowed."""
    next_k, next_v = (x.new_empty(step.num_borrowed, *x.shape[1:]) for x in (k, v))
    exchange = messenger.post(
        sends=[Message(loan.rank, x[loan.tokens.rows]) for loan in step.lent for x in (k, v)],
        receives=[Message(loan.rank, x[rows]) for loan, rows in _number_rows(step.borrowed) for x in (next_k, next_v)],
    )
    return _Borrowed(exchange, next_k, next_v)


def _number_rows(loans: Sequence[Loan]) -> Iterator[tuple[Loan, slice]]:
    """Every loan, with its place among the tokens of all of them."""
    start = 0
    for loan in loans:
        yield loan, slice(start, start + len(loan.tokens))
        start += len(loan.tokens)


class _Call:
    """One call of a kernel for all blocks of a step."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._queries = [block.queries for block in blocks]
        self._keys = [keys for block in blocks for keys in block.keys]
        ends = [list(accumulate((len(block.queries) for block in blocks), initial=0))]
        ends.append(list(accumulate((sum(map(len, block.keys)) for block in blocks), initial=0)))
        self.borders = None if len(blocks) == 1 else Blocks(*map(tuple, ends))

    def take(self, x: Tensor, *, dim: int = 0) -> Tensor:
        """The queries of all blocks."""
        return _take(x, self._queries, dim=dim)

    def take_keys(self, x: Tensor) -> Tensor:
        """The keys of all blocks: those that several blocks see are there several times."""
        return _take(x, self._keys)

    def list_queries(self) -> Iterator[tuple[slice, slice]]:
        """Rows of the call, and the queries whose they are."""
        return _pair_rows(self._queries)

    def return_keys(self, grad: Tensor, num_borrowed: int) -> Tensor:
        """The gradient of all borrowed keys from that of the keys of all blocks."""
        if join_spans(self._keys) == (Span(0, num_borrowed),):
            return grad
        total = grad.new_zeros(num_borrowed, *grad.shape[1:], dtype=torch.promote_types(grad.dtype, torch.float32))
        for rows, keys in _pair_rows(self._keys):
            total[keys] += grad[rows]
        return total.to(grad.dtype)


def _take(x: Tensor, spans: Sequence[Span], *, dim: int = 0) -> Tensor:
    """The tokens of spans, one span after the other; a view where they follow each other."""
    pieces = [x.narrow(dim, span.start, len(span)) for span in join_spans(spans)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _pair_rows(spans: Sequence[Span]) -> Iterator[tuple[slice, slice]]:
    """Rows in what `_take` made, and where they were taken from; as few pairs as possible."""
    start = 0
    for span in join_spans(spans):
        yield slice(start, start + len(span)), span.rows
        start += len(span)


@dataclass(frozen=True)
class _Returning:
    """Gradients of lent tokens on their way back to their owner."""

    exchange: Exchange
    loans: Sequence[Loan]
    dk: Tensor
    dv: Tensor

    def add_to(self, dk: Tensor, dv: Tensor) -> None:
        self.exchange.wait()
        for loan, rows in _number_rows(self.loans):
            dk[loan.tokens.rows] += self.dk[rows]
            dv[loan.tokens.rows] += self.dv[rows]


def _return_gradients(step: RingStep, grads: Sequence[Tensor], k: Tensor, messenger: Messenger) -> _Returning:
    """Send gradients of borrowed tokens to their owners; expect those of the tokens that were lent in the same step."""
    num_lent = sum(len(loan.tokens) for loan in step.lent)
    dk, dv = (k.new_empty(num_lent, *k.shape[1:]) for _ in range(2))
    sent = [grad.contiguous() for grad in grads]
    exchange = messenger.post(
        sends=[Message(loan.rank, grad[rows]) for loan, rows in _number_rows(step.borrowed) for grad in sent],
        receives=[Message(loan.rank, grad[rows]) for loan, rows in _number_rows(step.lent) for grad in (dk, dv)],
    )
    return _Returning(exchange, step.lent, dk, dv)


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
