"""Open files: descriptors of data files, shared by all who read one; few of them are open at a time.

A run reads from more files than a process may have open (`ulimit -n`): annotation files and archives, in every worker.
The files used last stay open, and a share of the limit is left for everything else.
"""

import os
import resource
from collections.abc import Callable
from functools import cache, lru_cache

from internvl.data.storage.cache import FileStamp

_MOST_OPEN = 64
_SHARE_OF_LIMIT = 8  # one of as many descriptors that a process may have


class OpenFile:
    """A file that is read at any place; it closes when nobody holds it. Raises OSError if it cannot be opened."""

    def __init__(self, path: str):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)

    @property
    def stamp(self) -> FileStamp:
        """The version that it is at present."""
        status = os.fstat(self.descriptor)
        return FileStamp(self.path, status.st_size, status.st_mtime_ns)

    def read(self, num_bytes: int, first: int) -> bytes:
        """Bytes from the `first` on, fewer at the file's end. Raises OSError."""
        try:
            return os.pread(self.descriptor, num_bytes, first)  # no shared cursor: safe in forked workers
        except OSError:
            _opener.cache_clear()  # a descriptor of a file server that was restarted is of no use any more
            raise

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def open_file(stamp: FileStamp) -> OpenFile:
    """The file of a stamp; its own stamp is another one if it was changed. Raises OSError."""
    file = _opener()(stamp.path)
    if file.stamp != stamp:  # it may have been replaced since it was opened
        _opener.cache_clear()
        file = _opener()(stamp.path)
    return file


@cache  # not made at import: the limit may be changed after that
def _opener() -> Callable[[str], OpenFile]:
    return lru_cache(maxsize=count_open_files())(OpenFile)


def count_open_files() -> int:
    """How many data files may be open at a time under the process's limit (RLIMIT_NOFILE)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, limit // _SHARE_OF_LIMIT))
