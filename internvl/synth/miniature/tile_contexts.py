"""A context of the miniature set: needles at random depths among images, with a little real text in between.

    <image>  Note "mango".  <image>   <image>                 Note "saw".  A filler sentence.  <image> ...
    12 tiles text needle    9 tiles   2 tiles: image needle   text needle  other text         15 tiles

Longer contexts have more tiles per image, not more images or more text. Text advances the position by 1 per token
whatever the stride of visual tokens is, so only this way "long" means "many visual tokens".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.contexts import Piece, find_needle, list_images, write_pieces
from internvl.synth.miniature.grids import TileShares
from internvl.synth.miniature.image_pool import ImageNeedle, ImagePool
from internvl.synth.miniature.vocabulary import CATEGORIES, NUM_DIGITS, ask_category, ask_digit, write_needle
from internvl.synth.questions import Question

_MAX_TRIES = 10_000


@dataclass(frozen=True)
class TextNeedle:
    """A sentence that names a value of a category; the category itself is not named."""

    category: str
    value: str

    @property
    def piece(self) -> Piece:
        """Its piece of a context."""
        return Piece(text=write_needle(self.value), ending="")


Needle = TextNeedle | ImageNeedle


@dataclass(frozen=True)
class ContextSpec:
    """What every context of a data set holds."""

    num_text_needles: tuple[int, int]  # least and most text needles, each of another category
    num_filler_sentences: tuple[int, int]  # least and most filler sentences
    shares: TileShares  # how tiles are shared out over images

    def __post_init__(self) -> None:
        ranges = {
            "text needles": (self.num_text_needles, len(CATEGORIES)),
            "filler sentences": (self.num_filler_sentences, 99),
        }
        for name, ((least, most), limit) in ranges.items():
            if not 0 <= least <= most <= limit:
                raise ConfigError(f"{name} are {least} to {most}, expected 0 <= least <= most <= {limit}")


@dataclass(frozen=True)
class TileContext:
    """A finished context."""

    needles: tuple[Needle, ...]  # in reading order
    pieces: tuple[Piece, ...]  # in reading order; those that are needles have the number of theirs

    @property
    def text(self) -> str:
        """The context as a prompt has it; it ends with a line break."""
        return write_pieces(self.pieces) + "\n"

    @property
    def images(self) -> list[str]:
        """Image paths in the order of their placeholders."""
        return list_images(self.pieces)

    @property
    def text_needles(self) -> list[TextNeedle]:
        """The text needles in reading order."""
        return [needle for needle in self.needles if isinstance(needle, TextNeedle)]

    @property
    def image_needle(self) -> ImageNeedle:
        """The image needle."""
        return next(needle for needle in self.needles if isinstance(needle, ImageNeedle))

    def find(self, needle: Needle) -> int:
        """Index of the needle's piece."""
        return find_needle(self.pieces, self.needles.index(needle))

    def ask_for_value(self, needle: TextNeedle) -> Question:
        """The question for the value of a text needle."""
        chance = 1 / len(CATEGORIES[needle.category])
        return Question(ask_category(needle.category), needle.value, (self.needles.index(needle),), chance=chance)

    def ask_for_digit(self, word: str) -> Question:
        """The question for the digit of the image needle that is `first`, `second`, `left` or `right`."""
        needle = self.image_needle
        asked = (self.needles.index(needle),)
        return Question(ask_digit(word), str(needle.find_digit(word)), asked, chance=1 / NUM_DIGITS)


def write_context(needles: Sequence[Needle], parts: Sequence[Piece | Needle]) -> TileContext:
    """A context of parts in reading order; sentences are separated by a space, images stand close.

    Raises DataError if a needle stands in the context twice, or something else gives its answer away.
    """
    pieces: list[Piece] = []
    for part in parts:
        piece = part if isinstance(part, Piece) else replace(part.piece, needle=list(needles).index(part))
        follows_text = bool(pieces) and pieces[-1].text is not None and piece.text is not None
        pieces.append(replace(piece, opening=" ") if follows_text else piece)
    context = TileContext(tuple(needles), tuple(pieces))
    words = re.findall(r"\w+", context.text.replace(IMAGE_PLACEHOLDER, " "))
    for needle in context.text_needles:
        if words.count(needle.value) != 1 or needle.category in words:
            raise DataError(
                f"needle {needle.piece.text!r} is not unique in its context {context.text!r}; choose other filler text"
            )
    if context.images.count(context.image_needle.path) != 1:
        raise DataError(f"image needle {context.image_needle.path} is in the context more than once")
    return context


@dataclass(frozen=True)
class ContextMaker:
    """Makes the contexts of a split."""

    spec: ContextSpec
    pool: ImagePool
    sentences: Sequence[str]  # filler sentences to choose from

    def draw_needles(self, rng: Random) -> list[Needle]:
        """Text needles of different categories and one image needle, in random order."""
        categories = rng.sample(list(CATEGORIES), rng.randint(*self.spec.num_text_needles))
        needles: list[Needle] = [TextNeedle(category, rng.choice(CATEGORIES[category])) for category in categories]
        needles.append(rng.choice(self.pool.needles))
        rng.shuffle(needles)
        return needles

    def build(
        self,
        num_tiles: int,
        needles: Sequence[Needle],
        rng: Random,
        *,
        depths: Mapping[Needle, float] | None = None,
    ) -> TileContext:
        """Put needles into a haystack of `num_tiles` tiles (the two of the image needle are not counted).

        `depths` are fractions of the haystack's tiles; the depth of every other needle is uniform.

        Raises:
            DataError: A needle would stand in the context twice.
            ConfigError: The tiles cannot be shared out, or there are too few sentences.
        """
        ordered, gaps = self._place(num_tiles, needles, depths or {}, rng)
        runs = [self._draw_run(gap, rng) for gap in gaps]
        parts: list[Piece | Needle] = [*runs[0]]
        for needle, run in zip(ordered, runs[1:], strict=True):
            parts += [needle, *run]
        self._add_sentences(parts, rng)
        return write_context(ordered, parts)

    def _place(
        self, num_tiles: int, needles: Sequence[Needle], depths: Mapping[Needle, float], rng: Random
    ) -> tuple[list[Needle], list[int]]:
        """Needles in reading order, and the number of tiles before, between and after them."""
        for _ in range(_MAX_TRIES):
            shuffled = rng.sample(needles, len(needles))  # the order of needles that share a place
            cuts = {n: round(depths[n] * num_tiles) if n in depths else rng.randint(0, num_tiles) for n in shuffled}
            ordered = sorted(shuffled, key=cuts.__getitem__)
            gaps = self.spec.shares.share_out([cuts[needle] for needle in ordered], num_tiles, rng)
            if gaps is not None:
                return ordered, gaps
        raise ConfigError(f"{num_tiles} tiles cannot be shared out over {len(needles) + 1} runs of images")

    def _draw_run(self, num_tiles: int, rng: Random) -> list[Piece]:
        sizes = list(self.spec.shares.split(num_tiles) or ())
        rng.shuffle(sizes)
        return [rng.choice(self.pool.haystack[size]) for size in sizes]

    def _add_sentences(self, parts: list[Piece | Needle], rng: Random) -> None:
        number = rng.randint(*self.spec.num_filler_sentences)
        if number > len(self.sentences):
            raise ConfigError(f"{number} filler sentences are wanted, there are {len(self.sentences)}; ask for fewer")
        for sentence in rng.sample(self.sentences, number):
            parts.insert(rng.randint(0, len(parts)), Piece(text=sentence, ending=""))
