"""Layouts of the two digits of an image needle, and what is asked about them.

    pair      7 3      first, second: the order of visual tokens
    corners   7 .      or   . 7       first, second: again the order; left, right: not the order, the columns
              . 3           3 .

In opposite corners the first digit in reading order is the upper one. Whether it is also the left one, the order of the
two does not tell: that takes the place of a tile in the picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from internvl.synth.miniature.grids import Cell, Grid
from internvl.synth.miniature.vocabulary import ORDINALS, SIDES


@dataclass(frozen=True)
class DigitLayout:
    """How image needles look, and which questions there are."""

    grid: Grid  # of the picture in tiles
    places: tuple[tuple[Cell, Cell], ...]  # of the digits in reading order; needles take one after the other
    tasks: Mapping[str, tuple[str, ...]]  # test task -> words that it asks for, one item after the other

    @property
    def words(self) -> tuple[str, ...]:
        """What a training context asks for."""
        return tuple(word for words in self.tasks.values() for word in words)


PAIR = DigitLayout((2, 1), (((0, 0), (1, 0)),), {"retrieval-image": ORDINALS[:1], "reasoning-image": ORDINALS[1:]})
CORNERS = DigitLayout(
    (2, 2), (((0, 0), (1, 1)), ((1, 0), (0, 1))), {"retrieval-image-order": ORDINALS, "reasoning-image-sides": SIDES}
)
LAYOUTS = {"pair": PAIR, "corners": CORNERS}
