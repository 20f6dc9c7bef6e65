"""Row plan: which documents form which row of which stream, and which rank reads what. No picture is decoded here.

1. `mixture` puts the documents of an epoch in order: d0 d1 d2 ...
2. They are distributed over G streams, G = data-parallel world size x gradient accumulation steps: stream s gets
   d[s], d[s + G], d[s + 2G], ... and packs them into rows of its own, epoch after epoch.
3. Optimiser step t trains on row t of every stream. A rank owns A neighbouring streams and yields
   row 0 of its first stream, ..., row 0 of its last, row 1 of its first, ...

            G = 4           2 ranks, A = 2                  4 ranks, A = 1
        stream 0 | r0 r1 r2 ...  } rank 0: 0.r0 1.r0 0.r1   rank 0
        stream 1 | r0 r1 r2 ...  }                          rank 1
        stream 2 | r0 r1 r2 ...  } rank 1: 2.r0 3.r0 2.r1   rank 2
        stream 3 | r0 r1 r2 ...  }                          rank 3

So what a step trains on follows from (meta file, seed, G) alone: the number of ranks and workers does not matter.
Planning needs token and tile counts, which text and file headers give.

A document that cannot be measured (bad json, missing image, too long, ...) is skipped, and noted in its row. Every
planned row carries the cursor of its stream after it, so resuming never depends on how far workers ran ahead.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple, get_args

import numpy as np
from torch import Tensor

from internvl.data.cursor import DocumentRef, PlanDescription, StreamCursor, copy_rows
from internvl.data.encode import EncodedDocument, SampleEncoder, document_generator
from internvl.data.mixture import DataOrder, EpochOrder, count_documents, order_epoch
from internvl.data.packing import (
    POLICIES,
    FixedCountRows,
    PackedRow,
    PackingLimits,
    PackingPolicy,
    RowBuilder,
    check_policy,
)
from internvl.data.records import RecordFile
from internvl.data.skips import DOCUMENT_ERRORS, Skip, SkipTally
from internvl.data.storage.outage import OutageWatch
from internvl.errors import ConfigError, DataError

STREAM_START = StreamCursor()


class TileShare(NamedTuple):
    """Which tiles of a row this rank loads: the `rank`-th part among `size` ranks that share the row."""

    rank: int = 0
    size: int = 1

    def own_tiles(self, num_tiles: int) -> range:
        """Consecutive tiles; the parts differ by one at most (the same rule as in `internvl.parallel.vision`)."""
        share, rest = divmod(num_tiles, self.size)
        first, stop = (rank * share + min(rank, rest) for rank in (self.rank, self.rank + 1))
        return range(first, stop)


ALL_TILES = TileShare()


@dataclass(frozen=True)
class RankShare:
    """What one rank reads."""

    streams: range  # its streams, neighbouring ones
    tiles: TileShare = ALL_TILES  # its part of the tiles, of rows that it shares with other ranks


@dataclass(frozen=True)
class RowOptions:
    """How documents become rows; the same on every rank. Wrong options raise ConfigError."""

    num_streams: int  # G, rows per optimiser step over all ranks
    seed: int = 0  # data seed; with epoch and document it fixes order, samples, strides and augmentation
    packing: PackingLimits | None = None  # limits of a packed row; None for rows of `documents_per_row` documents
    packing_policy: PackingPolicy = "greedy"  # how packed rows are chosen, see `internvl.data.packing`
    documents_per_row: int = 1  # documents of a row without packing
    data_order: DataOrder = "shuffle"  # `shuffle` or `sequential`
    use_data_resampling: bool = False  # weight data sets by the square root of their size

    def __post_init__(self) -> None:
        if self.data_order not in get_args(DataOrder):
            raise ConfigError(f"data_order is {self.data_order!r}, expected 'shuffle' or 'sequential'")
        check_policy(self.packing_policy)
        if self.seed < 0:
            raise ConfigError(f"the data seed is {self.seed}, expected 0 or larger")

    def build_rows(self) -> RowBuilder[DocumentRef]:
        """An empty builder of rows under these options."""
        if self.packing is None:
            return FixedCountRows(self.documents_per_row)
        return POLICIES[self.packing_policy](self.packing)


@dataclass(frozen=True)
class PlannedRow:
    """A row before decoding."""

    content: PackedRow[DocumentRef]  # its documents and their sizes
    num_seen: int  # documents looked at since the stream's last row
    skips: tuple[Skip, ...]  # those of them that cannot be used
    cursor: StreamCursor  # where the stream continues after this row


@dataclass(frozen=True)
class RowPlan:
    """Plans the rows of every stream, and makes their documents when they are needed."""

    files: tuple[RecordFile, ...]  # annotation files, one per data set
    encoder: SampleEncoder  # measures and encodes documents
    options: RowOptions  # how documents become rows
    watch: OutageWatch = field(default_factory=OutageWatch)  # waits for folders that are out of reach

    @cached_property
    def documents_per_source(self) -> list[int]:
        """Documents that every data set gives to an epoch."""
        return count_documents(
            [len(file) for file in self.files],
            [file.spec.repeat_time for file in self.files],
            use_data_resampling=self.options.use_data_resampling,
        )

    def order_stream(self, stream: int, epoch: int) -> EpochOrder:
        """The documents of a stream in an epoch."""
        order = order_epoch(
            [file.spec.name for file in self.files],
            [len(file) for file in self.files],
            self.documents_per_source,
            seed=self.options.seed,
            epoch=epoch,
            data_order=self.options.data_order,
        )
        return order.take(slice(stream, None, self.options.num_streams))

    def describe(self) -> PlanDescription:
        """Everything that decides which documents form which row; cursors are valid for equal descriptions only."""
        options, packing = self.options, self.options.packing
        return {
            "data seed": options.seed,
            "number of rows per step (groups of ranks x gradient_accumulation_steps)": options.num_streams,
            "packing": "none" if packing is None else ", ".join(f"{name} {n}" for name, n in asdict(packing).items()),
            "packing_policy": options.packing_policy,
            "documents per row": options.documents_per_row,
            "data_order": options.data_order,
            "use_data_resampling": options.use_data_resampling,
            "number of data sets": len(self.files),
            **{
                f"data set {index}": f"{file.spec.name}, {len(file)} rows, repeat_time {file.spec.repeat_time}"
                for index, file in enumerate(self.files)
            },
            **self.encoder.describe(),
        }

    def plan_stream(self, stream: int, cursor: StreamCursor = STREAM_START) -> Iterator[PlannedRow]:
        """Rows of a stream from a cursor on, without end. Raises DataError if a whole epoch has no usable document."""
        tally = SkipTally()  # kept over the end of an epoch: what follows its last row is counted with the next row
        while True:
            for row in self._plan_rest_of_epoch(stream, cursor, tally):
                cursor = row.cursor
                yield row
            cursor = cursor.next_epoch()

    def plan_epoch(self, stream: int, epoch: int) -> Iterator[PlannedRow]:
        """Rows of a stream in one epoch. Raises DataError if none of its documents can be used."""
        return self._plan_rest_of_epoch(stream, StreamCursor(epoch), SkipTally())

    def _plan_rest_of_epoch(self, stream: int, cursor: StreamCursor, tally: SkipTally) -> Iterator[PlannedRow]:
        builder = self.options.build_rows()
        builder.open_rows = [*copy_rows(cursor.open_rows)]
        has_rows = cursor.index > 0
        num_rows, num_seen = cursor.num_rows, cursor.num_seen
        for index, rows in self._build_rows(builder, stream, cursor, tally):
            for number, row in enumerate(rows, start=1):
                has_rows = True
                num_rows += 1
                num_seen_now, skips = tally.take()
                num_seen += num_seen_now
                after = StreamCursor(
                    cursor.epoch, index, num_rows, num_seen, copy_rows(builder.open_rows), tuple(rows[number:])
                )
                yield PlannedRow(row, num_seen_now, skips, after)
        if not has_rows:
            raise DataError(tally.describe())

    def _build_rows(
        self, builder: RowBuilder[DocumentRef], stream: int, cursor: StreamCursor, tally: SkipTally
    ) -> Iterator[tuple[int, list[PackedRow[DocumentRef]]]]:
        """(documents looked at, rows that are ready then)."""
        epoch, order = cursor.epoch, self.order_stream(stream, cursor.epoch)
        yield cursor.index, [*cursor.ready_rows]
        for index in range(cursor.index, len(order)):
            ref = DocumentRef(epoch, int(order.source[index]), int(order.row[index]), int(order.repeat[index]))
            tally.num_seen += 1
            try:
                num_tokens, num_tiles = self.measure(ref)
                rows = builder.add(ref, num_tokens=num_tokens, num_tiles=num_tiles)
            except DOCUMENT_ERRORS as error:
                tally.skips.append(self.describe_skip(ref, error))
            else:
                yield index + 1, rows
        yield len(order), builder.flush()

    def measure(self, ref: DocumentRef) -> tuple[int, int]:
        """(tokens, tiles) of a document, before it is made. Raises DataError if it cannot be."""
        return self.watch.read(lambda: self.encoder.measure(self.files[ref.source][ref.row], self._generator(ref)))

    def encode(self, ref: DocumentRef, *, tiles: range | None = None, out: Tensor | None = None) -> EncodedDocument:
        """Make a planned document; `tiles` are those to load (None: all), `out` is where they go.

        Raises DataError if an image cannot be decoded.
        """
        return self.watch.read(
            lambda: self.encoder.encode(self.files[ref.source][ref.row], self._generator(ref), tiles=tiles, out=out)
        )

    def _generator(self, ref: DocumentRef) -> np.random.Generator:
        # A generator per document: measuring and encoding draw the same numbers, in any process and any order.
        source = self.files[ref.source].spec.name
        return document_generator(self.options.seed, epoch=ref.epoch, source=source, row=ref.row, repeat=ref.repeat)

    def describe_skip(self, ref: DocumentRef, error: Exception) -> Skip:
        """The note about a document that `error` makes unusable."""
        source = self.files[ref.source].spec.name
        return Skip(source, ref.row, str(error).removeprefix(f"{source}, row {ref.row}: "))
