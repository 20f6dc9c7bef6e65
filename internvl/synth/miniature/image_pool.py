"""The image files of one split: a pool of haystack images per tile count, and a pool of image needles.

Thousands of contexts share a few hundred files, which keeps the data set small and quick to make.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tqdm import tqdm

from internvl.errors import ConfigError
from internvl.synth.contexts import Piece
from internvl.synth.forms import Split
from internvl.synth.miniature.digit_layouts import PAIR, DigitLayout
from internvl.synth.miniature.digits import Digit, draw_digits, load_digits
from internvl.synth.miniature.grids import Cell, find_grid, find_image_size
from internvl.synth.miniature.photographs import crop_photograph, load_photographs
from internvl.synth.miniature.vocabulary import ORDINALS, SIDES

HAYSTACK_FOLDER = "haystack"
NEEDLE_FOLDER = "needle"
JPEG_QUALITY = 90
MIN_VARIANTS = 6


@dataclass(frozen=True)
class ImageNeedle:
    """Two digits in a file, a tile each."""

    path: str  # relative to the image folder of the split
    digits: tuple[int, int]  # in reading order
    num_visual: int
    cells: tuple[Cell, Cell] = ((0, 0), (1, 0))  # where they stand, in different columns

    @property
    def piece(self) -> Piece:
        """Its piece of a context."""
        return Piece(image=self.path, num_visual=self.num_visual, ending="")

    def find_digit(self, word: str) -> int:
        """The digit that is `first` or `second` in reading order, `left` or `right` in the picture."""
        by_column = sorted(range(2), key=lambda number: self.cells[number][0])
        return self.digits[dict(zip((*ORDINALS, *SIDES), (0, 1, *by_column), strict=True))[word]]


@dataclass(frozen=True)
class PoolSpec:
    """Which files a split gets."""

    tile: int  # side of a tile in pixels
    num_image_token: int  # visual tokens per tile
    max_num: int  # tile limit per image that models are run with
    image_tiles: tuple[int, ...]  # tile counts of haystack images
    tiles_per_pool: int = 96  # tiles that all images of one tile count have together; at least 6 images are made
    num_needles: int = 2800
    layout: DigitLayout = PAIR  # of the digits in an image needle

    def count_variants(self, num_tiles: int) -> int:
        """Number of haystack images with `num_tiles` tiles."""
        return max(MIN_VARIANTS, self.tiles_per_pool // num_tiles)


@dataclass(frozen=True)
class ImagePool:
    """The files of one split."""

    haystack: Mapping[int, tuple[Piece, ...]]  # images by tile count; paths are relative to the image folder
    needles: tuple[ImageNeedle, ...]

    @property
    def num_files(self) -> int:
        """Number of image files."""
        return len(self.needles) + sum(map(len, self.haystack.values()))


def make_pool(folder: Path, spec: PoolSpec, *, split: Split, rng: Random) -> ImagePool:
    """Write the images of one split into its image `folder`; `rng` draws crops and digits."""
    total = spec.num_needles + sum(map(spec.count_variants, spec.image_tiles))
    with tqdm(total=total, desc=f"{split} images", unit="", mininterval=0.5) as bar:
        haystack = {}
        for num_tiles in spec.image_tiles:
            haystack[num_tiles] = tuple(_write_haystack(folder, spec, num_tiles, split, rng))
            bar.update(len(haystack[num_tiles]))
        needles = []
        for needle in _write_needles(folder, spec, split, rng):
            needles.append(needle)
            bar.update()
    return ImagePool(haystack, tuple(needles))


def _write_haystack(folder: Path, spec: PoolSpec, num_tiles: int, split: Split, rng: Random) -> Iterator[Piece]:
    (folder / HAYSTACK_FOLDER).mkdir(parents=True, exist_ok=True)
    grid = find_grid(num_tiles)
    if grid is None:
        raise ConfigError(f"{num_tiles} tiles have no near-square grid")
    photographs = load_photographs(split)
    for number in range(spec.count_variants(num_tiles)):
        shape = grid if number % 2 == 0 else grid[::-1]
        size = find_image_size(shape, tile=spec.tile, max_num=spec.max_num)
        image = crop_photograph(rng.choice(photographs), size, rng)
        path = f"{HAYSTACK_FOLDER}/{shape[0]}x{shape[1]}_{number:03d}.jpg"
        image.save(folder / path, quality=JPEG_QUALITY)
        yield Piece(image=path, num_visual=num_tiles * spec.num_image_token, ending="")


def _write_needles(folder: Path, spec: PoolSpec, split: Split, rng: Random) -> Iterator[ImageNeedle]:
    (folder / NEEDLE_FOLDER).mkdir(parents=True, exist_ok=True)
    grid = spec.layout.grid
    find_image_size(grid, tile=spec.tile, max_num=spec.max_num)  # these tiles, or an error
    num_visual = grid[0] * grid[1] * spec.num_image_token
    digits = load_digits(split)
    for number, (first, second) in enumerate(_draw_pairs(digits, spec.num_needles, rng)):
        path = f"{NEEDLE_FOLDER}/{number:05d}.png"
        cells = spec.layout.places[number % len(spec.layout.places)]
        image = draw_digits({cells[0]: first, cells[1]: second}, grid, tile=spec.tile)
        image.save(folder / path, compress_level=1)
        yield ImageNeedle(path, (first.label, second.label), num_visual, cells)


def _draw_pairs(digits: Sequence[Digit], num_pairs: int, rng: Random) -> list[tuple[Digit, Digit]]:
    """Pairs in which every digit stands about equally often on either side."""

    def shuffled_copies() -> list[Digit]:
        drawn: list[Digit] = []
        while len(drawn) < num_pairs:
            drawn += rng.sample(digits, len(digits))
        return drawn[:num_pairs]

    return list(zip(shuffled_copies(), shuffled_copies(), strict=True))
