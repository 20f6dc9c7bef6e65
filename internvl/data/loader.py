"""Training batches, the same for every cluster shape.

1. `mixture` puts the documents of an epoch in order: d0 d1 d2 ...
2. They are dealt out to G streams, G = data-parallel world size x gradient accumulation steps: stream s gets
   d[s], d[s + G], d[s + 2G], ... and packs them into rows of its own, epoch after epoch.
3. Optimiser step t trains on row t of every stream. A rank owns A neighbouring streams and yields
   row 0 of its first stream, ..., row 0 of its last, row 1 of its first, ...

            G = 4           2 ranks, A = 2                  4 ranks, A = 1
        stream 0 | r0 r1 r2 ...  } rank 0: 0.r0 1.r0 0.r1   rank 0
        stream 1 | r0 r1 r2 ...  }                          rank 1
        stream 2 | r0 r1 r2 ...  } rank 1: 2.r0 3.r0 2.r1   rank 2
        stream 3 | r0 r1 r2 ...  }                          rank 3

So what a step trains on follows from (meta file, seed, G): neither from the number of ranks nor of workers. Planning a
row needs token and tile counts only; every worker plans all rows of its rank and decodes its share of them, n-th row
to worker n modulo workers, which is the order in which the DataLoader collects them.

Bad documents. One that cannot be measured (bad json, missing image, too long, ...) is skipped while planning. One
whose image turns out damaged when it is decoded is left out of its row; a row that has nothing left is replaced by
the next row of its stream that has (which then is seen twice), so that ranks stay in step. Rows carry the list of
skipped documents to the training process, the only one that counts them, writes them down (each once) and gives up
when they are too many.

Resuming. A planned row carries the position of its stream behind it (`position`), so the training process always knows
where every stream goes on behind the last row it was handed, however far the workers are ahead.
"""

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from internvl.data.collate import collate_row
from internvl.data.cursor import (
    POSITION_VERSION,
    START_ANEW,
    DocumentRef,
    StreamPosition,
    check_plan,
    copy_rows,
)
from internvl.data.encode import EncodedDocument, SampleEncoder, document_generator
from internvl.data.meta import SourceSpec
from internvl.data.mixture import DataOrder, EpochOrder, count_documents, order_epoch
from internvl.data.packing import (
    POLICIES,
    FillReport,
    FixedCountRows,
    PackedRow,
    PackingLimits,
    PackingPolicy,
    RowBuilder,
    check_policy,
)
from internvl.data.records import RecordFile
from internvl.data.storage.outage import OutageWatch, find_folders
from internvl.data.transform import allocate_tiles
from internvl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]

_MIN_SEEN_FOR_FRACTION = 100  # documents before the share of skipped ones says anything
_MAX_UNREADABLE_ROWS = 16  # rows in sequence without a readable document before giving up
_NUM_CAUSES_SHOWN = 5
_ROW_ERRORS = (DataError, OSError)
_BEGINNING = StreamPosition()


class TileShare(NamedTuple):
    """Which tiles of a row this rank loads, of those of `size` ranks that share the row: the `rank`-th part."""

    rank: int = 0
    size: int = 1

    def own_tiles(self, num_tiles: int) -> range:
        """Consecutive tiles; the parts differ by one at most (the same rule as in `internvl.parallel.vision`)."""
        share, rest = divmod(num_tiles, self.size)
        first, stop = (rank * share + min(rank, rest) for rank in (self.rank, self.rank + 1))
        return range(first, stop)


ALL_TILES = TileShare()


class Skip(NamedTuple):
    """A document that is left out, and why."""

    source: str
    row: int
    cause: str


@dataclass
class _Tally:
    """What happened since the last row of a stream."""

    num_seen: int = 0
    skips: list[Skip] = field(default_factory=list)

    def take(self) -> tuple[int, tuple[Skip, ...]]:
        taken = self.num_seen, tuple(self.skips)
        self.num_seen, self.skips = 0, []
        return taken


