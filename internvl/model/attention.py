"""The attention seam: causal attention over packed rows and cached sequences, by name.

Model code asks `attend` for attention and nothing else; which kernel runs is decided by the name in
`config._attn_implementation`. Documents of a packed row are told by `cu_seqlens`, never by position ids (fractional
positions would look like document borders), and no length x length mask is ever made: a row is cut at its document
borders (or at its padding) and every piece goes through torch's scaled_dot_product_attention, whose fused kernels
know grouped-query heads and causal order.

The functions are registered with transformers' AttentionInterface under `packed_sdpa`, together with a mask function
that builds no mask, so that decoders of transformers can use them too. Further names (flash, ring, ulysses) register
in the same table.

Under torch.compile the seam is where a graph ends and the next begins: which pieces a row has is data.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .errors import ConfigError

DEFAULT_ATTENTION = "packed_sdpa"
_MASK_ENTRIES = 2**22  # of a mask at a time, where cached keys stand in front of the queries


class AttentionFunction(Protocol):
    """Causal self-attention of queries that are the last tokens of their keys.

    Args:
        query: (batch, heads, query_length, head_dim).
        key: (batch, kv_heads, key_length, head_dim), heads a multiple of kv_heads.
        value: Same shape as `key`.
        scaling: Factor of the scores.
        cu_seqlens: (documents + 1,) int borders of a packed row; needs a batch of one and query_length == key_length.
        attention_mask: (batch, key_length), 0 where padded; every row's real tokens stand in one piece.

    Returns:
        (batch, heads, query_length, head_dim). Rows of padding are zero.
    """

    def __call__(  # noqa: D102
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        cu_seqlens: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor: ...


# Names that transformers fills in when nobody chose one.
_UNCHOSEN = (None, "eager", "sdpa")


def register_attention(name: str, function: AttentionFunction) -> None:
    """Make `function` selectable as `attn_implementation=name` in our decoder and in those of transformers."""
    _ATTENTION[name] = function
    AttentionInterface.register(name, _as_interface(function))
    AttentionMaskInterface.register(name, _padding_mask)


@torch.compiler.disable
def attend(
    name: str | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    query_scale: Tensor | None = None,
    attention: AttentionFunction | None = None,
) -> Tensor:
    """Attention by the function registered under `name` (see `AttentionFunction`).

    `query_scale`: (batch or 1, query_length) factors of the queries (see logn_scaling.py); None: 1.
    `attention`: the function of this call, instead of the registered one.

    Raises:
        ConfigError: No function of that name.
    """
    function = attention or _ATTENTION.get(DEFAULT_ATTENTION if name in _UNCHOSEN else name)
    if function is None:
        raise ConfigError(f"unknown attention {name!r}; registered: {sorted(map(str, _ATTENTION))}")
    query = _scale_queries(query, query_scale)
    return function(query, key, value, scaling=scaling, cu_seqlens=cu_seqlens, attention_mask=attention_mask)


def is_registered(name: str | None) -> bool:
    """Whether `name` was registered here (and was not just filled in by transformers)."""
    return name in _ATTENTION


def packed_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Torch's fused attention, piece by piece (see `AttentionFunction`)."""
    if cu_seqlens is not None:
        return _attend_documents(query, key, value, scaling, cu_seqlens)
    if attention_mask is not None and not bool(attention_mask.all()):
        return _attend_padded(query, key, value, scaling, attention_mask)
    return attend_causal(query, key, value, scaling)


def attend_causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention where query i of n sees the first `key_length - n + i + 1` keys."""
    query_length, key_length = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if query_length in (1, key_length):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=query_length > 1, scale=scaling, enable_gqa=grouped
        )
    if query.device.type == "cpu" and not torch.is_grad_enabled():
        return _attend_cached_chunk(query, key, value, scaling)
    return _attend_with_masks(query, key, value, scaling)


def _attend_cached_chunk(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """A further chunk of a cached sequence: all cached keys, then the chunk's own, merged by their log-sum-exp."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    num_cached = key.shape[2] - query.shape[2]
    cached, cached_lse = flash(query, key[:, :, :num_cached], value[:, :, :num_cached], 0.0, False, scale=scaling)
    own, own_lse = flash(query, key[:, :, num_cached:], value[:, :, num_cached:], 0.0, True, scale=scaling)
    weight = torch.sigmoid(cached_lse - own_lse).unsqueeze(-1)
    return torch.lerp(own.to(weight.dtype), cached.to(weight.dtype), weight).to(query.dtype)


