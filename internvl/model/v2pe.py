"""Variable Visual Position Encoding: how far every token advances the rotary position.

Text advances by 1. The visual tokens of one image advance by `delta = stride / T` each, where T is the number of
visual tokens of a tile, so that one tile spans `stride` positions (arXiv 2412.09616). With T = 4, stride 2 and an
image of two tiles between text tokens:

    token     a   b  <img>  v1   v2   v3   v4   v5   v6   v7   v8  </img>  c
    position  0   1    2    2.5  3.0  3.5  4.0  4.5  5.0  5.5  6.0    7    8

The k-th visual token sits at `p(<img>) + k * stride / T`, the token behind the image at `ceil(last) + 1`. Text is
always on whole numbers. stride = T gives ordinary positions.

Everything here is a pure function of (ids, one stride per image, document borders). Positions are float64 and whole
numbers inside are counted in int64, so they are exact for rows of millions of tokens. Batches carry strides as
integers in units of 1/65536 (`STRIDE_UNITS`): training frameworks cast float tensors to bf16, integers survive.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import ConfigError

ROPE_POS_ID_VERSIONS = ("default", "v2pe_fix", "v2pe_rnd")
RANDOM_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STRIDE_UNITS = 65536

Stride: TypeAlias = int | float | Fraction
Strides: TypeAlias = Stride | Sequence[Stride] | Tensor | None


def check_version(version: str) -> None:
    """Raise ConfigError unless `version` is one of `ROPE_POS_ID_VERSIONS`."""
    if version not in ROPE_POS_ID_VERSIONS:
        raise ConfigError(f"unknown rope_pos_id_version {version!r}; expected one of {', '.join(ROPE_POS_ID_VERSIONS)}")


def check_stride(version: str, stride: Stride | None) -> None:
    """Raise ConfigError unless version and stride fit together.

    `v2pe_fix` needs a positive finite stride; `default` and `v2pe_rnd` use none (one that is given must be sane).
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


def units_to_strides(units: Tensor) -> Tensor:
    """Inverse of `stride_to_units` for a tensor of any shape: int64 units -> float64 strides."""
    return units.to(torch.float64) / STRIDE_UNITS