@dataclass(frozen=True)
class PlannedRow:
    """A row before decoding.

    Attributes:
        content: Its documents and their sizes.
        num_seen: Documents looked at since the stream's last row.
        skips: Those of them that cannot be used.
        behind: The stream's position behind this row.
    """

    content: PackedRow[DocumentRef]
    num_seen: int
    skips: tuple[Skip, ...]
    behind: StreamPosition


@dataclass(frozen=True)
class RowPlan:
    """Which documents form which row of which stream.

    Attributes:
        files: Annotation files, one per data set.
        encoder: Measures documents.
        num_streams: G.
        seed: Data seed.
        packing: Limits of a packed row; None for rows of `documents_per_row` documents.
        packing_policy: How packed rows are chosen, see `internvl.data.packing`.
        documents_per_row: See `packing`.
        data_order: `shuffle` or `sequential`.
        use_data_resampling: Weight data sets by the square root of their size.
        watch: Waits for folders that are out of reach.
    """

    files: tuple[RecordFile, ...]
    encoder: SampleEncoder
    num_streams: int
    seed: int
    packing: PackingLimits | None = None
    packing_policy: PackingPolicy = "greedy"
    documents_per_row: int = 1
    data_order: DataOrder = "shuffle"
    use_data_resampling: bool = False
    watch: OutageWatch = field(default_factory=OutageWatch)

    @cached_property
    def documents_per_source(self) -> list[int]:
        """Documents that every data set gives to an epoch."""
        return count_documents(
            [len(file) for file in self.files],
            [file.spec.repeat_time for file in self.files],
            use_data_resampling=self.use_data_resampling,
        )

    def order_stream(self, stream: int, epoch: int) -> EpochOrder:
        """The documents of a stream in an epoch."""
        order = order_epoch(
            [file.spec.name for file in self.files],
            [len(file) for file in self.files],
            self.documents_per_source,
            seed=self.seed,
            epoch=epoch,
            data_order=self.data_order,
        )
        return order.take(slice(stream, None, self.num_streams))

    def describe(self) -> dict[str, str | int | float]:
        """Everything that decides which documents form which row; a position is valid for equal descriptions only."""
        packing = self.packing
        return {
            "data seed": self.seed,
            "number of rows per step (groups of ranks x gradient_accumulation_steps)": self.num_streams,
            "packing": "none" if packing is None else ", ".join(f"{name} {n}" for name, n in asdict(packing).items()),
            "packing_policy": self.packing_policy,
            "documents per row": self.documents_per_row,
            "data_order": self.data_order,
            "use_data_resampling": self.use_data_resampling,
            "number of data sets": len(self.files),
            **{
                f"data set {index}": f"{file.spec.name}, {len(file)} rows, repeat_time {file.spec.repeat_time}"
                for index, file in enumerate(self.files)
            },
            **self.encoder.describe(),
        }

    def plan_stream(self, stream: int, position: StreamPosition = _BEGINNING) -> Iterator[PlannedRow]:
        """Rows of a stream from a position on, epoch after epoch, without end.

        Raises:
            DataError: A whole epoch of the stream has no usable document.
        """
        tally = _Tally()
        while True:
            for row in self._plan_epoch_from(stream, position, tally):
                position = row.behind
                yield row
            position = position.next_epoch()

    def plan_epoch(self, stream: int, epoch: int) -> Iterator[PlannedRow]:
        """Rows of a stream in one epoch.

        Raises:
            DataError: None of the documents can be used.
        """
        return self._plan_epoch_from(stream, StreamPosition(epoch), _Tally())

    def _plan_epoch_from(self, stream: int, position: StreamPosition, tally: _Tally) -> Iterator[PlannedRow]:
        """The rest of an epoch. `tally` hands over what was skipped behind the last row of an epoch."""
        builder: RowBuilder[DocumentRef] = (
            FixedCountRows(self.documents_per_row)
            if self.packing is None
            else POLICIES[self.packing_policy](self.packing)
        )
        builder.open_rows = [*copy_rows(position.open_rows)]
        has_rows = position.index > 0
        num_rows, num_seen = position.num_rows, position.num_seen
        for index, rows in self._build_rows(builder, stream, position, tally):
            for number, row in enumerate(rows, start=1):
                has_rows = True
                num_rows += 1
                num_seen_now, skips = tally.take()
                num_seen += num_seen_now
                behind = StreamPosition(
                    position.epoch, index, num_rows, num_seen, copy_rows(builder.open_rows), tuple(rows[number:])
                )
                yield PlannedRow(row, num_seen_now, skips, behind)
        if not has_rows:
            raise DataError(_describe_skips(tally.num_seen, len(tally.skips), tally.skips))

    def _build_rows(
        self, builder: RowBuilder[DocumentRef], stream: int, position: StreamPosition, tally: _Tally
    ) -> Iterator[tuple[int, list[PackedRow[DocumentRef]]]]:
        """(documents looked at, rows that are ready then)."""
        epoch, order = position.epoch, self.order_stream(stream, position.epoch)
        yield position.index, [*position.ready_rows]
        for index in range(position.index, len(order)):
            ref = DocumentRef(epoch, int(order.source[index]), int(order.row[index]), int(order.repeat[index]))
            tally.num_seen += 1
            try:
                num_tokens, num_tiles = self.measure(ref)
                rows = builder.add(ref, num_tokens=num_tokens, num_tiles=num_tiles)
            except _ROW_ERRORS as error:
                tally.skips.append(self.skip(ref, error))
            else:
                yield index + 1, rows
        yield len(order), builder.flush()

    def measure(self, ref: DocumentRef) -> tuple[int, int]:
        """(tokens, tiles) of a document, before it is made.

        Raises:
            DataError: The row cannot become a document.
        """
        return self.watch.read(lambda: self.encoder.measure(self.files[ref.source][ref.row], self._generator(ref)))

    def encode(self, ref: DocumentRef, *, tiles: range | None = None, out: Tensor | None = None) -> EncodedDocument:
        """Make a planned document; `tiles` are those to load (None: all), `out` is where they go.

        Raises:
            DataError: An image cannot be decoded.
        """
        return self.watch.read(
            lambda: self.encoder.encode(self.files[ref.source][ref.row], self._generator(ref), tiles=tiles, out=out)
        )

    def _generator(self, ref: DocumentRef) -> np.random.Generator:
        source = self.files[ref.source].spec.name
        return document_generator(self.seed, epoch=ref.epoch, source=source, row=ref.row, repeat=ref.repeat)

    def skip(self, ref: DocumentRef, error: Exception) -> Skip:
        """The note about a document that `error` makes unusable."""
        source = self.files[ref.source].spec.name
        return Skip(source, ref.row, str(error).removeprefix(f"{source}, row {ref.row}: "))


