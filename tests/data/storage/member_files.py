"""Archives with names and sizes that the standard library does not write by itself."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

MAX32 = 0xFFFF_FFFF


def write_raw_zip(
    path: Path,
    members: list[tuple[bytes, bytes]],
    *,
    is_flagged: bool = False,
    extra: bytes = b"",
    first_size: int | None = None,
) -> Path:
    """A zip file of stored members whose names are these bytes; its directory says `first_size` of the first one."""
    flags = 0x800 if is_flagged else 0
    parts, entries = b"", b""
    for name, content in members:
        fields = [33, zlib.crc32(content), len(content), len(content), len(name)]
        parts_before, more = len(parts), extra
        parts += struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 45, flags, 0, 0, *fields, 0) + name + content
        if first_size is not None and not entries:
            fields[2:4] = MAX32, MAX32
            more += struct.pack("<HHQQ", 1, 16, first_size, first_size)
        fields += [len(more), 0, 0, 0, 0, parts_before]
        entries += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 45, 45, flags, 0, 0, *fields) + name + more
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(members), len(members), len(entries), len(parts), 0)
    path.write_bytes(parts + entries + end)
    return path


def write_raw_tar(path: Path, members: list[tuple[bytes, bytes]], *, first_size: bytes | None = None) -> Path:
    """A tar file whose names are these bytes; `first_size` is what the first header says, 12 bytes."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if first_size is not None:
        head = bytearray(path.read_bytes())
        head[124:136] = first_size
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head[:512])
        path.write_bytes(head)
    return path