def build_position_ids(
    input_ids: Tensor,
    *,
    image_token_id: int,
    num_image_token: int,
    strides: Strides,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Positions of every token.

    Args:
        input_ids: (batch, length) or (length,) token ids. Each run of `image_token_id` is one image.
        image_token_id: Id of the visual token (`<IMG_CONTEXT>`).
        num_image_token: T, visual tokens per tile.
        strides: Positions that one tile spans, in natural units. None for ordinary positions (stride = T), one
            number for all images, or one per image in the order of the row (rows of a batch one after another).
        cu_seqlens: (documents + 1,) borders of the documents of a packed row (batch of one). Every document starts
            at position 0.
        attention_mask: Same shape as `input_ids`, 0 where padded. Padding gets position 1 and advances nothing.

    Returns:
        float64 positions, same shape as `input_ids`.

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
    span_start, span_end = find_image_spans(visual, starts)
    span_length = span_end - span_start
    span_strides = strides_per_image(strides, len(span_start), num_image_token).to(ids.device)

    # `reach` counts whole positions: 1 for a text token, the whole span of an image at its last visual token.
    step = (~visual).to(torch.int64)
    if valid is not None:
        step *= valid
    step[span_end - 1] = _ceil_advance(span_length, span_strides, num_image_token)
    reach = step.cumsum(0)
    lengths = torch.diff(torch.cat([starts, starts.new_tensor([len(ids)])]))
    reach_before = torch.repeat_interleave(reach[starts] - step[starts], lengths)
    positions = (reach - reach_before - 1).to(torch.float64)

    if len(span_start):
        anchor = reach[span_start] - reach_before[span_start] - 1  # position of the token in front of the image
        anchor -= step[span_start]  # an image of one token carries its advance on that token
        visual_index = visual.nonzero().squeeze(1)
        order = visual_index - torch.repeat_interleave(span_start, span_length) + 1  # k = 1, 2, ...
        offset = order.to(torch.float64) * torch.repeat_interleave(span_strides, span_length) / num_image_token
        positions[visual_index] = torch.repeat_interleave(anchor, span_length) + offset
    if valid is not None:
        positions.masked_fill_(~valid, 1.0)
    return positions.reshape(input_ids.shape)


def document_starts(input_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Index of the first token of every document in the flattened batch, int64, without empty documents.

    Raises:
        ValueError: `cu_seqlens` that is not 0 ... length in non-decreasing order, or a batch of several rows with it.
    """
    batch, length = (1, input_ids.shape[0]) if input_ids.dim() == 1 else input_ids.shape
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


def find_image_spans(visual: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of visual tokens, never across a document border.

    Args:
        visual: (tokens,) bool.
        starts: First token of every document.

    Returns:
        (first, last + 1) index of every run, int64.
    """
    opens = visual.clone()
    opens[1:] &= ~visual[:-1]
    opens[starts] = visual[starts]
    closes = visual.clone()
    closes[:-1] &= ~visual[1:]
    inner_starts = starts[starts > 0]
    closes[inner_starts - 1] = visual[inner_starts - 1]
    return opens.nonzero().squeeze(1), closes.nonzero().squeeze(1) + 1


def strides_per_image(strides: Strides, num_images: int, num_image_token: int) -> Tensor:
    """One float64 stride per image from any of the accepted forms.

    Raises:
        ConfigError: Wrong count, or a stride that is not a positive number.
    """
    if strides is None:
        strides = num_image_token
    if isinstance(strides, Tensor):
        values = strides.detach().to(device="cpu", dtype=torch.float64).reshape(-1)
        if strides.dim() == 0:
            values = values.expand(num_images)
    elif isinstance(strides, (int, float, Fraction)):
        values = torch.full((num_images,), float(strides), dtype=torch.float64)
    else:
        values = torch.tensor([float(s) for s in _flatten(strides)], dtype=torch.float64)
    if len(values) != num_images:
        raise ConfigError(f"got {len(values)} strides for {num_images} images; give one per image, or one for all")
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ConfigError(f"strides must be positive numbers, got {values.tolist()[:8]}")
    return values


def _flatten(values: Iterable) -> Iterable[Stride]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flatten(value)
        else:
            yield value


def _ceil_advance(span_length: Tensor, strides: Tensor, num_image_token: int) -> Tensor:
    """ceil(length * stride / T) per image, int64, exact: near whole numbers the quotient is taken in rationals."""
    quotient = span_length.to(torch.float64) * strides / num_image_token
    advance = quotient.ceil()
    doubtful = (quotient - quotient.round()).abs() < 1e-6 * quotient.clamp(min=1.0)
    for i in doubtful.nonzero().squeeze(1).tolist():
        exact = Fraction(strides[i].item()) * int(span_length[i]) / num_image_token
        advance[i] = math.ceil(exact)
    return advance.to(torch.int64)


def draw_strides(num_images: int, choices: Sequence[Stride], generator: torch.Generator) -> list[Stride]:
    """One stride per image, uniform over `choices` (positions of version `v2pe_rnd` at inference)."""
    picks = torch.randint(len(choices), (num_images,), generator=generator)
    return [choices[i] for i in picks.tolist()]


def next_position(last_position: Tensor) -> Tensor:
    """Position of the first token behind a prompt: `ceil(last) + 1` (the n-th generated token: `ceil(last) + n`)."""
    return last_position.ceil() + 1


# --------------------------------------------------------------------------------------------------------------------
# Rotary tables


def ntk_base(base: float, lengths: Tensor, *, max_position_embeddings: int, factor: float, head_dim: int) -> Tensor:
    """Rotary base of dynamic NTK scaling for sequences of the given final lengths, float64.

    base' = base * (factor * length / max_position_embeddings - (factor - 1)) ** (head_dim / (head_dim - 2)) beyond
    `max_position_embeddings`, `base` up to it (the rule of InternLM2's dynamic rotary embedding).
    """
    ratio = factor * lengths.to(torch.float64) / max_position_embeddings - (factor - 1)
    return base * ratio.clamp(min=1.0) ** (head_dim / (head_dim - 2))


def rotary_tables(position_ids: Tensor, *, head_dim: int, base: float | Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles.

    Angles are computed in float64 and only their cosines and sines are rounded to float32: in bf16 most entries of
    neighbouring visual tokens would be identical at small strides.

    Args:
        position_ids: (batch, length) positions, any dtype.
        head_dim: Width of a head (even).
        base: Rotary base (theta), one number or (batch, length) one per token.

    Returns:
        cos and sin, (batch, length, head_dim / 2), float32.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=position_ids.device) / head_dim
    theta = torch.as_tensor(base, dtype=torch.float64, device=position_ids.device)
    inverse_frequency = theta.unsqueeze(-1) ** -exponent
    angles = position_ids.to(torch.float64).unsqueeze(-1) * inverse_frequency
    return angles.cos().to(torch.float32), angles.sin().to(torch.float32)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys in float32 ("rotate half" form) and cast back.

    Args:
        states: (batch, heads, length, head_dim).
        cos: (batch, length, head_dim / 2) float32.
        sin: Same.
    """
    first, second = states.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)
