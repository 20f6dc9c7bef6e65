"""Attention kernels: one block of attention, forward and backward, with the log-sum-exp of its scores.

A softmax over many blocks of keys needs two things from a kernel: forward must return the log-sum-exp of every query,
so that partial outputs can be merged; backward must take the output and the log-sum-exp over ALL keys, so that the
gradients of the blocks simply add up (FlashAttention-2, arXiv 2307.08691, section 3.1).

    cpu_flash   torch's flash attention for the CPU: float32, bfloat16, float16, float64
    cuda_flash  torch's flash attention for CUDA: bfloat16, float16
    flash_attn  the flash-attn package, 2.6 or newer: bfloat16, float16
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from internvl.errors import ConfigError, MissingDependencyError
from internvl.model.attention import send_borders
from internvl.model.capabilities import find_flash_implementations, repeat_heads


@dataclass(frozen=True)
class Blocks:
    """Dense blocks in one call: every query of a block sees every key of that block, and no other."""

    queries: tuple[int, ...]  # borders of the blocks among the queries, from 0
    keys: tuple[int, ...]  # among the keys, as many


Borders = tuple[int, ...] | Blocks | None
Queries = Float[Tensor, "queries heads head_dim"]
Keys = Float[Tensor, "keys kv_heads head_dim"]  # heads is a multiple of kv_heads
Lse = Float[Tensor, "heads queries"]  # log-sum-exp of the scores, float32 or wider
MAX_FLASH_HEAD_DIM = 256

Result = TypeVar("Result")


@runtime_checkable
class AttentionKernel(Protocol):
    """One block of attention, forward and backward.

    Args of both:
        q, k, v: Queries, keys and values.
        scale: Factor of the scores.
        borders: Document borders from 0 to queries == keys: causal attention inside every document, none between them.
            `Blocks`: every query sees all keys of its block. None: every query sees every key.
    """

    def forward(self, q: Queries, k: Keys, v: Keys, *, scale: float, borders: Borders) -> tuple[Queries, Lse]:
        """Return the output and the log-sum-exp."""

    def backward(
        self, grad_out: Queries, q: Queries, k: Keys, v: Keys, out: Queries, lse: Lse, *, scale: float, borders: Borders
    ) -> tuple[Queries, Keys, Keys]:
        """Return the share of these keys in dq, and their dk and dv.

        `out` and `lse` are over all keys of a query, those of other blocks included.
        """


@dataclass(frozen=True)
class CpuFlash:
    """Torch's CPU flash attention (float32 log-sum-exp, float64 for float64), one document or block after the other."""

    def forward(self, q: Queries, k: Keys, v: Keys, *, scale: float, borders: Borders) -> tuple[Queries, Lse]:
        """See `AttentionKernel`."""
        is_causal = isinstance(borders, tuple)
        pieces = [
            self._forward_document(q[own], k[keys], v[keys], scale, is_causal=is_causal)
            for own, keys in _list_pieces(borders)
        ]
        outs, lses = zip(*pieces, strict=True)
        return (outs[0], lses[0]) if len(pieces) == 1 else (torch.cat(outs), torch.cat(lses, dim=1))

    def backward(
        self, grad_out: Queries, q: Queries, k: Keys, v: Keys, out: Queries, lse: Lse, *, scale: float, borders: Borders
    ) -> tuple[Queries, Keys, Keys]:
        """See `AttentionKernel`."""
        is_causal = isinstance(borders, tuple)
        pieces = [
            self._backward_document(
                grad_out[own], q[own], k[keys], v[keys], out[own], lse[:, own], scale, is_causal=is_causal
            )
            for own, keys in _list_pieces(borders)
        ]
        dq, dk, dv = (grads[0] if len(pieces) == 1 else torch.cat(grads) for grads in zip(*pieces, strict=True))
        return dq, dk, dv

    def _forward_document(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, is_causal: bool
    ) -> tuple[Tensor, Tensor]:
        keys, values = (repeat_heads(_heads_first(x), q.shape[1]) for x in (k, v))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _heads_first(q), keys, values, 0.0, is_causal, scale=scale
        )
        return _tokens_first(out), lse[0]

    def _backward_document(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        *,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, outs, grads = (_heads_first(x) for x in (q, out, grad_out))
        keys, values = (repeat_heads(_heads_first(x), q.shape[1]) for x in (k, v))
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grads, queries, keys, values, outs, lse.unsqueeze(0).contiguous(), 0.0, is_causal, scale=scale
        )
        # Repeated heads: their gradients add up.
        dk, dv = (x if x.shape[1] == k.shape[1] else x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
        return _tokens_first(dq), _tokens_first(dk), _tokens_first(dv)


@dataclass(frozen=True)
class CudaFlash:
    """Torch's CUDA flash attention: `aten::_flash_attention_forward` and `_backward` (schema of torch 2.13).

    Dense blocks go in as a batch of one, packed documents in one call with `cum_seq_q` and `cum_seq_k`. Both forms take
    fewer K/V heads than query heads.
    """

    # Tests replace the operators.
    forward_op: Callable[..., Sequence[Tensor]] = torch.ops.aten._flash_attention_forward
    backward_op: Callable[..., Sequence[Tensor]] = torch.ops.aten._flash_attention_backward

    def forward(self, q: Queries, k: Keys, v: Keys, *, scale: float, borders: Borders) -> tuple[Queries, Lse]:
        """See `AttentionKernel`."""
        _check_flash_shapes(q)
        is_causal = isinstance(borders, tuple)
        tensors = (q, k, v) if borders else (q[None], k[None], v[None])
        out, lse, *_ = self.forward_op(*tensors, *_describe_pieces(q, k, borders), 0.0, is_causal, False, scale=scale)
        return (out, lse) if borders else (out[0], lse[0])

    def backward(
        self, grad_out: Queries, q: Queries, k: Keys, v: Keys, out: Queries, lse: Lse, *, scale: float, borders: Borders
    ) -> tuple[Queries, Keys, Keys]:
        """See `AttentionKernel`."""
        is_causal = isinstance(borders, tuple)
        tensors = [grad_out, q, k, v, out, lse.contiguous()]
        if borders is None:
            tensors = [x[None] for x in tensors]
        random_state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # without dropout nothing reads it
        unused = torch.empty(0, device=q.device)
        grads = self.backward_op(
            *tensors, *_describe_pieces(q, k, borders), 0.0, is_causal, random_state, unused, scale=scale
        )
        dq, dk, dv = grads if borders else (grad[0] for grad in grads)
        return dq, dk, dv


@dataclass(frozen=True)
class FlashAttn:
    """The flash-attn package (2.6 or newer), through the functions below its autograd classes."""

    interface: ModuleType | SimpleNamespace  # the module `flash_attn.flash_attn_interface`; a double in tests only

    def forward(self, q: Queries, k: Keys, v: Keys, *, scale: float, borders: Borders) -> tuple[Queries, Lse]:
        """See `AttentionKernel`."""
        _check_flash_shapes(q)
        if borders is None:
            batched = {"q": q[None], "k": k[None], "v": v[None]}
            result = _call_known(self.interface._flash_attn_forward, batched, scale=scale, is_causal=False)
        else:
            packed = {"q": q, "k": k, "v": v} | _name_pieces(q, k, borders)
            result = _call_known(
                self.interface._flash_attn_varlen_forward, packed, scale=scale, is_causal=isinstance(borders, tuple)
            )
        # 2.7 and 2.8: out, lse, mask, random state; 2.6: out, q, k, v, padded out, lse, mask, random state
        out, lse = (result[0], result[1]) if len(result) == 4 else (result[0], result[5])
        if borders is None:
            return out[0], lse[0]
        if lse.dim() != 2:
            raise MissingDependencyError(
                "this flash-attn returns a padded log-sum-exp for packed rows; install a newer one: "
                "pip install -U flash-attn"
            )
        return out, lse

    def backward(
        self, grad_out: Queries, q: Queries, k: Keys, v: Keys, out: Queries, lse: Lse, *, scale: float, borders: Borders
    ) -> tuple[Queries, Keys, Keys]:
        """See `AttentionKernel`."""
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        given = {"dout": grad_out, "q": q, "k": k, "v": v, "out": out, "softmax_lse": lse.contiguous()}
        tensors = given | {"dq": dq, "dk": dk, "dv": dv}
        if borders is None:
            batched = {name: x[None] for name, x in tensors.items()}
            _call_known(self.interface._flash_attn_backward, batched, scale=scale, is_causal=False)
        else:
            packed = tensors | _name_pieces(q, k, borders)
            _call_known(
                self.interface._flash_attn_varlen_backward, packed, scale=scale, is_causal=isinstance(borders, tuple)
            )
        return dq, dk, dv


KERNELS = ("cpu_flash", "cuda_flash", "flash_attn")


def select_kernel(name: str | None, device: torch.device, dtype: torch.dtype) -> AttentionKernel:
    """Find a kernel by name (one of `KERNELS`); None for torch's flash kernel of the device.

    Raises:
        ConfigError: Unknown name, or the kernel does not take this device or dtype.
        MissingDependencyError: flash-attn cannot be imported.
    """
    if name is None:
        name = "cuda_flash" if device.type == "cuda" else "cpu_flash"
    if name not in KERNELS:
        raise ConfigError(f"unknown attention kernel {name!r}: expected one of {', '.join(KERNELS)}")
    wanted = "cpu" if name == "cpu_flash" else "cuda"
    if device.type != wanted:
        raise ConfigError(f"attention kernel {name} needs {wanted} tensors, got {device.type}; leave the kernel out")
    if name == "cpu_flash":
        return CpuFlash()
    check_flash_dtype(name, dtype)
    return CudaFlash() if name == "cuda_flash" else FlashAttn(import_flash_attn())


def check_flash_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise ConfigError unless `dtype` is bfloat16 or float16, which flash kernels for CUDA compute."""
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(
            f"attention kernel {name} takes bfloat16 or float16, got {str(dtype).removeprefix('torch.')}; "
            "pass --bf16 True (or --fp16 True)"
        )


def activate_flash(name: str) -> None:
    """Let torch's flash operators for CUDA run FlashAttention 3 or 4 (`FA3`, `FA4`) in this process.

    They are packages of their own; every call of `cuda_flash`, and of the seam in internvl/model/attention.py, is then
    theirs.

    Raises:
        ConfigError: Torch knows no implementation of that name.
        MissingDependencyError: Its package cannot be imported, or torch is too old for it.
    """
    implementations = find_flash_implementations()
    known = implementations.list_flash_attention_impls()
    if name not in known:
        raise ConfigError(f"flash implementation {name!r}: expected one of {', '.join(known)}, or leave it out")
    try:
        implementations.activate_flash_attention_impl(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"flash implementation {name} cannot be imported ({error}); build hopper/ of the flash-attention "
            "repository for FA3, pip install flash-attn-4 for FA4, or leave it out"
        ) from error


def import_flash_attn() -> ModuleType:
    """Return the module `flash_attn.flash_attn_interface`.

    Raises MissingDependencyError if it is not installed, or was built for another torch.
    """
    try:
        return import_module("flash_attn.flash_attn_interface")
    except ImportError as error:
        raise MissingDependencyError(
            f"attention kernel flash_attn cannot be imported ({error}); pip install flash-attn --no-build-isolation, "
            "or leave the kernel out: torch's flash kernel needs no package"
        ) from error


def _heads_first(x: Tensor) -> Tensor:
    return rearrange(x, "tokens heads head_dim -> 1 heads tokens head_dim")


def _tokens_first(x: Tensor) -> Tensor:
    return rearrange(x, "1 heads tokens head_dim -> tokens heads head_dim")


def _check_flash_shapes(q: Tensor) -> None:
    head_dim = q.shape[-1]
    if head_dim % 8 or head_dim > MAX_FLASH_HEAD_DIM:
        raise ConfigError(
            f"flash attention for CUDA takes head dims that are a multiple of 8, up to {MAX_FLASH_HEAD_DIM}; "
            f"this model has {head_dim}"
        )


def _list_pieces(borders: Borders) -> list[tuple[slice, slice]]:
    """Rows of the queries and of the keys of every document or block; empty documents are left out."""
    if borders is None:
        return [(slice(None), slice(None))]
    blocks = Blocks(borders, borders) if isinstance(borders, tuple) else borders
    queries, keys = ([slice(a, b) for a, b in pairwise(cuts)] for cuts in (blocks.queries, blocks.keys))
    return [(own, seen) for own, seen in zip(queries, keys, strict=True) if own.stop > own.start]


def _describe_pieces(q: Tensor, k: Tensor, borders: Borders) -> tuple[Tensor | None, Tensor | None, int, int]:
    """(int32 borders of queries and of keys on the device, longest run of queries, of keys)."""
    if borders is None:
        return None, None, len(q), len(k)
    blocks = Blocks(borders, borders) if isinstance(borders, tuple) else borders
    longest_q, longest_k = (max(b - a for a, b in pairwise(cuts)) for cuts in (blocks.queries, blocks.keys))
    cum_seq_q, cum_seq_k = (send_borders(cuts, q.device) for cuts in (blocks.queries, blocks.keys))
    return cum_seq_q, cum_seq_k, longest_q, longest_k


def _name_pieces(q: Tensor, k: Tensor, borders: Borders) -> dict[str, Tensor | int | None]:
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    return dict(zip(names, _describe_pieces(q, k, borders), strict=True))


def _call_known(
    function: Callable[..., Result], arguments: Mapping[str, Tensor | int | None], *, scale: float, is_causal: bool
) -> Result:
    """Call a function of flash-attn with those of our arguments that it knows.

    Argument lists differ between versions: 2.6 takes `window_size`, 2.7 and 2.8 take `window_size_left` and
    `window_size_right`. A function that needs another argument, or lacks one of `arguments`, is refused.
    """
    ours = {
        "dropout_p": 0.0,
        "softmax_scale": scale,
        "causal": is_causal,
        "window_size": (-1, -1),
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "alibi_slopes": None,
        "return_softmax": False,
        "deterministic": False,
        **arguments,
    }
    # From 2.7 on these are torch custom ops, which keep the Python function under this name.
    parameters = inspect.signature(getattr(function, "_init_fn", function)).parameters
    needed = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    if missing := [*(needed - ours.keys()), *(arguments.keys() - parameters.keys())]:
        raise MissingDependencyError(
            f"the installed flash-attn has other arguments than 2.6, 2.7 and 2.8 ({', '.join(sorted(missing))}); "
            "pip install 'flash-attn>=2.6,<2.9' --no-build-isolation, or leave the kernel out"
        )
    return function(**{name: value for name, value in ours.items() if name in parameters})
