"""Annotation files: every form of them as lines of json that can be read in any order.

    .jsonl      read where it lies; in UTF-16 or UTF-32 written as UTF-8 once
    .jsonl.gz   unpacked once
    .json       one array of records; its elements are written as lines once
    .parquet    the columns that a record has (`RECORD_KEYS`) are written as lines once

A compressed or columnar file gives no cheap access to single rows: gzip is unpacked from its beginning, and a shuffled
epoch would read a parquet row group per record. So these are turned into jsonl once, in the cache folder, piece by
piece in bounded memory. The price is disk space, about the size of the unpacked file.
"""

import gzip
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, TextIO, TypeAlias

from internvl.data.storage.cache import (
    cache_folder,
    is_cached,
    name_cached_file,
    note_unwritable,
    stamp_file,
    write_cached_file,
)
from internvl.data.storage.index import LineFile
from internvl.data.storage.record_keys import RECORD_KEYS, find_wrong_key
from internvl.data.storage.text import MARK_BYTES, find_encoding
from internvl.errors import ConfigError, DataError, MissingDependencyError

# What json.loads returns.
JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject = dict[str, JsonValue]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")

_END = b" \t\t \n"  # ends a converted file: a blank line that a file cut short or damaged does not end in
_CHUNK = 1 << 20  # bytes
_TEXT_CHUNK = 1 << 16  # characters; what is left of it is copied for every element
_LONGEST_ATOM = 16  # characters of json that make no sense when cut, such as a half-read \\uD83D or -Infinity
_PARQUET_ROWS = 256  # held at a time
_BLANK = re.compile(r"[ \t\r\n]*")
_TO_ONE_LINE = str.maketrans("\r\n", "  ")


class AnnotationFile:
    """The rows of an annotation file, which ends in one of `SUFFIXES`, as json text, by number.

    Raises:
        ConfigError: It cannot be read, or is not a file of its kind.
        MissingDependencyError: It is a parquet file and pyarrow is not installed.
    """

    def __init__(self, path: Path):
        self.path = path
        self._temporary: IO[bytes] | None = None
        read = _find_reader(path)
        self._lines = LineFile(path if read is None else self._convert_once(read))

    def _convert_once(self, read: "_Reader") -> Path:
        """The file of lines: the cached one, a new one, or a temporary one where nothing can be cached."""
        try:
            stamp = stamp_file(self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        converted = name_cached_file(stamp, "annotations-1")
        if _is_whole(converted):
            return converted
        try:
            with write_cached_file(converted) as file:
                _write_lines(file, self.path, read)
                file.flush()
                # The original's time: copies that processes make at the same time are one version.
                os.utime(file.fileno(), ns=(stamp.mtime_ns, stamp.mtime_ns))
            return converted
        except OSError as error:
            note_unwritable(cache_folder(), error.strerror or str(error))
        file = self._temporary = tempfile.NamedTemporaryFile(suffix=".jsonl")  # noqa: SIM115 (lives as long as self)
        _write_lines(file, self.path, read)
        file.flush()
        return Path(file.name)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, row: int) -> bytes:
        """The json text of one row. Raises IndexError, or ConfigError if the file was changed since it was opened."""
        return self._lines[row]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_temporary": None}  # deleted by the process that made it, not by its workers


_Reader = Callable[[Path], Iterator[bytes]]


def _find_reader(path: Path) -> _Reader | None:
    """What turns a file into lines of UTF-8; None if it has them already."""
    name = path.name.lower()
    readers = {".jsonl.gz": _read_gzip, ".json": _read_array, ".parquet": _read_parquet}
    found = next((read for suffix, read in readers.items() if name.endswith(suffix)), None)
    return _read_lines if found is None and not _is_utf8(path) else found


