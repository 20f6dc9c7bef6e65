"""The attention seam: causal attention over packed rows and cached sequences, by name.

Model code calls `attend` and nothing else; the name in `config._attn_implementation` decides which kernel runs.
Documents of a packed row are marked by `cu_seqlens`, never by position ids, since fractional positions would look like
document borders. No length x length mask is ever made: a row is cut at its document borders (or at its padding) and
every piece goes through torch's scaled_dot_product_attention, whose fused kernels know grouped-query heads and causal
order.

`packed_sdpa` is registered with transformers' AttentionInterface, together with a mask function that builds no mask,
so that decoders of transformers can use it too. Other kernels (flash, ring, ulysses) register in the same table.

Under torch.compile graphs end at the seam, because the pieces of a row are data.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .errors import ConfigError
from .shapes import Float, Int, Shaped

DEFAULT_ATTENTION = "packed_sdpa"
_MASK_ENTRIES = 2**22  # of one mask, which is needed where cached keys come before the queries


# Heads are a multiple of kv_heads.
Queries: TypeAlias = Float[Tensor, "batch heads queries head_dim"]
Keys: TypeAlias = Float[Tensor, "batch kv_heads keys head_dim"]
Borders: TypeAlias = Int[Tensor, " borders"]
Padding: TypeAlias = Shaped[Tensor, "batch keys"]


@runtime_checkable
class AttentionFunction(Protocol):
    """Causal self-attention of queries that are the last tokens of their keys.

    Args:
        query: Rotated queries.
        key: Rotated keys.
        value: Values.
        scaling: Factor of the scores.
        cu_seqlens: Document borders of a packed row; needs a batch of one and as many queries as keys.
        attention_mask: 0 where padded; the real tokens of every row are in one piece.

    Returns:
        Same shape as `query`; zero at padding.
    """

    def __call__(  # noqa: D102
        self,
        query: Queries,
        key: Keys,
        value: Keys,
        *,
        scaling: float,
        cu_seqlens: Borders | None,
        attention_mask: Padding | None,
    ) -> Queries: ...


# Names that transformers fills in when nobody chose one.
_UNCHOSEN = (None, "eager", "sdpa")


def register_attention(name: str, function: AttentionFunction) -> None:
    """Make `function` selectable as `attn_implementation=name` in our decoder and in those of transformers."""
    _ATTENTION[name] = function
    AttentionInterface.register(name, _as_interface(function))
    AttentionMaskInterface.register(name, _padding_mask)


@torch.compiler.disable
def attend(
    attention: str | AttentionFunction | None,
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    scaling: float,
    cu_seqlens: Borders | None = None,
    attention_mask: Padding | None = None,
    query_scale: Float[Tensor, "#batch queries"] | None = None,
) -> Queries:
    """Attention by a function, or by the one registered under a name (see `AttentionFunction`).

    `query_scale` are factors of the queries (log-n scaling, see rotary.py); None: 1.

    Raises:
        ConfigError: No function of that name.
    """
    if attention is None or isinstance(attention, str):
        name, attention = attention, _ATTENTION.get(DEFAULT_ATTENTION if attention in _UNCHOSEN else attention)
        if attention is None:
            raise ConfigError(f"unknown attention {name!r}; registered: {sorted(map(str, _ATTENTION))}")
    query = _scale_queries(query, query_scale)
    return attention(query, key, value, scaling=scaling, cu_seqlens=cu_seqlens, attention_mask=attention_mask)


def is_registered(name: str | None) -> bool:
    """Whether `name` was registered here, and not only filled in by transformers."""
    return name in _ATTENTION


def packed_sdpa(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    scaling: float,
    cu_seqlens: Borders | None = None,
    attention_mask: Padding | None = None,
) -> Queries:
    """Torch's fused attention, piece by piece (see `AttentionFunction`)."""
    if cu_seqlens is not None:
        return _attend_documents(query, key, value, scaling, cu_seqlens)
    if attention_mask is not None and not bool(attention_mask.all()):
        return _attend_padded(query, key, value, scaling, attention_mask)
    return attend_causal(query, key, value, scaling)


