"""Command lines: how every command of the project ends when something outside of it goes wrong.

    @command(go_on="start the same command again to continue")
    def main(argv: Sequence[str] | None = None) -> int: ...

| what happens                                                    | on stderr      | exit code           |
|-----------------------------------------------------------------|----------------|---------------------|
| an `InternVLError`                                              | `error: ...`   | the error's, mostly 2 |
| no space, a read-only folder, no memory, too many open files    | `error: ...`   | 2                   |
| another fault of the machine that names its `exit_code`         | `error: ...`   | that                |
| Ctrl-C, SIGTERM                                                 | one line       | 130, 143            |
| the terminal lacks a character                                  | `?` in its place | -                 |
| the reader of standard output is gone (`command \\| head -1`)    | nothing        | 141                 |

Any other exception is a defect of the program and keeps its traceback.
"""

import errno
import functools
import io
import logging
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Protocol

from internvl.errors import ConfigError, InternVLError, MissingDependencyError

logger = logging.getLogger(__name__)

_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# Libraries that write files in other languages report the disk's refusal in words only.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_ERROR = re.compile(r"PytorchStreamWriter failed|file write failed")
_children_are_prepared = False


class Main(Protocol):
    """Entry point of a command; returns the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command; `argv` None: the process's arguments."""
        ...


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. A kind of KeyboardInterrupt, so that code which cleans up after Ctrl-C does so here too."""


def command(*, go_on: str) -> Callable[[Main], Main]:
    """Decorate the `main` of a command so that it ends as the table at the top says.

    Args:
        go_on: What the user does next, after an interruption or once the cause is removed.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            _replace_characters_that_terminals_lack()
            try:
                with _raise_on_sigterm():
                    try:
                        return main(argv)
                    finally:
                        _flush_stdout()
            except InternVLError as error:
                if not (isinstance(error, (ConfigError, MissingDependencyError)) and _is_repeated_by_another_rank()):
                    _say(f"error: {' '.join(str(error).split())}")
                return error.exit_code
            except KeyboardInterrupt as interrupt:
                number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
                if not _is_repeated_by_another_rank():
                    _say(f"{'stopped by SIGTERM' if number == signal.SIGTERM else 'interrupted'}; {go_on}")
                return 128 + number
            except Exception as error:
                if isinstance(error, BrokenPipeError) and _is_reader_gone():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the very end
                    return 128 + signal.SIGPIPE
                fault = str(error) if hasattr(error, "exit_code") else describe_system_fault(error)
                if fault is None:
                    raise
                logger.debug("system fault", exc_info=error)
                _say(f"error: {fault}; remove the cause, then {go_on}")
                return getattr(error, "exit_code", 2)

        return guarded

    return decorate


def _replace_characters_that_terminals_lack() -> None:
    """Names of files may even hold half characters, which no encoding has."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def describe_system_fault(error: BaseException | None) -> str | None:
    """What the machine refused, if an error comes from that: `No space left on device: 'out/a.json'`; else None."""
    while error is not None:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError):
            return "not enough memory"
        if isinstance(error, OSError) and error.errno is not None:
            places = [
                repr(os.fspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
            ]
            return ": ".join([error.strerror or os.strerror(error.errno), *places])
        if found := _RUST_ERROR.search(text):
            return f"{os.strerror(int(found[1]))}: {text}"
        if _TORCH_ERROR.search(text):
            return f"a file cannot be written, is the disk full? {text}"
        # An error that a handler met by accident says nothing about the cause, unless the disk is full there, too.
        error = error.__cause__ or _keep_disk_error(error.__context__)
    return None


def _keep_disk_error(error: BaseException | None) -> BaseException | None:
    return error if isinstance(error, OSError) and error.errno in _NO_WRITING else None


def announce_interrupts() -> None:
    """Say `interrupted` instead of a traceback where Ctrl-C arrives before `main` runs, in seconds of importing."""

    def say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _say("interrupted")
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = say_interrupted


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the main thread as Ctrl-C does, so that temporary files go and locks are released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _prepare_children()
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(_number: int, _frame: object) -> None:
    raise Terminated


def _prepare_children() -> None:
    """Keep forked workers quiet: the parent ends them, and says why."""
    global _children_are_prepared
    if not _children_are_prepared:
        os.register_at_fork(after_in_child=_leave_signals_to_parent)
        _children_are_prepared = True


def _leave_signals_to_parent() -> None:
    if signal.getsignal(signal.SIGTERM) is _raise_terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_repeated_by_another_rank() -> bool:
    """Whether the first process of this machine meets the same: the same flags, packages and signals."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("LOCAL_RANK", "SLURM_LOCALID"))


def _flush_stdout() -> None:
    # While another error is on its way, a closed pipe must not take its place.
    if sys.exc_info()[0] in (None, SystemExit):
        sys.stdout.flush()
    else:
        with suppress(OSError):
            sys.stdout.flush()


def _is_reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads; other pipes break, too."""
    poll = select.poll()
    with suppress(OSError, ValueError):
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _say(line: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
