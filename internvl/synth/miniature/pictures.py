"""The image files of one split: a pool of haystack images per tile count, and a pool of image needles.

Thousands of contexts share a few hundred files, which keeps the data set small and quick to make.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from internvl.errors import ConfigError
from internvl.synth.miniature.digits import Digit, draw_pair, load_digits
from internvl.synth.miniature.grids import find_grid, find_image_size
from internvl.synth.miniature.photographs import crop_photograph, load_photographs

Split = Literal["train", "test"]

HAYSTACK_FOLDER = "haystack"
NEEDLE_FOLDER = "needle"
JPEG_QUALITY = 90
MIN_VARIANTS = 6
NEEDLE_GRID = (2, 1)


@dataclass(frozen=True)
class ImageNeedle:
    """Two digits side by side in a file.

    Attributes:
        path: Relative to the image folder of the split.
        digits: What it shows, left to right.
    """

    path: str
    digits: tuple[int, int]

    @property
    def num_tiles(self) -> int:
        """One tile per digit."""
        return len(self.digits)


@dataclass(frozen=True)
class PictureSpec:
    """Which files a split gets.

    Attributes:
        tile: Side of a tile in pixels.
        max_num: Tile limit per image that models are run with.
        image_tiles: Tile counts of haystack images.
        tiles_per_pool: Tiles that all images of one tile count have together; at least 6 images are made.
        num_needles: Number of image needles.
    """

    tile: int
    max_num: int
    image_tiles: tuple[int, ...]
    tiles_per_pool: int = 96
    num_needles: int = 2800


@dataclass(frozen=True)
class PicturePool:
    """The files of one split.

    Attributes:
        haystack: Paths by tile count, relative to the image folder.
        needles: The image needles.
    """

    haystack: dict[int, tuple[str, ...]]
    needles: tuple[ImageNeedle, ...]

    @property
    def num_files(self) -> int:
        """Number of image files."""
        return len(self.needles) + sum(len(paths) for paths in self.haystack.values())


def make_pool(folder: Path, spec: PictureSpec, *, split: Split, rng: Random, tick: Callable[[], object]) -> PicturePool:
    """Write the images of one split.

    Args:
        folder: Image folder of the split; sub-folders are created.
        spec: Which files.
        split: Chooses photographs and digits.
        rng: Draws crops and digits.
        tick: Called after every file.
    """
    haystack = {tiles: _write_haystack(folder, spec, tiles, split, rng, tick) for tiles in spec.image_tiles}
    return PicturePool(haystack, _write_needles(folder, spec, split, rng, tick))


def count_variants(spec: PictureSpec, num_tiles: int) -> int:
    """Number of haystack images with `num_tiles` tiles."""
    return max(MIN_VARIANTS, spec.tiles_per_pool // num_tiles)


def _write_haystack(
    folder: Path, spec: PictureSpec, num_tiles: int, split: Split, rng: Random, tick: Callable[[], object]
) -> tuple[str, ...]:
    (folder / HAYSTACK_FOLDER).mkdir(parents=True, exist_ok=True)
    grid = find_grid(num_tiles)
    if grid is None:
        raise ConfigError(f"{num_tiles} tiles have no near-square grid")
    photographs = load_photographs(split)
    paths = []
    for number in range(count_variants(spec, num_tiles)):
        shape = grid if number % 2 == 0 else grid[::-1]
        size = find_image_size(shape, tile=spec.tile, max_num=spec.max_num)
        image = crop_photograph(rng.choice(photographs), size, rng)
        path = f"{HAYSTACK_FOLDER}/{shape[0]}x{shape[1]}_{number:03d}.jpg"
        image.save(folder / path, quality=JPEG_QUALITY)
        paths.append(path)
        tick()
    return tuple(paths)


def _write_needles(
    folder: Path, spec: PictureSpec, split: Split, rng: Random, tick: Callable[[], object]
) -> tuple[ImageNeedle, ...]:
    (folder / NEEDLE_FOLDER).mkdir(parents=True, exist_ok=True)
    find_image_size(NEEDLE_GRID, tile=spec.tile, max_num=spec.max_num)  # two tiles, or an error
    digits = load_digits(split)
    needles = []
    for number, (first, second) in enumerate(_draw_pairs(digits, spec.num_needles, rng)):
        path = f"{NEEDLE_FOLDER}/{number:05d}.png"
        draw_pair(first, second, tile=spec.tile).save(folder / path, compress_level=1)
        needles.append(ImageNeedle(path, (first.label, second.label)))
        tick()
    return tuple(needles)


def _draw_pairs(digits: Sequence[Digit], num_pairs: int, rng: Random) -> list[tuple[Digit, Digit]]:
    """Pairs in which every digit stands about equally often on either side."""

    def shuffled_copies() -> list[Digit]:
        drawn: list[Digit] = []
        while len(drawn) < num_pairs:
            drawn += rng.sample(digits, len(digits))
        return drawn[:num_pairs]

    return list(zip(shuffled_copies(), shuffled_copies(), strict=True))
