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
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import ConfigError

ROPE_POS_ID_VERSIONS = ("default", "v2pe_fix", "v2pe_rnd")
RANDOM_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STRIDE_UNITS = 65536
_BLOCK = 65536  # tokens whose positions fit into a processor cache

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

    # All decisions are made per run (text, image or padding): its stride, and how many whole positions it takes.
    run_start = find_run_starts(visual, valid, starts)
    run_length = torch.diff(run_start, append=run_start.new_tensor([len(ids)]))
    image = visual[run_start].nonzero().squeeze(1)
    image_strides = strides_per_image(strides, len(image), num_image_token).to(ids.device)
    run_stride = torch.full_like(run_start, num_image_token, dtype=torch.float64)
    run_stride[image] = image_strides
    advance = run_length.clone()
    advance[image] = _ceil_advance(run_length[image], image_strides, num_image_token, _inexact_strides(strides))
    if valid is not None:
        advance *= valid[run_start]

    # Position in front of every run: what the runs before it took, counted from the start of its document.
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
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    device: torch.device,
) -> Tensor:
    """A token each, without regard to images: int64, (batch, length) or (1, length) of a packed row.

    Args:
        batch: Rows.
        length: Tokens of a row.
        num_cached: Tokens in front of them.
        attention_mask: (batch, cached + length), 0 where padded; padding gets position 1.
        cu_seqlens: (documents + 1,) borders of a packed row; every document starts at 0.
        device: Where to.
    """
    if cu_seqlens is not None:
        borders = cu_seqlens.reshape(-1).to(device, torch.int64)
        starts = torch.repeat_interleave(borders[:-1], borders.diff())
        return (torch.arange(length, device=device) - starts).unsqueeze(0)
    if attention_mask is None:
        return torch.arange(num_cached, num_cached + length, device=device).expand(batch, -1)
    positions = attention_mask.long().cumsum(1) - 1
    return positions.masked_fill(attention_mask == 0, 1)[:, -length:]


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


def find_run_starts(visual: Tensor, valid: Tensor | None, starts: Tensor) -> Tensor:
    """Cut a row into runs of one kind (visual tokens, other tokens, padding), never across a document border.

        token  <pad> <pad>  a  <img>  v1  v2  v3  v4  </img>  b
        run      0     0    1    1    2   2   2   2     3     3

    Args:
        visual: (tokens,) bool, false on padding.
        valid: (tokens,) bool, false on padding; None without padding.
        starts: First token of every document.

    Returns:
        Index of the first token of every run, int64, ascending.
    """
    first = torch.zeros_like(visual)
    torch.ne(visual[1:], visual[:-1], out=first[1:])
    if valid is not None:
        first[1:] |= valid[1:] != valid[:-1]
    first[starts] = True
    return first.nonzero().squeeze(1)


def _spread_runs(
    run_start: Tensor, run_length: Tensor, anchor: Tensor, run_stride: Tensor, num_image_token: int
) -> Tensor:
    """Token k = 1, 2, ... of a run sits at anchor + k * stride / T: (runs,) each -> (tokens,) float64.

    A block at a time and in place, so that the row is written to memory once and needs no second one beside it.
    """
    run_start, anchor = run_start.to(torch.float64), anchor.to(torch.float64)
    run_of_token = torch.repeat_interleave(run_length.to(torch.int32))
    positions = torch.empty(len(run_of_token), dtype=torch.float64, device=run_start.device)
    scratch = torch.empty(min(len(positions), _BLOCK), dtype=torch.float64, device=run_start.device)
    for first, block in enumerate(positions.split(_BLOCK)):
        run = run_of_token[first * _BLOCK : first * _BLOCK + len(block)]
        of_run = scratch[: len(block)]
        torch.arange(first * _BLOCK + 1, first * _BLOCK + len(block) + 1, out=block)
        block -= torch.index_select(run_start, 0, run, out=of_run)
        block *= torch.index_select(run_stride, 0, run, out=of_run)
        block /= num_image_token
        block += torch.index_select(anchor, 0, run, out=of_run)
    return positions


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


def _inexact_strides(strides: Strides) -> dict[int, Fraction]:
    """The strides that no float64 holds exactly, by image; key -1: one stride for all images."""
    if strides is None or isinstance(strides, (Tensor, int, float)):
        return {}
    given = {-1: strides} if isinstance(strides, Fraction) else dict(enumerate(_flatten(strides)))
    return {i: stride for i, stride in given.items() if isinstance(stride, Fraction) and stride != float(stride)}


