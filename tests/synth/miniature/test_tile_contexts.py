from dataclasses import replace
from random import Random

import pytest

from internvl.errors import ConfigError, DataError
from internvl.synth.contexts import Piece, write_pieces
from internvl.synth.miniature.grids import TileShares
from internvl.synth.miniature.image_pool import ImageNeedle, ImagePool
from internvl.synth.miniature.tile_contexts import ContextMaker, ContextSpec, TextNeedle, write_context
from internvl.synth.miniature.vocabulary import CATEGORIES


def show(path, num_tiles):
    """A haystack image, of four tokens per tile."""
    return Piece(image=path, num_visual=4 * num_tiles, ending="")


def say(sentence):
    return Piece(text=sentence, ending="")


SHARES = TileShares(max_num=64, max_total=256)
SPEC = ContextSpec(num_text_needles=(6, 6), num_filler_sentences=(1, 2), shares=SHARES)
POOL = ImagePool(
    haystack={tiles: tuple(show(f"{tiles}_{n}.jpg", tiles) for n in range(9)) for tiles in SHARES.image_tiles},
    needles=tuple(ImageNeedle(f"needle{n}.png", (n % 10, 7), 8) for n in range(30)),
)
SENTENCES = ("Case is significant.", "Classes are callable.", "Use elts instead.")
MAKER = ContextMaker(SPEC, POOL, SENTENCES)
MANGO = TextNeedle("fruit", "mango")
DIGITS = ImageNeedle("needle.png", (3, 8), 8)


def draw(num_tiles, seed, maker=MAKER):
    rng = Random(seed)
    return maker.build(num_tiles, maker.draw_needles(rng), rng)


def count_tiles_before(context, needle):
    pieces = context.pieces[: context.find(needle)]
    return sum(piece.num_visual for piece in pieces if piece.needle is None) / 4


def test_text_has_a_placeholder_per_image_and_ends_with_a_line_break():
    context = write_context([MANGO, DIGITS], [show("a.jpg", 12), MANGO, say("Case is significant."), DIGITS])
    assert context.text == '<image>Note "mango". Case is significant.<image>\n'
    assert context.images == ["a.jpg", "needle.png"]
    assert [piece.num_visual for piece in context.pieces] == [48, 0, 0, 8]
    assert write_pieces(context.pieces[: context.find(DIGITS)]) == '<image>Note "mango". Case is significant.'


@pytest.mark.parametrize("num_tiles", [0, 1, 5, 32, 100, 256])
def test_context_has_exactly_the_tiles_asked_for(num_tiles):
    for seed in range(20):
        context = draw(num_tiles, seed)
        assert sum(piece.num_visual for piece in context.pieces) == 4 * (num_tiles + 2)
        assert context.text.count("<image>") == len(context.images)


def test_every_needle_stands_there_once_and_categories_differ():
    for seed in range(20):
        context = draw(32, seed)
        assert len({needle.category for needle in context.text_needles}) == 6
        for needle in context.text_needles:
            assert needle.value in CATEGORIES[needle.category]
            assert context.text.count(needle.piece.text) == 1
        assert context.images.count(context.image_needle.path) == 1


def test_depths_are_uniform():
    contexts = (draw(64, seed) for seed in range(300))
    places = [count_tiles_before(context, context.image_needle) / 64 for context in contexts]
    shares = [sum(low <= place <= low + 0.2 for place in places) / len(places) for low in (0, 0.2, 0.4, 0.6, 0.8)]
    assert min(shares) > 0.1


def test_wanted_depth_is_met_but_for_the_rounding_to_grids():
    for seed in range(20):
        context = MAKER.build(128, [MANGO, DIGITS], Random(seed), depths={MANGO: 0.75, DIGITS: 0.25})
        assert count_tiles_before(context, MANGO) == pytest.approx(96, abs=10)
        assert count_tiles_before(context, DIGITS) == pytest.approx(32, abs=10)


def test_longer_contexts_have_more_tiles_per_image_and_hardly_more_images():
    def mean_images(tiles):
        return sum(len(draw(tiles, seed).images) for seed in range(50)) / 50

    assert mean_images(256) < 1.5 * mean_images(32)


@pytest.mark.parametrize("word", ["mango", "fruit"])
def test_needle_word_or_category_in_filler_text_is_an_error(word):
    with pytest.raises(DataError, match="not unique"):
        write_context([MANGO, DIGITS], [MANGO, DIGITS, say(f"Some {word} is ripe.")])


def test_number_of_text_needles_is_drawn_from_its_range():
    maker = replace(MAKER, spec=replace(SPEC, num_text_needles=(1, 6)))
    numbers = {len(maker.draw_needles(Random(seed))) - 1 for seed in range(80)}
    assert numbers == set(range(1, 7))


def test_image_needle_twice_is_an_error():
    with pytest.raises(DataError, match="more than once"):
        write_context([MANGO, DIGITS], [MANGO, DIGITS, show("needle.png", 2)])


@pytest.mark.parametrize("change", [{"num_text_needles": (6, 9)}, {"num_filler_sentences": (2, 1)}])
def test_impossible_spec_is_an_error(change):
    with pytest.raises(ConfigError):
        replace(SPEC, **change)


def test_too_few_sentences_is_an_error():
    maker = replace(MAKER, spec=replace(SPEC, num_filler_sentences=(9, 9)))
    with pytest.raises(ConfigError, match="9 filler sentences"):
        maker.build(4, [MANGO, DIGITS], Random(0))
