"""A contact sheet of one context: what stands where."""

from pathlib import Path

from PIL import Image, ImageDraw

from internvl.synth.miniature.contexts import Context, HaystackImage, Picture, Sentence, TextNeedle

WIDTH = 960
MARGIN = 8
LINE_HEIGHT = 18
THUMBNAIL = 112
INK, PAPER, NEEDLE_INK = "#202020", "#ffffff", "#b00020"


def draw_context(context: Context, folder: Path) -> Image.Image:
    """Draw the parts of a context in reading order, with a frame around every image; needles are red.

    Args:
        context: The context.
        folder: Image folder of its split.
    """
    sheet = Image.new("RGB", (WIDTH, WIDTH), PAPER)
    draw = ImageDraw.Draw(sheet)
    x = y = MARGIN
    row_height = 0
    for part in context.parts:
        block = _draw_picture(part, folder) if isinstance(part, Picture) else _draw_sentence(part)
        if x > MARGIN and x + block.width > WIDTH - MARGIN:
            x, y, row_height = MARGIN, y + row_height + MARGIN, 0
        sheet.paste(block, (x, y))
        x, row_height = x + block.width + MARGIN, max(row_height, block.height)
    bottom = y + row_height + MARGIN
    draw.line([(0, bottom - 1), (WIDTH, bottom - 1)], fill=INK)
    return sheet.crop((0, 0, WIDTH, bottom))


def _draw_sentence(part: Sentence) -> Image.Image:
    width = int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(part.sentence)) + MARGIN
    block = Image.new("RGB", (width, LINE_HEIGHT), PAPER)
    ImageDraw.Draw(block).text((0, 2), part.sentence, fill=NEEDLE_INK if isinstance(part, TextNeedle) else INK)
    return block


def _draw_picture(part: Picture, folder: Path) -> Image.Image:
    with Image.open(folder / part.path) as file:
        image = file.convert("RGB")
    image.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    frame = INK if isinstance(part, HaystackImage) else NEEDLE_INK
    block = Image.new("RGB", (image.width + 4, image.height + 4), frame)
    block.paste(image, (2, 2))
    return block
