from random import Random

import numpy as np
import pytest
from PIL import Image

from internvl.data.storage.media import read_image_size
from internvl.data.tiling import Tiling
from internvl.synth.miniature.digits import load_digits
from internvl.synth.miniature.pictures import PictureSpec, make_pool

SPEC = PictureSpec(tile=56, max_num=64, image_tiles=(1, 6, 9, 25), tiles_per_pool=12, num_needles=30)


@pytest.fixture(scope="module", params=["train", "test"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    ticks = []
    pool = make_pool(folder, SPEC, split=request.param, rng=Random(0), tick=lambda: ticks.append(1))
    return folder, pool, request.param, len(ticks)


def test_haystack_images_have_the_tiles_they_stand_for(made):
    folder, pool, _, _ = made
    assert [len(pool.haystack[tiles]) for tiles in SPEC.image_tiles] == [12, 6, 6, 6]
    for tiles, paths in pool.haystack.items():
        for path in paths:
            assert Tiling(1, 64, 56).count(*read_image_size(folder / path)) == tiles


def test_every_file_is_counted(made):
    folder, pool, _, num_ticks = made
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == pool.num_files == num_ticks == 60


def test_image_needles_show_digits_of_their_split(made):
    folder, pool, split, _ = made
    labels = {digit.pixels.tobytes(): digit.label for digit in load_digits(split)}
    others = [digit.pixels.astype(int) for digit in load_digits(split)]
    for needle in pool.needles:
        image = np.asarray(Image.open(folder / needle.path))
        assert image.shape == (56, 112)
        for half, label in zip((image[:, :56], image[:, 56:]), needle.digits, strict=True):
            pixels = half[3::7, 3::7].astype(int)
            nearest = min(others, key=lambda other: np.abs(other - pixels).max())
            assert np.abs(nearest - pixels).max() <= 1
            assert labels[nearest.astype(np.uint8).tobytes()] == label


def test_digits_stand_equally_often_on_either_side(tmp_path):
    spec = PictureSpec(tile=56, max_num=64, image_tiles=(), num_needles=794)
    pool = make_pool(tmp_path, spec, split="test", rng=Random(0), tick=lambda: None)
    counts = [[needle.digits[side] for needle in pool.needles].count(7) for side in (0, 1)]
    assert counts[0] == counts[1] == 2 * [digit.label for digit in load_digits("test")].count(7)