def attend_causal(query: Queries, key: Keys, value: Keys, scaling: float) -> Queries:
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


def _attend_cached_chunk(query: Queries, key: Keys, value: Keys, scaling: float) -> Queries:
    """A further chunk of a cached sequence: all cached keys, then the chunk's own, merged by their log-sum-exp."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    num_cached = key.shape[2] - query.shape[2]
    cached, cached_lse = flash(query, key[:, :, :num_cached], value[:, :, :num_cached], 0.0, False, scale=scaling)
    own, own_lse = flash(query, key[:, :, num_cached:], value[:, :, num_cached:], 0.0, True, scale=scaling)
    weight = torch.sigmoid(cached_lse - own_lse).unsqueeze(-1)
    return torch.lerp(own.to(weight.dtype), cached.to(weight.dtype), weight).to(query.dtype)


def _attend_with_masks(query: Queries, key: Keys, value: Keys, scaling: float) -> Queries:
    """As `_attend_cached_chunk`, on any device and with gradients: one mask of bounded size per block of queries."""
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


def _attend_documents(query: Queries, key: Keys, value: Keys, scaling: float, cu_seqlens: Borders) -> Queries:
    borders = cu_seqlens.reshape(-1).tolist()
    if query.shape[0] != 1 or query.shape[2] != key.shape[2] or borders[-1] != query.shape[2]:
        raise ValueError(
            f"cu_seqlens {borders[:4]}...{borders[-1]} needs one row of {borders[-1]} queries and keys, "
            f"got batch {query.shape[0]}, {query.shape[2]} queries, {key.shape[2]} keys"
        )
    lengths = [b - a for a, b in pairwise(borders)]
    documents = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    # Joined along tokens in the kernels' own memory layout, so that no output is copied twice.
    outputs = [attend_causal(q, k, v, scaling).transpose(1, 2) for q, k, v in documents if q.shape[2]]
    return torch.cat(outputs, dim=1).transpose(1, 2)


def _attend_padded(query: Queries, key: Keys, value: Keys, scaling: float, attention_mask: Padding) -> Queries:
    query_length, key_length = query.shape[2], key.shape[2]
    rows = []
    for i, mask in enumerate(attention_mask[:, :key_length].bool()):
        first, last = real_span(mask)
        hidden = key_length - query_length  # keys of the cache, whose queries are not here
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


def real_span(mask: Shaped[Tensor, " keys"]) -> tuple[int, int]:
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


def _as_interface(function: AttentionFunction) -> Callable[..., tuple[Tensor, None]]:
    """`function` with the signature that decoders of transformers call."""

    @torch.compiler.disable
    def interface(
        module: nn.Module,
        query: Queries,
        key: Keys,
        value: Keys,
        attention_mask: Padding | None,
        scaling: float | None = None,
        **context: Any,
    ) -> tuple[Float[Tensor, "batch queries heads head_dim"], None]:
        # Decoders hand on what they do not know: our three entries are `cu_seqlens`, `query_scale` and `attention`.
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query = _scale_queries(query, context.get("query_scale"))
        # Rotation in float32 leaves queries and keys in float32; the kernels want one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        chosen: AttentionFunction = context.get("attention") or function
        cu_seqlens = context.get("cu_seqlens")
        out = chosen(query, key, value, scaling=scaling, cu_seqlens=cu_seqlens, attention_mask=attention_mask)
        return out.transpose(1, 2), None

    return interface


def _scale_queries(query: Queries, scale: Float[Tensor, "#batch queries"] | None) -> Queries:
    if scale is None:
        return query
    return (query * scale.to(query.device)[:, None, :, None]).to(query.dtype)


def _padding_mask(*args: object, attention_mask: Padding | None = None, **kwargs: object) -> Padding | None:
    """In place of transformers' mask code: padding as it is, since our functions need no square mask."""
    return attention_mask


_ATTENTION: dict[str | None, AttentionFunction] = {DEFAULT_ATTENTION: packed_sdpa}


def register_builtin_attention() -> None:
    """Make `packed_sdpa` known to transformers (the chat model does, so that importing this file changes nothing)."""
    register_attention(DEFAULT_ATTENTION, packed_sdpa)
