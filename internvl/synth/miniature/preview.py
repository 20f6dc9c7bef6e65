"""A contact sheet of one context: its pieces in reading order, needles in red."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from internvl.data.storage.media import load_image
from internvl.synth.contexts import Piece

WIDTH = 960
MARGIN = 8
LINE_HEIGHT = 18
THUMBNAIL = 112
INK, PAPER, NEEDLE_INK = "#202020", "#ffffff", "#b00020"


def draw_preview(pieces: Sequence[Piece], folder: Path) -> Image.Image:
    """Draw pieces, with a frame around every image; image paths are relative to `folder`."""
    sheet = Image.new("RGB", (WIDTH, WIDTH), PAPER)
    draw = ImageDraw.Draw(sheet)
    x = y = MARGIN
    row_height = 0
    for piece in pieces:
        ink = INK if piece.needle is None else NEEDLE_INK
        block = _draw_sentence(piece.content, ink) if piece.image is None else _draw_picture(folder / piece.image, ink)
        if x > MARGIN and x + block.width > WIDTH - MARGIN:
            x, y, row_height = MARGIN, y + row_height + MARGIN, 0
        sheet.paste(block, (x, y))
        x, row_height = x + block.width + MARGIN, max(row_height, block.height)
    bottom = y + row_height + MARGIN
    draw.line([(0, bottom - 1), (WIDTH, bottom - 1)], fill=INK)
    return sheet.crop((0, 0, WIDTH, bottom))


def _draw_sentence(sentence: str, ink: str) -> Image.Image:
    width = int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(sentence)) + MARGIN
    block = Image.new("RGB", (width, LINE_HEIGHT), PAPER)
    ImageDraw.Draw(block).text((0, 2), sentence, fill=ink)
    return block


def _draw_picture(path: Path, ink: str) -> Image.Image:
    image = load_image(path)
    image.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    block = Image.new("RGB", (image.width + 4, image.height + 4), ink)
    block.paste(image, (2, 2))
    return block
