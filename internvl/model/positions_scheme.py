"""Position schemes: what a scheme is, what it is given, and what schemes of several axes share.

    ids, borders, strides, grids  --read_row-->  Row  --Scheme.place-->  (axes, tokens)  --axes_of_channels-->  angles

A scheme says where the tokens of a row stand, on one axis or on several, and which axis turns which rotary frequency.
Each is a file of its own (v2pe.py, positions_mrope.py, ...); positions.py lists them. Schemes of several axes say where
the tokens of one image stand, and `place_images` does it for the whole row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .errors import ConfigError
from .shapes import Bool, Float64, Int, Int64, Num, Shaped

NO_AXIS = -1  # of a frequency that never turns

Stride: TypeAlias = int | float | Fraction
Strides: TypeAlias = Stride | Sequence[Stride] | Tensor | None


class ImageGrid(NamedTuple):
    """How an image was cut into tiles; a batch carries these numbers as integers, in this order."""

    rows: int
    columns: int
    has_thumbnail: int = 0  # 1: the whole image follows as one more tile
    frame: int = 0  # number of a frame in its video, from 1; 0: not of a video

    @property
    def num_tiles(self) -> int:
        """Tiles, the thumbnail included."""
        return self.rows * self.columns + self.has_thumbnail


@dataclass(frozen=True)
class Scheme:
    """How tokens are placed and rotated: three pure functions."""

    # positions of every token: (tokens,) on one axis, (axes, tokens) on several
    place: Callable[["Row"], Float64[Tensor, "*axes tokens"]]
    # which axis turns each rotary frequency, fastest first, from their number and the number of key/value heads:
    # (frequencies,), or (kv_heads, frequencies) where heads differ; `NO_AXIS`: none
    axes_of_channels: Callable[[int, int], Int64[Tensor, "*kv_heads frequencies"]]
    # position of the first text after a row that reaches `furthest`, of every axis the largest position: (rows,) on one
    # axis, (axes, rows) on several
    next_text: Callable[[Num[Tensor, "*furthest"]], Num[Tensor, "*next"]]
    num_axes: int = 1


class PlacedImage(NamedTuple):
    """Where the visual tokens of an image stand, counted from the position after the text before it."""

    offsets: Float64[Tensor, "axes tokens"]
    advance: int  # positions that the image takes: the text after it stands there


@dataclass(frozen=True, eq=False)
class Row:
    """The runs of a flattened batch, in order.

    token    a   b  <img>  v1   v2   v3   v4  </img>  c
    run      0   0    0     1    1    1    1    2     2
    image    -   -    -     0    0    0    0    -     -
    """

    shape: torch.Size  # of the ids
    num_image_token: int  # T, visual tokens per tile
    visual: Bool[Tensor, " tokens"]
    valid: Bool[Tensor, " tokens"] | None  # False on padding; None: no padding
    starts: Int64[Tensor, " documents"]  # first token of every document
    run_start: Int64[Tensor, " runs"]  # first token of every run
    given_strides: Strides
    given_grids: Int[Tensor, "images 4"] | None

    @cached_property
    def run_length(self) -> Int64[Tensor, " runs"]:
        """Tokens of every run."""
        return torch.diff(self.run_start, append=self.run_start.new_tensor([len(self.visual)]))

    @cached_property
    def image(self) -> Int64[Tensor, " images"]:
        """The runs that are images."""
        return self.visual[self.run_start].nonzero().squeeze(1)

    @property
    def image_length(self) -> Int64[Tensor, " images"]:
        """Tokens of every image."""
        return self.run_length[self.image]

    def strides(self, default: Stride) -> Sequence[Stride]:
        """One stride per image; where none are given, `default`.

        Raises:
            ConfigError: Wrong count, or a stride that is not a positive number.
        """
        strides = self.given_strides
        if strides is None:
            return [default] * len(self.image)
        if isinstance(strides, Tensor):
            strides = strides.tolist()
        values = strides if isinstance(strides, Sequence) else [strides] * len(self.image)
        if len(values) != len(self.image):
            raise ConfigError(
                f"got {len(values)} strides for {len(self.image)} images; give one per image, or one for all"
            )
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ConfigError(f"strides must be positive numbers, got {list(values[:8])}")
        return values

    @cached_property
    def grids(self) -> list[ImageGrid]:
        """One grid per image; where none are given, an image is one tile.

        Raises:
            ConfigError: An image has another number of tokens than its tiles.
        """
        lengths = self.image_length.tolist()
        grids = [ImageGrid(1, 1)] * len(lengths) if self.given_grids is None else _read_grids(self.given_grids)
        wanted = [self.num_image_token * grid.num_tiles for grid in grids]
        if wanted != lengths:
            raise ConfigError(
                f"image_grids describe {len(grids)} images of {wanted[:8]} visual tokens, the text has {len(lengths)} "
                f"of {lengths[:8]}; give (rows, columns, thumbnail, frame) of every image of more than one tile"
            )
        return grids

    def anchors(self, advances: Int64[Tensor, " images"]) -> Int64[Tensor, " runs"]:
        """Position before the first token of every run: what earlier runs of its document took.

        A text takes a position per token, an image what `advances` says, padding none.
        """
        advance = self.run_length.clone()
        advance[self.image] = advances
        if self.valid is not None:
            advance *= self.valid[self.run_start]
        taken = advance.cumsum(0) - advance
        document = torch.searchsorted(self.starts, self.run_start, right=True) - 1
        return taken - taken[torch.searchsorted(self.run_start, self.starts)][document] - 1

    def finish(self, positions: Num[Tensor, "*axes tokens"]) -> Num[Tensor, "*axes_batch length"]:
        """Positions in the shape of the ids; padding gets position 1."""
        if self.valid is not None:
            positions.masked_fill_(~self.valid, 1)
        return positions.reshape(*positions.shape[:-1], *self.shape)


def _read_grids(grids: Int[Tensor, "images 4"]) -> list[ImageGrid]:
    return [ImageGrid(*numbers) for numbers in grids.tolist()]


def read_row(
    input_ids: Int[Tensor, "*batch length"],
    *,
    image_token_id: int,
    num_image_token: int,
    strides: Strides = None,
    grids: Int[Tensor, "images 4"] | None = None,
    cu_seqlens: Int[Tensor, " borders"] | None = None,
    attention_mask: Shaped[Tensor, "*batch length"] | None = None,
) -> Row:
    """Find the runs of a batch. Arguments as for `v2pe.build_position_ids`; `grids`: see `ImageGrid`.

    Raises:
        ValueError: `cu_seqlens` that do not cover the row.
    """
    visual = input_ids.reshape(-1) == image_token_id
    valid = None if attention_mask is None else attention_mask.reshape(-1).bool()
    if valid is not None:
        visual &= valid
    starts = document_starts(input_ids, cu_seqlens)
    run_start = find_run_starts(visual, valid, starts)
    return Row(input_ids.shape, num_image_token, visual, valid, starts, run_start, strides, grids)


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


def place_images(
    row: Row, place_image: Callable[[ImageGrid, int, Stride], PlacedImage], *, num_axes: int = 3
) -> Float64[Tensor, "axes tokens"]:
    """Positions of a row on several axes: text advances all of them by 1, an image as `place_image` says.

    Args:
        row: With the grids of its images.
        place_image: From a grid, the side of a tile in visual tokens, and the stride (0 without one).
        num_axes: Axes of the scheme.

    Raises:
        ConfigError: Grids or strides do not fit the images, or a tile is no square of visual tokens.
    """
    side = math.isqrt(row.num_image_token)
    if side * side != row.num_image_token:
        raise ConfigError(f"a tile of {row.num_image_token} visual tokens is no square, which these positions need")
    images = list(zip(row.grids, row.strides(default=0), strict=True))
    # Equal images are placed once: a row may hold thousands.
    known = {image: place_image(image[0], side, image[1]) for image in set(images)}
    placed = [known[image] for image in images]
    device = row.run_start.device
    anchor = row.anchors(torch.tensor([image.advance for image in placed], dtype=torch.int64, device=device))
    order = torch.arange(1, len(row.visual) + 1, device=device)
    text = order + torch.repeat_interleave(anchor - row.run_start, row.run_length)
    positions = text.to(torch.float64).repeat(num_axes, 1)
    if placed:
        offsets = torch.cat([image.offsets for image in placed], dim=1).to(device)
        first = torch.repeat_interleave(anchor[row.image] + 1, row.image_length)
        positions[:, row.visual] = first + offsets
    return positions


def locate_tokens(grid: ImageGrid, side: int) -> Int64[Tensor, "3 tokens"]:
    """Layer, row and column of every visual token of an image, in the order of the text: tile by tile.

    The tiles of an image are one picture of `rows * side` x `columns * side` tokens on layer 0; the thumbnail is one
    of side x side on layer 1.

        tiles 1 x 2, side 2        rows 0 0 1 1 | 0 0 1 1 | 0 0 1 1    columns 0 1 0 1 | 2 3 2 3 | 0 1 0 1
        and a thumbnail            layers 0 0 0 0 | 0 0 0 0 | 1 1 1 1
    """
    tiles = [(0, y, x) for y in range(grid.rows) for x in range(grid.columns)]
    tiles += [(1, 0, 0)] * grid.has_thumbnail
    corners = torch.tensor(tiles).T * torch.tensor([[1], [side], [side]])
    inside = torch.arange(side)
    within = torch.stack(
        [torch.zeros(side * side, dtype=torch.int64), inside.repeat_interleave(side), inside.repeat(side)]
    )
    return (corners.unsqueeze(2) + within.unsqueeze(1)).flatten(1)


def step_through(grid: ImageGrid, side: int, stride: Stride) -> tuple[Float64[Tensor, " tokens"], int]:
    """V2PE's fractional step on the temporal axis: k * stride / T of visual token k = 0, 1, ... of an image.

    The second result is the last of them, rounded up. Without a stride (0) all are 0.
    """
    num_tokens, tokens_per_tile = grid.num_tiles * side**2, side**2
    numerator, denominator = stride.as_integer_ratio()
    last = -(-(num_tokens - 1) * numerator // (tokens_per_tile * denominator))
    return torch.arange(num_tokens, dtype=torch.float64) * float(stride) / tokens_per_tile, last
