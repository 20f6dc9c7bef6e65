import numpy as np

from internvl.synth.miniature.digits import draw_digits, load_digits


def test_splits_have_all_digits_and_share_none():
    train, test = load_digits("train"), load_digits("test")
    assert (len(train), len(test)) == (1400, 397)
    pixels = [digit.pixels.tobytes() for digit in (*train, *test)]
    assert len(set(pixels)) == len(pixels) == 1797
    assert {digit.label for digit in test} == set(range(10))


def test_pair_shows_the_digits_in_order():
    first, second = load_digits("train")[:2]
    image = draw_digits({(0, 0): first, (1, 0): second}, (2, 1), tile=56)
    assert image.size == (112, 56)
    left, right = np.asarray(image)[:, :56], np.asarray(image)[:, 56:]
    for half, digit in ((left, first), (right, second)):
        sampled = half[3::7, 3::7].astype(int)  # the centre of every original pixel
        assert np.abs(sampled - digit.pixels).max() <= 1


def test_tiles_without_a_digit_are_black():
    first, second = load_digits("train")[:2]
    image = np.asarray(draw_digits({(1, 0): first, (0, 1): second}, (2, 2), tile=56))
    assert image.shape == (112, 112)
    assert not image[:56, :56].any()
    assert not image[56:, 56:].any()
    assert np.abs(image[59:112:7, 3:56:7].astype(int) - second.pixels).max() <= 1