def _ceil_advance(
    span_length: Tensor, strides: Tensor, num_image_token: int, inexact: Mapping[int, Fraction]
) -> Tensor:
    """ceil(length * stride / T) per image, int64, exact.

    Strides in whole units of 1/65536 are computed in integers, all at once. For others the float quotient decides
    unless it is close to a whole number, where rationals do.
    """
    quotient = span_length.to(torch.float64) * strides / num_image_token
    units = strides * STRIDE_UNITS
    in_units = (units == units.floor()) & (units * span_length < 2.0**62)
    numerator = span_length * units.where(in_units, 0.0).to(torch.int64)
    advance = -torch.div(-numerator, num_image_token * STRIDE_UNITS, rounding_mode="floor")
    advance = advance.where(in_units, quotient.ceil().to(torch.int64))

    doubtful = ~in_units & ((quotient - quotient.round()).abs() < 1e-6 * quotient.clamp(min=1.0))
    if inexact:
        doubtful[list(inexact) if -1 not in inexact else slice(None)] = True
    for i in doubtful.nonzero().squeeze(1).tolist():
        stride = inexact.get(i) or inexact.get(-1) or Fraction(strides[i].item())
        advance[i] = math.ceil(stride * int(span_length[i]) / num_image_token)
    return advance


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


def yarn_frequencies(
    base: float, *, head_dim: int, factor: float, original_length: int, beta_fast: float = 32.0, beta_slow: float = 1.0
) -> tuple[Tensor, float]:
    """Inverse frequencies and table scale of YaRN (arXiv 2309.00071).

    Frequencies that turn often within `original_length` stay, those that turn less than once are divided by `factor`,
    a linear ramp lies between. Tables are scaled by 0.1 ln(factor) + 1.

    Returns:
        (head_dim / 2,) float64, and the factor of cosines and sines.
    """
    plain = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def dimension_of(rotations: float) -> float:
        return head_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_of(beta_fast)), 0)
    high = min(math.ceil(dimension_of(beta_slow)), head_dim - 1)
    index = torch.arange(head_dim // 2, dtype=torch.float64)
    stretched = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - stretched) + plain / factor * stretched, 0.1 * math.log(factor) + 1.0


def rotary_tables(
    position_ids: Tensor,
    *,
    head_dim: int,
    base: float | Tensor,
    inverse_frequency: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles.

    Angles are computed in float64 and only their cosines and sines are rounded to float32: in bf16 most entries of
    neighbouring visual tokens would be identical at small strides.

    Args:
        position_ids: (batch, length) positions, any dtype.
        head_dim: Width of a head (even).
        base: Rotary base (theta), one number or (batch, length) one per token.
        inverse_frequency: (head_dim / 2,) float64, instead of those that follow from `base`.
        scale: Factor of the tables.

    Returns:
        cos and sin, (batch, length, head_dim / 2), float32.
    """
    if inverse_frequency is None:
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=position_ids.device) / head_dim
        theta = torch.as_tensor(base, dtype=torch.float64, device=position_ids.device)
        inverse_frequency = theta.unsqueeze(-1) ** -exponent
    angles = position_ids.to(torch.float64).unsqueeze(-1) * inverse_frequency.to(position_ids.device)
    return (angles.cos() * scale).to(torch.float32), (angles.sin() * scale).to(torch.float32)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys in float32 ("rotate half" form) and cast back.

    Args:
        states: (batch, ..., length, head_dim), heads in between.
        cos: (batch, length, head_dim / 2) float32.
        sin: Same.

    Returns:
        Contiguous, of the shape and dtype of `states`.
    """
    table_shape = (cos.shape[0], *[1] * (states.dim() - 3), *cos.shape[1:])
    return _Rotation.apply(states, cos.view(table_shape), sin.view(table_shape))


class _Rotation(torch.autograd.Function):
    """(a, b) -> (a cos - b sin, b cos + a sin); its backward is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(states, cos, sin, direction=1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _rotate(grad, *ctx.saved_tensors, direction=-1), None, None


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, *, direction: int) -> Tensor:
    states_float = states.float()
    swapped = states_float.roll(states.shape[-1] // 2, dims=-1)  # (b, a)
    rotated = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    torch.mul(states_float, torch.cat([cos, cos], dim=-1), out=rotated)
    rotated.addcmul_(swapped, torch.cat([-sin, sin], dim=-1), value=direction)
    return rotated.to(states.dtype)