def _is_utf8(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return find_encoding(file.read(MARK_BYTES), str(path)) == "utf-8-sig"
    except (OSError, DataError) as error:
        raise _unreadable(path, error) from None


def _is_whole(path: Path) -> bool:
    if not is_cached(path):
        return False
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:  # also of a file shorter than that
        return False


def _write_lines(file: IO[bytes], path: Path, read: _Reader) -> None:
    """Write what `read` gives: ConfigError if the original cannot be read, OSError if `file` cannot be written."""
    pieces = read(path)
    while True:
        try:
            piece = next(pieces, None)
        except MissingDependencyError:
            raise
        except Exception as error:  # whatever the parsers raise for a damaged file
            raise _unreadable(path, error) from error
        if piece is None:
            break
        file.write(piece)
    file.write(b"\n" + _END)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    cause = error.message if isinstance(error, DataError) else str(error) or type(error).__name__
    return ConfigError(f"annotation {path} cannot be read: {cause}; correct or replace the file")


def _read_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _encode(_decode(file, path))


def _read_gzip(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        yield from _encode(_decode(file, path))


def _decode(file: BinaryIO | gzip.GzipFile, path: Path) -> TextIO:
    """A file's text; bytes that are wrong become surrogates, which end up in the one record that they are in."""
    encoding = find_encoding(file.read(MARK_BYTES), str(path))
    file.seek(0)
    errors = "surrogateescape" if encoding == "utf-8-sig" else "surrogatepass"
    return io.TextIOWrapper(file, encoding, errors=errors, newline="\n")


def _encode(text: TextIO) -> Iterator[bytes]:
    while piece := text.read(_CHUNK):
        yield piece.encode("utf-8", text.errors or "strict")


def _read_array(path: Path) -> Iterator[bytes]:
    """The elements of a json array, a line each; one element and a chunk are in memory at a time."""
    decoder = json.JSONDecoder()
    with path.open("rb") as content:
        file = _decode(content, path)
        text = _skip_blank(file, "")
        if not text.startswith("["):
            hint = "; files with a record per line end in .jsonl" if text.startswith("{") else ""
            raise ValueError(f"got {text[:1] or 'nothing'!r} at its beginning, expected [, a json array{hint}")
        text = _skip_blank(file, text[1:])
        number = 0
        while not text.startswith("]"):
            if number:
                if not text.startswith(","):
                    raise ValueError(f"got {text[:20]!r} after element {number - 1}, expected a comma or ]")
                text = _skip_blank(file, text[1:])
            element, text = _take_element(file, text, decoder, number)
            yield element.translate(_TO_ONE_LINE).encode("utf-8", file.errors or "strict") + b"\n"
            text = _skip_blank(file, text)
            number += 1
        if _skip_blank(file, text[1:]):
            raise ValueError("got text after the closing ], expected nothing")


def _skip_blank(file: TextIO, text: str) -> str:
    """`text` without leading blanks; reads more if nothing is left, and returns nothing at the end of the file."""
    while True:
        match = _BLANK.match(text)
        text = text[match.end() :] if match else text
        if text:
            return text
        text = file.read(_TEXT_CHUNK)
        if not text:
            return ""


def _take_element(file: TextIO, text: str, decoder: json.JSONDecoder, number: int) -> tuple[str, str]:
    """(json text of the element that `text` begins with, what follows it)."""
    while True:
        cause = "the file ends too early"
        try:
            _, stop = decoder.raw_decode(text)
            # A number at the end of the text, such as the 1 of 1.5, may continue in the next chunk.
            if text[stop : stop + 1] not in ("", ".", "e", "E") or len(text) - stop >= _LONGEST_ATOM:
                return text[:stop], text[stop:]
        except json.JSONDecodeError as error:
            cause = str(error)
            if not _may_continue(error, text):
                break
        except RecursionError as error:
            cause = str(error)
            break
        more = file.read(max(_TEXT_CHUNK, len(text)))  # doubled, or a long element is scanned many times
        if not more:
            break
        text += more
    raise ValueError(f"element {number} of the array is not json: {cause}")


def _may_continue(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the error may be due to the end of `text`, with more of the file to read."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - _LONGEST_ATOM


def _read_parquet(path: Path) -> Iterator[bytes]:
    """The columns of records, a row a line."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(f"annotation {path} is a parquet file: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in RECORD_KEYS if name in file.schema_arrow.names]
            wrong = find_wrong_key(dict.fromkeys(file.schema_arrow.names, "a cell"))
            if wrong is not None:
                raise ValueError("it has a column {!r}, did you mean {!r}? Rename it".format(*wrong))
            if "conversations" not in columns:
                found = ", ".join(file.schema_arrow.names)
                raise ValueError(f"it has the columns {found}, expected a column 'conversations'")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield json.dumps(row, ensure_ascii=False, default=_refuse_value).encode() + b"\n"
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _refuse_value(value: object) -> None:
    raise ValueError(
        f"a cell holds a value of type {type(value).__name__}, expected text, numbers and lists (pictures are given "
        "as paths or URLs, not as bytes)"
    )
