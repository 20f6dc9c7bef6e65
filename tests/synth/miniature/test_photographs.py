from random import Random

import numpy as np
import pytest

from internvl.errors import DataError, MissingDependencyError
from internvl.synth.miniature.photographs import PHOTOGRAPHS, Photograph, crop_photograph, load_photographs


def test_splits_share_no_picture():
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    pictures = [image.tobytes() for split in PHOTOGRAPHS for image in load_photographs(split)]
    assert len(set(pictures)) == len(pictures) >= 10


def test_crop_has_the_wanted_size_and_shows_a_part():
    photograph = load_photographs("train")[0]
    crops = [crop_photograph(photograph, (168, 112), Random(seed)) for seed in range(4)]
    assert {crop.size for crop in crops} == {(168, 112)}
    assert len({crop.tobytes() for crop in crops}) == 4
    assert all(np.asarray(crop).std() > 5 for crop in crops)


def test_missing_package_and_missing_file_are_told_apart():
    with pytest.raises(MissingDependencyError, match="pip install"):
        Photograph("no_such_package", "a.png").load()
    with pytest.raises(DataError, match=r"no data/none\.png"):
        Photograph("skimage", "data/none.png").load()