class _Lookahead:
    """A stream of planned rows in which later rows can be looked at without taking them."""

    def __init__(self, rows: Iterator[PlannedRow]):
        self._rows = rows
        self._next: deque[PlannedRow] = deque()

    def peek(self, index: int = 0) -> PlannedRow:
        while len(self._next) <= index:
            self._next.append(next(self._rows))
        return self._next[index]

    def advance(self) -> None:
        self.peek()
        self._next.popleft()


@dataclass(frozen=True)
class _Row:
    """What a worker sends: a batch, the row it was planned as, and which of its documents were found damaged."""

    stream: int
    planned: PlannedRow
    batch: Batch
    damaged: tuple[Skip, ...]


@dataclass(frozen=True)
class _Failure:
    """What a worker sends instead when it cannot go on (an exception would arrive wrapped in its traceback)."""

    message: str


class RowDataset(IterableDataset):
    """Decoded rows of the streams of one rank, without end.

    Attributes:
        plan: Which documents form which row.
        streams: The rank's streams.
        share: The rank's tiles.
        positions: Where streams start, if not at their beginning.
    """

    def __init__(self, plan: RowPlan, streams: range, share: TileShare):
        self.plan = plan
        self.streams = streams
        self.share = share
        self.positions: dict[int, StreamPosition] = {}

    def __iter__(self) -> Iterator[_Row | _Failure]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        positions = [self.positions.get(stream, _BEGINNING) for stream in self.streams]
        streams = [
            _Lookahead(self.plan.plan_stream(stream, position))
            for stream, position in zip(self.streams, positions, strict=True)
        ]
        first = sum(position.num_rows for position in positions)
        try:
            for number in count(first):
                index = number % len(streams)
                if (number - first) % num_workers == worker:
                    yield self._decode_next(self.streams[index], streams[index])
                streams[index].advance()
        except DataError as error:
            yield _Failure(str(error))

    def _decode_next(self, stream: int, rows: _Lookahead) -> _Row:
        planned = rows.peek()
        decoded = self._decode_row(rows) if self.share.size == 1 else self._decode_shared_row(planned)
        return _Row(stream, planned, *decoded)

    def _decode_row(self, rows: _Lookahead) -> tuple[Batch, tuple[Skip, ...]]:
        first = rows.peek()
        documents, refs, skips = self._decode_documents(first)
        for index in range(1, _MAX_UNREADABLE_ROWS):
            if documents:
                break
            documents, refs, _ = self._decode_documents(rows.peek(index))  # what fails there is noted by that row
        if not documents:
            all_skips = [*first.skips, *skips]
            raise DataError(
                f"{_MAX_UNREADABLE_ROWS} rows in sequence have no readable document; "
                + _describe_skips(first.num_seen, len(all_skips), all_skips)
            )
        return collate_row(documents) | {"document_refs": _number_documents(refs)}, tuple(skips)

    def _decode_shared_row(self, row: PlannedRow) -> tuple[Batch, tuple[Skip, ...]]:
        """The row with this rank's tiles; blank tiles in place of those of damaged documents."""
        own = self.share.own_tiles(row.content.num_tiles)
        room = self._allocate(len(own))
        documents, skips, damaged = [], [], []
        first = 0
        for ref in row.content.refs:
            tiles = range(own.start - first, own.stop - first)
            skip = None
            try:
                document = self.plan.encode(ref, tiles=tiles, out=room[max(-tiles.start, 0) :])
            except _ROW_ERRORS as error:
                skip = self.plan.skip(ref, error)
                document = _with_blank_tiles(self.plan.encode(ref, tiles=range(0)), tiles)
            documents.append(document)
            skips += [] if skip is None else [skip]
            damaged.append(skip is not None)
            first += sum(document.tiles_per_image)
        batch = collate_row(documents) | {"document_refs": _number_documents(row.content.refs)}
        return batch | {"damaged_documents": torch.tensor(damaged, dtype=torch.int64)}, tuple(skips)

    def _decode_documents(self, row: PlannedRow) -> tuple[list[EncodedDocument], list[DocumentRef], list[Skip]]:
        documents, refs, skips = [], [], []
        room = self._allocate(row.content.num_tiles)
        for ref in row.content.refs:
            try:
                document = self.plan.encode(ref, out=room)
            except _ROW_ERRORS as error:
                skips.append(self.plan.skip(ref, error))
                continue
            documents.append(document)
            refs.append(ref)
            room = room[len(document.pixel_values) :]
        return documents, refs, skips

    def _allocate(self, num_tiles: int) -> Tensor:
        """Room for the tiles of a row, which its documents fill one after the other."""
        size = self.plan.encoder.tiles.image_size
        return allocate_tiles(num_tiles, size, size)


