"""Tiling: an image of any shape becomes a grid of square tiles whose aspect ratio is close to its own.

       1920 x 1080, max_num 6             grid (2, 1)            tiles, row by row (+ thumbnail)
      +---------------------+           +------+------+           +---+ +---+ +---+
      |                     |  resize   |      |      |   crop    | 0 | | 1 | | t |
      |                     |  ----->   |      |      |  ----->   +---+ +---+ +---+
      +---------------------+           +------+------+

The rule is InternVL's (`dynamic_preprocess`); which grid it picks follows from the image's width and height alone, so
the number of visual tokens of a document is known from file headers.
"""

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from internvl.model.positions_scheme import ImageGrid


@lru_cache(maxsize=64)
def list_grids(min_num: int, max_num: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with `min_num <= columns * rows <= max_num`, small areas first."""
    grids = [
        (cols, rows)
        for cols in range(1, max_num + 1)
        for rows in range(1, max_num // cols + 1)
        if cols * rows >= min_num
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


@lru_cache(maxsize=4096)
def choose_grid(width: int, height: int, *, min_num: int, max_num: int, image_size: int) -> tuple[int, int]:
    """Choose the grid whose aspect ratio is nearest to the image's.

    Of two equally near grids the larger one is taken only if the image has more than half of its pixels.

    Args:
        width, height: Of the image, in pixels.
        min_num: Smallest number of tiles.
        max_num: Largest number of tiles (the thumbnail is not counted). Below `min_num` means one tile.
        image_size: Side of a tile in pixels.

    Returns:
        (columns, rows).
    """
    aspect = width / height
    best, best_difference = (1, 1), float("inf")
    for cols, rows in list_grids(min_num, max_num):
        difference = abs(aspect - cols / rows)
        is_large_enough = width * height > 0.5 * image_size * image_size * cols * rows
        if difference < best_difference or (difference == best_difference and is_large_enough):
            best, best_difference = (cols, rows), difference
    return best


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into tiles."""

    min_num: int  # fewest tiles
    max_num: int  # most tiles (the thumbnail not counted); below `min_num` means one tile
    image_size: int  # side of a tile in pixels
    use_thumbnail: bool = False  # append the whole image as one more tile when there is more than one

    def count(self, width: int, height: int) -> int:
        """Number of tiles that `split` makes of an image of this size, the thumbnail included."""
        return self.grid(width, height).num_tiles

    def grid(self, width: int, height: int) -> ImageGrid:
        """The tiles that `split` makes of an image of this size."""
        limits = {"min_num": self.min_num, "max_num": self.max_num, "image_size": self.image_size}
        cols, rows = choose_grid(width, height, **limits)
        return ImageGrid(rows, cols, int(self.use_thumbnail and cols * rows > 1))

    def split(self, image: Image.Image) -> list[Image.Image]:
        """Resize an image to its grid, which may change its aspect ratio a little, and cut it row by row."""
        rows, cols, has_thumbnail, _ = self.grid(*image.size)
        size = self.image_size
        resized = image.resize((cols * size, rows * size), Image.Resampling.BICUBIC)
        tiles = [
            resized.crop((col * size, row * size, (col + 1) * size, (row + 1) * size))
            for row in range(rows)
            for col in range(cols)
        ]
        if has_thumbnail:
            tiles.append(image.resize((size, size), Image.Resampling.BICUBIC))
        return tiles
