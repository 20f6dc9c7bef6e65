"""Image files of data sets that are made in parts: written once, even if the work is interrupted."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from PIL import Image

from internvl.atomic import write_atomically

_QUALITY = 92  # of jpeg


def write_jpeg(image: Image.Image, path: Path) -> None:
    """Write an image as a jpeg file."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    write_atomically(path, buffer.getvalue())


def copy_images(copies: Mapping[str, Path], folder: Path) -> None:
    """Copy images to their names below a folder, unless they are there."""
    for name, source in copies.items():
        if not (folder / name).is_file():
            write_atomically(folder / name, source.read_bytes())
