"""Text: one rule for byte order marks and encodings, for every text that users bring.

    first bytes                        read as
    FF FE 00 00   or   00 00 FE FF     UTF-32
    FF FE         or   FE FF           UTF-16
    EF BB BF      or   anything else   UTF-8

A mark is no part of the text. What is not text of its encoding is refused, and never guessed at: a wrong guess shows
only in what a model learns or answers.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from internvl.errors import DataError

Encoding = Literal["utf-8-sig", "utf-16", "utf-32"]  # as Python names those that drop a byte order mark

MARK_BYTES = 4  # length of the longest byte order mark

_MARKS: dict[bytes, Encoding] = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def find_encoding(head: bytes, source: str) -> Encoding:
    """The encoding of a text that begins with `head`, at least `MARK_BYTES` of it (or all).

    Raises DataError, which names `source`, for UTF-16 and UTF-32 without a byte order mark.
    """
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in head[:MARK_BYTES]:
        raise DataError(
            "it begins with zero bytes, as UTF-16 and UTF-32 without a byte order mark do, expected UTF-8; convert it, "
            "for example with `iconv -f UTF-16LE -t UTF-8`",
            source=source,
        )
    return "utf-8-sig"


def decode_text(content: bytes, source: str, *, first_line: int = 1) -> str:
    """The text that bytes stand for.

    Args:
        content: All bytes.
        source: Where they are from, for messages.
        first_line: Number of the first line, for messages.

    Raises:
        DataError: They are not text in UTF-8, or in what their byte order mark says.
    """
    encoding = find_encoding(content[:MARK_BYTES], source)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, byte = first_line + before.count(b"\n"), error.start - before.rfind(b"\n")
        raise DataError(
            f"line {line} is not {encoding.removesuffix('-sig').upper()}: byte {byte} of the line is "
            f"0x{content[error.start]:02x}; convert the file, for example with `iconv -f LATIN1 -t UTF-8`",
            source=source,
        ) from error


def unify_line_ends(text: str) -> str:
    """The text with every line end (`\\r\\n`, `\\r`) as `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """A whole text file; its lines end in `\\n`. Raises DataError if it cannot be read, or as `decode_text` does."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    return unify_line_ends(decode_text(content, str(path)))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line; of a UTF-8 file, one is in memory at a time. Raises DataError likewise."""
    try:
        with path.open("rb") as file:
            if find_encoding(file.peek(MARK_BYTES), str(path)) == "utf-8-sig":
                for number, line in enumerate(file, start=1):
                    yield number, decode_text(line, str(path), first_line=number)
                return
    except OSError as error:
        raise _unreadable(path, error) from error
    yield from enumerate(read_text(path).split("\n"), start=1)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"the file cannot be read ({error})", source=str(path))
