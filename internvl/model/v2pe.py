"""Variable Visual Position Encoding (V2PE): where every token stands on the rotary axis.

Text advances by 1. The visual tokens of one image advance by `delta = stride / T` each, where T is the number of
visual tokens per tile, so that one tile spans `stride` positions (arXiv 2412.09616). With T = 4, stride 2 and an
image of two tiles between text tokens:

    token     a   b  <img>  v1   v2   v3   v4   v5   v6   v7   v8  </img>  c
    position  0   1    2    2.5  3.0  3.5  4.0  4.5  5.0  5.5  6.0    7    8

The k-th visual token sits at `p(<img>) + k * stride / T`, the token after the image at `ceil(last) + 1`: text always
stands on whole numbers. With stride = T all positions are ordinary ones.

Everything here is a pure function of ids, strides and document borders. Positions are float64 and exact for rows of
millions of tokens. Batches carry strides as integers in units of 1/65536 (`STRIDE_UNITS`), because training
frameworks cast float tensors to bf16 and leave integers alone.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from .errors import ConfigError
from .positions_scheme import Row, Scheme, Stride, Strides, read_row
from .shapes import Float64, Int, Int64, Num, Shaped

RANDOM_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STRIDE_UNITS = 65536
_BLOCK_TOKENS = 65536


def check_positive(stride: Stride) -> None:
    """Raise ConfigError unless a stride is a positive finite number."""
    if isinstance(stride, bool) or not math.isfinite(stride) or stride <= 0:
        raise ConfigError(f"rope_pos_id_stride must be a positive number, got {stride!r}")


def stride_to_units(stride: Stride) -> int:
    """A stride as a whole number of 1/65536ths, the form in which batches carry it.

    Raises:
        ConfigError: Not positive, or not a multiple of 1/65536.
    """
    check_positive(stride)
    units = Fraction(stride) * STRIDE_UNITS
    if units.denominator != 1:
        raise ConfigError(
            f"rope_pos_id_stride {stride!r} is not a multiple of 1/{STRIDE_UNITS}; "
            f"the nearest one is {max(round(units), 1) / STRIDE_UNITS!r}"
        )
    return int(units)


def units_to_strides(units: Int[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Inverse of `stride_to_units`."""
    return units.to(torch.float64) / STRIDE_UNITS


def build_position_ids(
    input_ids: Int[Tensor, "*batch length"],
    *,
    image_token_id: int,
    num_image_token: int,
    strides: Strides,
    cu_seqlens: Int[Tensor, " borders"] | None = None,
    attention_mask: Shaped[Tensor, "*batch length"] | None = None,
) -> Float64[Tensor, "*batch length"]:
    """Positions of every token.

    Args:
        input_ids: Token ids. Each run of `image_token_id` is one image.
        image_token_id: Id of the visual token (`<IMG_CONTEXT>`).
        num_image_token: T, visual tokens per tile.
        strides: Positions that one tile spans, in natural units. None for ordinary positions (stride = T), one
            number for all images, or one per image in the order of the row (rows of a batch one after another).
        cu_seqlens: Borders of the documents of a packed row (batch of one), each of which starts at position 0.
        attention_mask: 0 where padded. Padding gets position 1 and advances nothing.

    Raises:
        ConfigError: A stride that is not positive, or another number of strides than images.
        ValueError: `cu_seqlens` that do not cover the row.
    """
    row = read_row(
        input_ids,
        image_token_id=image_token_id,
        num_image_token=num_image_token,
        strides=strides,
        cu_seqlens=cu_seqlens,
        attention_mask=attention_mask,
    )
    return row.finish(place(row))


def place(row: Row) -> Float64[Tensor, " tokens"]:
    """V2PE positions of a row; without strides ordinary ones, since an image of stride T advances like text."""
    strides = row.strides(default=row.num_image_token)
    anchor = row.anchors(_whole_advances(row.image_length, strides, row.num_image_token))
    run_stride = torch.full_like(row.run_start, row.num_image_token, dtype=torch.float64)
    run_stride[row.image] = torch.tensor(
        [float(stride) for stride in strides], dtype=torch.float64, device=run_stride.device
    )
    return _spread_runs(row.run_start, row.run_length, anchor, run_stride, row.num_image_token)


