"""One owner per output folder: two commands that write into one folder would destroy each other's files.

    with own_folder(Path("work_dirs/run"), "training"):
        ...                       # a second start meanwhile ends with one line: who has the folder, and since when

`work_dirs/.run.owner` holds the owner's host, process and start, and a lock of the operating system (`fcntl.lockf`)
that ends with its process, however that ends. Where a file system does not carry locks from one machine to another, the
file's time does: the owner renews it every `HEARTBEAT_S`, and after `SILENCE_S` without it the owner counts as dead.
A job that slurm started again takes its own folder back at once.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from internvl.errors import ConfigError

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
SILENCE_S = 90.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """Who has a folder."""

    command: str
    host: str
    process: int
    since: str  # local time
    machine: str  # differs between machines, and between starts of one, even where host names are equal
    job: str  # slurm's number, empty without slurm
    restarts: int  # how often slurm has started the job again

    def __str__(self) -> str:
        job = f", slurm job {self.job}" if self.job else ""
        return f"{self.command} (process {self.process} on {self.host}{job}, since {self.since})"


@contextmanager
def own_folder(folder: Path, command: str) -> Iterator[None]:
    """Keep all other commands out of `folder` within the block. The folder need not exist yet.

    Args:
        folder: Output folder; names of the same folder are the same.
        command: What runs, in words, for the message that a second start gets.

    Raises:
        ConfigError: Another process has the folder; nothing was changed.
        OSError: Neither the folder nor its parent can be written.
    """
    path = _place_of(folder)
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    file, is_locked = _lock(path, folder)
    done = threading.Event()
    heartbeat = threading.Thread(target=_renew, args=(path, done), daemon=True)
    try:
        _check_dead(file, path, folder, is_locked=is_locked)
        _write_owner(file, _describe_self(command))
        heartbeat.start()
        yield
    finally:
        done.set()
        if heartbeat.is_alive():
            heartbeat.join()
            with suppress(OSError):
                path.unlink()
        os.close(file)
        for parent in missing:
            with suppress(OSError):  # the block has written into it
                parent.rmdir()


def _place_of(folder: Path) -> Path:
    """Beside the folder, which a command may replace as a whole; inside, where its parent cannot be written."""
    folder = folder.resolve()
    is_inside = folder.is_dir() and not os.access(folder.parent, os.W_OK)
    return folder / ".owner" if is_inside else folder.with_name(f".{folder.name}.owner")


def _lock(path: Path, folder: Path) -> tuple[int, bool]:
    """The lock file, as a file descriptor, and whether it is locked: not every file system can."""
    while True:
        file, is_locked = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                owner = _read_owner(file)
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise _refuse(folder, owner) from None
                raise
        # An owner that ended between these two lines has removed the file that was opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file, is_locked
        os.close(file)


def _check_dead(file: int, path: Path, folder: Path, *, is_locked: bool) -> None:
    """Raise ConfigError if the owner that the file names is alive, although its lock is not seen here."""
    owner = _read_owner(file)
    if owner is None:
        return
    own = _describe_self("")
    is_requeued = owner.job != "" and owner.job == own.job and owner.restarts < own.restarts
    if owner.machine == own.machine:
        is_alive = not is_locked and Path(f"/proc/{owner.process}").exists()
    else:
        is_alive = not is_requeued and _now_on_disk_of(path) - os.fstat(file).st_mtime < SILENCE_S
    if is_alive:
        raise _refuse(folder, owner, f" If that process is dead, try again in {SILENCE_S:.0f} s")
    logger.warning("%s: taken over from %s, which ended without releasing it", folder, owner)


def _refuse(folder: Path, owner: Owner | None, hint: str = "") -> ConfigError:
    by = str(owner or "another process, which is just starting")
    return ConfigError(
        f"{folder} is being written by {by}; wait for its end, stop it, or choose another folder. "
        f"Nothing was changed.{hint}"
    )


def _read_owner(file: int) -> Owner | None:
    with suppress(ValueError, TypeError, OSError):
        return Owner(**json.loads(os.pread(file, 4096, 0)))
    return None


def _write_owner(file: int, owner: Owner) -> None:
    content = json.dumps(asdict(owner)).encode()
    os.pwrite(file, content, 0)
    os.ftruncate(file, len(content))
    os.fsync(file)


def _describe_self(command: str) -> Owner:
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        machine = socket.gethostname()
    return Owner(
        command=command,
        host=socket.gethostname(),
        process=os.getpid(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        machine=machine,
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    )


def _now_on_disk_of(path: Path) -> float:
    """The time of the file server, whose clock may differ from this machine's. Seconds."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as probe:
        return os.fstat(probe.fileno()).st_mtime


def _renew(path: Path, done: threading.Event) -> None:
    # By name: opening and closing the file here would release this process's lock.
    while not done.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(path)
