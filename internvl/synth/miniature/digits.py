"""Handwritten digits for image needles (8 x 8 pixels, 1,797 of them, shipped with scikit-learn).

1,400 digits are for training and 397 for testing; the split is fixed and does not depend on any seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from internvl.errors import MissingDependencyError
from internvl.synth.forms import Split
from internvl.synth.miniature.grids import Cell, Grid

NUM_TRAIN = 1400


@dataclass(frozen=True)
class Digit:
    """One handwritten digit."""

    pixels: UInt8[np.ndarray, "8 8"]  # grey values
    label: int  # 0 to 9


@cache
def load_digits(split: Split) -> tuple[Digit, ...]:
    """The digits of one split; MissingDependencyError without scikit-learn."""
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise MissingDependencyError("scikit-learn is not installed: pip install scikit-learn") from None
    bunch = datasets.load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    order = list(range(len(pixels)))
    Random("split of the digits").shuffle(order)
    chosen = order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN:]
    return tuple(Digit(pixels[index], int(bunch.target[index])) for index in chosen)


def draw_digits(placed: Mapping[Cell, Digit], grid: Grid, *, tile: int) -> Image.Image:
    """Digits that fill a tile each, by (column, row), on a black and grey image of `grid` (columns, rows) tiles."""
    image = Image.new("L", (grid[0] * tile, grid[1] * tile))
    for (column, row), digit in placed.items():
        scaled = Image.fromarray(digit.pixels).resize((tile, tile), Image.Resampling.BILINEAR)
        image.paste(scaled, (column * tile, row * tile))
    return image
