"""Where training data goes on: the position of every stream, small enough to be saved with every checkpoint.

The position of a stream is what its planner knows behind the last row that was handed out:

    an epoch of the stream    d0 d1 d2 d3 d4 d5 | d6 d7 ...     index 6: d6 is looked at next
    rows handed out           [d0 d2] [d3]                      num_rows, counted over all epochs
    ready rows                [d4]                              finished together with [d3], next to be handed out
    open rows                 [d1 d5]                           wait for documents that fit

Documents are noted by number and size. What is drawn at random (order, strides, frames, JPEG qualities) is a function
of seed, epoch and document, so there is no generator to save. A position knows nothing of ranks and workers: any
process can take any stream over.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from internvl.data.packing import PackedRow
from internvl.errors import ConfigError

POSITION_VERSION = 1
START_ANEW = "or pass --ignore_data_skip True to start the data from its beginning"


class DocumentRef(NamedTuple):
    """Which document: the `repeat`-th copy of a row in an epoch."""

    epoch: int
    source: int
    row: int
    repeat: int


@dataclass(frozen=True)
class StreamPosition:
    """What a stream's planner knows behind a row; by default before the first one.

    Attributes:
        epoch: Number of the epoch.
        index: Documents of the epoch that were looked at.
        num_rows: Rows handed out, in all epochs.
        num_seen: Documents looked at when the last of these rows was finished, in all epochs.
        open_rows: Rows that wait for documents that fit.
        ready_rows: Finished rows that are next.
    """

    epoch: int = 0
    index: int = 0
    num_rows: int = 0
    num_seen: int = 0
    open_rows: tuple[PackedRow[DocumentRef], ...] = ()
    ready_rows: tuple[PackedRow[DocumentRef], ...] = ()

    def next_epoch(self) -> "StreamPosition":
        """The beginning of the epoch that follows."""
        return StreamPosition(self.epoch + 1, num_rows=self.num_rows, num_seen=self.num_seen)

    def to_json(self) -> dict[str, Any]:
        """Numbers and lists; a row is [tokens, tiles, [source, row, repeat], ...]."""
        rows = {"open": _rows_to_json(self.open_rows), "ready": _rows_to_json(self.ready_rows)}
        return {"epoch": self.epoch, "index": self.index, "rows": self.num_rows, "seen": self.num_seen, **rows}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StreamPosition":
        """What `to_json` gave.

        Raises:
            ConfigError: An entry is missing or of another type.
        """
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
                f"the saved data position cannot be read ({error!r}); resume from another checkpoint, {START_ANEW}"
            ) from None


def _rows_to_json(rows: Iterable[PackedRow[DocumentRef]]) -> list[list[Any]]:
    return [[row.num_tokens, row.num_tiles, *([*ref[1:]] for ref in row.refs)] for row in rows]


def _rows_from_json(rows: Iterable[Sequence[Any]], epoch: int) -> tuple[PackedRow[DocumentRef], ...]:
    return tuple(
        PackedRow([DocumentRef(epoch, *map(int, ref)) for ref in refs], int(num_tokens), int(num_tiles))
        for num_tokens, num_tiles, *refs in rows
    )


def copy_rows(rows: Iterable[PackedRow[DocumentRef]]) -> tuple[PackedRow[DocumentRef], ...]:
    """Rows that may grow without changing the given ones."""
    return tuple(replace(row, refs=[*row.refs]) for row in rows)


def merge_positions(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of all ranks (`TrainLoader.state_dict`) as one, which fits every rank.

    Ranks that share rows have the same streams; documents skipped by each of them are added up.
    """
    streams: dict[str, dict[str, Any]] = {}
    for state in states:
        for stream, position in state["streams"].items():
            known = streams.setdefault(stream, {**position, "skipped": 0})
            assert {**position, "skipped": 0} == {**known, "skipped": 0}, "ranks that share rows are at different ones"
            known["skipped"] += position["skipped"]
    return {**states[0], "streams": dict(sorted(streams.items(), key=lambda item: int(item[0])))}


def check_plan(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Make sure that a position belongs to the rows of this run.

    Args:
        saved: What decides about rows, from the checkpoint. Entries that one of both lacks are not compared.
        current: The same of this run.

    Raises:
        ConfigError: An entry differs.
    """
    for name in saved:
        if name in current and saved[name] != current[name]:
            raise ConfigError(
                f"the checkpoint's data position does not fit this run: {name} was {saved[name]!r}, now it is "
                f"{current[name]!r}; use the same, {START_ANEW}"
            )
