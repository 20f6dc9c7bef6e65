"""M-RoPE: time, row and column of a visual token turn three sections of the frequencies (Qwen2-VL, arXiv 2409.12191).

Text stands at the same place on all axes. The image after text that ends at p begins at p + 1: its tokens share that
time, and rows and columns count from there. The text after it follows the largest position. Two tiles side by side,
2 x 2 visual tokens each, after a text that ends at 2:

    token     a   b  <img>  v1  v2  v3  v4  v5  v6  v7  v8  </img>  c          v1 v2 | v5 v6
    time      0   1    2     3   3   3   3   3   3   3   3    7     8          v3 v4 | v7 v8
    row       0   1    2     3   3   4   4   3   3   4   4    7     8
    column    0   1    2     3   4   3   4   5   6   5   6    7     8

The thumbnail of an image is a picture of its own, one step of time later, as the second frame of a video is there. With
a stride, time also advances by stride / T per visual token, as V2PE's one axis does.

Frequencies, fastest first: a quarter turns with time, then three eighths each with row and column (16, 24, 24 of 64).
"""

import torch
from torch import Tensor

from .positions_scheme import ImageGrid, PlacedImage, Row, Scheme, Stride, locate_tokens, place_images, step_through
from .shapes import Float64, Int64, Num
from .v2pe import next_position


def place(row: Row) -> Float64[Tensor, "3 tokens"]:
    """Time, row and column of every token."""
    return place_images(row, _place_image)


def _place_image(grid: ImageGrid, side: int, stride: Stride) -> PlacedImage:
    offsets = locate_tokens(grid, side).to(torch.float64)
    steps, last_step = step_through(grid, side, stride)
    offsets[0] += steps
    size = side * max(grid.rows, grid.columns)
    return PlacedImage(offsets, max(size, 1 + grid.has_thumbnail + last_step))


def axes_of_channels(num_frequencies: int, num_kv_heads: int) -> Int64[Tensor, " frequencies"]:
    """Sections in the proportion 16 : 24 : 24."""
    time = num_frequencies // 4
    rows = (num_frequencies - time) // 2
    sections = torch.tensor([time, rows, num_frequencies - time - rows])
    return torch.repeat_interleave(sections)


def next_text(furthest: Num[Tensor, "*furthest"]) -> Num[Tensor, "*next"]:
    """The position after the largest of the axes."""
    return next_position(furthest.amax(dim=0))


MROPE = Scheme(place, axes_of_channels, next_text, num_axes=3)
