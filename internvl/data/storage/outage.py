"""Outages: data folders that are gone for a while, such as a file server that restarts or a lost mount.

A picture that cannot be read is skipped. When the folder that should hold it is gone as well, skipping would run
through the data set in seconds and end the run; so reading waits, and continues with the same document:

    picture missing -> its folder there? -> yes: skip the document
                                         -> no:  1 s, 2 s, 4 s, ... 30 s, ... until it is back -> read again
                                                 not back after 10 minutes: the run ends and may be started again

A folder is gone if it cannot be listed, or is empty, as a mount point is without its mount. A folder that was gone
before the run began is not an outage but a wrong path.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from internvl.data.storage.remote import find_scheme
from internvl.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_BEARABLE_S = 600.0  # below the time limit of collectives (--ddp_timeout), in which the other ranks wait
_SYSTEM_FAULTS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT}
)


def is_system_fault(error: BaseException) -> bool:
    """Whether an error is the machine's (files, memory, disk, file server), and says nothing about the data."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SYSTEM_FAULTS)


class DataOutage(Exception):
    """Data was out of reach for too long. The user need not change anything: starting again later may help."""


def find_folders(paths: Iterable[str | Path | None]) -> tuple[Path, ...]:
    """The folders to watch for these files, folders and paths into archives: the nearest ones that are there.

    URLs are left out.
    """
    local = [Path(path) for path in paths if path is not None and find_scheme(os.fspath(path)) is None]
    found = (next((path for path in (start, *start.parents) if is_there(path)), None) for start in local)
    return tuple(dict.fromkeys(path for path in found if path is not None))


def is_there(path: Path) -> bool:
    """Whether a folder has entries, or a file exists."""
    try:
        if not path.is_dir():
            return path.exists()
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


@dataclass(frozen=True)
class OutageWatch:
    """Repeats reads that failed because their data was out of reach."""

    folders: tuple[Path, ...] = ()  # what was there when the run began
    bearable_s: float = _BEARABLE_S  # how long an outage may last, in seconds

    def read(self, action: Callable[[], T]) -> T:
        """The result of `action`, once the data is there.

        Raises what it raised (DataError, OSError) while everything was there, and DataOutage after `bearable_s`.
        """
        pause_s, deadline = _FIRST_PAUSE_S, time.monotonic() + self.bearable_s
        while True:
            try:
                return action()
            except (DataError, OSError) as error:
                gone = [path for path in self.folders if not is_there(path)]
                if not gone:
                    raise
                if time.monotonic() >= deadline:
                    raise DataOutage(f"{gone[0]} is out of reach for {self.bearable_s:.0f} s; {error}") from error
                logger.warning("%s is out of reach, trying again in %.0f s (%s)", gone[0], pause_s, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
