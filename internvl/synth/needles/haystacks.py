"""Contexts of an exact length: pieces of text and images in a row, needles among them at wanted depths.

    piece | piece | image | NEEDLE | piece | image | piece | tail
    0                     ^ depth 0.4                       cut to the token

A piece ends in a line break, unless it was cut out of a finished context. Filler is taken until the length is reached
and the last piece of text is cut so that it is met. Then the whole is counted once more as the model reads it, and
corrected where pieces do not add up.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from random import Random

from internvl.errors import ConfigError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.corpus.lengths import ModelReader

_MAX_CORRECTIONS = 12
_MAX_SKIPPED_IMAGES = 200  # images in sequence that are too large for what is left
_ACCURACY = 0.001  # of the length
_FEWEST_MISSING = 8  # tokens that a context may always lack: less than a word is no filler


@dataclass(frozen=True)
class Piece:
    """A line of a context, or a part of one.

    Attributes:
        text: Its text; None for an image.
        image: Path of its image; None for text.
        num_visual: Visual tokens of the image.
        needle: Number of the needle that it is; None for filler.
        ending: What stands behind it.
    """

    text: str | None = None
    image: str | None = None
    num_visual: int = 0
    needle: int | None = None
    ending: str = "\n"

    @property
    def content(self) -> str:
        """Its text, or the placeholder of its image."""
        return IMAGE_PLACEHOLDER if self.text is None else self.text

    @property
    def line(self) -> str:
        """How it stands in the context."""
        return self.content + self.ending


@dataclass(frozen=True)
class LongContext:
    """A finished context.

    Attributes:
        pieces: In reading order.
        num_text: Text tokens, two markers per image included.
        num_visual: Visual tokens.
        depths: Depth of every needle, by number: tokens in front of it over all tokens.
    """

    pieces: tuple[Piece, ...]
    num_text: int
    num_visual: int
    depths: tuple[float, ...]

    @property
    def text(self) -> str:
        """As prompts have it; it ends with a line break."""
        return write_pieces(self.pieces)

    @property
    def images(self) -> list[str]:
        """Images in reading order."""
        return [piece.image for piece in self.pieces if piece.image is not None]

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return self.num_text + self.num_visual


def write_pieces(pieces: Sequence[Piece]) -> str:
    """Text of pieces."""
    return "".join(piece.line for piece in pieces)


class PieceCounter:
    """Tokens of pieces, of one alone (remembered) and of many together."""

    def __init__(self, reader: ModelReader):
        self._reader = reader
        self._count_line = lru_cache(maxsize=2**16)(reader.count_text)

    def count_alone(self, piece: Piece) -> int:
        """Tokens of a piece; a few more or fewer between others."""
        return self._count_line(piece.line) + piece.num_visual

    def count(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        """(text tokens, visual tokens) of pieces, exact."""
        return self._reader.count_text(write_pieces(pieces)), sum(piece.num_visual for piece in pieces)


def build_long_context(
    filler: Iterator[Piece],
    needles: Sequence[Piece],
    depths: Sequence[float],
    *,
    num_tokens: int,
    counter: PieceCounter,
    num_leading: int = 0,
) -> LongContext:
    """Fill a context of `num_tokens` around needles.

    Args:
        filler: Pieces without end; images that are too large for what is left are passed over.
        needles: The needles, in any order.
        depths: Wanted depth of each, 0 to 1.
        num_tokens: Tokens that the context shall have.
        counter: Counts tokens.
        num_leading: Pieces of the filler that stay in front of all needles.

    Raises:
        ConfigError: The needles alone are longer, or the filler is such that the length cannot be met.
    """
    numbered = [replace(needle, needle=number) for number, needle in enumerate(needles)]
    room = num_tokens - sum(counter.count_alone(needle) for needle in numbered)
    if room < 0:
        raise ConfigError(f"{len(needles)} needles do not fit into {num_tokens} tokens; ask for longer contexts")
    plain = _take_filler(filler, room, counter)
    for attempt in range(_MAX_CORRECTIONS):
        pieces = place_needles(plain, numbered, depths, counter, num_leading=num_leading)
        num_text, num_visual = counter.count(pieces)
        missing = num_tokens - num_text - num_visual
        if 0 <= missing <= max(_FEWEST_MISSING, _ACCURACY * num_tokens):
            found = tuple(
                measure_depth(pieces, number, num_text + num_visual, counter) for number in range(len(needles))
            )
            return LongContext(tuple(pieces), num_text, num_visual, found)
        plain = _correct_tail(plain, missing - attempt, filler, counter)  # less each time: the parts do not add up
    raise ConfigError(f"no context of {num_tokens} tokens can be made of this filler; give a corpus with more text")


def fill_between(
    parts: Sequence[Piece], filler: Iterator[Piece], *, num_tokens: int, counter: PieceCounter, rng: Random
) -> tuple[list[Piece], list[bool]]:
    """Put filler evenly between the parts of a finished context.

    Args:
        parts: The context in parts; anything may be put between two of them.
        filler: Pieces without end.
        num_tokens: Tokens that the context shall have then.
        counter: Counts tokens.
        rng: Draws the places.

    Returns:
        (all pieces in order, whether each is filler).

    Raises:
        ConfigError: The context is longer already, or the length cannot be met.
    """
    room = num_tokens - sum(counter.count(parts))
    if room < 0:
        raise ConfigError(
            f"the context has {num_tokens - room} tokens already, more than {num_tokens}; ask for longer ones"
        )
    plain = _take_filler(filler, room, counter)
    seed = rng.random()
    for attempt in range(_MAX_CORRECTIONS):
        pieces, is_new = _mix(parts, plain, counter, Random(seed))
        missing = num_tokens - sum(counter.count(pieces))
        if 0 <= missing <= max(_FEWEST_MISSING, _ACCURACY * num_tokens):
            return pieces, is_new
        plain = _correct_tail(plain, missing - attempt, filler, counter)
    raise ConfigError(f"no context of {num_tokens} tokens can be made of this filler; give a corpus with more text")


def _mix(
    parts: Sequence[Piece], plain: Sequence[Piece], counter: PieceCounter, rng: Random
) -> tuple[list[Piece], list[bool]]:
    """Filler in its order at even distances among the tokens of the parts."""
    ends = [*accumulate(counter.count_alone(part) for part in parts)]
    behind: list[list[Piece]] = [[] for _ in range(len(parts) + 1)]  # behind the first n parts
    for number, piece in enumerate(plain):
        place = (number + rng.random()) / len(plain) * ends[-1]
        behind[bisect_right(ends, place) + (rng.random() < 0.5)].append(piece)
    pieces, is_new = [*behind[0]], [True] * len(behind[0])
    for part, new in zip(parts, behind[1:], strict=True):
        pieces += [part, *new]
        is_new += [False, *[True] * len(new)]
    return pieces, is_new


def _take_filler(filler: Iterator[Piece], room: int, counter: PieceCounter) -> list[Piece]:
    """Pieces of `room` tokens, one by one counted."""
    taken: list[Piece] = []
    num_skipped = 0
    for piece in filler:
        size = counter.count_alone(piece)
        if size <= room:
            taken.append(piece)
            room -= size
            num_skipped = 0
            if room <= 1:
                break
        elif piece.text is not None:
            taken += _cut_piece(piece, room, counter)
            break
        else:
            num_skipped += 1
            if num_skipped > _MAX_SKIPPED_IMAGES:
                raise ConfigError("the filler holds images only; give a corpus with text")
    return taken


def _cut_piece(piece: Piece, num_tokens: int, counter: PieceCounter) -> list[Piece]:
    """The beginning of a text, as long as fits into `num_tokens`; nothing when not a word does."""
    assert piece.text is not None
    words = piece.text.split(" ")
    return _longest_prefix(piece, words, " ", num_tokens, counter) or _longest_prefix(
        piece, list(words[0]), "", num_tokens, counter
    )


def _longest_prefix(
    piece: Piece, units: Sequence[str], joint: str, num_tokens: int, counter: PieceCounter
) -> list[Piece]:
    low, high = 0, len(units)
    while low < high:
        middle = (low + high + 1) // 2
        if counter.count_alone(replace(piece, text=joint.join(units[:middle]))) <= num_tokens:
            low = middle
        else:
            high = middle - 1
    return [replace(piece, text=joint.join(units[:low]))] if low else []


def _correct_tail(plain: list[Piece], missing: int, filler: Iterator[Piece], counter: PieceCounter) -> list[Piece]:
    """Filler with `missing` tokens more (fewer, when negative)."""
    plain = list(plain)
    while missing < 0 and plain:
        last = plain.pop()
        missing += counter.count_alone(last)
    return plain + _take_filler((piece for piece in filler if piece.text is not None), missing, counter)


def place_needles(
    plain: Sequence[Piece],
    needles: Sequence[Piece],
    depths: Sequence[float],
    counter: PieceCounter,
    *,
    num_leading: int = 0,
) -> list[Piece]:
    """Pieces with every needle at the border nearest to its depth; needles at one border keep the order of depths."""
    borders = [0, *accumulate(counter.count_alone(piece) for piece in plain)]
    total = borders[-1] + sum(counter.count_alone(needle) for needle in needles)
    placed: list[tuple[int, Piece]] = []
    num_before = 0  # tokens of the needles further up
    for needle, depth in sorted(zip(needles, depths, strict=True), key=lambda pair: pair[1]):
        wanted = depth * total - num_before
        at_least = placed[-1][0] if placed else min(num_leading, len(plain))
        placed.append((max(_find_nearest(borders, wanted), at_least), needle))
        num_before += counter.count_alone(needle)
    pieces: list[Piece] = []
    first = 0
    for border, needle in placed:
        pieces += [*plain[first:border], needle]
        first = border
    return [*pieces, *plain[first:]]


def _find_nearest(borders: Sequence[int], wanted: float) -> int:
    """Index of the ascending number that is nearest to `wanted`."""
    right = min(bisect_left(borders, wanted), len(borders) - 1)
    left = max(right - 1, 0)
    return left if wanted - borders[left] <= borders[right] - wanted else right


def measure_depth(pieces: Sequence[Piece], needle: int, num_tokens: int, counter: PieceCounter) -> float:
    """Tokens in front of a needle over `num_tokens`."""
    index = next(index for index, piece in enumerate(pieces) if piece.needle == needle)
    return sum(counter.count(pieces[:index])) / num_tokens


def repeat_forever(make: Callable[[], Iterator[Piece]]) -> Iterator[Piece]:
    """The pieces of `make()`, again and again.

    Raises:
        ConfigError: It gives none.
    """
    while True:
        piece = None
        for piece in make():
            yield piece
        if piece is None:
            raise ConfigError("there is no filler; give a corpus with text")
