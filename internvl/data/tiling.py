"""Tiling: an image of any shape becomes a grid of square tiles whose aspect ratio is close to its own.

       1920 x 1080, max_num 6             grid (2, 1)            tiles, row by row (+ thumbnail)
      +---------------------+           +------+------+           +---+ +---+ +---+
      |                     |  resize   |      |      |   crop    | 0 | | 1 | | t |
      |                     |  ----->   |      |      |  ----->   +---+ +---+ +---+
      +---------------------+           +------+------+

The rule is InternVL's (`dynamic_preprocess`); which grid it picks follows from the image's width and height alone, so
the number of visual tokens of a document is known from file headers.
"""

from functools import lru_cache

from PIL import Image


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
        width: Image width in pixels.
        height: Image height in pixels.
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


def count_tiles(
    width: int, height: int, *, min_num: int, max_num: int, image_size: int, use_thumbnail: bool = False
) -> int:
    """Number of tiles that `split_into_tiles` makes of an image of this size, the thumbnail included."""
    cols, rows = choose_grid(width, height, min_num=min_num, max_num=max_num, image_size=image_size)
    return cols * rows + int(use_thumbnail and cols * rows > 1)


def split_into_tiles(
    image: Image.Image, *, min_num: int, max_num: int, image_size: int, use_thumbnail: bool = False
) -> list[Image.Image]:
    """Resize an image to its grid and cut it, row by row.

    Args:
        image: Any image; its aspect ratio is not kept exactly.
        min_num: Smallest number of tiles.
        max_num: Largest number of tiles.
        image_size: Side of a tile in pixels.
        use_thumbnail: Append the whole image as one more tile when there is more than one.

    Returns:
        Tiles of `image_size` x `image_size` pixels, as many as `count_tiles` says.
    """
    cols, rows = choose_grid(*image.size, min_num=min_num, max_num=max_num, image_size=image_size)
    resized = image.resize((cols * image_size, rows * image_size), Image.Resampling.BICUBIC)
    tiles = [
        resized.crop((col * image_size, row * image_size, (col + 1) * image_size, (row + 1) * image_size))
        for row in range(rows)
        for col in range(cols)
    ]
    if use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles
