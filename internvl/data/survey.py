"""Survey: reads all records before a run, to say which of them training would skip and how large the others are.

    rows of all data sets -> chunks -> worker processes -> ChunkReport ... -> SourceReport per data set

A row is read, checked and measured exactly as in training (`SampleEncoder.measure`: text, and headers of pictures and
videos), so what is found here is what a run would skip. Decoding the pictures too is optional; it takes much longer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from internvl.data.dataset import read_in_workers
from internvl.data.encode import SampleEncoder, document_generator
from internvl.data.packing import PackingLimits
from internvl.data.records import RecordFile
from internvl.data.skips import DOCUMENT_ERRORS
from internvl.data.storage.outage import DataOutage, OutageWatch
from internvl.errors import ConfigError, DataError, InternVLError

_CHUNK_ROWS = 64
_CHUNKS_AHEAD = 4  # per worker
_NO_WAITING = OutageWatch(bearable_s=0)


class Problem(NamedTuple):
    """A record that training would skip."""

    source: str  # its data set
    row: int  # its row in the annotation file, counted from 0
    kind: str  # a word for problems like this one (`DataError.kind`)
    cause: str  # what is wrong


@dataclass(frozen=True, eq=False)
class ChunkReport:
    """What was found in some rows of a data set."""

    source: int  # number of the data set
    num_rows: int  # rows looked at
    num_tokens: Int64[np.ndarray, " documents"]  # of every usable document
    num_tiles: Int64[np.ndarray, " documents"]  # likewise
    problems: tuple[Problem, ...]  # of the other rows


@dataclass(frozen=True)
class Survey:
    """Reads the rows of all data sets; see the module docstring."""

    files: tuple[RecordFile, ...]  # annotation files, one per data set
    encoder: SampleEncoder  # measures documents, with the options of the run
    limits: PackingLimits | None = None  # largest packed row; None: documents are not packed
    seed: int = 42  # the run's data seed, which draws the frames of videos; those of the first epoch are looked at
    decodes: bool = False  # decode all pictures and frames too

    def check_rows(self, source: int, rows: range) -> ChunkReport:
        """Look at some rows of a data set."""
        sizes: list[tuple[int, int]] = []
        problems: list[Problem] = []
        for row in rows:
            try:
                sizes.append(_NO_WAITING.read(partial(self._measure, source, row)))
            except DOCUMENT_ERRORS as error:
                problems.append(self._describe(source, row, error))
        tokens, tiles = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
        return ChunkReport(source, len(rows), tokens, tiles, tuple(problems))

    def _measure(self, source: int, row: int) -> tuple[int, int]:
        """(tokens, tiles) of a document that training would use."""
        file = self.files[source]
        record = file[row]

        def generator() -> np.random.Generator:
            return document_generator(self.seed, epoch=0, source=file.spec.name, row=row, repeat=0)

        num_tokens, num_tiles = self.encoder.measure(record, generator())
        if self.limits is not None:
            self.limits.check_document(num_tokens, num_tiles)
        if self.decodes:
            self.encoder.check_pictures(record, generator())
        return num_tokens, num_tiles

    def _describe(self, source: int, row: int, error: Exception) -> Problem:
        name = self.files[source].spec.name
        if isinstance(error, DataError):
            return Problem(name, row, error.kind, error.message)
        return Problem(name, row, "file", str(error))

    def run(self, *, num_workers: int = 0) -> Iterator[ChunkReport]:
        """Look at all rows, one data set after the other; reports come in the order of the rows.

        Raises InternVLError for a cause that would stop every other row as well, such as a missing package.
        """
        for report in read_in_workers(_Chunks(self), num_workers=num_workers, prefetch=_CHUNKS_AHEAD):
            if isinstance(report, InternVLError):
                raise report
            yield report


class _Chunks(Dataset[ChunkReport | InternVLError]):
    """The chunks of all data sets; an item is the report on a chunk, or the error that ended it."""

    def __init__(self, check: Survey):
        self.check = check
        lengths = enumerate(len(file) for file in check.files)
        starts = [(source, first) for source, length in lengths for first in range(0, length, _CHUNK_ROWS)]
        self.starts = np.array(starts, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> ChunkReport | InternVLError:
        source, first = (int(number) for number in self.starts[index])
        last = min(first + _CHUNK_ROWS, len(self.check.files[source]))
        try:
            return self.check.check_rows(source, range(first, last))
        except InternVLError as error:  # returned: raised in a worker, it would arrive wrapped in its traceback
            return error
        except DataOutage as error:
            return ConfigError(f"{error}; this is no fault of the data: see to the machine (ulimit -n, memory, disks)")


@dataclass
class SourceReport:
    """What was found in one data set so far."""

    name: str
    num_rows: int  # rows of its annotation file
    num_documents: int  # documents that it gives to an epoch
    num_checked: int = 0  # rows looked at
    problems: list[Problem] = field(default_factory=list)  # records that training would skip
    _tokens: list[np.ndarray] = field(default_factory=list)
    _tiles: list[np.ndarray] = field(default_factory=list)

    def add(self, report: ChunkReport) -> None:
        """Add what was found in some more rows."""
        self.num_checked += report.num_rows
        self.problems += report.problems
        self._tokens.append(report.num_tokens)
        self._tiles.append(report.num_tiles)

    @property
    def num_tokens(self) -> Int64[np.ndarray, " documents"]:
        """Tokens of every usable document."""
        return _join(self._tokens)

    @property
    def num_tiles(self) -> Int64[np.ndarray, " documents"]:
        """Tiles of every usable document."""
        return _join(self._tiles)

    @property
    def tokens_per_epoch(self) -> float:
        """Estimate: bad documents give none; rows that were not read count like those that were."""
        return self._scale(self.num_tokens)

    @property
    def tiles_per_epoch(self) -> float:
        """Estimate, as for tokens."""
        return self._scale(self.num_tiles)

    def _scale(self, counts: np.ndarray) -> float:
        return float(counts.sum()) / self.num_checked * self.num_documents if self.num_checked else 0.0


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
