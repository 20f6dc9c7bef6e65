"""Writing of result files: whole or not at all, with an error for users when the disk is full or read-only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from internvl.atomic import open_atomically
from internvl.errors import EvalError


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
