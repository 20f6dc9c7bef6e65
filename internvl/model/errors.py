"""Errors for users: each message says what was got, what was expected and what to change."""

import difflib
from collections.abc import Iterable


class InternVLError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code = 2  # of a command that ends with this error


class ConfigError(InternVLError):
    """A flag, a config field or a combination of them is wrong."""


class DataError(InternVLError):
    """A data set, a record or a file is wrong.

    Args:
        message: What was got, what was expected, what to change.
        source: Name or path of the data set.
        row: Row of the record in its annotation file, counted from 0.
        kind: A word for errors of this sort, by which reports group them.
    """

    def __init__(self, message: str, *, source: str | None = None, row: int | None = None, kind: str = "record"):
        self.message = message
        self.source = source
        self.row = row
        self.kind = kind
        place = ", ".join(p for p in (source, None if row is None else f"row {row}") if p)
        super().__init__(f"{place}: {message}" if place else message)

    def at(self, source: str, row: int) -> "DataError":
        """The same error with the place of the record that it is about."""
        return DataError(self.message, source=source, row=row, kind=self.kind)


class CheckpointError(InternVLError):
    """A checkpoint folder is missing, incomplete or does not fit the model."""


class ParallelError(InternVLError):
    """The process grid or the launcher's environment is wrong."""


class EvalError(InternVLError):
    """An evaluation cannot go on without giving a wrong number."""


class MissingDependencyError(InternVLError):
    """An optional package is needed; the message names the pip line that installs it."""


def summarise(error: BaseException) -> str:
    """Class and message of another library's error in one line, however many it has."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:1000]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'packed'?`, to be put into an error about an unknown name; empty where none is near."""
    by_letters = {_fold(word): word for word in reversed(list(known))}  # the first of two alike
    typed = _fold(name)
    part = typed.strip("_")  # `--stride` of `--rope_pos_id_stride`
    near = (
        difflib.get_close_matches(typed, by_letters, n=1, cutoff=0.8)
        or sorted((word for word in by_letters if len(part) > 3 and part in word), key=len)
        or difflib.get_close_matches(typed, by_letters, n=1)
    )
    return f", did you mean {by_letters[near[0]]!r}?" if near else ""


def _fold(word: str) -> str:
    return word.lower().replace("-", "_")
