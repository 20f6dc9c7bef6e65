import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from internvl.data.tiling import Tiling, choose_grid

MAX_NUMS = (1, 5, 6, 12, 18, 24)

# Grids (columns, rows) that the public implementation gave for min_num 1 and tiles of 448 pixels.
GOLDEN = {
    ("448x448", "300x300", "633x633"): ((1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)),
    ("634x634", "800x800", "896x896"): ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
    ("1000x1000",): ((1, 1), (2, 2), (2, 2), (3, 3), (3, 3), (3, 3)),
    ("1344x1344", "2000x2000"): ((1, 1), (2, 2), (2, 2), (3, 3), (4, 4), (4, 4)),
    ("777x776",): ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
    ("640x480",): ((1, 1), (1, 1), (3, 2), (4, 3), (4, 3), (4, 3)),
    ("480x640",): ((1, 1), (1, 2), (2, 3), (3, 4), (3, 4), (3, 4)),
    ("1024x768",): ((1, 1), (2, 2), (3, 2), (4, 3), (4, 3), (4, 3)),
    ("1920x1080", "1280x720", "1366x768"): ((1, 1), (2, 1), (2, 1), (4, 2), (5, 3), (5, 3)),
    ("1080x1920",): ((1, 1), (1, 2), (1, 2), (2, 4), (3, 5), (3, 5)),
    ("800x1200",): ((1, 1), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3)),
    ("1200x400",): ((1, 1), (3, 1), (3, 1), (3, 1), (3, 1), (3, 1)),
    ("3000x500",): ((1, 1), (5, 1), (6, 1), (6, 1), (6, 1), (6, 1)),
    ("500x3000",): ((1, 1), (1, 5), (1, 6), (1, 6), (1, 6), (1, 6)),
    ("100x1000",): ((1, 1), (1, 5), (1, 6), (1, 10), (1, 10), (1, 10)),
    ("1650x1275",): ((1, 1), (2, 2), (3, 2), (4, 3), (4, 3), (4, 3)),
    ("2550x3300",): ((1, 1), (2, 2), (2, 3), (3, 4), (3, 4), (3, 4)),
}
CASES = [(size, grids) for sizes, grids in GOLDEN.items() for size in sizes]


@pytest.mark.parametrize(("size", "grids"), CASES, ids=[size for size, _ in CASES])
def test_grids_are_those_of_the_public_implementation(size, grids):
    width, height = map(int, size.split("x"))
    got = tuple(choose_grid(width, height, min_num=1, max_num=max_num, image_size=448) for max_num in MAX_NUMS)
    assert got == grids


def test_six_tiles_and_a_thumbnail():
    options = {"min_num": 1, "max_num": 6, "image_size": 448, "use_thumbnail": True}
    assert Tiling(**options).count(900, 600) == 7
    assert len(Tiling(**options).split(Image.new("RGB", (900, 600)))) == 7


@pytest.mark.parametrize("max_num", [0, 1])
def test_a_single_tile_has_no_thumbnail(max_num):
    assert Tiling(1, max_num, 448, use_thumbnail=True).count(900, 600) == 1


def test_an_upper_limit_below_the_lower_one_means_one_tile():
    assert choose_grid(900, 600, min_num=4, max_num=3, image_size=448) == (1, 1)


def test_tiles_are_cut_row_by_row():
    columns, rows, size = 3, 2, 8
    pixels = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, size, 0), size, 1)
    tiles = Tiling(1, 6, size).split(Image.fromarray(pixels))
    assert len(tiles) == columns * rows
    assert [int(np.asarray(tile)[4, 4]) for tile in tiles] == [0, 40, 80, 120, 160, 200]


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    max_num=st.integers(1, 12),
    use_thumbnail=st.booleans(),
)
def test_counting_agrees_with_splitting(width, height, max_num, use_thumbnail):
    options = {"min_num": 1, "max_num": max_num, "image_size": 16, "use_thumbnail": use_thumbnail}
    tiles = Tiling(**options).split(Image.new("L", (width, height)))
    assert len(tiles) == Tiling(**options).count(width, height) <= max_num + use_thumbnail
    assert all(tile.size == (16, 16) for tile in tiles)
