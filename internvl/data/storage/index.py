"""File index: where lines or archive members begin in a large file; built once, then mapped into memory.

An index is a table of int64 numbers that follows from the content of a file. It is kept in the cache folder and mapped
from there, so that opening the file again is cheap, and all processes share the memory (the page cache).

    cached file    | magic, size and time of the original, shape, crc32 | int64 values, row by row |

A cached file that was cut short, damaged, or made for another version of the original is built again. Where the cache
folder cannot be written, the table stays in memory.
"""

import logging
import os
import struct
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from internvl.data.storage.cache import (
    FileStamp,
    cache_folder,
    is_cached,
    name_cached_file,
    note_unwritable,
    stamp_file,
    write_cached_file,
)
from internvl.data.storage.open_files import open_file
from internvl.errors import ConfigError

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<8sqqqqI20x")  # magic, size, time, rows, columns, crc32
_MAGIC = b"INVLIDX1"
_CHUNK = 1 << 20  # bytes
_MAPPED_FROM_BYTES = 1 << 18  # a mapped file stays open, which small ones are not worth
_LOG_FROM_BYTES = 1 << 30  # indexing files from this size on takes seconds


def load_index(stamp: FileStamp, kind: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """The index of a file, from the cache if it is there, else from `build`: a two-dimensional array of int64.

    It is mapped into memory where the cache can be used. `kind` names its subfolder in the cache.
    """
    path = name_cached_file(stamp, kind)
    cached = _map_table(path, stamp)
    if cached is not None:
        return cached
    if stamp.num_bytes >= _LOG_FROM_BYTES:
        logger.info("indexing %s (%.1f GB), once", stamp.path, stamp.num_bytes / 1e9)
    table = np.ascontiguousarray(build(), dtype=np.int64)
    try:
        _write_table(path, stamp, table)
    except OSError as error:
        note_unwritable(cache_folder(), error.strerror or str(error))
        return table
    cached = _map_table(path, stamp)
    return table if cached is None else cached


def _write_table(path: Path, stamp: FileStamp, table: np.ndarray) -> None:
    rows, columns = table.shape
    with write_cached_file(path) as file:
        checksum = zlib.crc32(table.data) if table.size else 0
        file.write(_HEADER.pack(_MAGIC, stamp.num_bytes, stamp.mtime_ns, rows, columns, checksum))
        table.tofile(file)


def _map_table(path: Path, stamp: FileStamp) -> np.ndarray | None:
    """The table that a file holds; None if it is missing, not to be trusted, damaged or about another version."""
    if not is_cached(path):
        return None
    try:
        with path.open("rb") as file:
            magic, num_bytes, mtime_ns, rows, columns, checksum = _HEADER.unpack(file.read(_HEADER.size))
            if (magic, num_bytes, mtime_ns) != (_MAGIC, stamp.num_bytes, stamp.mtime_ns) or min(rows, columns) < 0:
                return None
            if os.fstat(file.fileno()).st_size != _HEADER.size + 8 * rows * columns:
                return None
            if 8 * rows * columns < _MAPPED_FROM_BYTES:
                content = file.read()
                table = np.frombuffer(content, dtype=np.int64).reshape(rows, columns)
                return table if zlib.crc32(content) == checksum else None
            found = 0
            while chunk := file.read(_CHUNK):  # read, not mapped: pages that are mapped count as memory in use
                found = zlib.crc32(chunk, found)
            if found != checksum:
                return None
            return np.memmap(file, dtype=np.int64, mode="r", offset=_HEADER.size, shape=(rows, columns))
    except (OSError, ValueError, struct.error):
        return None


class LineFile:
    """The lines of a text file, by number; blank lines do not count. Raises ConfigError if it cannot be read."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._open_index()

    def _open_index(self) -> None:
        try:
            self._stamp = stamp_file(self.path)
            self._borders = load_index(self._stamp, "lines-1", lambda: find_lines(self.path))
        except OSError as error:
            raise ConfigError(f"annotation {self.path} cannot be read: {error}; correct it in the meta file") from None

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, number: int) -> bytes:
        """One line, possibly with blank lines after it.

        Raises:
            IndexError: There is no such line.
            ConfigError: The file was changed since it was indexed.
            OSError: It is out of reach.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"line {number} of {self.path} is wanted, it has {len(self)}")
        file = open_file(self._stamp)
        if file.stamp != self._stamp:
            raise ConfigError(f"annotation {self.path} was changed while it was in use; start again")
        start, stop = int(self._borders[number, 0]), int(self._borders[number + 1, 0])
        return file.read(stop - start, start)

    def __getstate__(self) -> tuple[Path, FileStamp]:
        # Without what belongs to this process; a mapped table would be copied whole.
        return self.path, self._stamp

    def __setstate__(self, state: tuple[Path, FileStamp]) -> None:
        self.path, stamp = state
        self._open_index()
        if self._stamp != stamp:
            raise ConfigError(f"annotation {self.path} was changed while it was in use; start again")


def find_lines(path: str | Path) -> np.ndarray:
    """(lines + 1, 1) int64: where each line that is not blank begins, then the file's end. Raises OSError."""
    starts = array("q")
    position = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.isspace():
                starts.append(position)
            position += len(line)
    starts.append(position)
    return np.frombuffer(starts, dtype=np.int64).reshape(-1, 1)
