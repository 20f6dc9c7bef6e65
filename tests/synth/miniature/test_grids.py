from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.tiling import choose_grid
from internvl.errors import ConfigError
from internvl.synth.miniature.grids import MAX_ASPECT, TileShares, find_grid, find_image_size

SHARES = TileShares(max_num=64, max_total=512)


@pytest.mark.parametrize("tile", [56, 448])
def test_every_near_square_grid_is_tiled_as_wanted(tile):
    for number in SHARES.image_tiles:
        for grid in {find_grid(number), find_grid(number)[::-1]}:
            width, height = find_image_size(grid, tile=tile, max_num=64)
            assert choose_grid(width, height, min_num=1, max_num=64, image_size=tile) == grid


def test_full_size_would_not_do_for_three_by_three():
    assert choose_grid(168, 168, min_num=1, max_num=64, image_size=56) == (4, 4)
    assert find_image_size((3, 3), tile=56, max_num=64) == (132, 132)


def test_grid_beyond_the_tile_limit_is_refused():
    with pytest.raises(ConfigError, match="at most 4 tiles"):
        find_image_size((3, 2), tile=56, max_num=4)


def test_long_strips_are_no_grids():
    assert find_grid(5) is None
    assert find_grid(12) == (4, 3)
    grids = [find_grid(number) for number in SHARES.image_tiles]
    assert max(cols / rows for cols, rows in grids) <= MAX_ASPECT


def test_split_uses_as_few_images_as_the_limit_allows():
    for number in range(513):
        parts = SHARES.split(number)
        if parts is not None:
            assert sum(parts) == number
            assert set(parts) <= set(SHARES.image_tiles)
            assert len(parts) == -(-number // 64)


@given(st.integers(0, 512), st.lists(st.integers(0, 512), max_size=8), st.integers(0, 99))
def test_shared_out_tiles_add_up_and_can_be_split(total, cuts, seed):
    gaps = SHARES.share_out(sorted(min(cut, total) for cut in cuts), total, Random(seed))
    if gaps is not None:
        assert len(gaps) == len(cuts) + 1
        assert sum(gaps) == total
        assert all(SHARES.split(gap) is not None for gap in gaps)


def test_shares_are_found_within_a_few_tries():
    rng = Random(0)
    tries = [SHARES.share_out(sorted(rng.randint(0, 256) for _ in range(7)), 256, rng) for _ in range(200)]
    assert sum(gaps is not None for gaps in tries) > 40


def test_a_number_that_no_images_have_moves_to_the_nearest_that_some_have():
    few = TileShares(max_num=6, max_total=64)
    possible = [number for number in range(65) if few.split(number) is not None]
    for number in range(65):
        assert few._snap(number) == min(possible, key=lambda other: abs(other - number))