def ordinary_positions(
    batch: int,
    length: int,
    num_cached: int,
    attention_mask: Shaped[Tensor, "batch keys"] | None,
    cu_seqlens: Int[Tensor, " borders"] | None,
    device: torch.device,
) -> Int64[Tensor, "rows length"]:
    """Positions that advance by 1 per token, images or not: (batch, length), or (1, length) of a packed row.

    Args:
        num_cached: Tokens before them, in a cache.
        attention_mask: Of cached and new tokens, 0 where padded; padding gets position 1.
        cu_seqlens: Borders of a packed row, whose documents all start at 0.
    """
    if cu_seqlens is not None:
        borders = cu_seqlens.reshape(-1).to(device, torch.int64)
        starts = torch.repeat_interleave(borders[:-1], borders.diff())
        return (torch.arange(length, device=device) - starts).unsqueeze(0)
    if attention_mask is None:
        return torch.arange(num_cached, num_cached + length, device=device).expand(batch, -1)
    positions = attention_mask.long().cumsum(1) - 1
    return positions.masked_fill(attention_mask == 0, 1)[:, -length:]


def _whole_advances(
    lengths: Int64[Tensor, " images"], strides: Sequence[Stride], num_image_token: int
) -> Int64[Tensor, " images"]:
    """ceil(length * stride / T) of every image.

    In Python's integers, since a float product would round ten tiles of 1/10 up to the next whole position. There is
    one image per hundreds of tokens: the loop costs little beside `_spread_runs`.
    """
    advances = []
    for length, stride in zip(lengths.tolist(), strides, strict=True):
        numerator, denominator = stride.as_integer_ratio()
        advances.append(-(-length * numerator // (num_image_token * denominator)))
    return torch.tensor(advances, dtype=torch.int64, device=lengths.device)


def _spread_runs(
    run_start: Int64[Tensor, " runs"],
    run_length: Int64[Tensor, " runs"],
    anchor: Int64[Tensor, " runs"],
    run_stride: Float64[Tensor, " runs"],
    num_image_token: int,
) -> Float64[Tensor, " tokens"]:
    """Token k = 1, 2, ... of a run sits at anchor + k * stride / T."""
    run_of_token = torch.repeat_interleave(run_length.to(torch.int32))
    positions = torch.arange(1, len(run_of_token) + 1, dtype=torch.float64, device=run_start.device)
    run_start, anchor = run_start.to(torch.float64), anchor.to(torch.float64)
    # Block by block, because a block stays in the processor's cache: twice as fast as on the whole row, at one and at
    # sixteen million tokens (benchmarks/positions.py), and no second row of floats exists beside the result.
    for block, run in zip(positions.split(_BLOCK_TOKENS), run_of_token.split(_BLOCK_TOKENS), strict=True):
        block -= run_start.index_select(0, run)
        block *= run_stride.index_select(0, run)
        block /= num_image_token
        block += anchor.index_select(0, run)
    return positions


def draw_strides(num_images: int, choices: Sequence[Stride], generator: torch.Generator) -> list[Stride]:
    """One stride per image, uniform over `choices` (positions of version `v2pe_rnd` at inference)."""
    picks = torch.randint(len(choices), (num_images,), generator=generator)
    return [choices[i] for i in picks.tolist()]


def next_position(last_position: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
    """Position of the first token after a prompt: `ceil(last) + 1` (the n-th generated token: `ceil(last) + n`)."""
    return last_position.ceil() + 1


def axes_of_channels(num_frequencies: int, num_kv_heads: int) -> Int64[Tensor, " frequencies"]:
    """The one axis turns all frequencies."""
    return torch.zeros(num_frequencies, dtype=torch.int64)


V2PE = Scheme(place, axes_of_channels, next_position)
