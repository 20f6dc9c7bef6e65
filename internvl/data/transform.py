"""Tiles to tensors: colour, optional JPEG noise or padding, resize; pillow and torch only.

    RGB -> [augment: JPEG re-encoding, quality 75..100] or [pad2square] -> bicubic resize -> uint8

With both, only the augmentation applies, as in the public recipes. The model normalises (visual_features.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from internvl.data.storage.pixels import open_picture, to_rgb
from internvl.errors import ConfigError
from internvl.model.constants import PIXEL_STATISTICS

NormalizeType = Literal["imagenet", "clip", "siglip"]
JPEG_QUALITIES = (75, 100)


@dataclass(frozen=True)
class TileTransform:
    """Turns the tiles of an image into the tensor that the vision tower takes."""

    image_size: int  # side of a tile in pixels
    mean: tuple[float, float, float]  # mean per colour, in 0..1: what squares are padded with
    pad2square: bool = False  # paste a picture on a square of the mean colour instead of stretching it
    augment: bool = False  # re-encode every tile as JPEG at a random quality; needs `rng` in the call

    def __call__(
        self, tiles: Sequence[Image.Image], rng: np.random.Generator | None = None
    ) -> UInt8[Tensor, "tiles 3 size size"]:
        """Transform tiles of any size and mode; `rng` draws the JPEG qualities of an augmenting transform."""
        return tiles_to_tensor(self.to_squares(tiles, rng))

    def to_squares(self, tiles: Sequence[Image.Image], rng: np.random.Generator | None = None) -> list[Image.Image]:
        """All steps on pictures: RGB tiles of `image_size` x `image_size` pixels."""
        if self.augment and rng is None:
            raise ValueError("an augmenting transform needs a generator; pass rng=")
        return [self._to_square(to_rgb(tile), rng) for tile in tiles]

    def _to_square(self, tile: Image.Image, rng: np.random.Generator | None) -> Image.Image:
        if self.augment and rng is not None:
            low, high = JPEG_QUALITIES
            tile = reencode_jpeg(tile, int(rng.integers(low, high, endpoint=True)))
        elif self.pad2square:
            tile = pad_to_square(tile, self.mean)
        size = (self.image_size, self.image_size)
        return tile if tile.size == size else tile.resize(size, Image.Resampling.BICUBIC)


def build_transform(
    image_size: int, *, normalize_type: str = "imagenet", pad2square: bool = False, augment: bool = False
) -> TileTransform:
    """Make the transform of a run. Raises ConfigError unless `normalize_type` is `imagenet`, `clip` or `siglip`."""
    if normalize_type not in PIXEL_STATISTICS:
        raise ConfigError(
            f"normalize_type is {normalize_type!r}, expected one of {', '.join(get_args(NormalizeType))}; "
            "change --normalize_type"
        )
    mean, _ = PIXEL_STATISTICS[normalize_type]
    return TileTransform(image_size, mean=mean, pad2square=pad2square, augment=augment)


def allocate_tiles(num_tiles: int, height: int, width: int) -> UInt8[Tensor, "tiles 3 height width"]:
    """Memory for tiles, not initialised."""
    # numpy asks the system for large pages, torch does not; getting a tile's memory in small pages can take longer than
    # filling it (benchmarks/encode.py).
    return torch.from_numpy(np.empty((num_tiles, 3, height, width), dtype=np.uint8))


def tiles_to_tensor(
    tiles: Sequence[Image.Image], *, out: UInt8[Tensor, "tiles 3 height width"] | None = None
) -> UInt8[Tensor, "tiles 3 height width"]:
    """Stack at least one RGB tile, all of one size, colour by colour; into `out` if given."""
    if not tiles:
        raise ValueError("no tiles to stack; expected at least one")
    if out is None:
        width, height = tiles[0].size
        out = allocate_tiles(len(tiles), height, width)
    for tile, planes in zip(tiles, out.numpy(), strict=True):
        planes[...] = np.asarray(tile).transpose(2, 0, 1)
    return out


def reencode_jpeg(tile: Image.Image, quality: int) -> Image.Image:
    """An RGB image after a round trip through JPEG at `quality`."""
    buffer = BytesIO()
    tile.save(buffer, format="JPEG", quality=quality)
    return to_rgb(open_picture(buffer))


def pad_to_square(tile: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Centre an RGB image on a square of the mean colour, whose side is the longer one of the image."""
    width, height = tile.size
    side = max(width, height)
    if width == height:
        return tile
    red, green, blue = (int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(tile, ((side - width) // 2, (side - height) // 2))
    return square
