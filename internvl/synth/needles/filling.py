"""Contexts of an exact length, filled around needles or between the parts of a finished context.

    piece | piece | image | NEEDLE | piece | image | piece | tail
    0                     ^ depth 0.4                       cut to the token

Filler is taken until the length is reached, and the last text is cut to fit. Then the whole context is counted as the
model reads it, and the tail is corrected, because tokens of pieces do not add up exactly.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

from internvl.errors import ConfigError
from internvl.synth.contexts import Piece, PieceCounter, find_needle

_MAX_CORRECTIONS = 12
_MAX_SKIPPED_IMAGES = 200  # images in sequence that are too large for what is left
_ACCURACY = 0.001  # of the length
_FEWEST_MISSING = 8  # tokens that a context may always lack: filler is cut between words


@dataclass(frozen=True)
class LongContext:
    """A finished context."""

    pieces: tuple[Piece, ...]  # in reading order
    num_text: int  # text tokens, two markers per image included
    num_visual: int
    depths: tuple[float, ...]  # depth of each needle, by number


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
        num_tokens: Tokens of the filled context.
        counter: Counts tokens.
        num_leading: Pieces of the filler that stay in front of all needles.

    Raises ConfigError if the needles alone are longer, or the length cannot be met with this filler.
    """
    numbered = [replace(needle, needle=number) for number, needle in enumerate(needles)]
    room = num_tokens - sum(counter.count_alone(needle) for needle in numbered)
    if room < 0:
        raise ConfigError(f"{len(needles)} needles do not fit into {num_tokens} tokens; ask for longer contexts")

    def arrange(plain: Sequence[Piece]) -> list[Piece]:
        return place_needles(plain, numbered, depths, counter, num_leading=num_leading)

    plain = _take_filler(filler, room, counter)
    pieces = arrange(_correct(plain, filler, arrange, num_tokens=num_tokens, counter=counter))
    num_text, num_visual = counter.count(pieces)
    places = [find_needle(pieces, number) for number in range(len(needles))]
    found = tuple(counter.measure_depth(pieces, place, num_text + num_visual) for place in places)
    return LongContext(tuple(pieces), num_text, num_visual, found)


def fill_between(
    parts: Sequence[Piece], filler: Iterator[Piece], *, num_tokens: int, counter: PieceCounter, rng: Random
) -> list[tuple[Piece, bool]]:
    """Put filler (pieces without end) evenly between the parts of a context until it has `num_tokens`.

    Returns all pieces in order, each with whether it is filler.

    Raises ConfigError if the context is longer already, or the length cannot be met.
    """
    room = num_tokens - sum(counter.count(parts))
    if room < 0:
        raise ConfigError(
            f"the context has {num_tokens - room} tokens already, more than {num_tokens}; ask for longer ones"
        )
    plain = _take_filler(filler, room, counter)
    seed = rng.random()  # every correction mixes in the same way

    def mix(plain: Sequence[Piece]) -> list[tuple[Piece, bool]]:
        return _mix(parts, plain, counter, Random(seed))

    def arrange(plain: Sequence[Piece]) -> list[Piece]:
        return [piece for piece, _ in mix(plain)]

    return mix(_correct(plain, filler, arrange, num_tokens=num_tokens, counter=counter))


def _mix(
    parts: Sequence[Piece], plain: Sequence[Piece], counter: PieceCounter, rng: Random
) -> list[tuple[Piece, bool]]:
    """Filler in its order at even distances among the tokens of the parts; each piece with whether it is filler."""
    ends = [*accumulate(counter.count_alone(part) for part in parts)]
    after: list[list[Piece]] = [[] for _ in range(len(parts) + 1)]  # after the first n parts
    for number, piece in enumerate(plain):
        place = (number + rng.random()) / len(plain) * ends[-1]
        after[bisect_right(ends, place) + (rng.random() < 0.5)].append(piece)
    mixed = [(piece, True) for piece in after[0]]
    for part, new in zip(parts, after[1:], strict=True):
        mixed += [(part, False), *((piece, True) for piece in new)]
    return mixed


def _correct(
    plain: list[Piece],
    filler: Iterator[Piece],
    arrange: Callable[[Sequence[Piece]], Sequence[Piece]],
    *,
    num_tokens: int,
    counter: PieceCounter,
) -> list[Piece]:
    """Filler with which the arranged context has `num_tokens`, or a few less."""
    for attempt in range(_MAX_CORRECTIONS):
        missing = num_tokens - sum(counter.count(arrange(plain)))
        if 0 <= missing <= max(_FEWEST_MISSING, _ACCURACY * num_tokens):
            return plain
        plain = _correct_tail(plain, missing - attempt, filler, counter)  # less each time: the parts do not add up
    raise ConfigError(f"no context of {num_tokens} tokens can be made of this filler; give a corpus with more text")


def _take_filler(filler: Iterator[Piece], room: int, counter: PieceCounter) -> list[Piece]:
    """Pieces of `room` tokens together, counted one by one."""
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
    num_before = 0  # tokens of the needles placed so far
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
