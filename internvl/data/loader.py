"""Train loader: the batches of one rank, the same for every cluster shape, with a state that a checkpoint keeps.

    plan (which documents form which row) -> dataset (decodes rows, in workers) -> loader (counts, remembers, yields)

Workers run ahead of training. The loader notes the cursor and the skipped documents of a row only when it hands the
row out, so its state is always that of the last batch that training got.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from internvl.data.collate import Batch
from internvl.data.cursor import RESTART_HINT, STATE_VERSION, LoaderState, StreamCursor, check_plan, check_turns
from internvl.data.dataset import DecodedRow, LoadFailure, RowDataset, read_in_workers
from internvl.data.encode import SampleEncoder
from internvl.data.meta import SourceSpec
from internvl.data.packing import FillReport
from internvl.data.plan import STREAM_START, RankShare, RowOptions, RowPlan
from internvl.data.records import RecordFile
from internvl.data.skips import SkipLedger
from internvl.data.storage.outage import OutageWatch, find_folders
from internvl.errors import ConfigError

logger = logging.getLogger(__name__)

_PREFETCHED_ROWS = 2  # that each worker keeps ready


class LoaderMark(NamedTuple):
    """Cursors of a rank's streams at some moment, and how many documents each of them had skipped."""

    cursors: dict[int, StreamCursor]
    num_skipped: dict[int, int]


class TrainLoader:
    """Endless iterable over the batches of one rank."""

    def __init__(
        self,
        plan: RowPlan,
        share: RankShare,
        ledger: SkipLedger,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.plan = plan
        self.dataset = RowDataset(plan, share)
        self.ledger = ledger
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._cursors = dict.fromkeys(share.streams, STREAM_START)
        self._num_skipped = dict.fromkeys(share.streams, 0)

    def mark(self) -> LoaderMark:
        """Where the streams are now, for a `state_dict` that is made later."""
        return LoaderMark(dict(self._cursors), dict(self._num_skipped))

    def state_dict(self, at: LoaderMark | None = None) -> LoaderState:
        """Where the streams continue after the last batch handed out, or at an earlier mark.

        `merge_states` joins the states of all ranks; the result fits any rank of a run with as many rows per step,
        whatever its number of ranks and workers.
        """
        cursors, num_skipped = self.mark() if at is None else at
        streams = {str(stream): cursor.to_json(num_skipped=num_skipped[stream]) for stream, cursor in cursors.items()}
        return {"version": STATE_VERSION, "plan": self.plan.describe(), "streams": streams}

    def load_state_dict(self, state: LoaderState) -> None:
        """Start iteration where a merged state ends.

        Raises:
            ConfigError: The state is of another version, or was saved by a run with other rows.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"the checkpoint's data position has version {state.get('version')}, expected {STATE_VERSION}; "
                f"resume with the release that saved it, {RESTART_HINT}"
            )
        check_plan(state["plan"], self.plan.describe())
        share = self.dataset.share
        saved = {stream: state["streams"][str(stream)] for stream in share.streams}
        cursors = {stream: StreamCursor.from_json(value) for stream, value in saved.items()}
        check_turns([cursor.num_rows for cursor in cursors.values()])
        self.dataset.cursors, self._cursors = cursors, dict(cursors)
        if share.tiles.rank == 0:  # the merged count of a stream goes to one rank only, or it would grow at every start
            self._num_skipped = {stream: int(value["skipped"]) for stream, value in saved.items()}
        num_seen = sum(cursor.num_seen for cursor in cursors.values())
        self.ledger.restore(num_seen, sum(self._num_skipped.values()))

    def __iter__(self) -> Iterator[Batch]:
        rows = read_in_workers(
            self.dataset, num_workers=self.num_workers, prefetch=_PREFETCHED_ROWS, pin_memory=self.pin_memory
        )
        for row in rows:
            if isinstance(row, LoadFailure):
                raise row.error
            self._note(row)
            yield row.batch

    def _note(self, row: DecodedRow) -> None:
        # Ranks that share rows plan the same ones: the first of them speaks for all.
        is_first = self.dataset.share.tiles.rank == 0
        skips = (*row.planned.skips, *row.damaged) if is_first else row.damaged
        self._cursors[row.stream] = row.planned.cursor
        self._num_skipped[row.stream] += len(skips)
        self.ledger.note(row.planned.num_seen, skips)

    def rows_per_epoch(self) -> int:
        """Rows that the shortest stream has in the first epoch, so that all ranks agree on the length of an epoch.

        Measures every document once (text and image headers), which takes a while for large mixtures.
        """
        report = FillReport()
        rows_per_stream = []
        for stream in range(self.plan.options.num_streams):
            num_rows_before = report.num_rows
            for row in self.plan.plan_epoch(stream, 0):
                report.note(row.content)
            rows_per_stream.append(report.num_rows - num_rows_before)
        logger.info("planned an epoch: %s", report.describe(self.plan.options.packing))
        return min(rows_per_stream)


def build_train_loader(
    specs: Sequence[SourceSpec],
    encoder: SampleEncoder,
    options: RowOptions,
    *,
    share: RankShare | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    skipped_path: str | Path | None = None,
    max_skipped: float = 0.01,
) -> TrainLoader:
    """Make the loader of one rank.

    Args:
        specs: Data sets, from `load_meta`.
        share: Streams and tiles of this rank; None for all of them.
        num_workers: Worker processes; 0 decodes in the training process. Does not change any batch.
        pin_memory: Hand out batches in memory that a GPU copies from by itself; needs one.
        max_skipped: Share of skipped documents above which loading fails (once 100 documents were seen).

    Raises:
        ConfigError: Streams out of range, or fewer documents than streams.
    """
    num_streams = options.num_streams
    share = RankShare(range(num_streams)) if share is None else share
    if not 0 <= share.streams.start < share.streams.stop <= num_streams:
        first, last = share.streams.start, share.streams.stop - 1
        raise ConfigError(f"streams {first} to {last} are wanted, there are {num_streams}")
    ledger = SkipLedger(None if skipped_path is None else Path(skipped_path), max_skipped)
    folders = find_folders(path for spec in specs for path in (spec.annotation, spec.root, spec.root2))
    plan = RowPlan(tuple(RecordFile(spec) for spec in specs), encoder, options, OutageWatch(folders))
    num_documents = sum(plan.documents_per_source)
    if num_documents < num_streams:
        raise ConfigError(
            f"an epoch has {num_documents} documents for {num_streams} streams (data-parallel ranks x gradient "
            "accumulation steps), expected at least one per stream; add data, raise repeat_time, or use fewer"
        )
    return TrainLoader(plan, share, ledger, num_workers=num_workers, pin_memory=pin_memory)
