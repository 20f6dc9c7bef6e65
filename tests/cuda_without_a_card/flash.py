"""Torch's flash attention operators for CUDA, with real numbers from plain float32 matrices.

Every operator checks what the kernels check: dtypes, head dims, contiguous heads, int32 borders. Causal order is that
of FlashAttention since 2.1: the last query sees the last key, however many more keys than queries there are.
"""

from itertools import pairwise

import torch
import torch.nn.attention.varlen
from torch import Tensor

aten, varlen = torch.ops.aten, torch.ops.torch_attn
RANDOM_STATE = (2,)  # its shape, uint64


def forward_sequence(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(queries, heads, dim) -> output, (heads, queries) log-sum-exp."""
    scores = score(q, k, scale=scale, causal=causal)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    out = torch.einsum("hqk,khd->qhd", weights, per_query_head(v, q))
    return out.to(q.dtype), lse


def backward_sequence(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """FlashAttention-2, algorithm 2, in one block."""
    weights = (score(q, k, scale=scale, causal=causal) - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    grad = grad.float()
    dv = torch.einsum("hqk,qhd->khd", weights, grad)
    along = (grad * out.float()).sum(-1).T.unsqueeze(-1)
    d_scores = weights * (torch.einsum("qhd,khd->hqk", grad, per_query_head(v, q)) - along) * scale
    dq = torch.einsum("hqk,khd->qhd", d_scores, per_query_head(k, q))
    dk = torch.einsum("hqk,qhd->khd", d_scores, q.float())
    dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def score(q: Tensor, k: Tensor, *, scale: float, causal: bool) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q.float(), per_query_head(k, q)) * scale
    if not causal:
        return scores
    visible = torch.ones(scores.shape[1:], dtype=torch.bool).tril(len(k) - len(q))
    return scores.masked_fill(~visible, -torch.inf)


def per_query_head(x: Tensor, q: Tensor) -> Tensor:
    return x.float().repeat_interleave(q.shape[1] // x.shape[1], 1)


def check(*tensors: Tensor) -> None:
    assert {x.dtype for x in tensors} in ({torch.bfloat16}, {torch.float16}), "flash attention takes bf16 or fp16"
    assert all(x.stride(-1) == 1 for x in tensors), "flash attention needs contiguous heads"
    assert tensors[0].shape[-1] % 8 == 0
    assert tensors[0].shape[-1] <= 256


def spans(q: Tensor, k: Tensor, cum_q: Tensor | None, cum_k: Tensor | None, max_q: int, max_k: int):
    """(rows of q, rows of k) of every sequence; without borders they are the entries of a batch."""
    if cum_q is None or cum_k is None:
        assert q.dim() == 4
        return [(i, i) for i in range(len(q))]
    assert q.dim() == 3
    assert cum_q.dtype == cum_k.dtype == torch.int32
    queries, keys = ([slice(a, b) for a, b in pairwise(cum.tolist())] for cum in (cum_q, cum_k))
    assert queries[-1].stop == len(q)
    assert keys[-1].stop == len(k)
    assert max(r.stop - r.start for r in queries) <= max_q
    assert max(r.stop - r.start for r in keys) <= max_k
    return list(zip(queries, keys, strict=True))


def flash_forward(q, k, v, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None, **rest):
    """aten::_flash_attention_forward."""
    check(q, k, v)
    assert dropout_p == 0.0
    assert not return_debug_mask
    parts = [
        forward_sequence(q[a], k[b], v[b], scale=scale, causal=is_causal)
        for a, b in spans(q, k, cum_q, cum_k, max_q, max_k)
    ]
    outs, lses = zip(*parts, strict=True)
    joined = (torch.stack(outs), torch.stack(lses)) if cum_q is None else (torch.cat(outs), torch.cat(lses, dim=1))
    return *joined, random_state(), torch.empty(0), torch.empty(0)


def flash_backward(
    grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, rng_state, unused, *, scale=None, **rest
):
    """aten::_flash_attention_backward."""
    check(grad, q, k, v, out)
    assert lse.dtype == torch.float32
    assert lse.is_contiguous()
    assert dropout_p == 0.0
    parts = []
    for a, b in spans(q, k, cum_q, cum_k, max_q, max_k):
        own_lse = lse[a] if cum_q is None else lse[:, a]
        parts.append(backward_sequence(grad[a], q[a], k[b], v[b], out[a], own_lse, scale=scale, causal=is_causal))
    join = torch.stack if cum_q is None else torch.cat
    return tuple(join(grads) for grads in zip(*parts, strict=True))


def sdpa_flash_forward(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    """aten::_scaled_dot_product_flash_attention: heads first."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse, state, unused, mask = flash_forward(
        q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, is_causal, return_debug_mask, scale=scale
    )
    none = torch.empty(0, dtype=torch.int32)
    return out.transpose(1, 2), lse, none, none, q.shape[1], k.shape[1], state, unused, mask


def sdpa_flash_backward(
    grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, seed, offset, *, scale=None
):
    """aten::_scaled_dot_product_flash_attention_backward."""
    grad, q, k, v, out = (x.transpose(1, 2) for x in (grad, q, k, v, out))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grads = flash_backward(
        grad, q, k, v, out, lse, None, None, max_q, max_k, dropout_p, is_causal, seed, offset, scale=scale
    )
    return tuple(x.transpose(1, 2) for x in grads)


def varlen_forward(q, k, v, cum_q, cum_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *rest):
    """torch_attn::_varlen_attn, the operator of torch.nn.attention.varlen."""
    assert list(window_size or (-1, -1)) == [-1, 0 if is_causal else -1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse, *_ = flash_forward(q, k, v, cum_q, cum_k, max_q, max_k, 0.0, is_causal, False, scale=scale)
    return out, lse, random_state()


def varlen_backward(
    grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, is_causal, rng_state, scale=None, window_size=None
):
    """torch_attn::_varlen_attn_backward."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return flash_backward(
        grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, 0.0, is_causal, rng_state, None, scale=scale
    )


def random_state() -> Tensor:
    return torch.zeros(RANDOM_STATE, dtype=torch.uint64)


OPERATORS = {
    aten._flash_attention_forward.default: flash_forward,
    aten._flash_attention_backward.default: flash_backward,
    aten._scaled_dot_product_flash_attention.default: sdpa_flash_forward,
    aten._scaled_dot_product_flash_attention_backward.default: sdpa_flash_backward,
    varlen._varlen_attn.default: varlen_forward,
    varlen._varlen_attn_backward.default: varlen_backward,
}
