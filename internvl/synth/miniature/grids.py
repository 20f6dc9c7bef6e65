"""Tile grids: near-square grids, image sizes that dynamic tiling cuts into exactly these grids, and how the tiles of a
haystack are divided among few images.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random

from internvl.data.tiling import choose_grid
from internvl.errors import ConfigError

Grid = tuple[int, int]  # (columns, rows)
Cell = tuple[int, int]  # (column, row) of a tile
MAX_ASPECT = 3.0
# Side of a tile in the file, relative to the model's. At full size a 3 x 3 image would be tiled 4 x 4: of two grids
# with the same aspect ratio the larger wins when the image has more than half of its pixels. Then 0.8 is right.
_SCALES = (1.0, 0.8)


def find_grid(num_tiles: int) -> Grid | None:
    """The most square (columns, rows), columns >= rows, of exactly `num_tiles`; None when it is narrower than 3 : 1."""
    rows = next(rows for rows in range(int(num_tiles**0.5), 0, -1) if num_tiles % rows == 0)
    cols = num_tiles // rows
    return (cols, rows) if cols / rows <= MAX_ASPECT else None


def find_image_size(grid: Grid, *, tile: int, max_num: int) -> tuple[int, int]:
    """(width, height) in pixels of an image that dynamic tiling cuts into exactly `grid` (columns, rows).

    Raises ConfigError if no size does with tiles of `tile` pixels and at most `max_num` per image.
    """
    cols, rows = grid
    for scale in _SCALES:
        side = int(scale * tile)
        size = (cols * side, rows * side)
        if choose_grid(*size, min_num=1, max_num=max_num, image_size=tile) == grid:
            return size
    raise ConfigError(f"no image of {cols} x {rows} tiles is tiled so with at most {max_num} tiles of {tile} pixels")


@dataclass(frozen=True)
class TileShares:
    """How many tiles one image may have, and which sums a run of images can have."""

    max_num: int  # most tiles per image
    max_total: int  # largest run of images in tiles

    @property
    def image_tiles(self) -> tuple[int, ...]:
        """The tile counts that a single image may have."""
        return _list_image_tiles(self.max_num)

    def split(self, num_tiles: int) -> tuple[int, ...] | None:
        """As few images as possible of `num_tiles` together; None when that takes more than the tile limit demands."""
        return _split_table(self.max_num, self.max_total)[num_tiles]

    def share_out(self, cuts: Sequence[int], total: int, rng: Random) -> list[int] | None:
        """Tiles between neighbouring cuts, moved to the nearest numbers that images can have.

        `cuts` are ascending positions between 0 and `total`, one per needle. Returns one more number than cuts, whose
        sum is `total`; None when these cuts allow none. `rng` chooses the gap that takes up the difference.
        """
        borders = [0, *cuts, total]
        gaps = [self._snap(right - left) for left, right in pairwise(borders)]
        slack = rng.randrange(len(gaps))
        gaps[slack] += total - sum(gaps)
        return gaps if gaps[slack] >= 0 and self.split(gaps[slack]) is not None else None

    def _snap(self, num_tiles: int) -> int:
        return _snap_table(self.max_num, self.max_total)[num_tiles]


@cache
def _list_image_tiles(max_num: int) -> tuple[int, ...]:
    return tuple(number for number in range(1, max_num + 1) if find_grid(number) is not None)


@cache
def _split_table(max_num: int, max_total: int) -> tuple[tuple[int, ...] | None, ...]:
    """Entry n: tiles per image of a run of n tiles, as even as the grids allow."""
    allowed = _list_image_tiles(max_num)
    table: list[tuple[int, ...] | None] = [()]
    for number in range(1, max_total + 1):
        num_images = -(-number // max_num)
        by_evenness = sorted(allowed, key=lambda tiles: abs(tiles - number / num_images))
        table.append(_add_image(table, number, num_images, by_evenness))
    return tuple(table)


def _add_image(
    table: Sequence[tuple[int, ...] | None], number: int, num_images: int, candidates: Sequence[int]
) -> tuple[int, ...] | None:
    for tiles in candidates:
        rest = table[number - tiles] if tiles <= number else None
        if rest is not None and len(rest) == num_images - 1:
            return (tiles, *rest)
    return None


@cache
def _snap_table(max_num: int, max_total: int) -> tuple[int, ...]:
    table = _split_table(max_num, max_total)
    possible = [number for number, parts in enumerate(table) if parts is not None]
    nearest = []
    for number in range(max_total + 1):
        place = bisect_left(possible, number)
        nearest.append(min(possible[max(place - 1, 0) : place + 1], key=lambda other: abs(other - number)))
    return tuple(nearest)
