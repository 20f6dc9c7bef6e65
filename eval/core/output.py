"""Writing of result files and of their lines: whole or not at all, with an error for users when the disk is full."""

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from internvl.atomic import open_atomically
from internvl.errors import EvalError

logger = logging.getLogger(__name__)


@contextmanager
def open_result(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block ends well and is removed when an error ends the block.

    Raises EvalError if it cannot be written (disk full, no permission).
    """
    try:
        with open_atomically(path) as file:
            yield file
    except OSError as error:
        raise EvalError(f"cannot write {path}: {error}; free space or choose another --out") from error


def write_result(path: Path, content: str | bytes) -> None:
    """Write a whole file; text as UTF-8, half characters (lone surrogates) as `?`. Raises EvalError if it cannot."""
    with open_result(path) as file:
        file.write(content.encode(errors="replace") if isinstance(content, str) else content)


class LineWriter:
    """Appends lines to a file, each whole or not at all, and on disk before the next one. Made with the first line."""

    def __init__(self, path: Path):
        self._path = path
        self._file: io.FileIO | None = None

    def append(self, record: Mapping[str, object]) -> None:
        """Write a JSON object as one line. Raises EvalError if it cannot be written (disk full, no permission)."""
        try:
            if self._file is None:
                self._file = io.FileIO(self._path, "a")
            _write_whole(self._file, json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise EvalError(
                f"cannot write {self._path}: {error}; what was answered before is kept: free space and start the same "
                "command again to continue"
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _write_whole(file: io.FileIO, line: bytes) -> None:
    """Append all of `line`, or nothing. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    num_written = 0
    try:
        while num_written < len(line):  # a disk that fills up accepts a part of the line first
            num_written += file.write(line[num_written:]) or 0
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


def cut_unfinished_line(path: Path) -> None:
    """Remove what follows the last line break of a file: a killed process leaves it."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        logger.warning("%s: the last line is unfinished (%d bytes) and is dropped", path, len(content) - end)
        with path.open("r+b") as file:
            file.truncate(end)
