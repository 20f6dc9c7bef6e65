"""Contexts: sequences of text pieces and images, some of which are needles.

    piece | piece | image | NEEDLE | piece | image | piece
    0                     ^ depth 0.4

The depth of a needle is the number of tokens before it divided by the tokens of the whole context.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from internvl.model.constants import IMAGE_PLACEHOLDER


@dataclass(frozen=True)
class Piece:
    """A text or an image of a context."""

    text: str | None = None  # None for an image
    image: str | None = None  # path; None for text
    num_visual: int = 0  # visual tokens of the image
    needle: int | None = None  # number of the needle; None for filler
    opening: str = ""  # text in front of it
    ending: str = "\n"  # text after it

    @property
    def content(self) -> str:
        """Its text, or the placeholder of its image."""
        return IMAGE_PLACEHOLDER if self.text is None else self.text

    @property
    def line(self) -> str:
        """Its text in the context."""
        return f"{self.opening}{self.content}{self.ending}"

    @property
    def shown(self) -> str:
        """Its name in annotations: its text, or the path of its image."""
        return self.image or self.text or ""


def write_pieces(pieces: Sequence[Piece]) -> str:
    """Text of pieces."""
    return "".join(piece.line for piece in pieces)


def list_images(pieces: Sequence[Piece]) -> list[str]:
    """Images of pieces in reading order."""
    return [piece.image for piece in pieces if piece.image is not None]


def find_needle(pieces: Sequence[Piece], needle: int) -> int:
    """Index of the piece that is a needle, by the needle's number."""
    return next(index for index, piece in enumerate(pieces) if piece.needle == needle)


class PieceCounter:
    """Counts the tokens of pieces with `count_text`, one alone (remembered) or many together."""

    def __init__(self, count_text: Callable[[str], int]):
        self.count_text = count_text
        self._count_line = lru_cache(maxsize=2**16)(count_text)

    def count_alone(self, piece: Piece) -> int:
        """Tokens of a piece; between others it can have a few more or fewer."""
        return self._count_line(piece.line) + piece.num_visual

    def count(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        """(text tokens, visual tokens) of pieces, exact."""
        return self.count_text(write_pieces(pieces)), sum(piece.num_visual for piece in pieces)

    def measure_depth(self, pieces: Sequence[Piece], index: int, num_tokens: int) -> float:
        """Tokens in front of piece `index` over `num_tokens`."""
        return sum(self.count(pieces[:index])) / num_tokens
