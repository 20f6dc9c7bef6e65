"""Pixels: any picture, wherever it comes from, as RGB of 8 bits.

    file, bytes  --open_picture-->  pillow's picture  --to_rgb-->  RGB        (`picture_errors` around both)

| what                                  | becomes                                                   |
|---------------------------------------|-----------------------------------------------------------|
| more than 8 bits per colour           | its upper 8 bits                                          |
| 16-bit TIFF file in which 0 is white  | inverted                                                  |
| transparency of any kind              | what is seen on white, or dropped as in the public code   |
| pixels of 32 bits                     | refused: nothing says which value is white                |
| EXIF orientation, colour profile      | not applied, as in the public code                        |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal

import numpy as np
from jaxtyping import Bool, Integer
from PIL import Image, UnidentifiedImageError

from internvl.data.storage.outage import is_system_fault
from internvl.errors import DataError, InternVLError

Alpha = Literal["white", "drop"]  # what is transparent shows white, or the colour that is stored there

# Pillow knows more formats, but reading some starts programs (EPS starts Ghostscript), and TGA has no mark by which
# other files could be distinguished from it. HEIF needs pillow-heif, which registers itself.
PICTURE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "ICO")

# Tags of a TIFF file, and the value by which 0 is white.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# Grey values of a PNG file with 2 or 4 bits are spread to 0..255; the transparent one in its header is not.
_SPREAD = {"L;2": 85, "L;4": 17}


def open_picture(file: IO[bytes]) -> Image.Image:
    """Read the header of a picture in one of `PICTURE_FORMATS`.

    Raises ValueError for other content and what `check_header` refuses, and what pillow raises for a damaged header.
    """
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in PICTURE_FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(PICTURE_FORMATS)}") from None
    except MemoryError:  # asked for by a damaged header: reading a sound one takes next to none
        raise ValueError("its header asks for more memory than there is (MemoryError)") from None
    check_header(image)
    return image


def check_header(image: Image.Image) -> None:
    """Raise ValueError if a picture would be decoded from an unlisted format, has no pixels, or 32-bit pixels."""
    width, height = image.size
    if getattr(image, "tile", None) and image.format not in PICTURE_FORMATS:
        got, expected = f"the format {image.format}", f"one of {', '.join(PICTURE_FORMATS)}"
    elif min(width, height) < 1:
        got, expected = f"the size {width} x {height}", "at least 1 x 1"
    elif image.mode == "F" or (image.mode == "I" and _read_tag(image, _BITS_PER_SAMPLE, 16) > 16):
        got, expected = f"pixels of 32 bits (mode {image.mode})", "8 or 16 bits"
    else:
        return
    raise ValueError(f"it has {got}, expected {expected}")


def to_rgb(image: Image.Image, *, alpha: Alpha = "white") -> Image.Image:
    """The picture (its first frame) in RGB, 8 bits; the table above says how.

    Raises ValueError for what `check_header` refuses and mode I beyond 16 bits, and what pillow raises for damage.
    """
    check_header(image)
    transparent = _read_transparent_colour(image)
    image.load()
    opaque = None if transparent is None else _differs(image, transparent)
    if image.mode.startswith("I"):
        image = _keep_upper_bits(image)
    if opaque is not None:
        image = image.convert("RGB")
        image.putalpha(Image.fromarray(opaque))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    if alpha == "white":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@contextmanager
def picture_errors(name: object) -> Iterator[None]:
    """Turn whatever the block raises about a picture into a DataError; faults of the system stay what they are."""
    try:
        yield
    except InternVLError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        message = f"image {name} not found; check the data set's root in the meta file"
        raise DataError(message, kind="missing") from None
    except Exception as error:  # pillow's readers raise anything
        if is_system_fault(error):
            raise
        cause = str(error) or type(error).__name__
        message = f"image {name} cannot be read: {cause}; replace the file or remove its record"
        raise DataError(message, kind="image") from error


def _keep_upper_bits(image: Image.Image) -> Image.Image:
    """8-bit grey of a grey picture with more bits."""
    # Mode I has room for 32 bits, and stands for 16 bits as well (PGM files, arrays, pillow's own conversions).
    values: Integer[np.ndarray, "height width"] = np.asarray(image)
    if image.mode == "I":
        lowest, highest = values.min(), values.max()
        is_ambiguous = image.format is None and highest < 256
        if lowest < 0 or highest >= 1 << 16 or is_ambiguous:
            raise ValueError(f"mode I with values of {lowest} to {highest}, expected 16 bits (or mode L for 8)")
    num_bits = _read_tag(image, _BITS_PER_SAMPLE, 16)
    if _read_tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        values = (1 << num_bits) - 1 - values
    return Image.fromarray((values >> (num_bits - 8)).astype(np.uint8))


def _read_tag(image: Image.Image, tag: int, default: int) -> int:
    """A number of a TIFF header; the default for pictures of another kind."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _read_transparent_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """The one colour that is transparent, as pixels show it; read before loading, which forgets the number of bits."""
    colour = image.info.get("transparency")
    if colour is None or image.mode == "P":
        return None
    if isinstance(colour, tuple):
        return tuple(value >> 8 for value in colour) if max(colour) > 255 else colour
    tiles = getattr(image, "tile", None)
    return colour * _SPREAD.get(tiles[0].args, 1) if tiles and isinstance(tiles[0].args, str) else colour


def _differs(image: Image.Image, colour: int | tuple[int, ...]) -> Bool[np.ndarray, "height width"]:
    differs = np.asarray(image) != np.asarray(colour)
    return differs.any(axis=-1) if differs.ndim == 3 else differs
