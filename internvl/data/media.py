"""Image files: where they are, how large they are, what they show.

`read_image_size` reads a header, `load_image` decodes. Neither applies the EXIF orientation, so both always agree (as
does the public implementation). A file that ends early is an error, never a half-grey picture.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image

from internvl.errors import DataError

# What pillow raises for files that are missing, cut short, damaged or larger than its decompression-bomb limit.
_IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def resolve_image_path(
    image: str, *, root: Path, root2: Path | None = None, http_root: Path | None = None, is_multi_image: bool = False
) -> Path:
    """Find the file that a record's `image` or `video` entry means.

    Args:
        image: Path (absolute, or relative to the root) or `http(s)://` URL.
        root: Folder of relative paths.
        root2: Used instead of `root` for records with several images.
        http_root: Folder in which the file of a URL is stored under the sha256 of the URL, in hex.
        is_multi_image: Whether the record has a list of images.

    Raises:
        DataError: An `s3://` path, or a URL without `http_root`.
    """
    if image.lower().startswith(("http://", "https://")):
        if http_root is None:
            raise DataError(f"{image!r} is a URL, expected a file; download it and set http_root in the meta file")
        return http_root / hashlib.sha256(image.encode()).hexdigest()
    if image.startswith("s3://"):
        raise DataError(f"{image!r} is in an object store, expected a file; copy it below the data set's root")
    base = root2 if is_multi_image and root2 is not None else root
    return base / image


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header, as stored (EXIF orientation not applied).

    A file that has not changed since it was last read is not opened again.

    Raises:
        DataError: The file is missing, empty or no image.
    """
    with _image_errors(path):
        status = os.stat(path)
        return _read_header(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2**16)
def _read_header(path: str | Path, mtime_ns: int, num_bytes: int) -> tuple[int, int]:
    """Size of the version of the file that the time stamp and the number of bytes stand for."""
    with Image.open(path) as image:
        return _check_size(path, image.size)


def load_image(path: str | Path) -> Image.Image:
    """Decode an image (the first frame) to RGB, as stored (EXIF orientation not applied).

    Raises:
        DataError: The file is missing, empty, no image, damaged or cut short.
    """
    with _image_errors(path), Image.open(path) as image:
        _check_size(path, image.size)
        image.load()
        return image.convert("RGB")


def _check_size(path: str | Path, size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < 1:
        raise DataError(f"image {path} has the size {size[0]} x {size[1]}, expected at least 1 x 1; replace the file")
    return size


@contextmanager
def _image_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"image {path} not found; check the data set's root in the meta file") from None
    except _IMAGE_ERRORS as error:
        cause = str(error) or type(error).__name__
        raise DataError(f"image {path} cannot be read: {cause}; replace the file or remove its record") from error
