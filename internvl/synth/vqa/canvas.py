"""Canvases: up to four numbered pictures on a white square."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PICTURES_PER_CANVAS = 4
CANVAS_SIDE = 896  # pixels
_LABEL_SHARE = 0.09  # of a cell's height


def draw_canvas(pictures: Sequence[Image.Image], first_number: int, *, side: int = CANVAS_SIDE) -> Image.Image:
    """Up to four RGB pictures, two by two, each with `Picture N` above it."""
    canvas = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas)
    cell = side // 2
    label = round(_LABEL_SHARE * cell)
    font = ImageFont.load_default(size=0.8 * label)
    for index, picture in enumerate(pictures):
        left, top = index % 2 * cell, index // 2 * cell
        scale = min((cell - 4) / picture.width, (cell - label - 4) / picture.height)
        size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
        canvas.paste(picture.resize(size, Image.Resampling.BICUBIC), (left + 2, top + label))
        draw.text((left + 4, top), f"Picture {first_number + index}", fill="black", font=font)
    return canvas
