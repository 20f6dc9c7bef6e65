"""Damaged pictures: RGB of the size that the header says, or a DataError; in time, and nothing else."""

import io
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from internvl.data.storage.media import load_image, read_image_size
from internvl.data.storage.pixels import PICTURE_FORMATS
from internvl.errors import DataError
from tests.fuzz.mutations import list_damaged, time_limit

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
LONGEST_S = 10  # for a header that asks for pillow's limit of pixels; most take a millisecond


def write(kind: str, image: Image.Image = PHOTO, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


Image.init()
ANIMATED = {"save_all": True, "append_images": [PHOTO.rotate(180)]}
FILES = {kind: write(kind) for kind in PICTURE_FORMATS if kind in Image.SAVE} | {
    "PNG with a palette": write("PNG", PHOTO.convert("P"), transparency=3),
    "PNG of 16 bits": write("PNG", PHOTO.convert("I;16")),
    "PNG with alpha": write("PNG", PHOTO.convert("RGBA")),
    "animated PNG": write("PNG", **ANIMATED),
    "JPEG of CMYK": write("JPEG", PHOTO.convert("CMYK")),
    "progressive JPEG": write("JPEG", progressive=True, exif=PHOTO.getexif()),
    "lossless WEBP": write("WEBP", PHOTO.convert("RGBA"), lossless=True),
    "animated WEBP": write("WEBP", **ANIMATED),
    "animated GIF": write("GIF", **ANIMATED),
    "TIFF of LZW": write("TIFF", compression="tiff_lzw"),
    "TIFF of JPEG": write("TIFF", compression="jpeg"),
    "TIFF of 16 bits": write("TIFF", PHOTO.convert("I;16")),
    "black and white TIFF": write("TIFF", PHOTO.convert("1"), compression="group4"),
    "BMP with a palette": write("BMP", PHOTO.convert("P")),
    "PGM": write("PPM", PHOTO.convert("L")),
}


def mend_checksums(content: bytes) -> bytes:
    """A PNG file whose damage its checksums do not show."""
    mended, place = content[:8], 8
    while len(content) >= place + 12:
        stop = place + 8 + int.from_bytes(content[place : place + 4], "big")
        mended += content[place:stop] + zlib.crc32(content[place + 4 : stop]).to_bytes(4, "big")
        place = stop + 4
    return mended + content[place:]


def list_pictures(kind: str, count: int) -> Iterator[bytes]:
    """The whole file, then damaged copies."""
    yield FILES[kind]
    for number, content in enumerate(list_damaged(FILES[kind], seed=1, count=count)):
        yield mend_checksums(content) if "PNG" in kind and number % 2 else content


@pytest.mark.filterwarnings("ignore")  # about what is damaged
@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FILES)
def test_damaged_pictures_are_rgb_or_errors(tmp_path, kind, count):
    num_read, errors = 0, []
    for number, content in enumerate(list_pictures(kind, count)):
        path = tmp_path / f"{number}.picture"
        path.write_bytes(content)
        try:
            with time_limit(LONGEST_S):
                size, picture = read_image_size(path), load_image(path)
        except DataError as error:
            errors.append(str(error))
        else:
            num_read += 1
            assert (picture.mode, picture.size) == ("RGB", size), number
        path.unlink()
    assert num_read > 0
    assert errors
    assert all(".picture cannot be read: " in error for error in errors)
