"""Outages: data folders that are gone for a while, such as a file server that restarts or a lost mount.

A picture that cannot be read is skipped. When the folder that should hold it is gone as well, skipping would run
through the data set in seconds and end the run; so reading waits, and continues with the same document:

    picture missing -> its folder there? -> yes: skip the document
                                         -> no:  1 s, 2 s, 4 s, ... 30 s, ... until it is back -> read again
                                                 not back after 10 minutes: the run ends and may be started again

A folder is gone if it cannot be listed, or is empty, as a mount point is without its mount. A folder that was gone
before the run began is not an outage but a wrong path.

Faults of the system (too many open files, no memory, input/output errors) are outages too: the next document would
fail like this one.
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
_SYSTEM_FAULTS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ENOBUFS)
)
_ALSO_OF_FFMPEG = (errno.EIO, errno.ENOMEM)  # which raises them for damaged files
_BEARABLE_S = 600.0  # below the time limit of collectives (--ddp_timeout), in which the other ranks wait


class DataOutage(Exception):
    """Data was out of reach for too long. The user need not change anything: starting again later may help."""

    exit_code = 1  # of a command that ends with it: not 2, so a batch script starts it again


def is_system_fault(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is a fault of the machine and says nothing about the data.

    Memory counts only where it was not made a DataError: a damaged header may ask for any amount.
    """
    if isinstance(error, MemoryError):
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SYSTEM_FAULTS:
            return type(error).__module__ == "builtins" or error.errno not in _ALSO_OF_FFMPEG
        reason = getattr(error, "reason", None)  # where urllib keeps what a socket raised
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
    return False


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
            except (DataError, OSError, MemoryError) as error:
                outage = self._describe(error)
                if outage is None:
                    raise
                if time.monotonic() >= deadline:
                    raise DataOutage(f"{outage} for {self.bearable_s:.0f} s; {_name(error)}") from error
                logger.warning("%s, trying again in %.0f s (%s)", outage, pause_s, _name(error))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _describe(self, error: Exception) -> str | None:
        """What is out of reach; None: nothing is, the data itself is at fault."""
        gone = next((path for path in self.folders if not is_there(path)), None)
        if gone is not None:
            return f"{gone} is out of reach"
        return "the system cannot read data" if is_system_fault(error) else None


def _name(error: Exception) -> str:
    return str(error) or type(error).__name__
