"""Part: attention and the fused functions against float64, in the dtypes and shapes of real models."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.part import CheckFailed, Job, Row
from internvl.errors import MissingDependencyError
from internvl.model.attention import attend, attend_causal
from internvl.model.modeling_internlm2 import InternLM2RMSNorm, gated_silu
from internvl.model.rotary import rotate
from internvl.parallel.kernels import import_flash_attn, select_kernel
from internvl.parallel.ring import ring_attention
from tests.parallel.packed_attention import attend_with_gradients, make_row, reference_attention

ROWS = {
    "one document": [700],
    "40 documents": [1 + (7 * i * i + 3 * i) % 53 for i in range(40)],
    "single tokens between": [1, 1, 300, 1, 1, 77, 1],
}
HEADS = {"InternVL2-2B": (16, 8, 128), "InternVL2-1B": (14, 2, 64), "wide": (4, 1, 256)}  # queries, keys, head_dim
# Largest difference over the largest number; a rounding is 2^-8 of a number in bfloat16, 2^-11 in float16.
LIMITS = {torch.bfloat16: 3e-2, torch.float16: 1e-2}


def run(job: Job) -> Iterator[Row]:
    """A row per kernel, shape and dtype."""
    wrong = []
    models = ["InternVL2-1B"] if job.is_tiny else list(HEADS)
    for dtype, limit in LIMITS.items():
        for name, row, error in compare_all(job.device, dtype, models):
            result: Row = {"function": name, "row": row, "dtype": str(dtype).removeprefix("torch.")}
            yield {**result, "largest error": error, "limit": limit}
            if not error <= limit:  # NaN is wrong, too
                wrong.append(f"{name}, {row}: {error:.1e}")
    if wrong:
        raise CheckFailed(f"{len(wrong)} beyond their limit: {'; '.join(wrong[:3])}")


def compare_all(device: torch.device, dtype: torch.dtype, models: list[str]) -> Iterator[tuple[str, str, float]]:
    """(function, row, largest error)."""
    kernels = [None, "flash_attn"] if device.type == "cuda" and _has_flash_attn() else [None]
    for heads_name in models:
        heads, kv_heads, head_dim = HEADS[heads_name]
        for row_name, lengths in ROWS.items():
            row = [x.to(device) for x in make_row(sum(lengths), (heads, kv_heads), head_dim, seed=3)]
            reference = partial(attend_in_float64, lengths=lengths, scale=head_dim**-0.5)
            expected = attend_with_gradients(reference, row, torch.float64)
            borders = torch.tensor([0, *accumulate(lengths)])
            ways: dict[str, Callable[..., Tensor]] = {
                f"ring of one, {kernel or 'default kernel'}": partial(
                    ring_attention, cu_seqlens=borders, group=None, kernel=kernel
                )
                for kernel in kernels
            }
            ways["packed row"] = partial(attend_packed, borders=borders.to(device))
            for name, way in ways.items():
                found = attend_with_gradients(way, row, dtype)
                yield name, f"{row_name}, heads of {heads_name}", largest_error(found, expected)
        yield from compare_cached(device, dtype, (heads, kv_heads, head_dim), heads_name)
    yield from compare_fused(device, dtype)


def attend_in_float64(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    """The whole score matrix, with its mask on the same device."""
    with torch.device(q.device):
        return reference_attention(q, k, v, lengths, scale)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, *, borders: Tensor) -> Tensor:
    """The seam's default on (tokens, heads, head_dim)."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return attend(None, q, k, v, scaling=q.shape[-1] ** -0.5, cu_seqlens=borders)[0].transpose(0, 1)


def compare_cached(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int], heads_name: str
) -> Iterator[tuple[str, str, float]]:
    """A further chunk and a single token after cached keys, and a block of keys without causal order."""
    q, k, v, _ = (x.to(device) for x in make_row(512, heads[:2], heads[2], seed=4))
    scale = heads[2] ** -0.5
    whole = attend_in_float64(q, k, v, [512], scale)
    for name, first in (("a further chunk of 200", 312), ("one new token", 511)):
        parts = (x.to(dtype).transpose(0, 1).unsqueeze(0) for x in (q[first:], k, v))
        with torch.no_grad():
            found = attend_causal(*parts, scale)[0].transpose(0, 1)
        yield "cached keys", f"{name}, heads of {heads_name}", largest_error([found], [whole[first:]])
    kernel = select_kernel(None, device, dtype)
    found, lse = kernel.forward(*(x.to(dtype) for x in (q[:100], k, v)), scale=scale, borders=None)
    repeated_k, repeated_v = (x.repeat_interleave(heads[0] // heads[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q[:100], repeated_k) * scale
    expected = [torch.einsum("hqk,khd->qhd", scores.softmax(-1), repeated_v), scores.logsumexp(-1)]
    yield "dense block, log-sum-exp", f"heads of {heads_name}", largest_error([found, lse], expected)


def compare_fused(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str, float]]:
    """RMS norm, SwiGLU and rotation."""
    generator = torch.Generator().manual_seed(5)
    states, other = (torch.randn(1, 300, 256, generator=generator).to(device, dtype).double() for _ in "ab")
    angles = torch.rand(1, 300, 128, generator=generator).to(device) * 100
    norm = InternLM2RMSNorm(256, 1e-6)
    norm.weight = torch.nn.Parameter(torch.ones(256, dtype=dtype, device=device))
    functions = {
        "rms_norm": (lambda x, _: norm(x), lambda x, _: F.rms_norm(x, (256,), eps=1e-6)),
        "swiglu": (gated_silu, lambda x, y: F.silu(x) * y),
        "rotate": (lambda x, _: rotate(x, angles.cos(), angles.sin()), lambda x, _: rotate_in_float64(x, angles)),
    }
    for name, (function, reference) in functions.items():
        with torch.no_grad():
            found, expected = function(states.to(dtype), other.to(dtype)), reference(states, other)
        yield name, "300 x 256", largest_error([found], [expected])


def rotate_in_float64(x: Tensor, angles: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.double().cos(), angles.double().sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Over all tensors, the largest difference relative to the largest number."""
    pairs = zip(found, expected, strict=True)
    return max(float((a[: len(b)].double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def _has_flash_attn() -> bool:
    try:
        import_flash_attn()
    except MissingDependencyError:
        return False
    return True
