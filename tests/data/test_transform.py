import numpy as np
import pytest
import torch
from PIL import Image

from internvl.data.transform import build_transform, pad_to_square, reencode_jpeg, tiles_to_tensor
from internvl.errors import ConfigError


def make_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiles_are_the_pixels_colour_by_colour():
    tensor = build_transform(2)([Image.new("RGB", (2, 2), (255, 0, 51))])
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (1, 3, 2, 2)
    assert tensor[0, :, 1, 1].tolist() == [255, 0, 51]


def test_tiles_go_where_they_are_wanted():
    pictures = [make_picture(4, 4, seed) for seed in range(2)]
    room = torch.full((3, 3, 4, 4), 7, dtype=torch.uint8)
    tensor = tiles_to_tensor(pictures, out=room[1:])
    assert tensor.data_ptr() == room[1].data_ptr()
    assert torch.equal(room[1:], build_transform(4)(pictures))
    assert (room[0] == 7).all()


def test_unknown_statistics_are_refused():
    with pytest.raises(ConfigError, match="normalize_type is 'imagenette'"):
        build_transform(2, normalize_type="imagenette")


def test_rows_and_columns_keep_their_places():
    picture = make_picture(5, 5)
    assert tiles_to_tensor([picture])[0, 2, 1, 3].item() == np.asarray(picture)[1, 3, 2]


def test_other_sizes_are_resized_by_bicubic_interpolation():
    picture = make_picture(9, 7)
    expected = picture.resize((4, 4), Image.Resampling.BICUBIC)
    assert torch.equal(build_transform(4)([picture]), build_transform(4)([expected]))


def test_grey_and_palette_pictures_become_rgb():
    grey = Image.new("L", (4, 4), 100)
    assert torch.equal(build_transform(4)([grey]), build_transform(4)([grey.convert("RGB")]))


def test_padding_centres_on_the_mean_colour():
    square = np.asarray(pad_to_square(Image.new("RGB", (4, 2), "white"), (0.485, 0.456, 0.406)))
    assert square.shape == (4, 4, 3)
    assert square[0, 0].tolist() == square[3, 3].tolist() == [123, 116, 103]
    assert (square[1:3] == 255).all()


def test_augmentation_reencodes_at_a_drawn_quality():
    picture = make_picture(16, 16)
    transform = build_transform(16, augment=True)
    quality = int(np.random.default_rng(3).integers(75, 100, endpoint=True))
    expected = build_transform(16)([reencode_jpeg(picture, quality)])
    assert torch.equal(transform([picture], np.random.default_rng(3)), expected)
    assert not torch.equal(expected, build_transform(16)([picture]))


def test_augmentation_wins_over_padding():
    picture = make_picture(16, 8)
    rng = np.random.default_rng
    padded = build_transform(8, augment=True, pad2square=True)([picture], rng(0))
    assert torch.equal(padded, build_transform(8, augment=True)([picture], rng(0)))


def test_augmentation_needs_a_generator():
    with pytest.raises(ValueError, match="generator"):
        build_transform(4, augment=True)([make_picture(4, 4)])
