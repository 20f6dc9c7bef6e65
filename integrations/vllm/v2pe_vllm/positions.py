"""V2PE positions as whole numbers, the only ones that vLLM's buffers hold.

vLLM carries M-RoPE positions as rows of integers and continues them, while it decodes, with equal rows. A V2PE position
is a whole number and a fraction in units of 1 / (65536 T), for strides in units of 1/65536 and T visual tokens per
tile. It travels as the rows (whole, whole + numerator, whole):

    token     a   b  <img>  v1   v2   v3   v4  </img>  c       T = 4, stride 2, one tile
    position  0   1    2    2.5  3.0  3.5  4.0    5    6
    whole     0   1    2    2    3    3    4      5    6
    numerator 0   0    0    N/2  0    N/2  0      0    0       N = 65536 T

Decoded tokens have numerator 0, which is right: V2PE's text stands on whole numbers. 1M tokens and the largest
numerator fit int32 together, which vLLM's newer model runner needs. The rule is that of internvl/model/v2pe.py, and
tests/integrations/test_vllm_positions.py of the project keeps the two equal. Nothing here needs vLLM.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDE_UNITS = 65536  # strides are whole numbers of 1/65536


@dataclass(frozen=True)
class Image:
    """The visual tokens of one image, or of one frame of a video."""

    start: int  # index of the first one in the prompt
    length: int
    stride_units: int  # positions that one tile spans, in units of 1/65536


def stride_to_units(stride: object) -> int:
    """A stride in units of 1/65536.

    Raises:
        ValueError: Not a positive number, or not a multiple of 1/65536.
    """
    is_number = isinstance(stride, (int, float)) and not isinstance(stride, bool)
    units = stride * STRIDE_UNITS if is_number else 0
    if not 0 < units < float("inf") or units != int(units):
        raise ValueError(
            f"rope_pos_id_stride is {stride!r}; expected a positive multiple of 1/{STRIDE_UNITS}, such as 64 or 0.25"
        )
    return int(units)


def find_runs(is_visual: Tensor) -> list[tuple[int, int]]:
    """Start and length of every run of True in a mask (tokens,)."""
    edges = torch.diff(is_visual.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    starts, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return list(zip(starts.tolist(), (ends - starts).tolist(), strict=True))


def build_rows(num_tokens: int, images: Iterable[Image], *, num_image_token: int) -> tuple[Tensor, int]:
    """Rows of integers for the positions of a prompt.

    Args:
        num_tokens: Of the prompt, visual ones included.
        images: In the order of the prompt.
        num_image_token: T, visual tokens per tile.

    Returns:
        Rows (3, tokens) of int64, and what a decoded token's position is larger than its index (mostly negative).
    """
    unit = STRIDE_UNITS * num_image_token
    whole, numerator = torch.arange(num_tokens), torch.zeros(num_tokens, dtype=torch.int64)
    shift = end = 0
    for image in images:
        whole[end : image.start] += shift
        start, end = image.start, image.start + image.length
        advance = torch.arange(1, image.length + 1) * image.stride_units
        whole[start:end] = start - 1 + shift + advance // unit
        numerator[start:end] = advance % unit
        # The token after the image stands at the next whole number after its last one.
        shift += -(-image.length * image.stride_units // unit) - image.length
    whole[end:] += shift
    return torch.stack([whole, whole + numerator, whole]), shift


def read_positions(rows: Tensor, *, num_image_token: int) -> Tensor:
    """Positions in float64 (tokens,) from rows (3, tokens); a single row (tokens,) has whole numbers."""
    if rows.dim() == 1:
        return rows.double()
    return rows[0].double() + (rows[1] - rows[0]).double() / (STRIDE_UNITS * num_image_token)
