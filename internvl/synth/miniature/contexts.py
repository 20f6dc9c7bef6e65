"""A long context: needles at random depths in a haystack of images, with a little real text in between.

    <image>  Note "mango".  <image>   <image>                 Note "saw".  A filler sentence.  <image> ...
    12 tiles text needle    9 tiles   2 tiles: image needle   text needle  other text         15 tiles

Longer contexts have more tiles per image, not more images or more text. Text advances the position by 1 per token
whatever the stride of visual tokens is, so only this makes "long" mean "many visual tokens".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.miniature.grids import TileShares
from internvl.synth.miniature.pictures import ImageNeedle, PicturePool
from internvl.synth.miniature.vocabulary import CATEGORIES, write_needle

_MAX_TRIES = 10_000


@dataclass(frozen=True)
class TextNeedle:
    """A sentence that names a value of a category; the category itself is not named."""

    category: str
    value: str

    @property
    def sentence(self) -> str:
        """What stands in the context."""
        return write_needle(self.value)


@dataclass(frozen=True)
class HaystackImage:
    """One image that holds no answer."""

    path: str
    num_tiles: int


@dataclass(frozen=True)
class Filler:
    """One sentence that holds no answer."""

    sentence: str


Needle = TextNeedle | ImageNeedle
Sentence = TextNeedle | Filler
Picture = ImageNeedle | HaystackImage
Part = Sentence | Picture


@dataclass(frozen=True)
class ContextSpec:
    """What every context of a data set holds.

    Attributes:
        num_text_needles: Least and most text needles, each of another category.
        num_filler_sentences: Least and most filler sentences.
        shares: How tiles are shared out over images.
    """

    num_text_needles: tuple[int, int]
    num_filler_sentences: tuple[int, int]
    shares: TileShares

    def __post_init__(self) -> None:
        ranges = {
            "text needles": (self.num_text_needles, len(CATEGORIES)),
            "filler sentences": (self.num_filler_sentences, 99),
        }
        for name, ((least, most), limit) in ranges.items():
            if not 0 <= least <= most <= limit:
                raise ConfigError(f"{name} are {least} to {most}, expected 0 <= least <= most <= {limit}")


@dataclass(frozen=True)
class Context:
    """Parts in reading order.

    Attributes:
        parts: Images, needles and filler sentences.
    """

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The context as a prompt has it: one `<image>` per image; it ends with a line break."""
        return write_parts(self.parts) + "\n"

    @property
    def images(self) -> list[str]:
        """Image paths in the order of their placeholders."""
        return [part.path for part in self.parts if isinstance(part, Picture)]

    @property
    def tiles_per_image(self) -> list[int]:
        """Tiles of every image."""
        return count_tiles_per_image(self.parts)

    @property
    def text_needles(self) -> list[TextNeedle]:
        """The text needles in reading order."""
        return [part for part in self.parts if isinstance(part, TextNeedle)]

    @property
    def image_needle(self) -> ImageNeedle:
        """The image needle."""
        return next(part for part in self.parts if isinstance(part, ImageNeedle))

    def parts_before(self, needle: Needle) -> tuple[Part, ...]:
        """What stands in front of a needle."""
        return self.parts[: self.parts.index(needle)]


def write_parts(parts: Sequence[Part]) -> str:
    """Text of parts: sentences are parted by a space, images stand close."""
    text = ""
    for part in parts:
        if isinstance(part, Picture):
            text += IMAGE_PLACEHOLDER
        else:
            text += " " * (bool(text) and not text.endswith(IMAGE_PLACEHOLDER)) + part.sentence
    return text


def count_tiles_per_image(parts: Sequence[Part]) -> list[int]:
    """Tiles of every image among the parts."""
    return [part.num_tiles for part in parts if isinstance(part, Picture)]


def draw_needles(spec: ContextSpec, pool: PicturePool, rng: Random) -> list[Needle]:
    """Text needles of different categories and one image needle, in random order."""
    categories = rng.sample(list(CATEGORIES), rng.randint(*spec.num_text_needles))
    needles: list[Needle] = [TextNeedle(category, rng.choice(CATEGORIES[category])) for category in categories]
    needles.append(rng.choice(pool.needles))
    rng.shuffle(needles)
    return needles


def build_context(
    spec: ContextSpec,
    pool: PicturePool,
    *,
    num_tiles: int,
    needles: Sequence[Needle],
    sentences: Sequence[str],
    rng: Random,
    depths: Mapping[Needle, float] | None = None,
) -> Context:
    """Put needles into a haystack.

    Args:
        spec: What the context holds.
        pool: Image files.
        num_tiles: Tiles of the haystack (the image needle's two are not counted).
        needles: The needles; where `depths` says nothing, their depth is uniform.
        sentences: Filler sentences to choose from.
        rng: Draws depths, images and sentences.
        depths: Wanted depth of some needles, as a fraction of the haystack's tiles.

    Raises:
        DataError: A needle would stand in the context twice.
        ConfigError: The tiles cannot be shared out, or there are too few sentences.
    """
    ordered, gaps = _place_needles(spec.shares, num_tiles, needles, depths or {}, rng)
    runs = [_draw_images(spec.shares, gap, pool, rng) for gap in gaps]
    parts = runs[0]
    for needle, run in zip(ordered, runs[1:], strict=True):
        parts += [needle, *run]
    context = Context(_add_filler(parts, spec, sentences, rng))
    check_context(context)
    return context


def _place_needles(
    shares: TileShares, num_tiles: int, needles: Sequence[Needle], depths: Mapping[Needle, float], rng: Random
) -> tuple[list[Needle], list[int]]:
    """Needles in reading order, and the number of tiles before, between and behind them."""
    for _ in range(_MAX_TRIES):
        shuffled = rng.sample(needles, len(needles))  # the order of needles that share a place
        cuts = {n: round(depths[n] * num_tiles) if n in depths else rng.randint(0, num_tiles) for n in shuffled}
        ordered = sorted(shuffled, key=cuts.__getitem__)
        gaps = shares.share_out([cuts[needle] for needle in ordered], num_tiles, rng)
        if gaps is not None:
            return ordered, gaps
    raise ConfigError(f"{num_tiles} tiles cannot be shared out over {len(needles) + 1} runs of images")


def _draw_images(shares: TileShares, num_tiles: int, pool: PicturePool, rng: Random) -> list[Part]:
    sizes = list(shares.split(num_tiles) or ())
    rng.shuffle(sizes)
    return [HaystackImage(rng.choice(pool.haystack[size]), size) for size in sizes]


def _add_filler(parts: list[Part], spec: ContextSpec, sentences: Sequence[str], rng: Random) -> tuple[Part, ...]:
    number = rng.randint(*spec.num_filler_sentences)
    if number > len(sentences):
        raise ConfigError(f"{number} filler sentences are wanted, there are {len(sentences)}; ask for fewer")
    for sentence in rng.sample(sentences, number):
        parts.insert(rng.randint(0, len(parts)), Filler(sentence))
    return tuple(parts)


def check_context(context: Context) -> None:
    """Every needle stands in the context once, and nothing else gives its answer away.

    Raises:
        DataError: It does not.
    """
    words = re.findall(r"\w+", context.text.replace(IMAGE_PLACEHOLDER, " "))
    for needle in context.text_needles:
        if words.count(needle.value) != 1 or needle.category in words:
            raise DataError(
                f"needle {needle.sentence!r} is not unique in its context {context.text!r}; choose other filler text"
            )
    if context.images.count(context.image_needle.path) != 1:
        raise DataError(f"image needle {context.image_needle.path} is in the context more than once")