def _number_documents(refs: Sequence[DocumentRef]) -> Tensor:
    """(documents, 2) int64: number of the data set in the meta file, row in its annotation file."""
    return torch.tensor([[ref.source, ref.row] for ref in refs], dtype=torch.int64)


def _with_blank_tiles(document: EncodedDocument, tiles: range) -> EncodedDocument:
    """`document`, which has no tiles, with blank ones: those of its tiles that are in `tiles`."""
    num_tiles = sum(document.tiles_per_image)
    num_own = len(range(max(tiles.start, 0), min(tiles.stop, num_tiles)))
    blank = document.pixel_values.new_zeros(num_own, *document.pixel_values.shape[1:])
    return replace(document, pixel_values=blank, image_flags=torch.ones(num_own, dtype=torch.int64))


class SkipLedger:
    """Counts skipped documents, lists each of them once in a jsonl file, and says when they are too many.

    Args:
        path: File that gets a line `{"source", "row", "cause"}` per skipped document; None for no file. Several ranks
            may share it (lines are appended whole).
        max_skipped: Largest bearable share of the documents seen.
    """

    def __init__(self, path: Path | None, max_skipped: float):
        self.path = path
        self.max_skipped = max_skipped
        self.num_seen = 0
        self.num_skipped = 0
        self._listed: dict[tuple[str, int], Skip] = {}

    def note(self, num_seen: int, skips: Sequence[Skip]) -> None:
        """Count documents and list those skipped.

        Raises:
            DataError: More than `max_skipped` of at least 100 documents were skipped.
        """
        self.num_seen += num_seen
        self.num_skipped += len(skips)
        for skip in skips:
            if (skip.source, skip.row) not in self._listed:
                self._listed[skip.source, skip.row] = skip
                self._write(skip)
        is_enough = self.num_seen >= _MIN_SEEN_FOR_FRACTION
        if is_enough and self.num_skipped > self.max_skipped * self.num_seen:
            allowed = f"; allowed are {self.max_skipped:.1%} (max_skipped)"
            raise DataError(_describe_skips(self.num_seen, self.num_skipped, list(self._listed.values())) + allowed)

    def restore(self, num_seen: int, num_skipped: int) -> None:
        """Go on with the counts of an earlier process; what it listed in the file is not listed again."""
        self.num_seen, self.num_skipped = num_seen, num_skipped
        if self.path is not None and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").split("\n"):
                with suppress(ValueError, TypeError):  # a line cut short by a crash
                    skip = Skip(**json.loads(line))
                    self._listed[skip.source, skip.row] = skip

    def _write(self, skip: Skip) -> None:
        if len(self._listed) <= _NUM_CAUSES_SHOWN:
            logger.warning("document skipped: %s, row %d: %s", *skip)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:  # what a path may hold on Linux
            file.write(json.dumps(skip._asdict(), ensure_ascii=False) + "\n")


