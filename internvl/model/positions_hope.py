"""HoPE: as VideoRoPE, but the slowest frequencies never turn (arXiv 2505.20444).

Frequencies that turn too slowly to tell times apart only blur what a token means over a long context. So that quarter,
VideoRoPE's axis of time, is left unrotated, and time is felt through rows and columns, which lie on its diagonal
(positions_videorope.py):

    frequency   0  1  2  3 ... 46 47 | 48 49 ... 63        of 64
    axis        r  c  r  c ...  r  c |  -  - ...  -

A thumbnail comes one step of time after its image. Where the published training draws a factor of time per video, a
stride stretches time here.
"""

from torch import Tensor

from .positions_scheme import NO_AXIS, ImageGrid, PlacedImage, Row, Scheme, Stride, place_images
from .positions_videorope import axes_of_channels as axes_of_videorope
from .positions_videorope import next_text, place_on_diagonal
from .shapes import Float64, Int64


def place(row: Row) -> Float64[Tensor, "3 tokens"]:
    """Time, row and column of every token."""
    return place_images(row, _place_image)


def _place_image(grid: ImageGrid, side: int, stride: Stride) -> PlacedImage:
    return place_on_diagonal(grid, side, stride, steps_per_frame=1)


def axes_of_channels(num_frequencies: int, num_kv_heads: int) -> Int64[Tensor, " frequencies"]:
    """Row and column in turn in the first three quarters; the rest never turns."""
    axes = axes_of_videorope(num_frequencies, num_kv_heads)
    return axes.masked_fill(axes == 0, NO_AXIS)


HOPE = Scheme(place, axes_of_channels, next_text, num_axes=3)
