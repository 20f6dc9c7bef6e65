"""Media: pictures and videos, wherever they are, and the size and pixels of pictures.

A picture or video is a file, a member of an archive (`images.zip/a.jpg`), or a URL; `open_media` opens all of them.
`read_image_size` reads a header, `load_image` decodes (`pixels.py`). Neither applies the EXIF orientation, so both
always agree. A file that ends early is an error, never a half-grey picture.
"""

import os
import posixpath
import stat
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from internvl.data.storage.archives import open_member, split_member
from internvl.data.storage.cache import FileStamp
from internvl.data.storage.pixels import Alpha, open_picture, picture_errors, to_rgb
from internvl.data.storage.remote import check_scheme, fetch_file, find_scheme, is_web, name_url
from internvl.errors import DataError

MediaPath = str | Path  # a file, a member of an archive, or a URL (text)


def resolve_image_path(
    image: str,
    *,
    root: MediaPath,
    root2: MediaPath | None = None,
    http_root: Path | None = None,
    is_multi_image: bool = False,
) -> MediaPath:
    """Find the file that a record's `image` or `video` entry names.

    Args:
        image: Path (absolute, or relative to the root) or URL.
        root: Base of relative paths: a folder, an archive, a folder in an archive, or a URL.
        root2: Used instead of `root` for records with several images.
        http_root: Folder in which files of `http(s)://` URLs may be stored under the sha256 of the URL, in hex; a file
            that is not there is fetched.
        is_multi_image: Whether the record has a list of images.

    Raises:
        DataError: A relative path that leads out of the root, or a URL of an unknown kind.
    """
    scheme = find_scheme(image)
    if scheme is not None:
        check_scheme(image)
        stored = http_root / name_url(image) if is_web(scheme) and http_root is not None else None
        return image if stored is None or not stored.exists() else stored
    base = root2 if is_multi_image and root2 is not None else root
    if posixpath.normpath(image).split("/")[0] == "..":
        raise DataError(
            f"{image!r:.200} leads out of its root {base}; correct it, or set the data set's root to the folder above",
            kind="path",
        )
    if isinstance(base, str) and find_scheme(base) is not None and not image.startswith("/"):
        return f"{base.rstrip('/')}/{posixpath.normpath(image)}"
    return Path(base) / image


def stamp_media(path: MediaPath) -> FileStamp:
    """The present version of a picture or video: its path, and size and time of the file that holds it.

    Raises OSError if it does not exist or is not a regular file, DataError if it cannot be fetched or its archive read.
    """
    local = find_local(path)
    try:
        status = os.stat(local)
    except (FileNotFoundError, NotADirectoryError):
        member = split_member(local)
        if member is None:
            raise
        status = os.stat(member.archive)
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
        raise OSError("it is not a regular file")
    return FileStamp(os.fspath(path), status.st_size, status.st_mtime_ns)


def open_media(path: MediaPath) -> BinaryIO:
    """Open a picture or video for reading.

    Raises OSError if it does not exist, DataError if it cannot be fetched or its archive cannot be read.
    """
    local = find_local(path)
    try:
        return open(local, "rb")
    except (FileNotFoundError, NotADirectoryError):
        member = split_member(local)
        if member is None:
            raise
    return open_member(member)


def find_local(path: MediaPath) -> str:
    """The path on this machine: that of a copy if `path` is a URL."""
    text = os.fspath(path)
    return text if find_scheme(text) is None else os.fspath(fetch_file(text))


def read_image_size(path: MediaPath) -> tuple[int, int]:
    """(width, height) in pixels from the file's header, as stored (EXIF orientation not applied).

    A file that has not changed since it was last read is not opened again. Raises DataError if it is missing, empty or
    not a picture that `load_image` takes.
    """
    with picture_errors(path):
        return _read_header(stamp_media(path))


@lru_cache(maxsize=2**16)
def _read_header(stamp: FileStamp) -> tuple[int, int]:
    """Size of one version of a picture."""
    with open_media(stamp.path) as file, open_picture(file) as image:
        return image.size


def load_image(path: MediaPath, *, alpha: Alpha = "white") -> Image.Image:
    """Decode a picture (the first frame) to RGB, as `internvl.data.storage.pixels` says.

    Raises:
        DataError: The file is missing, empty, not a picture, damaged, cut short, too large (pillow's limit against
            decompression bombs), or has 32-bit pixels.
    """
    with picture_errors(path):
        stamp_media(path)  # refuses pipes and devices
        with open_media(path) as file, open_picture(file) as image:
            return to_rgb(image, alpha=alpha)