def _describe_skips(num_seen: int, num_skipped: int, skips: Sequence[Skip]) -> str:
    causes = [f"\n  {skip.source}, row {skip.row}: {skip.cause}" for skip in skips[:_NUM_CAUSES_SHOWN]]
    return f"{num_skipped} of {num_seen} documents cannot be used, the first ones:" + "".join(causes)


class LoaderMark(NamedTuple):
    """Positions of a rank's streams at some moment, and how many documents each of them had skipped."""

    positions: dict[int, StreamPosition]
    num_skipped: dict[int, int]


class TrainLoader:
    """Endless iterable over the batches of one rank; see the module docstring.

    Attributes:
        plan: Which documents form which row.
        dataset: The rows that this rank yields.
        ledger: The skipped documents of this rank.
    """

    def __init__(
        self,
        plan: RowPlan,
        streams: range,
        ledger: SkipLedger,
        *,
        share: TileShare = ALL_TILES,
        num_workers: int,
        prefetch_rows: int,
    ):
        self.plan = plan
        self.dataset = dataset = RowDataset(plan, streams, share)
        self.ledger = ledger
        self.num_workers = num_workers
        self.prefetch_rows = prefetch_rows
        self._behind = dict.fromkeys(dataset.streams, _BEGINNING)
        self._num_skipped = dict.fromkeys(dataset.streams, 0)

    def mark(self) -> LoaderMark:
        """Where the streams are now, to be described later (`state_dict`) if need be."""
        return LoaderMark(dict(self._behind), dict(self._num_skipped))

    def state_dict(self, at: LoaderMark | None = None) -> dict[str, Any]:
        """Where the streams go on behind the last batch handed out: json values, a few bytes per waiting document.

        What all ranks return makes one state (`merge_positions`), which fits any rank of a run with as many rows per
        step, whatever the number of ranks and workers.

        Args:
            at: An earlier moment.
        """
        behind, num_skipped = self.mark() if at is None else at
        streams = {
            str(stream): {**position.to_json(), "skipped": num_skipped[stream]} for stream, position in behind.items()
        }
        return {"version": POSITION_VERSION, "plan": self.plan.describe(), "streams": streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start iteration where a merged state ends.

        Raises:
            ConfigError: The state is of another version, or was saved by a run with other rows.
        """
        if state.get("version") != POSITION_VERSION:
            raise ConfigError(
                f"the checkpoint's data position has version {state.get('version')}, expected {POSITION_VERSION}; "
                f"resume with the release that saved it, {START_ANEW}"
            )
        check_plan(state["plan"], self.plan.describe())
        dataset = self.dataset
        saved = {stream: state["streams"][str(stream)] for stream in dataset.streams}
        dataset.positions = {stream: StreamPosition.from_json(value) for stream, value in saved.items()}
        _check_turns([position.num_rows for position in dataset.positions.values()])
        self._behind = dict(dataset.positions)
        if dataset.share.rank == 0:
            self._num_skipped = {stream: int(value["skipped"]) for stream, value in saved.items()}
        num_seen = sum(position.num_seen for position in dataset.positions.values())
        self.ledger.restore(num_seen, sum(self._num_skipped.values()))

    def __iter__(self) -> Iterator[Batch]:
        rows: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_rows if self.num_workers else None,
            collate_fn=_keep,
            generator=torch.Generator(),  # torch's global generator is left alone
        )
        for row in rows:
            if isinstance(row, _Failure):
                raise DataError(row.message)
            self._note(row)
            yield row.batch

    def _note(self, row: _Row) -> None:
        # Ranks that share rows plan the same ones: the first of them speaks for all.
        is_first = self.dataset.share.rank == 0
        skips = (*row.planned.skips, *row.damaged) if is_first else row.damaged
        self._behind[row.stream] = row.planned.behind
        self._num_skipped[row.stream] += len(skips)
        self.ledger.note(row.planned.num_seen, skips)

    @property
    def num_documents_per_epoch(self) -> int:
        """Documents of an epoch over all streams, bad ones included."""
        return sum(self.plan.documents_per_source)

    def rows_per_epoch(self) -> int:
        """Rows that the poorest stream has in the first epoch, so that all ranks agree on the length of an epoch.

        Measures every document once (text and image headers), which takes its time for large mixtures.
        """
        return self._first_epoch_rows

    @cached_property
    def _first_epoch_rows(self) -> int:
        report = FillReport()
        rows_per_stream = []
        for stream in range(self.plan.num_streams):
            num_rows_before = report.num_rows
            for row in self.plan.plan_epoch(stream, 0):
                report.note(row.content)
            rows_per_stream.append(report.num_rows - num_rows_before)
        logger.info("planned an epoch: %s", report.describe(self.plan.packing))
        return min(rows_per_stream)


def _check_turns(num_rows: Sequence[int]) -> None:
    """Streams of a rank take turns: of `num_rows` handed out by each, the first ones may be one ahead."""
    total, size = sum(num_rows), len(num_rows)
    if [*num_rows] != [(total + size - 1 - index) // size for index in range(size)]:
        raise ConfigError(
            f"the checkpoint's data position has {[*num_rows]} rows behind the streams of this rank, expected equal "
            f"numbers; it was not saved between two steps. Resume from another checkpoint, {START_ANEW}"
        )


def _keep(item: Any) -> Any:
    return item


def build_train_loader(
    specs: Sequence[SourceSpec],
    encoder: SampleEncoder,
    *,
    num_streams: int,
    first_stream: int = 0,
    streams_per_rank: int | None = None,
    share: TileShare = ALL_TILES,
    seed: int = 0,
    packing: PackingLimits | None = None,
    packing_policy: PackingPolicy = "greedy",
    documents_per_row: int = 1,
    num_workers: int = 0,
    prefetch_rows: int = 2,
    skipped_path: str | Path | None = None,
    max_skipped: float = 0.01,
    data_order: DataOrder = "shuffle",
    use_data_resampling: bool = False,
) -> TrainLoader:
    """Make the loader of one rank.

    Args:
        specs: Data sets, from `load_meta`.
        encoder: Makes documents of records.
        num_streams: G, rows per optimiser step over all ranks.
        first_stream: First stream of this rank.
        streams_per_rank: A, streams of this rank; None for all from `first_stream` on.
        share: Which tiles this rank loads of rows that it shares with others.
        seed: Data seed; with epoch and document it fixes order, samples, strides and augmentation.
        packing: Limits of packed rows; None for rows of `documents_per_row` documents.
        packing_policy: How packed rows are chosen: `greedy`, `best_fit` or `balanced`.
        documents_per_row: Documents of a row without packing.
        num_workers: Worker processes; 0 decodes in the training process. Does not change any batch.
        prefetch_rows: Rows that each worker keeps ready.
        skipped_path: jsonl file for skipped documents.
        max_skipped: Share of skipped documents above which loading fails (once 100 documents were seen).
        data_order: `shuffle` or `sequential`.
        use_data_resampling: Weight data sets by the square root of their size.

    Raises:
        ConfigError: Streams out of range, an unknown order, or fewer documents than streams.
    """
    last_stream = num_streams if streams_per_rank is None else first_stream + streams_per_rank
    if not 0 <= first_stream < last_stream <= num_streams:
        raise ConfigError(f"streams {first_stream} to {last_stream - 1} are wanted, there are {num_streams}")
    if data_order not in ("shuffle", "sequential"):
        raise ConfigError(f"data_order is {data_order!r}, expected 'shuffle' or 'sequential'")
    check_policy(packing_policy)
    if not 0 <= max_skipped <= 1:
        raise ConfigError(f"max_skipped is {max_skipped}, expected a share between 0 and 1")
    if seed < 0:
        raise ConfigError(f"the data seed is {seed}, expected 0 or larger")
    plan = RowPlan(
        files=tuple(RecordFile(spec) for spec in specs),
        encoder=encoder,
        num_streams=num_streams,
        seed=seed,
        packing=packing,
        packing_policy=packing_policy,
        documents_per_row=documents_per_row,
        data_order=data_order,
        use_data_resampling=use_data_resampling,
        watch=OutageWatch(find_folders(path for spec in specs for path in (spec.annotation, spec.root, spec.root2))),
    )
    num_documents = sum(plan.documents_per_source)
    if num_documents < num_streams:
        raise ConfigError(
            f"an epoch has {num_documents} documents for {num_streams} streams (data-parallel ranks x gradient "
            "accumulation steps), expected at least one per stream; add data, raise repeat_time, or use fewer"
        )
    ledger = SkipLedger(None if skipped_path is None else Path(skipped_path), max_skipped)
    streams = range(first_stream, last_stream)
    return TrainLoader(plan, streams, ledger, share=share, num_workers=num_workers, prefetch_rows=prefetch_rows)
