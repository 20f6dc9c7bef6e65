"""Unpacks zip and tar archives, whole or in parts, and writes nothing outside of the output folder.

    python -m eval.convert.unpack MileBench_part*.tar.gz --out dataset/benchmark/MileBench
    python -m eval.convert.unpack long_vqa.tar.gz.part* --out dataset/benchmark/V2PE-Data/image

Only files are unpacked; a link, a device or a name that leads out of the folder is an error. A file gets its name when
it is whole, and files that exist already (same size and time) are not written again. An interrupted run can therefore
be started again.

Names that do not say their encoding are read as UTF-8; --name_encoding names another one, such as gbk.
"""

import argparse
import bz2
import codecs
import gzip
import io
import logging
import lzma
import os
import posixpath
import re
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from eval.convert.files import place_inside
from eval.core.output import open_result
from internvl.atomic import remove_drafts
from internvl.command import command
from internvl.data.storage.archives import BoundedReader, open_tar
from internvl.data.storage.member_names import decode_name, is_marked, read_tar_name, read_zip_name
from internvl.data.storage.outage import is_system_fault
from internvl.errors import ConfigError, DataError, InternVLError
from internvl.folder_owner import own_folder
from internvl.parser import CommandParser

logger = logging.getLogger(__name__)

_PART = re.compile(r"(?P<stem>.+\.(?:tar|tar\.gz|tgz|zip))\.(?:part)?(?P<number>(?<=part)[a-z]{2,3}|\d{2,3})")
_COMPRESSIONS: Mapping[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_MAX_TIME_S = 2**33  # later times, which not every file system takes, count as unknown
_BLOCK_BYTES = 512  # two blocks of zeros end a tar archive


@dataclass(frozen=True)
class Member:
    """A file of an archive."""

    name: str
    size: int  # in bytes
    time_s: int  # time of its last change in seconds since 1970; 0 where the archive does not say


def unpack(archives: Sequence[Path], out: Path, *, name_encoding: str | None = None) -> int:
    """Unpack archives into a folder; some may be parts of one archive (`x.tar.gz.partaa`, `x.tar.gz.partab`, ...).

    Args:
        archives: Files.
        out: Folder.
        name_encoding: Encoding of names that do not say theirs; None: UTF-8.

    Returns:
        Number of files, including those that existed already.

    Raises:
        ConfigError: `name_encoding` is unknown.
        DataError: An archive is broken or lacks a part, holds something other than files inside of the folder, or a
            name that cannot be decoded.
        EvalError: A file cannot be written.
    """
    _check_encoding(name_encoding)
    num_files = 0
    for name, parts in group_parts(archives).items():
        try:
            num_files += _unpack_one(parts, out, name_encoding, is_zip=name.endswith(".zip"))
        except DataError as error:
            raise DataError(str(error), source=name) from error
        except InternVLError:
            raise
        except Exception as error:  # whatever the parsers raise for a damaged file
            if isinstance(error, OSError) or is_system_fault(error):
                raise DataError(f"the archive cannot be read ({error})", source=name) from error
            cause = str(error) or type(error).__name__
            raise DataError(f"the archive is broken or cut off ({cause}); download it again", source=name) from error
    return num_files


def _check_encoding(name: str | None) -> None:
    try:
        codecs.lookup(name or "utf-8")
    except LookupError:
        raise ConfigError(f"--name_encoding {name} is unknown, expected one such as gbk, cp437 or shift_jis") from None


def _unpack_one(parts: Sequence[Path], out: Path, name_encoding: str | None, *, is_zip: bool) -> int:
    names: dict[Path, str] = {}
    with Joined(parts) as stream:
        for member, source in _read_zip(stream, name_encoding) if is_zip else _read_tar(stream, name_encoding):
            path = place_inside(member.name, out)
            name = posixpath.normpath(member.name)
            if names.setdefault(path, name) != name:
                raise DataError(f"the names {names[path]!r} and {name!r} mean the same file; pack the archive again")
            _write(member, source, path)
    remove_drafts(out, names.keys())
    return len(names)


def group_parts(archives: Sequence[Path]) -> dict[str, list[Path]]:
    """Archives by name, each with its parts in order. Raises DataError if a file or a part is missing."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(archives):
        if not path.is_file():
            raise DataError(f"{path} not found")
        match = _PART.fullmatch(path.name)
        groups.setdefault(str(path.with_name(match["stem"]) if match else path), []).append(path)
    for name, parts in groups.items():
        if _PART.fullmatch(parts[0].name):
            _check_parts(name, parts)
    return groups


def _check_parts(name: str, parts: Sequence[Path]) -> None:
    endings = [match["number"] for match in map(_PART.fullmatch, (part.name for part in parts)) if match]
    base, digits = (10, "0123456789") if endings[0].isdigit() else (26, "abcdefghijklmnopqrstuvwxyz")
    numbers = [sum(digits.index(sign) * base**place for place, sign in enumerate(reversed(end))) for end in endings]
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise DataError(f"parts are missing; there are {', '.join(endings)}", source=name)


class Joined(io.RawIOBase):
    """Several parts as one file that can be read and, for zip archives, searched, with a progress bar."""

    def __init__(self, parts: Sequence[Path]):
        self._files = [part.open("rb") for part in parts]
        self._sizes = [part.stat().st_size for part in parts]
        self._position = 0
        name = parts[0].name
        self._bar = tqdm(total=sum(self._sizes), desc=name, unit="B", unit_scale=True, mininterval=1.0, disable=None)

    def readable(self) -> bool:
        """True."""
        return True

    @property
    def num_bytes(self) -> int:
        """Size of all parts together."""
        return sum(self._sizes)

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes from the start of the first part."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As for any file."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: sum(self._sizes)}[whence]
        if origin + offset < 0:
            raise OSError(f"there is no position {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As for any file; one call reads no further than the end of a part."""
        start = 0
        for file, size in zip(self._files, self._sizes, strict=True):
            if self._position < start + size:
                file.seek(self._position - start)
                content = file.read(min(len(buffer), start + size - self._position))
                buffer[: len(content)] = content
                self._position += len(content)
                self._bar.update(self._position - self._bar.n if self._position > self._bar.n else 0)
                return len(content)
            start += size
        return 0

    def close(self) -> None:
        """Close all parts."""
        if not self.closed:
            self._bar.close()
            for file in self._files:
                file.close()
        super().close()


def _read_tar(stream: Joined, name_encoding: str | None) -> Iterator[tuple[Member, IO[bytes]]]:
    """Files of an archive, compressed or not."""
    file: IO[bytes] = io.BufferedReader(stream, 2**20)
    head = file.read(6)
    file.seek(0)
    for magic, decompress in _COMPRESSIONS.items():
        if head.startswith(magic):
            file = cast(IO[bytes], decompress(file))
            break
    else:
        _check_end(file, stream.num_bytes)
    with open_tar(file, "r|") as archive:
        for info in archive:
            if info.isdir():
                continue
            source = archive.extractfile(info) if info.isreg() else None
            if source is None:
                raise DataError(f"{info.name!r} is a link or a device, expected files and folders only")
            time_s = int(info.mtime) if 0 <= info.mtime < _MAX_TIME_S else 0
            yield Member(decode_name(read_tar_name(info, name_encoding)), info.size, time_s), source


def _check_end(file: IO[bytes], num_bytes: int) -> None:
    # tarfile alone does not notice an archive that was cut between two of its files.
    file.seek(max(0, num_bytes - 2 * _BLOCK_BYTES))
    if any(file.read()):
        raise tarfile.ReadError("its end is missing")
    file.seek(0)


def _read_zip(stream: Joined, name_encoding: str | None) -> Iterator[tuple[Member, IO[bytes]]]:
    with zipfile.ZipFile(BoundedReader(stream, stream.num_bytes)) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        names = [decode_name(read_zip_name(info, name_encoding)) for info in files]  # all, before a file is written
        unmarked = (name for info, name in zip(files, names, strict=True) if not (is_marked(info) or name.isascii()))
        guess = next(unmarked, None)
        if guess is not None and name_encoding is None:
            logger.warning("names do not say their encoding, read as UTF-8 (%r); else use --name_encoding", guess)
        for info, name in zip(files, names, strict=True):
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise DataError(f"{name!r} is a link or a device, expected files and folders only")
            with archive.open(info) as source:
                yield Member(name, info.file_size, _read_time(info)), source


def _read_time(info: zipfile.ZipInfo) -> int:
    try:
        return int(datetime(*info.date_time, tzinfo=timezone.utc).timestamp())
    except ValueError:  # month 0: the archive does not say
        return 0


def _write(member: Member, source: IO[bytes], path: Path) -> None:
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        status = path.stat()
        if (status.st_size, int(status.st_mtime)) == (member.size, member.time_s):
            return
    with open_result(path) as file:
        while piece := _read_piece(source):
            file.write(piece)
    os.utime(path, (member.time_s, member.time_s))


def _read_piece(source: IO[bytes]) -> bytes:
    try:
        return source.read(2**20)
    except OSError as error:  # to distinguish it from an error of writing
        raise EOFError(str(error)) from error


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for an error that the user can fix."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = CommandParser(
        prog="python -m eval.convert.unpack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", type=Path, nargs="+", metavar="ARCHIVE", help="zip, tar, tar.gz; parts of one")
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--name_encoding", metavar="NAME", help="encoding of names that do not say theirs (utf-8)")
    args = parser.parse_args(argv)
    with own_folder(args.out, "eval.convert.unpack"):
        num_files = unpack(args.archives, args.out, name_encoding=args.name_encoding)
    logger.info("%s: %d files", args.out, num_files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