def _attend_with_masks(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """The same on any device and with gradients: one mask of bounded size per block of queries."""
    query_length, key_length = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    block_length = max(_MASK_ENTRIES // key_length, 1)
    order = torch.arange(key_length, device=query.device)
    blocks = []
    for first in range(0, query_length, block_length):
        block = query[:, :, first : first + block_length]
        visible = key_length - query_length + first + block.shape[2]
        mask = order[:visible] <= order[visible - block.shape[2] : visible].unsqueeze(1)
        blocks.append(
            F.scaled_dot_product_attention(
                block, key[:, :, :visible], value[:, :, :visible], attn_mask=mask, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(blocks, dim=2)


def _attend_documents(query: Tensor, key: Tensor, value: Tensor, scaling: float, cu_seqlens: Tensor) -> Tensor:
    borders = cu_seqlens.reshape(-1).tolist()
    if query.shape[0] != 1 or query.shape[2] != key.shape[2] or borders[-1] != query.shape[2]:
        raise ValueError(
            f"cu_seqlens {borders[:4]}...{borders[-1]} needs one row of {borders[-1]} queries and keys, "
            f"got batch {query.shape[0]}, {query.shape[2]} queries, {key.shape[2]} keys"
        )
    lengths = [b - a for a, b in pairwise(borders)]
    documents = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    # Joined token by token, as the kernels lay their outputs out in memory.
    outputs = [attend_causal(q, k, v, scaling).transpose(1, 2) for q, k, v in documents if q.shape[2]]
    return torch.cat(outputs, dim=1).transpose(1, 2)


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, scaling: float, attention_mask: Tensor) -> Tensor:
    query_length, key_length = query.shape[2], key.shape[2]
    rows = []
    for i, mask in enumerate(attention_mask[:, :key_length].bool()):
        first, last = real_span(mask)
        hidden = key_length - query_length  # keys that stand in the cache only
        query_first, query_last = max(first - hidden, 0), max(last - hidden, 0)
        row = query.new_zeros(1, *query.shape[1:])
        if query_last > query_first:
            row_slice = slice(query_first, query_last)
            piece = attend_causal(
                query[i : i + 1, :, row_slice],
                key[i : i + 1, :, first:last],
                value[i : i + 1, :, first:last],
                scaling,
            )
            row = F.pad(piece, (0, 0, query_first, query_length - query_last))
        rows.append(row)
    return torch.cat(rows, dim=0)


def real_span(mask: Tensor) -> tuple[int, int]:
    """(first, last + 1) index of the real tokens of one row.

    Raises:
        ValueError: Padding between real tokens.
    """
    real = mask.nonzero().squeeze(1)
    if len(real) == 0:
        return 0, 0
    first, last = int(real[0]), int(real[-1]) + 1
    if last - first != len(real):
        raise ValueError("attention_mask has padding between real tokens; pad on the left or on the right only")
    return first, last


def _as_interface(function: AttentionFunction) -> Callable:
    @torch.compiler.disable
    def interface(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=None,
        dropout=0.0,
        cu_seqlens=None,
        query_scale=None,
        attention=None,
        **kwargs,
    ):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query = _scale_queries(query, query_scale)
        # Rotation in float32 leaves queries and keys in float32; the kernels want one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        attend = attention or function
        out = attend(query, key, value, scaling=scaling, cu_seqlens=cu_seqlens, attention_mask=attention_mask)
        return out.transpose(1, 2), None

    return interface


def _scale_queries(query: Tensor, scale: Tensor | None) -> Tensor:
    """(batch, heads, length, head_dim) times (batch or 1, length), in the dtype of the queries."""
    if scale is None:
        return query
    return (query * scale.to(query.device)[:, None, :, None]).to(query.dtype)


def _padding_mask(*args, attention_mask: Tensor | None = None, **kwargs) -> Tensor | None:
    """What our attention functions want of transformers' mask code: (batch, key_length) padding, no square mask."""
    return attention_mask


_ATTENTION: dict[str | None, AttentionFunction] = {DEFAULT_ATTENTION: packed_sdpa}


def register_builtin_attention() -> None:
    """Make this file's functions known to transformers (the chat model calls it when it is made)."""
    register_attention(DEFAULT_ATTENTION, packed_sdpa)
