"""Cache folder: files that are made from data and can be made again (indexes, unpacked annotations, downloads).

They lie in one folder and never next to the data: `$INTERNVL_CACHE`, else `$XDG_CACHE_HOME/internvl`, else
`~/.cache/internvl` (a user without a home gets a temporary folder). It may be deleted whenever nothing runs.

Files are written atomically, so processes may make the same file at the same time, and a reader finds a whole file or
none. A name holds a digest of the path of the original and one of its size and time: a changed original gets a new
file, and those of older versions are removed.

Others may share the folder. Where anyone can write, as below /tmp, only the user's own files count (and root's): what
is read from the cache is trusted like the original.
"""

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from internvl.atomic import open_atomically

logger = logging.getLogger(__name__)


class FileStamp(NamedTuple):
    """One version of a file."""

    path: str  # absolute
    num_bytes: int
    mtime_ns: int  # when it was last written


def stamp_file(path: str | Path) -> FileStamp:
    """The present version of a file. Raises OSError if there is none."""
    status = os.stat(path)
    return FileStamp(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def cache_folder() -> Path:
    """The folder of everything that is cached (it need not exist)."""
    if own := os.environ.get("INTERNVL_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared, "internvl")
    try:
        return Path.home() / ".cache/internvl"
    except RuntimeError:  # containers run under users that the system does not know
        return Path(tempfile.gettempdir(), f"internvl-{os.getuid()}")


def name_cached_file(stamp: FileStamp, kind: str) -> Path:
    """Where the file that is made from the original `stamp` is cached.

    `kind` is the subfolder and the version of the format, such as `lines-1`.
    """
    origin = hashlib.sha256(os.fsencode(stamp.path)).hexdigest()[:24]
    version = hashlib.sha256(f"{stamp.num_bytes} {stamp.mtime_ns}".encode()).hexdigest()[:12]
    return cache_folder() / kind / f"{origin}-{version}"


def is_cached(path: Path) -> bool:
    """Whether a cached file is there and can be trusted."""
    try:
        status = path.lstat()
        anyone_writes = any(folder.stat().st_mode & stat.S_IWOTH for folder in path.absolute().parents)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and (not anyone_writes or _is_own(status))


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in (os.getuid(), 0)


@contextmanager
def write_cached_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears whole or not at all; files made from older versions of its original are removed.

    Raises OSError if the folder cannot be written.
    """
    with open_atomically(path) as file:
        os.fchmod(file.fileno(), 0o644)  # others may share the folder
        yield file
    origin, dash, _ = path.name.partition("-")
    if dash:
        for older in path.parent.glob(f"{origin}-*"):
            if older.name != path.name:
                with suppress(OSError):
                    older.unlink()


@lru_cache(maxsize=64)
def note_unwritable(folder: Path, cause: str) -> None:
    """Warn once that the cache cannot be used."""
    logger.warning(
        "cache folder %s cannot be written (%s); continuing without it, which takes time at every start. Set "
        "INTERNVL_CACHE to a folder that can be written",
        folder,
        cause,
    )
