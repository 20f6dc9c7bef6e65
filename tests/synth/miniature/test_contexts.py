from dataclasses import replace
from random import Random

import pytest

from internvl.errors import ConfigError, DataError
from internvl.synth.miniature.contexts import (
    Context,
    ContextSpec,
    Filler,
    HaystackImage,
    TextNeedle,
    build_context,
    check_context,
    draw_needles,
    write_parts,
)
from internvl.synth.miniature.grids import TileShares
from internvl.synth.miniature.pictures import ImageNeedle, PicturePool
from internvl.synth.miniature.vocabulary import CATEGORIES

SHARES = TileShares(max_num=64, max_total=256)
SPEC = ContextSpec(num_text_needles=(6, 6), num_filler_sentences=(1, 2), shares=SHARES)
POOL = PicturePool(
    haystack={tiles: tuple(f"{tiles}_{n}.jpg" for n in range(9)) for tiles in SHARES.image_tiles},
    needles=tuple(ImageNeedle(f"needle{n}.png", (n % 10, 7)) for n in range(30)),
)
SENTENCES = ("Case is significant.", "Classes are callable.", "Use elts instead.")
MANGO = TextNeedle("fruit", "mango")
DIGITS = ImageNeedle("needle.png", (3, 8))


def draw(num_tiles, seed, **options):
    rng = Random(seed)
    needles = draw_needles(SPEC, POOL, rng)
    return build_context(SPEC, POOL, num_tiles=num_tiles, needles=needles, sentences=SENTENCES, rng=rng, **options)


def test_text_has_a_placeholder_per_image_and_ends_with_a_line_break():
    context = Context((HaystackImage("a.jpg", 12), MANGO, Filler("Case is significant."), DIGITS))
    assert context.text == '<image>Note "mango". Case is significant.<image>\n'
    assert context.images == ["a.jpg", "needle.png"]
    assert context.tiles_per_image == [12, 2]
    assert write_parts(context.parts_before(DIGITS)) == '<image>Note "mango". Case is significant.'


@pytest.mark.parametrize("num_tiles", [0, 1, 5, 32, 100, 256])
def test_context_has_exactly_the_tiles_asked_for(num_tiles):
    for seed in range(20):
        context = draw(num_tiles, seed)
        assert sum(context.tiles_per_image) == num_tiles + 2
        assert context.text.count("<image>") == len(context.images)


def test_every_needle_stands_there_once_and_categories_differ():
    for seed in range(20):
        context = draw(32, seed)
        assert len({needle.category for needle in context.text_needles}) == 6
        for needle in context.text_needles:
            assert needle.value in CATEGORIES[needle.category]
            assert context.text.count(needle.sentence) == 1
        assert context.images.count(context.image_needle.path) == 1


def test_depths_are_uniform():
    places = [
        sum(part.num_tiles for part in context.parts_before(context.image_needle) if isinstance(part, HaystackImage))
        / 64
        for context in (draw(64, seed) for seed in range(300))
    ]
    shares = [sum(low <= place <= low + 0.2 for place in places) / len(places) for low in (0, 0.2, 0.4, 0.6, 0.8)]
    assert min(shares) > 0.1


def test_wanted_depth_is_met_but_for_the_rounding_to_grids():
    needles = [MANGO, DIGITS]
    spec = replace(SPEC, num_text_needles=(1, 1))
    for seed in range(20):
        context = build_context(
            spec,
            POOL,
            num_tiles=128,
            needles=needles,
            sentences=SENTENCES,
            rng=Random(seed),
            depths={MANGO: 0.75, DIGITS: 0.25},
        )
        tiles = {n: sum(p.num_tiles for p in context.parts_before(n) if isinstance(p, HaystackImage)) for n in needles}
        assert tiles[MANGO] == pytest.approx(96, abs=10)
        assert tiles[DIGITS] == pytest.approx(32, abs=10)


def test_longer_contexts_have_more_tiles_per_image_and_hardly_more_images():
    def mean_images(tiles):
        return sum(len(draw(tiles, seed).images) for seed in range(50)) / 50

    assert mean_images(256) < 1.5 * mean_images(32)


def test_needle_word_in_filler_text_is_an_error():
    with pytest.raises(DataError, match="not unique"):
        check_context(Context((MANGO, DIGITS, Filler("Some mango is ripe."))))


def test_category_of_a_needle_in_filler_text_is_an_error():
    with pytest.raises(DataError, match="not unique"):
        check_context(Context((MANGO, DIGITS, Filler("Some fruit is ripe."))))


def test_number_of_text_needles_is_drawn_from_its_range():
    spec = replace(SPEC, num_text_needles=(1, 6))
    numbers = {len(draw_needles(spec, POOL, Random(seed))) - 1 for seed in range(80)}
    assert numbers == set(range(1, 7))


def test_image_needle_twice_is_an_error():
    with pytest.raises(DataError, match="more than once"):
        check_context(Context((MANGO, DIGITS, HaystackImage("needle.png", 2))))


@pytest.mark.parametrize("change", [{"num_text_needles": (6, 9)}, {"num_filler_sentences": (2, 1)}])
def test_impossible_spec_is_an_error(change):
    with pytest.raises(ConfigError):
        replace(SPEC, **change)


def test_too_few_sentences_is_an_error():
    spec = replace(SPEC, num_filler_sentences=(9, 9))
    needles = [MANGO, DIGITS]
    with pytest.raises(ConfigError, match="9 filler sentences"):
        build_context(spec, POOL, num_tiles=4, needles=needles, sentences=SENTENCES, rng=Random(0))
