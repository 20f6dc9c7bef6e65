"""Archives: members of tar and zip files, read in place.

    images.tar/train/a.jpg        a path through an archive names one of its members

An archive is read once as a whole, to find where its members begin. The result is an index (`index.py`) of 48 bytes per
member, searched by a digest of the member's name. Members are read piece by piece, so the header of a picture costs a
few kilobytes, unless the member is deflated.

Compressed tar files cannot be read from the middle; unpack them, or make zip files of them.
"""

import hashlib
import io
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from internvl.data.storage.cache import FileStamp, stamp_file
from internvl.data.storage.index import load_index
from internvl.errors import DataError

ARCHIVE_SUFFIXES = (".tar", ".zip")

_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_ENCRYPTED = -1  # stands for a method
_MAX_INFLATED_BYTES = 1 << 30  # of one deflated member, which is held in memory
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: the lengths of its name and of an extra field, which follow


class Member(NamedTuple):
    """A member of an archive: the archive's path and the member's name."""

    archive: str
    name: str


def split_member(path: str | Path) -> Member | None:
    """The member that a path names; None without an archive in it. Raises DataError for a compressed tar file."""
    parts = PurePath(path).parts
    for stop, part in enumerate(parts[:-1], start=1):
        lower = part.lower()
        if not lower.endswith((*ARCHIVE_SUFFIXES, *_COMPRESSED_TARS)):
            continue
        archive = os.path.join(*parts[:stop])
        if not os.path.isfile(archive):
            continue
        if lower.endswith(_COMPRESSED_TARS):
            raise DataError(
                f"{archive} is a compressed tar file, whose members cannot be read one by one; expected .tar or .zip: "
                "unpack it, or pack it again without compression",
                kind="archive",
            )
        return Member(archive, "/".join(parts[stop:]))
    return None


def open_member(member: Member) -> BinaryIO:
    """A member's bytes.

    Raises:
        FileNotFoundError: The archive or the member does not exist.
        DataError: The archive is damaged, or the member is encrypted or compressed in another way than deflate.
    """
    return _open_archive(stamp_file(member.archive)).open(member.name)


@lru_cache(maxsize=64)
def _open_archive(stamp: FileStamp) -> "_Archive":
    return _Archive(stamp)


class _Archive:
    """An open archive of one version."""

    def __init__(self, stamp: FileStamp):
        self.path = stamp.path
        find = _find_zip_members if stamp.path.lower().endswith(".zip") else _find_tar_members
        try:
            self._table = load_index(stamp, "archives-1", lambda: _sort_members(find(stamp.path)))
            self._descriptor = os.open(stamp.path, os.O_RDONLY)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
            raise DataError(f"archive {self.path} cannot be read: {error}; replace it", kind="archive") from error

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def open(self, name: str) -> BinaryIO:
        """See `open_member`."""
        offset, num_stored, num_bytes, method = self._find(name)
        if method not in (_STORED, _DEFLATED):
            got = "encrypted" if method == _ENCRYPTED else f"compressed by method {method}"
            raise DataError(
                f"{self.path}/{name} is {got}, expected a member that is stored or deflated; pack the archive again",
                kind="archive",
            )
        if method == _STORED:
            return io.BufferedReader(_Section(self, self._descriptor, offset, num_bytes))
        return io.BytesIO(self._inflate(name, os.pread(self._descriptor, num_stored, offset), num_bytes))

    def _find(self, name: str) -> tuple[int, int, int, int]:
        """(first byte, stored bytes, bytes, method) of a member."""
        high, low = _digest(name)
        row = int(np.searchsorted(self._table[:, 0], high))
        while row < len(self._table) and self._table[row, 0] == high:
            if self._table[row, 1] == low:
                offset, num_stored, num_bytes, method = (int(value) for value in self._table[row, 2:])
                if self.path.lower().endswith(".zip"):
                    offset += self._count_header_bytes(offset)
                return offset, num_stored, num_bytes, method
            row += 1
        raise FileNotFoundError(f"{self.path} has no member {name}")

    def _count_header_bytes(self, offset: int) -> int:
        """Bytes of a zip member's local header, whose length stands only in the header itself."""
        header = os.pread(self._descriptor, _LOCAL_HEADER.size, offset)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise DataError(f"archive {self.path} cannot be read: it ends too early; replace it", kind="archive")
        return _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))

    def _inflate(self, name: str, content: bytes, num_bytes: int) -> bytes:
        if num_bytes > _MAX_INFLATED_BYTES:
            cause = f"it has {num_bytes:,} bytes, expected at most {_MAX_INFLATED_BYTES:,}"
        else:
            try:
                inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, num_bytes + 1)
            except zlib.error as error:
                cause = str(error)
            else:
                if len(inflated) == num_bytes:
                    return inflated
                cause = f"it has another size than the archive says ({num_bytes:,} bytes)"
        raise DataError(f"{self.path}/{name} cannot be read: {cause}; replace the archive", kind="archive")


class _Section(io.RawIOBase):
    """Some bytes of an archive as a file."""

    def __init__(self, archive: _Archive, descriptor: int, first: int, num_bytes: int):
        self._archive = archive  # keeps the descriptor open
        self._descriptor = descriptor
        self._first = first
        self._num_bytes = num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, expected 0 or larger")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(min(len(buffer), self._num_bytes - self._position), 0)
        content = os.pread(self._descriptor, wanted, self._first + self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Place(NamedTuple):
    name: str
    offset: int
    num_stored: int
    num_bytes: int
    method: int


def _find_tar_members(path: str) -> Iterator[_Place]:
    """Plain files of a tar file, in order."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # a tar file keeps all members it has read
            if member.isreg() and not member.issparse():
                yield _Place(member.name, member.offset_data, member.size, member.size, _STORED)


def _find_zip_members(path: str) -> Iterator[_Place]:
    """Files of a zip file, in order; the offsets are those of their headers."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                method = _ENCRYPTED if member.flag_bits & 1 else member.compress_type
                yield _Place(member.filename, member.header_offset, member.compress_size, member.file_size, method)


def _sort_members(places: Iterator[_Place]) -> np.ndarray:
    """(members, 6) int64: digest (2), first byte, stored bytes, bytes, method; sorted by digest.

    Of members of one name the last one counts.
    """
    rows = array("q")
    for place in places:
        rows.extend((*_digest(place.name), *place[1:]))
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 6)[::-1]
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def _digest(name: str) -> tuple[int, int]:
    """A member's name as two int64 numbers (`./a` is `a`)."""
    plain = posixpath.normpath(name).lstrip("/")
    return struct.unpack("<qq", hashlib.blake2b(plain.encode(errors="surrogateescape"), digest_size=16).digest())
