"""Row dataset: decodes the planned rows of one rank, in one process or in several workers.

Every worker plans all rows of its rank, which is cheap, and decodes its share: the n-th row belongs to worker n modulo
workers. That is the order in which a DataLoader collects, so the number of workers does not change any batch.

A document whose image turns out damaged is left out of its row; a row that has nothing left is replaced by the next
row of its stream that has (which is then seen twice), so that ranks stay in step. In a row that ranks share, all of
them need the same tokens: there the document stays, with blank tiles, and is marked for a weight of zero.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from internvl.data.collate import Batch, collate_row
from internvl.data.cursor import RESTART_HINT, DocumentRef, StreamCursor
from internvl.data.encode import EncodedDocument
from internvl.data.plan import STREAM_START, PlannedRow, RankShare, RowPlan
from internvl.data.skips import DOCUMENT_ERRORS, Skip, describe_skips
from internvl.data.storage.outage import DataOutage
from internvl.data.transform import allocate_tiles
from internvl.errors import ConfigError, DataError, InternVLError

_MAX_UNREADABLE_ROWS = 16  # rows in sequence without a readable document before giving up

Item = TypeVar("Item")


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
class DecodedRow:
    """What a worker sends: a batch, the row it was planned as, and which of its documents were found damaged."""

    stream: int
    planned: PlannedRow
    batch: Batch
    damaged: tuple[Skip, ...]

    def pin_memory(self) -> "DecodedRow":
        """As a DataLoader asks for it: the batch in memory that a GPU copies from by itself."""
        return replace(self, batch={name: value.pin_memory() for name, value in self.batch.items()})


@dataclass(frozen=True)
class LoadFailure:
    """What a worker sends when it cannot continue (a raised exception would arrive wrapped in its traceback)."""

    error: InternVLError | DataOutage


class RowDataset(IterableDataset[DecodedRow | LoadFailure]):
    """Decoded rows of the streams of one rank, without end."""

    def __init__(self, plan: RowPlan, share: RankShare):
        self.plan = plan
        self.share = share  # the rank's streams and tiles
        self.cursors: dict[int, StreamCursor] = {}  # where streams start, if not at their beginning

    def __iter__(self) -> Iterator[DecodedRow | LoadFailure]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        numbers = self.share.streams
        cursors = [self.cursors.get(stream, STREAM_START) for stream in numbers]
        streams = [
            _Lookahead(self.plan.plan_stream(stream, cursor)) for stream, cursor in zip(numbers, cursors, strict=True)
        ]
        first = sum(cursor.num_rows for cursor in cursors)
        try:
            for number in count(first):
                index = number % len(streams)
                if (number - first) % num_workers == worker:
                    row = self._decode_next(numbers[index], streams[index])
                    if info is not None:
                        _share_memory(row.batch)
                    yield row
                streams[index].advance()
        except (InternVLError, DataOutage) as error:
            yield LoadFailure(error)

    def _decode_next(self, stream: int, rows: _Lookahead) -> DecodedRow:
        planned = rows.peek()
        is_whole = self.share.tiles.size == 1
        batch, damaged = self._decode_row(rows) if is_whole else self._decode_shared_row(planned)
        return DecodedRow(stream, planned, batch, damaged)

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
                + describe_skips(first.num_seen, len(all_skips), all_skips)
            )
        return collate_row(documents) | {"document_refs": _number_documents(refs)}, tuple(skips)

    def _decode_shared_row(self, row: PlannedRow) -> tuple[Batch, tuple[Skip, ...]]:
        """The row with this rank's tiles; blank tiles in place of those of damaged documents.

        Raises DataError if a document has other tiles than planned: the ranks' parts would not fit together.
        """
        own = self.share.tiles.own_tiles(row.content.num_tiles)
        room = self._allocate(len(own))
        documents, skips, damaged = [], [], []
        first = 0  # tile of the row that the document begins with
        for ref in row.content.refs:
            tiles = range(own.start - first, own.stop - first)
            skip = None
            try:
                document = self.plan.encode(ref, tiles=tiles, out=room[max(-tiles.start, 0) :])
            except DOCUMENT_ERRORS as error:
                skip = self.plan.describe_skip(ref, error)
                document = _with_blank_tiles(self.plan.encode(ref, tiles=range(0)), tiles)
            documents.append(document)
            skips += [] if skip is None else [skip]
            damaged.append(skip is not None)
            first += sum(document.tiles_per_image)
        if first != row.content.num_tiles:
            raise self._refuse_tiles(row, [sum(document.tiles_per_image) for document in documents])
        batch = collate_row(documents) | {"document_refs": _number_documents(row.content.refs)}
        return batch | {"damaged_documents": torch.tensor(damaged, dtype=torch.int64)}, tuple(skips)

    def _refuse_tiles(self, row: PlannedRow, num_tiles: Sequence[int]) -> DataError:
        # Only the sum of the plan is known, so every document that shows something may be the one that changed.
        shown = ", ".join(
            f"{self.plan.files[ref.source].spec.name}, row {ref.row} ({number})"
            for ref, number in zip(row.content.refs, num_tiles, strict=True)
            if number
        )
        return DataError(
            f"documents of one row now have {sum(num_tiles)} tiles, expected {row.content.num_tiles} as planned: "
            f"{shown}; the file of one of them has changed: put back the earlier one, {RESTART_HINT}",
            kind="image",
        )

    def _decode_documents(self, row: PlannedRow) -> tuple[list[EncodedDocument], list[DocumentRef], list[Skip]]:
        documents, refs, skips = [], [], []
        room = self._allocate(row.content.num_tiles)
        for ref in row.content.refs:
            try:
                document = self.plan.encode(ref, out=room)
            except DOCUMENT_ERRORS as error:
                skips.append(self.plan.describe_skip(ref, error))
                continue
            documents.append(document)
            refs.append(ref)
            room = room[len(document.pixel_values) :]
        return documents, refs, skips

    def _allocate(self, num_tiles: int) -> Tensor:
        """Room for the tiles of a row, which its documents fill one after the other: the row needs no copy then."""
        size = self.plan.encoder.tiles.image_size
        return allocate_tiles(num_tiles, size, size)


def _share_memory(batch: Batch) -> None:
    """Move a batch to where the training process reads it.

    Sending it would do the same, in a thread whose errors nobody hears of: the row would never arrive.
    """
    try:
        for value in batch.values():
            value.share_memory_()
    except RuntimeError as error:
        raise ConfigError(
            f"shared memory (/dev/shm) has no room for the rows that workers keep ready ({error}); make it larger "
            "(docker run --shm-size), or use fewer workers (--dataloader_num_workers)"
        ) from error


def _number_documents(refs: Sequence[DocumentRef]) -> Tensor:
    """(documents, 2) int64: number of the data set in the meta file, row in its annotation file."""
    return torch.tensor([[ref.source, ref.row] for ref in refs], dtype=torch.int64)


def _with_blank_tiles(document: EncodedDocument, tiles: range) -> EncodedDocument:
    """`document`, which has no tiles, with blank ones: those of its tiles that are in `tiles`."""
    num_tiles = sum(document.tiles_per_image)
    num_own = len(range(max(tiles.start, 0), min(tiles.stop, num_tiles)))
    blank = document.pixel_values.new_zeros(num_own, *document.pixel_values.shape[1:])
    return replace(document, pixel_values=blank, image_flags=torch.ones(num_own, dtype=torch.int64))


def read_in_workers(
    dataset: Dataset[Item], *, num_workers: int, prefetch: int, pin_memory: bool = False
) -> DataLoader[Item]:
    """The items of a data set in order, made by worker processes (0: by this process).

    Each worker keeps `prefetch` items ready. With `pin_memory` they arrive in memory that a GPU copies from by itself.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        pin_memory=pin_memory,
        collate_fn=_keep,
        generator=torch.Generator(),  # a DataLoader draws a seed; torch's global generator must not notice
    )


def _keep(item: Item) -> Item:
    return item
