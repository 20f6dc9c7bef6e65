"""VideoRoPE: images lie along the diagonal of time, which has the slowest frequencies (arXiv 2502.05173).

Rows and columns of an image are counted from its middle and from its time, so that an image is as near to the text
before it as to the text after it. The next text follows the time, whatever the size of the image. Two tiles side by
side, 2 x 2 visual tokens each, after a text that ends at 2:

    token     a   b  <img>  v1  v2  v3  v4  v5  v6  v7  v8  </img>  c          v1 v2 | v5 v6
    time      0   1    2     3   3   3   3   3   3   3   3    4     5          v3 v4 | v7 v8
    row       0   1    2     3   3   4   4   3   3   4   4    4     5
    column    0   1    2     2   3   2   3   4   5   4   5    4     5

A thumbnail comes two steps of time later, as the next frame of a video does there; frames of ours stand between their
labels, one by one. With a stride, time also advances by stride / T per visual token, as V2PE's one axis does.

Frequencies, fastest first: row and column in turn, then the slowest quarter for time (48 and 16 of 64).
"""

import torch
from torch import Tensor

from .positions_scheme import ImageGrid, PlacedImage, Row, Scheme, Stride, locate_tokens, place_images, step_through
from .shapes import Float64, Int64, Num
from .v2pe import next_position

_STEPS_PER_FRAME = 2


def place(row: Row) -> Float64[Tensor, "3 tokens"]:
    """Time, row and column of every token."""
    return place_images(row, _place_image)


def _place_image(grid: ImageGrid, side: int, stride: Stride) -> PlacedImage:
    return place_on_diagonal(grid, side, stride, steps_per_frame=_STEPS_PER_FRAME)


def place_on_diagonal(grid: ImageGrid, side: int, stride: Stride, *, steps_per_frame: int) -> PlacedImage:
    """An image around its time; its thumbnail `steps_per_frame` later."""
    layer, rows, columns = locate_tokens(grid, side)
    steps, last_step = step_through(grid, side, stride)
    time = steps_per_frame * layer + steps
    middle_row = torch.where(layer == 0, grid.rows * side - 1, side - 1) // 2
    middle_column = torch.where(layer == 0, grid.columns * side - 1, side - 1) // 2
    offsets = torch.stack([time, time + rows - middle_row, time + columns - middle_column])
    return PlacedImage(offsets, steps_per_frame * grid.has_thumbnail + last_step + 1)


def axes_of_channels(num_frequencies: int, num_kv_heads: int) -> Int64[Tensor, " frequencies"]:
    """Row and column in turn in the first three quarters, then time."""
    axes = 1 + torch.arange(num_frequencies) % 2
    axes[num_frequencies - num_frequencies // 4 :] = 0
    return axes


def next_text(furthest: Num[Tensor, "*furthest"]) -> Num[Tensor, "*next"]:
    """The position after the latest time."""
    return next_position(furthest[0])


VIDEOROPE = Scheme(place, axes_of_channels, next_text, num_axes=3)
