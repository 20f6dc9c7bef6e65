"""Member names: what archives call their files, in whatever encoding and form, and what records call them.

    the archive holds                      a record finds it as
    bytes of UTF-8, flagged or not         the same name, in any Unicode normal form
    a\\b.png, ./a/b.png, /a/b.png           a/b.png
    bytes of GBK, cp437, ...               the name in that encoding

A zip file need not say the encoding of its names, and a tar file cannot. Names are therefore kept as bytes: to find a
member, a name is spelt in every encoding of `LEGACY_ENCODINGS`. To write a file, one reading has to be chosen; UTF-8
is taken wherever it is possible.
"""

import posixpath
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress

from internvl.errors import DataError

# Of archives that were made on machines with another encoding than UTF-8; cp437 is the one of the zip format itself.
LEGACY_ENCODINGS = ("gbk", "cp437", "big5", "shift_jis", "euc_kr", "cp866", "latin-1")

_UTF8_FLAG = 0x800
_UNICODE_NAME = 0x7075  # an extra field of zip files: version, crc32 of the name, the name in UTF-8


def read_zip_name(info: zipfile.ZipInfo, encoding: str | None = None) -> bytes:
    """A member's name as the zip file holds it, in UTF-8 where it says so.

    A name that does not say its encoding is turned from `encoding` into UTF-8, if one is given. Raises DataError if it
    is in another one.
    """
    name = info.orig_filename.partition("\0")[0]
    if is_marked(info):
        return name.encode()
    plain = name.encode("cp437")  # the encoding that zipfile has read it in
    return _find_unicode_name(info.extra, plain) or _recode(plain, encoding)


def is_marked(info: zipfile.ZipInfo) -> bool:
    """Whether the zip file says that a member's name is UTF-8."""
    return bool(info.flag_bits & _UTF8_FLAG)


def read_tar_name(info: tarfile.TarInfo, encoding: str | None = None) -> bytes:
    """The same for a tar file, which has to be opened with `encoding="utf-8", errors="surrogateescape"`."""
    name = info.name.encode("utf-8", "surrogateescape")
    return name if "path" in info.pax_headers else _recode(name, encoding)


def _recode(name: bytes, encoding: str | None) -> bytes:
    try:
        return name if encoding is None else name.decode(encoding).encode()
    except UnicodeError:
        raise DataError(f"the name {name!r} is not in {encoding}, expected another --name_encoding") from None


def _find_unicode_name(extra: bytes, plain: bytes) -> bytes | None:
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_NAME and len(field) > 5 and struct.unpack_from("<I", field, 1)[0] == zlib.crc32(plain):
            return field[5:]
    return None


def is_utf8(name: bytes) -> bool:
    """Whether a name can be read as UTF-8."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def decode_name(name: bytes) -> str:
    """A name in UTF-8 as text, in Unicode normal form C. Raises DataError, with what else it could be, if it is not."""
    try:
        return unicodedata.normalize("NFC", name.decode())
    except UnicodeDecodeError:
        readings: dict[str, str] = {}  # by what they read
        for encoding in LEGACY_ENCODINGS:
            with suppress(UnicodeDecodeError):
                readings.setdefault(name.decode(encoding), encoding)
        listed = ", ".join(f"{encoding} {reading!r}" for reading, encoding in readings.items())
        raise DataError(
            f"the name {name!r} is not UTF-8, and its archive does not say what it is; choose the right one of "
            f"{listed} with --name_encoding"
        ) from None


def tidy_name(name: str) -> str:
    """A name with slashes, in Unicode normal form C, without a leading `./` or `/`."""
    return _strip(unicodedata.normalize("NFC", name.replace("\\", "/")))


def list_keys(name: bytes) -> list[bytes]:
    """Spellings under which a member is found: its own first, then the tidy one where that is another."""
    own = _strip(name.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    tidy = tidy_name(name.decode()).encode() if is_utf8(name) else own
    return [own] if tidy == own else [own, tidy]


def list_spellings(name: str) -> Iterator[bytes]:
    """Keys that a member may have that a record calls `name`, the likeliest first."""
    tidy = tidy_name(name)
    yield _strip(name).encode(errors="surrogateescape")
    yield tidy.encode(errors="surrogateescape")
    if tidy.isascii():
        return
    for encoding in LEGACY_ENCODINGS:
        for spelling in (tidy, tidy.replace("/", "\\")):
            try:
                yield spelling.encode(encoding)
            except UnicodeEncodeError:
                break


def _strip(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")
