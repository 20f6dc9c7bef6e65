"""Image needles: cards with coloured figures and a number, pasted on pictures of a corpus.

A card covers a fixed share of its picture, so it stays readable however the picture is tiled, and the picture keeps its
size, so it keeps its tiles.
"""

from dataclasses import dataclass
from math import ceil, cos, pi, sin, sqrt
from random import Random

from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": "#d62728", "blue": "#1f4fd6", "green": "#1a9641", "orange": "#ff8c00", "purple": "#7b3294",
    "black": "#101010",
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
CARD_SHARE = 0.45  # of the shorter side of the picture
OPTION_SIDE = 224  # pixels of a card that stands alone
MIN_SIDE = 64  # pixels of a picture that carries a card


@dataclass(frozen=True)
class Card:
    """What a card shows: `count` equal figures, and a number below them unless it is None."""

    color: str
    shape: str
    count: int = 1
    number: int | None = None

    @property
    def kind(self) -> str:
        """Colour and shape in words."""
        return f"{self.color} {self.shape}"


def draw_card(card: Card, side: int) -> Image.Image:
    """A white square of `side` pixels with the card's figures and number."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, side - 1, side - 1), outline="black", width=max(side // 40, 1))
    height = side if card.number is None else side * 0.55
    columns = ceil(sqrt(card.count))
    rows = ceil(card.count / columns)
    cell = min(side / columns, height / rows)
    left, top = (side - cell * columns) / 2, (height - cell * rows) / 2
    for index in range(card.count):
        row, column = divmod(index, columns)
        center = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
        _draw_figure(draw, card, center, 0.36 * cell)
    if card.number is not None:
        font = ImageFont.load_default(size=side * 0.34)
        draw.text((side / 2, side * 0.74), str(card.number), fill="black", font=font, anchor="mm")
    return image


def _draw_figure(draw: ImageDraw.ImageDraw, card: Card, center: tuple[float, float], radius: float) -> None:
    color = COLORS[card.color]
    x, y = center
    if card.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        return
    if card.shape == "cross":
        arm = radius / 3
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)
        return
    if card.shape == "star":
        points = [_point(center, radius if index % 2 == 0 else 0.42 * radius, index / 10) for index in range(10)]
    else:
        corners, turn = {"square": (4, 0.125), "triangle": (3, 0.0), "diamond": (4, 0.0)}[card.shape]
        points = [_point(center, radius, index / corners + turn) for index in range(corners)]
    draw.polygon(points, fill=color)


def _point(center: tuple[float, float], radius: float, turn: float) -> tuple[float, float]:
    """A point on a circle, `turn` of a full turn from the top."""
    return center[0] + radius * sin(2 * pi * turn), center[1] - radius * cos(2 * pi * turn)


def paste_card(picture: Image.Image, card: Card, rng: Random) -> Image.Image:
    """A copy of an RGB picture with a card at a random place."""
    side = max(round(CARD_SHARE * min(picture.size)), 1)
    left, top = rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)
    carrying = picture.copy()
    carrying.paste(draw_card(card, side), (left, top))
    return carrying
