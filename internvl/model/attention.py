"""The attention seam: causal attention over packed rows and cached sequences, by name.

Model code calls `attend` and nothing else; the name in `config._attn_implementation` decides which kernel runs.
Documents of a packed row are marked by `cu_seqlens`, never by position ids, since fractional positions would look like
document borders. No length x length mask is ever made.

    CUDA, half precision   torch's flash kernel, once per layer: it takes all documents of a row, or all padded rows
                           of a batch, by their borders, and a further chunk after cached keys as it is
    everywhere else        torch's scaled_dot_product_attention, once per document or padded row

On CUDA, scaled_dot_product_attention would prefer cuDNN's kernel, which makes a plan for every new shape (about a
second each, and lengths are always new). So it is not asked where the flash kernel can compute.

What a layer needs to know of borders and padding is read once per forward pass: no layer waits for the GPU.

`packed_sdpa` is registered with transformers' AttentionInterface, together with a mask function that builds no mask,
so that decoders of transformers can use it too. Other kernels (flash, ring, ulysses) register in the same table.

Under torch.compile graphs end at the seam, because the pieces of a row are data.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .capabilities import find_varlen_attention, repeat_heads
from .errors import ConfigError
from .shapes import Float, Int, Shaped

DEFAULT_ATTENTION = "packed_sdpa"
_MASK_ENTRIES = 2**22  # of one mask, which is needed where cached keys come before the queries
_MAX_FLASH_HEAD_DIM = 256
_FLASH_CAPABILITY = (8, 0)  # of CUDA devices: Ampere


# Heads are a multiple of kv_heads.
Queries: TypeAlias = Float[Tensor, "batch heads queries head_dim"]
Keys: TypeAlias = Float[Tensor, "batch kv_heads keys head_dim"]
Borders: TypeAlias = Int[Tensor, " borders"]
Mask: TypeAlias = Shaped[Tensor, "batch keys"]
Padding: TypeAlias = tuple[tuple[int, int], ...]  # (first, last + 1) real token of every row, see `find_padding`


@runtime_checkable
class AttentionFunction(Protocol):
    """Causal self-attention of queries that are the last tokens of their keys.

    Args:
        query: Rotated queries.
        key: Rotated keys.
        value: Values.
        scaling: Factor of the scores.
        cu_seqlens: Document borders of a packed row; needs a batch of one and as many queries as keys. On the CPU:
            every layer reads them.
        attention_mask: Where the real tokens of every row are; None: everywhere.

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
    AttentionMaskInterface.register(name, _read_mask)


@torch.compiler.disable
def attend(
    attention: str | AttentionFunction | None,
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    scaling: float,
    cu_seqlens: Borders | None = None,
    attention_mask: Padding | Mask | None = None,
    query_scale: Float[Tensor, "#batch queries"] | None = None,
) -> Queries:
    """Attention by a function, or by the one registered under a name (see `AttentionFunction`).

    A mask, 0 where padded, is read at every call; decoders read it once per forward pass, by `find_padding`.
    `query_scale` are factors of the queries (log-n scaling, see rotary.py); None: 1.

    Raises:
        ConfigError: No function of that name.
    """
    if attention is None or isinstance(attention, str):
        name, attention = attention, _ATTENTION.get(DEFAULT_ATTENTION if attention in _UNCHOSEN else attention)
        if attention is None:
            raise ConfigError(f"unknown attention {name!r}; registered: {sorted(map(str, _ATTENTION))}")
    query = _scale_queries(query, query_scale)
    padding = find_padding(attention_mask) if isinstance(attention_mask, Tensor) else attention_mask
    return attention(query, key, value, scaling=scaling, cu_seqlens=cu_seqlens, attention_mask=padding)


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
    """Torch's fused attention (see `AttentionFunction`)."""
    if cu_seqlens is not None:
        return _attend_documents(query, key, value, scaling, _read_borders(query, key, cu_seqlens))
    if attention_mask is not None:
        return _attend_padded(query, key, value, scaling, attention_mask)
    return attend_causal(query, key, value, scaling)


def attend_causal(query: Queries, key: Keys, value: Keys, scaling: float) -> Queries:
    """Causal attention where query i of n sees the first `key_length - n + i + 1` keys."""
    query_length, key_length = query.shape[2], key.shape[2]
    if query_length in (1, key_length) or takes_flash(query):
        return attend_fused(query, key, value, scaling=scaling, is_causal=query_length > 1)
    if query.is_cuda:  # the kernel for float32 has no grouped heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        order = causal_lower_right(query_length, key_length)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=order, scale=scaling)
    if not torch.is_grad_enabled():
        return _attend_cached_chunk(query, key, value, scaling)
    return _attend_with_masks(query, key, value, scaling)


def attend_fused(
    query: Queries, key: Keys, value: Keys, *, scaling: float, is_causal: bool, dropout: float = 0.0
) -> Queries:
    """Torch's flash kernel where it computes on CUDA, and what scaled_dot_product_attention chooses elsewhere.

    Causal order needs as many queries as keys; the flash kernel on CUDA takes fewer queries, which are then the last.
    """
    if takes_flash(query):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout, is_causal, scale=scaling)[0]
    if not query.is_cuda:
        key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=is_causal, scale=scaling, enable_gqa=grouped
    )


def takes_flash(query: Queries) -> bool:
    """Whether torch's flash kernel for CUDA computes these queries."""
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    head_dim = query.shape[-1]
    if not query.is_cuda or not is_half or head_dim % 8 or head_dim > _MAX_FLASH_HEAD_DIM:
        return False
    return torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY


