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
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import ConfigError
from .shapes import Bool, Float64, Int, Int64, Num, Shaped

ROPE_POS_ID_VERSIONS = ("default", "v2pe_fix", "v2pe_rnd")
RANDOM_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STRIDE_UNITS = 65536
_BLOCK_TOKENS = 65536

Stride: TypeAlias = int | float | Fraction
Strides: TypeAlias = Stride | Sequence[Stride] | Tensor | None


def check_version(version: str) -> None:
    """Raise ConfigError unless `version` is one of `ROPE_POS_ID_VERSIONS`."""
    if version not in ROPE_POS_ID_VERSIONS:
        raise ConfigError(f"unknown rope_pos_id_version {version!r}; expected one of {', '.join(ROPE_POS_ID_VERSIONS)}")


def check_stride(version: str, stride: Stride | None) -> None:
    """Raise ConfigError unless version and stride fit together.

    `v2pe_fix` needs a positive finite stride. `default` and `v2pe_rnd` use none, but one that is given must be valid.
    """
    check_version(version)
    if stride is None:
        if version == "v2pe_fix":
            raise ConfigError(
                "rope_pos_id_version v2pe_fix needs rope_pos_id_stride (positions that one tile spans, for example 64)"
            )
        return
    if isinstance(stride, bool) or not math.isfinite(stride) or stride <= 0:
        raise ConfigError(f"rope_pos_id_stride must be a positive number, got {stride!r}")


def positions_per_row(position_ids: Tensor, input_ids: Tensor) -> Tensor:
    """Expand positions given once, or once per row, to (batch, length), one per token of `input_ids`.

    Raises:
        ValueError: The numbers of positions or rows do not fit.
    """
    rows = position_ids.reshape(-1, position_ids.shape[-1])
    if rows.shape[-1] != input_ids.shape[-1] or len(rows) not in (1, len(input_ids)):
        raise ValueError(
            f"position_ids has {rows.shape[-1]} positions for {input_ids.shape[-1]} tokens, {len(rows)} rows for "
            f"{len(input_ids)}; give one position per token"
        )
    return rows.expand(len(input_ids), -1)


def stride_to_units(stride: Stride) -> int:
    """A stride as a whole number of 1/65536ths, the form in which batches carry it.

    Raises:
        ConfigError: Not positive, or not a multiple of 1/65536.
    """
    check_stride("v2pe_fix", stride)
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
    ids = input_ids.reshape(-1)
    valid = None if attention_mask is None else attention_mask.reshape(-1).bool()
    starts = document_starts(input_ids, cu_seqlens)
    visual = ids == image_token_id
    if valid is not None:
        visual &= valid

    # All decisions are made per run (text, image or padding): its stride, and how many whole positions it takes.
    run_start = find_run_starts(visual, valid, starts)
    run_length = torch.diff(run_start, append=run_start.new_tensor([len(ids)]))
    image = visual[run_start].nonzero().squeeze(1)
    image_strides = strides_per_image(strides, len(image), num_image_token)
    run_stride = torch.full_like(run_start, num_image_token, dtype=torch.float64)
    run_stride[image] = torch.tensor([float(s) for s in image_strides], dtype=torch.float64, device=ids.device)
    advance = run_length.clone()
    advance[image] = _whole_advances(run_length[image], image_strides, num_image_token)
    if valid is not None:
        advance *= valid[run_start]

    # Position before the first token of every run: what earlier runs of its document took.
    taken = advance.cumsum(0) - advance
    document = torch.searchsorted(starts, run_start, right=True) - 1
    anchor = taken - taken[torch.searchsorted(run_start, starts)][document] - 1

    positions = _spread_runs(run_start, run_length, anchor, run_stride, num_image_token)
    if valid is not None:
        positions.masked_fill_(~valid, 1.0)
    return positions.reshape(input_ids.shape)


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


def document_starts(
    input_ids: Int[Tensor, "*batch length"], cu_seqlens: Int[Tensor, " borders"] | None
) -> Int64[Tensor, " documents"]:
    """Index of the first token of every document in the flattened batch, without empty documents.

    Raises:
        ValueError: `cu_seqlens` that is not 0 ... length in non-decreasing order, or a batch of several rows with it.
    """
    batch, length = input_ids.shape[:-1].numel(), input_ids.shape[-1]
    if cu_seqlens is None:
        if length == 0:
            return torch.zeros(0, dtype=torch.int64, device=input_ids.device)
        return torch.arange(0, batch * length, length, device=input_ids.device)
    borders = cu_seqlens.reshape(-1).to(device=input_ids.device, dtype=torch.int64)
    if batch != 1:
        raise ValueError(f"cu_seqlens describes one packed row, got a batch of {batch} rows")
    if len(borders) < 2 or borders[0] != 0 or borders[-1] != length or (borders.diff() < 0).any():
        raise ValueError(f"cu_seqlens must rise from 0 to the row's length {length}, got {borders.tolist()[:8]}...")
    starts = borders[:-1]
    return starts[borders.diff() > 0]


def find_run_starts(
    visual: Bool[Tensor, " tokens"], valid: Bool[Tensor, " tokens"] | None, starts: Int64[Tensor, " documents"]
) -> Int64[Tensor, " runs"]:
    """Cut a row into runs of one kind (visual tokens, other tokens, padding), never across a document border.

        token  <pad> <pad>  a  <img>  v1  v2  v3  v4  </img>  b
        run      0     0    1    1    2   2   2   2     3     3

    Args:
        visual: False on padding.
        valid: False on padding; None without padding.
        starts: First token of every document.

    Returns:
        Index of the first token of every run, ascending.
    """
    first = torch.zeros_like(visual)
    torch.ne(visual[1:], visual[:-1], out=first[1:])
    if valid is not None:
        first[1:] |= valid[1:] != valid[:-1]
    first[starts] = True
    return first.nonzero().squeeze(1)


def strides_per_image(strides: Strides, num_images: int, num_image_token: int) -> Sequence[Stride]:
    """One stride per image from any of the accepted forms.

    Raises:
        ConfigError: Wrong count, or a stride that is not a positive number.
    """
    if isinstance(strides, Tensor):
        strides = strides.tolist()
    if strides is None:
        strides = num_image_token
    values = strides if isinstance(strides, Sequence) else [strides] * num_images
    if len(values) != num_images:
        raise ConfigError(f"got {len(values)} strides for {num_images} images; give one per image, or one for all")
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ConfigError(f"strides must be positive numbers, got {list(values[:8])}")
    return values


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
