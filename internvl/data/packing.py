"""Packing: which documents share a row, under a token limit and a tile limit, by one of three policies.

    greedy     Documents come one at a time. Each joins the fullest open row that it fits into, or opens a new one; a
               row that is full is emitted, and so is the fullest one when too many are open.
    best_fit   Documents wait until they would fill `max_open_rows` rows. Then the oldest one is emitted together with
               those that fill its row best.
    balanced   As best_fit, but among rows that are nearly full the one whose work is closest to the average: ranks
               wait for each other, so a step takes as long as its most expensive row.

    greedy, limit 10 tokens, 2 open rows:
    7 -> [7]   5 -> [7][5]   3 -> emit [7 3]   6 -> [5][6]   8 -> emit [8], open [5][6]

No document is lost, cut or repeated. Work is attention (n_i^2 of every document), vision tower (tiles) and the rest
(tokens). Streams are packed independently towards the work per token of waiting documents x tokens of a full row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Float, Int64

from internvl.errors import ConfigError, DataError

PackingPolicy = Literal["greedy", "best_fit", "balanced"]

Ref = TypeVar("Ref")


@dataclass(frozen=True)
class PackingLimits:
    """How large a packed row may get."""

    max_tokens: int
    max_tiles: int
    max_open_rows: int = 20  # rows that are kept open while waiting for documents that fit

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_tiles", "max_open_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"packing: {name} is {getattr(self, name)}, expected at least 1")

    def check_document(self, num_tokens: int, num_tiles: int) -> None:
        """Raise DataError if a document alone is larger than a row."""
        if num_tokens > self.max_tokens or num_tiles > self.max_tiles:
            raise DataError(
                f"the document has {num_tokens} tokens and {num_tiles} tiles, expected at most {self.max_tokens} "
                f"tokens and {self.max_tiles} tiles; raise max_packed_tokens or num_images_expected",
                kind="length",
            )


@dataclass
class PackedRow(Generic[Ref]):
    """The documents of one row, in the order in which they came."""

    refs: list[Ref] = field(default_factory=list)
    num_tokens: int = 0
    num_tiles: int = 0

    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> None:
        """Put a document into the row."""
        self.refs.append(ref)
        self.num_tokens += num_tokens
        self.num_tiles += num_tiles


class RowBuilder(ABC, Generic[Ref]):
    """Takes measured documents, gives rows when they are ready."""

    def __init__(self) -> None:
        # Rows that wait for documents, oldest first. A builder may remember nothing else: a resume cursor holds these.
        self.open_rows: list[PackedRow[Ref]] = []

    @abstractmethod
    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> list[PackedRow[Ref]]:
        """Take one document; return the rows that are ready now. Raises DataError if it is larger than a row."""

    def flush(self) -> list[PackedRow[Ref]]:
        """Return the rows that are still open, oldest first."""
        rows, self.open_rows = self.open_rows, []
        return rows


class Packer(RowBuilder[Ref]):
    """Packs documents into rows under `limits`, one at a time (`greedy`)."""

    def __init__(self, limits: PackingLimits):
        super().__init__()
        self.limits = limits

    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> list[PackedRow[Ref]]:
        """See `RowBuilder.add`."""
        self.limits.check_document(num_tokens, num_tiles)
        fitting = [row for row in self.open_rows if self._fits(row, num_tokens, num_tiles)]
        if not fitting:
            fitting = [PackedRow()]
            self.open_rows += fitting
        row = max(fitting, key=self._fullness)
        row.add(ref, num_tokens=num_tokens, num_tiles=num_tiles)
        return self._take_ready()

    def _take_ready(self) -> list[PackedRow[Ref]]:
        ready = [row for row in self.open_rows if self._fullness(row) >= 1]
        self.open_rows = [row for row in self.open_rows if self._fullness(row) < 1]
        if len(self.open_rows) > self.limits.max_open_rows:
            fullest = max(range(len(self.open_rows)), key=lambda index: self._fullness(self.open_rows[index]))
            ready.append(self.open_rows.pop(fullest))
        return ready

    def _fits(self, row: PackedRow[Ref], num_tokens: int, num_tiles: int) -> bool:
        return (
            row.num_tokens + num_tokens <= self.limits.max_tokens and row.num_tiles + num_tiles <= self.limits.max_tiles
        )

    def _fullness(self, row: PackedRow[Ref]) -> float:
        return max(row.num_tokens / self.limits.max_tokens, row.num_tiles / self.limits.max_tiles)


@dataclass(frozen=True)
class RowCost:
    """Work of a row, in units of the work of one token outside attention.

    The numbers are those of InternVL2-2B's forward pass: 24 layers of width 2,048 take 3.0 GFLOPs per token and 0.2
    MFLOPs per pair of tokens, of which causal attention computes one half; a tile of 1,025 patches takes 0.72 TFLOPs.
    """

    per_pair: float = 3.25e-5  # times n^2, for a document of n tokens
    per_tile: float = 239.0
    per_token: float = 1.0

    def measure(self, num_tokens: np.ndarray, num_tiles: np.ndarray) -> Float[np.ndarray, " documents"]:
        """Work of every document."""
        tokens = num_tokens.astype(np.float64)
        return self.per_pair * tokens**2 + self.per_tile * num_tiles + self.per_token * tokens


class WindowPacker(RowBuilder[Ref]):
    """Chooses rows among the documents that wait (`best_fit`, `balanced`).

    A waiting document is an open row of its own. A row starts with the oldest one, so none waits forever. It is filled
    with the largest that fit (`balanced`: the oldest that fit, whose work is about average) and then improved by the
    exchange, addition or removal of one document that helps most, until none helps.

    Args:
        limits: Limits of a row; `max_open_rows` rows of documents wait.
        cost: Work that rows should have about equally; None to fill rows as well as possible.
    """

    def __init__(self, limits: PackingLimits, *, cost: RowCost | None = None):
        super().__init__()
        self.limits = limits
        self.cost = cost

    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> list[PackedRow[Ref]]:
        """See `RowBuilder.add`."""
        self.limits.check_document(num_tokens, num_tiles)
        self.open_rows.append(PackedRow([ref], num_tokens, num_tiles))
        ready = []
        while self._is_window_full():
            ready.append(self._take_row())
        return ready

    def flush(self) -> list[PackedRow[Ref]]:
        """Return rows of all documents that wait."""
        rows = []
        while self.open_rows:
            rows.append(self._take_row())
        return rows

    def _is_window_full(self) -> bool:
        limits, rows = self.limits, self.open_rows
        return (
            sum(row.num_tokens for row in rows) > limits.max_open_rows * limits.max_tokens
            or sum(row.num_tiles for row in rows) > limits.max_open_rows * limits.max_tiles
            or len(rows) > limits.max_open_rows * _MOST_WAITING_PER_ROW
        )

    def _take_row(self) -> PackedRow[Ref]:
        chosen = _choose_documents(self.open_rows, self.limits, self.cost)
        row: PackedRow[Ref] = PackedRow()
        for waiting in (self.open_rows[index] for index in chosen):
            row.refs += waiting.refs
            row.num_tokens += waiting.num_tokens
            row.num_tiles += waiting.num_tiles
        taken = set(chosen)
        self.open_rows = [waiting for index, waiting in enumerate(self.open_rows) if index not in taken]
        return row


_MOST_WAITING_PER_ROW = 32  # documents; more fill rows no better and take longer
_MAX_IMPROVEMENTS = 40
_TOLERATED_GAP = 0.01  # of the row, that `balanced` leaves free for the sake of balance
_GAP_WEIGHT = 20.0  # of free room beyond that, against imbalance


def _choose_documents(rows: Sequence[PackedRow], limits: PackingLimits, cost: RowCost | None) -> list[int]:
    """Numbers of the waiting documents that form the best row with the first of them, ascending."""
    tokens = np.array([row.num_tokens for row in rows], dtype=np.int64)
    tiles = np.array([row.num_tiles for row in rows], dtype=np.int64)
    sizes = np.stack([tokens, tiles], axis=1)
    room = np.array([limits.max_tokens, limits.max_tiles], dtype=np.int64)
    rate = _RowRating(tokens, tiles, limits, cost)
    fullness = (sizes / room).max(axis=1)
    order = np.argsort(-fullness, kind="stable") if cost is None else np.arange(len(sizes))
    chosen = _fill_in_order(sizes, room, order)
    for _ in range(_MAX_IMPROVEMENTS):
        move = _find_best_move(chosen, sizes, room, rate)
        if move is None:
            break
        leaves, joins = move
        if leaves is not None:
            chosen[leaves] = False
        if joins is not None:
            chosen[joins] = True
    return np.flatnonzero(chosen).tolist()


class _RowRating:
    """How bad a row is, from its sums of tokens, tiles and work; 0 is best."""

    def __init__(self, tokens: np.ndarray, tiles: np.ndarray, limits: PackingLimits, cost: RowCost | None):
        self.work = np.zeros(len(tokens)) if cost is None else cost.measure(tokens, tiles)
        self._limits = limits
        self._fullest = max(tokens.sum() / limits.max_tokens, tiles.sum() / limits.max_tiles)
        self._target = None if cost is None else self.work.sum() / max(self._fullest, 1.0)

    def rate(self, tokens: np.ndarray, tiles: np.ndarray, work: np.ndarray) -> np.ndarray:
        """Ratings of rows with these sums."""
        gap = 1 - np.maximum(tokens / self._limits.max_tokens, tiles / self._limits.max_tiles)
        if self._target is None:
            return gap
        return np.abs(work / self._target - 1) + _GAP_WEIGHT * np.maximum(gap - _TOLERATED_GAP, 0)


def _fill_in_order(sizes: Int64[np.ndarray, "rows 2"], room: Int64[np.ndarray, " 2"], order: np.ndarray) -> np.ndarray:
    """(rows,) bool: the first one, and whatever else still fits, in this order."""
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[0] = True
    left = room - sizes[0]
    for index in order:
        if not chosen[index] and (sizes[index] <= left).all():
            chosen[index] = True
            left = left - sizes[index]
    return chosen


def _find_best_move(
    chosen: np.ndarray, sizes: np.ndarray, room: np.ndarray, rating: _RowRating
) -> tuple[int | None, int | None] | None:
    """(which leaves, which joins) of the move that improves the row most; None when none improves it."""
    # The first document stays. The last entry of either list, -1, stands for no document.
    leaving = np.append(np.flatnonzero(chosen)[1:], -1)
    joining = np.append(np.flatnonzero(~chosen), -1)
    padded = np.concatenate([sizes, np.zeros((1, 2), dtype=sizes.dtype)])
    work = np.append(rating.work, 0.0)
    sums = sizes[chosen].sum(axis=0)
    after = sums - padded[leaving][:, None] + padded[joining][None]  # (leaving, joining, 2)
    work_after = rating.work[chosen].sum() - work[leaving][:, None] + work[joining][None]
    ratings = np.where((after <= room).all(axis=-1), rating.rate(after[..., 0], after[..., 1], work_after), np.inf)
    best = np.unravel_index(ratings.argmin(), ratings.shape)
    if ratings[best] >= ratings[-1, -1] - 1e-9:
        return None
    leaves, joins = int(leaving[best[0]]), int(joining[best[1]])
    return (None if leaves < 0 else leaves), (None if joins < 0 else joins)


class FixedCountRows(RowBuilder[Ref]):
    """Rows of a fixed number of documents, in order (training without packing)."""

    def __init__(self, documents_per_row: int = 1):
        if documents_per_row < 1:
            raise ConfigError(f"documents per row is {documents_per_row}, expected at least 1")
        super().__init__()
        self.documents_per_row = documents_per_row

    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> list[PackedRow[Ref]]:
        """Take one document; return the row that it completes."""
        if not self.open_rows:
            self.open_rows.append(PackedRow())
        (row,) = self.open_rows
        row.add(ref, num_tokens=num_tokens, num_tiles=num_tiles)
        return self.flush() if len(row.refs) == self.documents_per_row else []


POLICIES: dict[str, Callable[[PackingLimits], RowBuilder]] = {
    "greedy": Packer,
    "best_fit": WindowPacker,
    "balanced": lambda limits: WindowPacker(limits, cost=RowCost()),
}


def check_policy(policy: str) -> None:
    """Raise ConfigError unless there is such a packing policy."""
    if policy not in POLICIES:
        raise ConfigError(f"packing_policy is {policy!r}, expected one of {', '.join(get_args(PackingPolicy))}")


@dataclass
class FillReport:
    """How full rows are: what padding-free packing leaves unused."""

    num_rows: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    num_tiles: int = 0

    def note(self, row: PackedRow) -> None:
        """Count a row."""
        self.num_rows += 1
        self.num_documents += len(row.refs)
        self.num_tokens += row.num_tokens
        self.num_tiles += row.num_tiles

    def describe(self, limits: PackingLimits | None) -> str:
        """One line for a log; fill rates when the rows were packed under `limits`."""
        line = (
            f"{self.num_documents} documents in {self.num_rows} rows, {self.num_tokens} tokens, {self.num_tiles} tiles"
        )
        if limits is None or not self.num_rows:
            return line
        token_fill = self.num_tokens / (self.num_rows * limits.max_tokens)
        tile_fill = self.num_tiles / (self.num_rows * limits.max_tiles)
        return f"{line}; filled with {token_fill:.1%} of the allowed tokens and {tile_fill:.1%} of the allowed tiles"
