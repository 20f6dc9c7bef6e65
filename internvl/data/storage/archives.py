"""Archives: members of tar and zip files, read in place.

    images.tar/train/a.jpg        a path through an archive names one of its members

An archive is read once as a whole, to find where its members begin. The result is an index (`index.py`) of 48 bytes per
member, searched by a digest of the member's name (`member_names.py`). Members are read piece by piece, so the header of
a picture costs a few kilobytes, unless the member is deflated.

Compressed tar files cannot be read from the middle; unpack them, or make zip files of them.
"""

import hashlib
import io
import logging
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, Literal, NamedTuple

import numpy as np

from internvl.data.storage.cache import FileStamp, stamp_file
from internvl.data.storage.index import load_index
from internvl.data.storage.member_names import is_utf8, list_keys, list_spellings, read_tar_name, read_zip_name
from internvl.data.storage.open_files import OpenFile, count_open_files, open_file
from internvl.data.storage.outage import is_system_fault
from internvl.errors import DataError

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar", ".zip")

_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_ENCRYPTED, _DAMAGED = -1, -2  # stand for a method
_MAX_INFLATED_BYTES = 1 << 30  # of one deflated member, which is held in memory
_BUFFER_BYTES = 1 << 16
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
        if not _is_file(archive):
            continue
        if lower.endswith(_COMPRESSED_TARS):
            raise DataError(
                f"{archive} is a compressed tar file, whose members cannot be read one by one; expected .tar or .zip: "
                "unpack it, or pack it again without compression",
                kind="archive",
            )
        return Member(archive, "/".join(parts[stop:]))
    return None


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        if is_system_fault(error):
            raise
        return False


def open_member(member: Member) -> BinaryIO:
    """A member's bytes.

    Raises:
        FileNotFoundError: The archive or the member does not exist.
        DataError: The archive is damaged, or the member is encrypted or compressed in another way than deflate.
    """
    return _opener()(stamp_file(member.archive)).open(member.name)


@cache
def _opener() -> Callable[[FileStamp], "_Archive"]:
    return lru_cache(maxsize=count_open_files())(_Archive)


