"""What ring attention is compared with: float64 softmax over the whole row, and CPU doubles of foreign kernels.

The doubles have the argument lists of kernels that cannot run here, check what comes in as the real ones would, and
compute the real numbers with torch's CPU flash attention. They say nothing about the real kernels' arithmetic.
"""

import itertools
from types import SimpleNamespace

import torch
from torch import Tensor

from internvl.parallel.kernels import Blocks, CpuFlash

CPU = CpuFlash()


def document_numbers(lengths: list[int]) -> Tensor:
    """(tokens,) number of the document that a token belongs to."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))


def reference_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    """Softmax over the whole score matrix with one mask, in float64."""
    repeats = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 1), v.double().repeat_interleave(repeats, 1)
    numbers = document_numbers(lengths)
    visible = (numbers[:, None] == numbers).tril()
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


def make_row(num_tokens: int, heads: tuple[int, int], head_dim: int, *, seed: int) -> list[Tensor]:
    """q, k, v and the gradient of the output, float64 numbers that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_tokens, n, head_dim, generator=generator).bfloat16().double()
        for n in (heads[0], heads[1], heads[1], heads[0])
    ]


def attend_with_gradients(attend, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Output, dq, dk, dv of `attend(q, k, v)`, in float64."""
    q, k, v, grad_out = (x.to(dtype) for x in tensors)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = attend(*inputs)
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, inputs, grad_out))]


def _check_tensors(*tensors: Tensor) -> None:
    assert all(x.dtype in (torch.bfloat16, torch.float16) for x in tensors)
    assert all(x.stride(-1) == 1 for x in tensors)
    assert tensors[0].shape[-1] % 8 == 0
    assert tensors[0].shape[-1] <= 256


def _check_borders(cu_seqlens_q, cu_seqlens_k, max_q, max_k, q, k, *, causal) -> tuple[int, ...] | Blocks:
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    found = []
    for cuts, longest, num_tokens in ((cu_seqlens_q, max_q, len(q)), (cu_seqlens_k, max_k, len(k))):
        borders = cuts.tolist()
        assert borders[-1] == num_tokens
        assert longest == max(b - a for a, b in itertools.pairwise(borders))
        found.append(tuple(borders))
    assert not causal or found[0] == found[1]
    assert len(found[0]) == len(found[1])
    return found[0] if causal else Blocks(*found)


# --- torch.ops.aten._flash_attention_forward / _backward -------------------------------------------------------------


def _bind(operator, args, kwargs) -> dict:
    """Arguments by name, as the operator's schema in the installed torch binds them."""
    schema = operator.default._schema.arguments
    positional = [argument.name for argument in schema if not argument.kwarg_only]
    keywords = {argument.name for argument in schema if argument.kwarg_only}
    assert len(args) == len(positional)
    assert kwargs.keys() <= keywords
    return {**dict(zip(positional, args, strict=True)), **kwargs}


def double_of_aten_forward(*args, **kwargs):
    given = _bind(torch.ops.aten._flash_attention_forward, args, kwargs)
    q, k, v = given["query"], given["key"], given["value"]
    _check_tensors(q, k, v)
    assert given["dropout_p"] == 0.0
    assert given["return_debug_mask"] is False
    if given["cum_seq_q"] is None:
        assert given["is_causal"] is False
        assert (given["max_q"], given["max_k"]) == (q.shape[1], k.shape[1])
        out, lse = CPU.forward(q[0], k[0], v[0], scale=given["scale"], borders=None)
        out, lse = out[None], lse[None]
    else:
        sizes = (given["cum_seq_q"], given["cum_seq_k"], given["max_q"], given["max_k"])
        borders = _check_borders(*sizes, q, k, causal=given["is_causal"])
        out, lse = CPU.forward(q, k, v, scale=given["scale"], borders=borders)
    return out, lse, torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)


def double_of_aten_backward(*args, **kwargs):
    given = _bind(torch.ops.aten._flash_attention_backward, args, kwargs)
    tensors = [given[name] for name in ("grad_out", "query", "key", "value", "out")]
    lse = given["logsumexp"]
    _check_tensors(*tensors)
    assert lse.dtype == torch.float32
    assert lse.is_contiguous()
    assert given["rng_state"].shape == (2,)
    assert given["dropout_p"] == 0.0
    if given["cum_seq_q"] is None:
        assert given["is_causal"] is False
        assert lse.shape == (1, tensors[1].shape[2], tensors[1].shape[1])
        grads = CPU.backward(*(x[0] for x in tensors), lse[0], scale=given["scale"], borders=None)
        return tuple(grad[None] for grad in grads)
    sizes = (given["cum_seq_q"], given["cum_seq_k"], given["max_q"], given["max_k"])
    borders = _check_borders(*sizes, tensors[1], tensors[2], causal=given["is_causal"])
    return CPU.backward(*tensors, lse, scale=given["scale"], borders=borders)


