"""Resume cursors: where every stream of training data continues, small enough to be saved with every checkpoint.

The cursor of a stream is what its planner knows after the last row that was handed out:

    an epoch of the stream    d0 d1 d2 d3 d4 d5 | d6 d7 ...     index 6: d6 is looked at next
    rows handed out           [d0 d2] [d3]                      num_rows, counted over all epochs
    ready rows                [d4]                              finished together with [d3], handed out next
    open rows                 [d1 d5]                           wait for documents that fit

Documents are noted by number and size. What is drawn at random (order, strides, frames, JPEG qualities) is a function
of seed, epoch and document, so no generator has to be saved. A cursor knows nothing of ranks and workers: any process
can continue any stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

from internvl.data.packing import PackedRow
from internvl.errors import ConfigError

STATE_VERSION = 1
RESTART_HINT = "or pass --ignore_data_skip True to start the data from its beginning"

PlanDescription = Mapping[str, str | int | float]  # everything that decides which documents form which row
_JsonRow = list[Any]  # [tokens, tiles, [source, row, repeat], ...]


class _PlacedCursorState(TypedDict):
    """Where a stream continues."""

    epoch: int
    index: int
    rows: int
    seen: int
    open: list[_JsonRow]
    ready: list[_JsonRow]


class CursorState(_PlacedCursorState, total=False):
    """A `StreamCursor` in json."""

    skipped: int  # documents that the stream skipped so far


class LoaderState(TypedDict):
    """What a checkpoint keeps of the data: the plan that the rows follow, and a cursor per stream number."""

    version: int
    plan: PlanDescription
    streams: dict[str, CursorState]


class DocumentRef(NamedTuple):
    """Which document: the `repeat`-th copy of a row in an epoch."""

    epoch: int
    source: int
    row: int
    repeat: int


@dataclass(frozen=True)
class StreamCursor:
    """What a stream's planner knows after a row; by default before the first one."""

    epoch: int = 0  # number of the epoch
    index: int = 0  # documents of the epoch that were looked at
    num_rows: int = 0  # rows handed out, in all epochs
    num_seen: int = 0  # documents looked at when the last of these rows was finished, in all epochs
    open_rows: tuple[PackedRow[DocumentRef], ...] = ()  # rows that wait for documents that fit
    ready_rows: tuple[PackedRow[DocumentRef], ...] = ()  # finished rows that come next

    def next_epoch(self) -> "StreamCursor":
        """The beginning of the following epoch."""
        return StreamCursor(self.epoch + 1, num_rows=self.num_rows, num_seen=self.num_seen)

    def to_json(self, *, num_skipped: int) -> CursorState:
        """Numbers and lists; see `CursorState`."""
        return {
            "epoch": self.epoch,
            "index": self.index,
            "rows": self.num_rows,
            "seen": self.num_seen,
            "open": _rows_to_json(self.open_rows),
            "ready": _rows_to_json(self.ready_rows),
            "skipped": num_skipped,
        }

    @classmethod
    def from_json(cls, value: CursorState) -> "StreamCursor":
        """The inverse of `to_json`; raises ConfigError if an entry is missing or of another type."""
        try:
            epoch = int(value["epoch"])
            return cls(
                epoch,
                int(value["index"]),
                int(value["rows"]),
                int(value["seen"]),
                _rows_from_json(value["open"], epoch),
                _rows_from_json(value["ready"], epoch),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the saved data position cannot be read ({error!r}); resume from another checkpoint, {RESTART_HINT}"
            ) from None


def _rows_to_json(rows: Iterable[PackedRow[DocumentRef]]) -> list[_JsonRow]:
    # The epoch of a document is that of its stream, so it is not written again.
    return [[row.num_tokens, row.num_tiles, *([*ref[1:]] for ref in row.refs)] for row in rows]


def _rows_from_json(rows: Iterable[_JsonRow], epoch: int) -> tuple[PackedRow[DocumentRef], ...]:
    return tuple(
        PackedRow([DocumentRef(epoch, *map(int, ref)) for ref in refs], int(num_tokens), int(num_tiles))
        for num_tokens, num_tiles, *refs in rows
    )


def copy_rows(rows: Iterable[PackedRow[DocumentRef]]) -> tuple[PackedRow[DocumentRef], ...]:
    """Rows that may grow without changing the given ones."""
    return tuple(replace(row, refs=[*row.refs]) for row in rows)


def merge_states(states: Sequence[LoaderState]) -> LoaderState:
    """Join the states of all ranks (`TrainLoader.state_dict`) into one that fits every rank.

    Ranks that share rows have the same streams; the documents that each of them skipped are added up.
    """
    streams: dict[str, CursorState] = {}
    for state in states:
        for stream, cursor in state["streams"].items():
            known = streams.setdefault(stream, {**cursor, "skipped": 0})
            assert {**cursor, "skipped": 0} == {**known, "skipped": 0}, "ranks that share rows are at different rows"
            known["skipped"] += cursor["skipped"]
    return {**states[0], "streams": dict(sorted(streams.items(), key=lambda item: int(item[0])))}


def check_plan(saved: PlanDescription, current: PlanDescription) -> None:
    """Raise ConfigError unless saved cursors belong to the rows of this run; entries of one side only do not count."""
    for name in saved:
        if name in current and saved[name] != current[name]:
            raise ConfigError(
                f"the checkpoint's data position does not fit this run: {name} was {saved[name]!r}, now it is "
                f"{current[name]!r}; use the same, {RESTART_HINT}"
            )


def check_turns(num_rows: Sequence[int]) -> None:
    """Raise ConfigError unless the streams took turns: of `num_rows` per stream, the first may be one ahead."""
    total, size = sum(num_rows), len(num_rows)
    if [*num_rows] != [(total + size - 1 - index) // size for index in range(size)]:
        raise ConfigError(
            f"the checkpoint's data position has {[*num_rows]} rows handed out per stream of this rank, expected "
            f"equal numbers; it was not saved between two steps. Resume from another checkpoint, {RESTART_HINT}"
        )