class _Archive:
    """The index of one version of an archive."""

    def __init__(self, stamp: FileStamp):
        self.stamp, self.path = stamp, stamp.path
        self._is_zip = stamp.path.lower().endswith(".zip")
        find = _find_zip_members if self._is_zip else _find_tar_members
        try:
            self._table = load_index(stamp, "archives-2", lambda: _sort_members(stamp, find(stamp)))
        except OSError:
            raise
        except Exception as error:  # whatever the parsers raise for a damaged file
            if is_system_fault(error):
                raise
            cause = str(error) or type(error).__name__
            raise DataError(f"archive {self.path} cannot be read: {cause}; replace it", kind="archive") from error

    def open(self, name: str) -> BinaryIO:
        """See `open_member`."""
        offset, num_stored, num_bytes, method = self._find(name)
        if method not in (_STORED, _DEFLATED):
            got = {_ENCRYPTED: "encrypted", _DAMAGED: "not inside of its archive, which is damaged"}
            raise DataError(
                f"{self.path}/{name} is {got.get(method, f'compressed by method {method}')}, expected a member that is "
                "stored or deflated; pack the archive again",
                kind="archive",
            )
        file = self._open_unchanged()
        if self._is_zip:
            offset += self._count_header_bytes(file, offset)
        if method == _STORED:
            return io.BufferedReader(_Section(file, offset, num_bytes))
        return io.BytesIO(self._inflate(name, file, offset, num_stored, num_bytes))

    def _open_unchanged(self) -> OpenFile:
        file = open_file(self.stamp)
        if file.stamp != self.stamp:
            raise DataError(f"archive {self.path} was changed while it was in use; start again", kind="archive")
        return file

    def _find(self, name: str) -> tuple[int, int, int, int]:
        """(first byte, stored bytes, bytes, method) of a member."""
        for spelling in list_spellings(name):
            high, low = _digest(spelling)
            row = int(np.searchsorted(self._table[:, 0], high))
            while row < len(self._table) and self._table[row, 0] == high:
                if self._table[row, 1] == low:
                    offset, num_stored, num_bytes, method = (int(value) for value in self._table[row, 2:])
                    return offset, num_stored, num_bytes, method
                row += 1
        raise FileNotFoundError(f"{self.path} has no member {name}")

    def _count_header_bytes(self, file: OpenFile, offset: int) -> int:
        """Bytes of a zip member's local header, whose length stands only in the header itself."""
        header = file.read(_LOCAL_HEADER.size, offset)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise DataError(f"archive {self.path} cannot be read: it ends too early; replace it", kind="archive")
        return _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))

    def _inflate(self, name: str, file: OpenFile, offset: int, num_stored: int, num_bytes: int) -> bytes:
        if max(num_stored, num_bytes) > _MAX_INFLATED_BYTES:
            cause = f"it has {max(num_stored, num_bytes):,} bytes, expected at most {_MAX_INFLATED_BYTES:,}"
        else:
            try:
                content = file.read(num_stored, offset)
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

    def __init__(self, file: OpenFile, first: int, num_bytes: int):
        self._file = file
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
        content = self._file.read(wanted, self._first + self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class BoundedReader(io.BufferedReader):
    """A file of `num_bytes`, of which no more is asked for: a damaged header may announce any place and size."""

    def __init__(self, raw: io.RawIOBase, num_bytes: int):
        super().__init__(raw, _BUFFER_BYTES)
        self._num_bytes = num_bytes

    def read(self, size: int | None = -1) -> bytes:
        """As for any file, which would make a buffer of `size` bytes before it reads."""
        return super().read(-1 if size is None or size < 0 else min(size, self._num_bytes))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As for any file, which would not take every number."""
        return super().seek(min(offset, self._num_bytes), whence)


class _Place(NamedTuple):
    name: bytes
    offset: int
    num_stored: int
    num_bytes: int
    method: int

    def check(self, archive_bytes: int) -> "_Place":
        """The place itself if it lies inside of the archive."""
        is_inside = min(self.offset, self.num_stored) >= 0 and self.offset + self.num_stored <= archive_bytes
        sizes_agree = self.num_bytes == self.num_stored if self.method == _STORED else 0 <= self.num_bytes < 2**63
        return self if is_inside and sizes_agree else _Place(self.name, 0, 0, 0, _DAMAGED)


class StrictTarInfo(tarfile.TarInfo):
    """A member with a sound header; tarfile takes a damaged one for the end and follows negative sizes in a circle."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "StrictTarInfo":
        """The next member. Raises tarfile.ReadError if its header is damaged."""
        try:
            member = super().fromtarfile(tarfile_)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from error
        if member.size < 0:
            raise tarfile.ReadError(f"member {member.name!r} has the size {member.size:,}")
        return member


def open_tar(file: IO[bytes], mode: Literal["r:", "r|"]) -> tarfile.TarFile:
    """A tar file, not compressed, whose names keep their bytes (`read_tar_name`) and whose damage is an error."""
    return tarfile.open(fileobj=file, mode=mode, encoding="utf-8", errors="surrogateescape", tarinfo=StrictTarInfo)


def _find_tar_members(stamp: FileStamp) -> Iterator[_Place]:
    """Plain files of a tar file, in order."""
    with BoundedReader(io.FileIO(stamp.path), stamp.num_bytes) as file, open_tar(file, "r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # a tar file keeps all members it has read
            if member.isreg() and not member.issparse():
                yield _Place(read_tar_name(member), member.offset_data, member.size, member.size, _STORED)


def _find_zip_members(stamp: FileStamp) -> Iterator[_Place]:
    """Files of a zip file, in order; the offsets are those of their headers."""
    with BoundedReader(io.FileIO(stamp.path), stamp.num_bytes) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                method = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
                yield _Place(read_zip_name(info), info.header_offset, info.compress_size, info.file_size, method)


def _sort_members(stamp: FileStamp, places: Iterator[_Place]) -> np.ndarray:
    """(keys, 6) int64: digest (2), first byte, stored bytes, bytes, method; sorted by digest.

    Of members of one name the last one counts, and a name as the archive holds it before a tidied one.
    """
    own, tidy = array("q"), array("q")
    odd_name, num_odd = b"", 0
    for place in places:
        numbers = place.check(stamp.num_bytes)[1:]
        for rows, key in zip((own, tidy), list_keys(place.name), strict=False):
            rows.extend((*_digest(key), *numbers))
        if not is_utf8(place.name):
            odd_name, num_odd = place.name, num_odd + 1
    if num_odd:
        logger.warning(
            "archive %s: %d names are in another encoding than UTF-8, such as %r; records find them if it is a common "
            "one, pack the archive again otherwise",
            stamp.path,
            num_odd,
            odd_name,
        )
    table = np.frombuffer(tidy + own, dtype=np.int64).reshape(-1, 6)[::-1]
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def _digest(key: bytes) -> tuple[int, int]:
    """The key of a member as two int64 numbers."""
    return struct.unpack("<qq", hashlib.blake2b(key, digest_size=16).digest())