def _takes_sequences(query: Queries) -> bool:
    """Whether one call of the flash kernel computes many sequences; otherwise each one is a call."""
    return takes_flash(query) and find_varlen_attention() is not None


def _attend_sequences(
    query: Queries, key: Keys, value: Keys, scaling: float, lengths: Sequence[tuple[int, int]]
) -> Queries:
    """Causal attention in every sequence of a batch, by one call of the flash kernel.

    `lengths` are the numbers of queries and of keys of every sequence, in the order of the rows. The last query of a
    sequence sees its last key; queries without keys get 0.
    """
    varlen_attention = find_varlen_attention()
    assert varlen_attention is not None
    query_borders, key_borders = (tuple(accumulate(numbers, initial=0)) for numbers in zip(*lengths, strict=True))
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    out = varlen_attention(
        q,
        k,
        v,
        send_borders(query_borders, query.device),
        send_borders(key_borders, query.device),
        max(num_queries for num_queries, _ in lengths),
        max(num_keys for _, num_keys in lengths),
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.unflatten(0, (query.shape[0], -1)).transpose(1, 2)


@lru_cache(maxsize=64)
def send_borders(borders: tuple[int, ...], device: torch.device) -> Tensor:
    """Borders as int32 on a device: sent once, for all layers and for the backward pass, and not waited for."""
    with torch.inference_mode(False):  # training may meet the borders that an evaluation sent
        sent = torch.tensor(borders, dtype=torch.int32, pin_memory=torch.cuda.is_available())
        return sent.to(device, non_blocking=True)


def _attend_cached_chunk(query: Queries, key: Keys, value: Keys, scaling: float) -> Queries:
    """A further chunk of a cached sequence: all cached keys, then the chunk's own, merged by their log-sum-exp."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    key, value = (repeat_heads(states, query.shape[1]) for states in (key, value))
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


def _read_borders(query: Queries, key: Keys, cu_seqlens: Borders) -> list[int]:
    borders = cu_seqlens.reshape(-1).tolist()
    if query.shape[0] != 1 or query.shape[2] != key.shape[2] or borders[-1] != query.shape[2]:
        raise ValueError(
            f"cu_seqlens {borders[:4]}...{borders[-1]} needs one row of {borders[-1]} queries and keys, "
            f"got batch {query.shape[0]}, {query.shape[2]} queries, {key.shape[2]} keys"
        )
    return borders


def _attend_documents(query: Queries, key: Keys, value: Keys, scaling: float, borders: Sequence[int]) -> Queries:
    lengths = [b - a for a, b in pairwise(borders)]
    if _takes_sequences(query):
        return _attend_sequences(query, key, value, scaling, [(length, length) for length in lengths])
    documents = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    # Joined along tokens in the kernels' own memory layout, so that no output is copied twice.
    outputs = [attend_causal(q, k, v, scaling).transpose(1, 2) for q, k, v in documents if q.shape[2]]
    return torch.cat(outputs, dim=1).transpose(1, 2)


def _attend_padded(query: Queries, key: Keys, value: Keys, scaling: float, padding: Padding) -> Queries:
    query_length, key_length = query.shape[2], key.shape[2]
    hidden = key_length - query_length  # keys of the cache, whose queries are not here
    spans = [(min(first, key_length), min(last, key_length)) for first, last in padding]
    if _takes_sequences(query):
        lengths = [part for span in spans for part in _split_padded_row(*span, query_length, key_length)]
        return _attend_sequences(query, key, value, scaling, lengths)
    rows = []
    for i, (first, last) in enumerate(spans):
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


def _split_padded_row(first: int, last: int, query_length: int, key_length: int) -> list[tuple[int, int]]:
    """(queries, keys) of the sequences in a row: padding sees nothing and nothing sees it.

    queries   p p r r r p      first 2, last 5 of 6 keys, as many queries
    keys      p p r r r p      (2, 0) (0, 2) (3, 3) (0, 1) (1, 0)
    """
    hidden = key_length - query_length
    query_first, query_last = max(first - hidden, 0), max(last - hidden, 0)
    parts = [
        (query_first, 0),
        (0, first),
        (query_last - query_first, last - first),
        (0, key_length - last),
        (query_length - query_last, 0),
    ]
    return [part for part in parts if any(part)]


@torch.compiler.disable
def find_padding(attention_mask: Mask | None) -> Padding | None:
    """Where the real tokens of every row are: once per forward pass, since it waits for the mask.

    Args:
        attention_mask: Of cached and new tokens, 0 where padded.

    Returns:
        First and last + 1 index of the real tokens of every row; None without padding.

    Raises:
        ValueError: Padding between real tokens.
    """
    if attention_mask is None:
        return None
    mask = attention_mask.bool().cpu()
    return None if bool(mask.all()) else tuple(real_span(row) for row in mask)


def real_span(mask: Shaped[Tensor, " keys"]) -> tuple[int, int]:
    """(first, last + 1) index of the real tokens of one row, whose mask is on the CPU.

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


def _read_mask(*args: object, attention_mask: Mask | None = None, **kwargs: object) -> Padding | None:
    """In place of transformers' mask code, which runs once per forward pass: our functions need no square mask."""
    return find_padding(attention_mask)


_ATTENTION: dict[str | None, AttentionFunction] = {DEFAULT_ATTENTION: packed_sdpa}


def register_builtin_attention() -> None:
    """Make `packed_sdpa` known to transformers (the chat model does, so that importing this file changes nothing)."""
    register_attention(DEFAULT_ATTENTION, packed_sdpa)