# --- flash_attn.flash_attn_interface ---------------------------------------------------------------------------------


def _forward(q, k, v, dropout_p, softmax_scale, causal, alibi_slopes, return_softmax, softcap, borders=None):
    _check_tensors(q, k, v)
    assert (dropout_p, alibi_slopes, return_softmax, softcap) == (0.0, None, False, 0.0)
    assert causal is isinstance(borders, tuple)
    if borders is not None:
        return CPU.forward(q, k, v, scale=softmax_scale, borders=borders)
    out, lse = CPU.forward(q[0], k[0], v[0], scale=softmax_scale, borders=None)
    return out[None], lse[None]


def _backward(tensors, lse, grads, dropout_p, softmax_scale, causal, alibi_slopes, softcap, borders=None):
    _check_tensors(*tensors)
    assert (dropout_p, alibi_slopes, softcap) == (0.0, None, 0.0)
    assert causal is isinstance(borders, tuple)
    assert lse.is_contiguous()
    if borders is None:
        found = CPU.backward(*(x[0] for x in tensors), lse[0], scale=softmax_scale, borders=None)
    else:
        found = CPU.backward(*tensors, lse, scale=softmax_scale, borders=borders)
    for grad, value in zip(grads, found, strict=True):
        grad.copy_(value.view(grad.shape))


def double_of_flash_attn_2_6() -> SimpleNamespace:
    """The functions of 2.6: one `window_size`, eight results, gradients into given tensors."""

    def _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_softmax
    ):
        assert window_size == (-1, -1)
        out, lse = _forward(q, k, v, dropout_p, softmax_scale, causal, alibi_slopes, return_softmax, softcap)
        return out, q, k, v, out, lse, None, torch.zeros(2)

    def _flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        return_softmax=False,
        block_table=None,
        leftpad_k=None,
    ):
        borders = _check_borders(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q, k, causal=causal)
        assert window_size == (-1, -1)
        out, lse = _forward(q, k, v, dropout_p, softmax_scale, causal, alibi_slopes, return_softmax, softcap, borders)
        return out, q, k, v, out, lse, None, torch.zeros(2)

    def _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        tensors, grads = (dout, q, k, v, out), (dq, dk, dv)
        _backward(tensors, softmax_lse, grads, dropout_p, softmax_scale, causal, alibi_slopes, softcap)
        return dq, dk, dv, torch.zeros(1)

    def _flash_attn_varlen_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        borders = _check_borders(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q, k, causal=causal)
        tensors, grads = (dout, q, k, v, out), (dq, dk, dv)
        _backward(tensors, softmax_lse, grads, dropout_p, softmax_scale, causal, alibi_slopes, softcap, borders)
        return dq, dk, dv, torch.zeros(1)

    return SimpleNamespace(**{name: value for name, value in locals().items() if name.startswith("_flash")})


class CustomOp:
    """As torch.library.custom_op wraps functions from 2.7 on: callable, the Python function under `_init_fn`."""

    def __init__(self, function):
        self._init_fn = function

    def __call__(self, *args, **kwargs):
        return self._init_fn(*args, **kwargs)


def double_of_flash_attn_2_8() -> SimpleNamespace:
    """The functions of 2.7 and 2.8: window sizes apart, four results, one result of backward."""

    def _flash_attn_forward(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        return_softmax,
    ):
        assert (window_size_left, window_size_right) == (-1, -1)
        out, lse = _forward(q, k, v, dropout_p, softmax_scale, causal, alibi_slopes, return_softmax, softcap)
        return out, lse, torch.empty(0), torch.zeros(2)

    def _flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        return_softmax=False,
        block_table=None,
        leftpad_k=None,
        seqused_k=None,
        zero_tensors=False,
    ):
        borders = _check_borders(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q, k, causal=causal)
        assert (window_size_left, window_size_right) == (-1, -1)
        out, lse = _forward(q, k, v, dropout_p, softmax_scale, causal, alibi_slopes, return_softmax, softcap, borders)
        return out, lse, torch.empty(0), torch.zeros(2)

    def _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        tensors, grads = (dout, q, k, v, out), (dq, dk, dv)
        _backward(tensors, softmax_lse, grads, dropout_p, softmax_scale, causal, alibi_slopes, softcap)
        return torch.zeros(1)

    def _flash_attn_varlen_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
        zero_tensors=False,
    ):
        borders = _check_borders(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q, k, causal=causal)
        tensors, grads = (dout, q, k, v, out), (dq, dk, dv)
        _backward(tensors, softmax_lse, grads, dropout_p, softmax_scale, causal, alibi_slopes, softcap, borders)
        return torch.zeros(1)

    functions = {name: value for name, value in locals().items() if name.startswith("_flash")}
    return SimpleNamespace(**{name: CustomOp(function) for name, function in functions.items()})
