"""Skipped documents: what was left out and why, how many of how many, and when they are too many.

Planning and decoding note a `Skip`; it travels with its row to the training process. Only that process keeps the
`SkipLedger`: it counts every skip, lists each document once in a jsonl file, and ends the run when too many are bad.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from internvl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# What makes a document unusable. Anything else is a defect of the program and ends the run.
DOCUMENT_ERRORS = (DataError, OSError)

_MIN_SEEN_FOR_SHARE = 100  # one bad document among the first ten is no reason to stop
_NUM_CAUSES_SHOWN = 5


class Skip(NamedTuple):
    """A document that is left out, and why."""

    source: str
    row: int
    cause: str


@dataclass
class SkipTally:
    """Documents looked at, and skipped, since the last row of a stream."""

    num_seen: int = 0
    skips: list[Skip] = field(default_factory=list)

    def take(self) -> tuple[int, tuple[Skip, ...]]:
        """Return both and start again from zero."""
        taken = self.num_seen, tuple(self.skips)
        self.num_seen, self.skips = 0, []
        return taken

    def describe(self) -> str:
        """The counts and the first causes."""
        return describe_skips(self.num_seen, len(self.skips), self.skips)


class SkipLedger:
    """Counts skipped documents, lists each of them once, and raises when they are too many.

    Args:
        path: File that gets a line `{"source", "row", "cause"}` per skipped document; None for no file. Several ranks
            may share it, since lines are appended whole.
        max_skipped: Largest tolerated share of the documents seen, 0 to 1, else ConfigError.
    """

    def __init__(self, path: Path | None, max_skipped: float):
        if not 0 <= max_skipped <= 1:
            raise ConfigError(f"max_skipped is {max_skipped}, expected a share between 0 and 1")
        self.path = path
        self.max_skipped = max_skipped
        self.num_seen = 0
        self.num_skipped = 0
        self._listed: dict[tuple[str, int], Skip] = {}

    def note(self, num_seen: int, skips: Sequence[Skip]) -> None:
        """Count documents and list those skipped. Raises DataError above `max_skipped` of at least 100 documents."""
        self.num_seen += num_seen
        self.num_skipped += len(skips)
        for skip in skips:
            if (skip.source, skip.row) not in self._listed:
                self._listed[skip.source, skip.row] = skip
                self._write(skip)
        is_enough = self.num_seen >= _MIN_SEEN_FOR_SHARE
        if is_enough and self.num_skipped > self.max_skipped * self.num_seen:
            allowed = f"; allowed are {self.max_skipped:.1%} (max_skipped)"
            raise DataError(describe_skips(self.num_seen, self.num_skipped, list(self._listed.values())) + allowed)

    def restore(self, num_seen: int, num_skipped: int) -> None:
        """Continue the counts of an earlier process; what it listed in the file is not listed again."""
        self.num_seen, self.num_skipped = num_seen, num_skipped
        if self.path is not None and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
                with suppress(ValueError, TypeError):  # a line cut short by a crash
                    skip = Skip(**json.loads(line))
                    self._listed[skip.source, skip.row] = skip

    def _write(self, skip: Skip) -> None:
        if len(self._listed) <= _NUM_CAUSES_SHOWN:
            logger.warning("document skipped: %s, row %d: %s", *skip)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A path on Linux may hold bytes that are not UTF-8; they are written as escapes.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(skip._asdict(), ensure_ascii=False) + "\n")


def describe_skips(num_seen: int, num_skipped: int, skips: Sequence[Skip]) -> str:
    """One line with the counts, then the first causes, a line each."""
    causes = [f"\n  {skip.source}, row {skip.row}: {skip.cause}" for skip in skips[:_NUM_CAUSES_SHOWN]]
    return f"{num_skipped} of {num_seen} documents cannot be used, the first ones:" + "".join(causes)
