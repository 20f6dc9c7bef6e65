"""Which documents share a row: greedy packing under a token limit and a tile limit.

Documents come one at a time. Each joins the fullest open row that it fits into, or opens a new one; a row that is
full leaves, and so does the fullest one when too many are open. No document is lost, cut or repeated.

    limit 10 tokens, 2 open rows:   7 -> [7]   5 -> [7][5]   3 -> emit [7 3]   6 -> [5][6]   8 -> emit [8], open [5][6]
"""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from internvl.errors import ConfigError, DataError

Ref = TypeVar("Ref")


@dataclass(frozen=True)
class PackingLimits:
    """How large a packed row may get.

    Attributes:
        max_tokens: Most tokens of a row.
        max_tiles: Most tiles of a row.
        max_open_rows: Rows that are kept open while waiting for documents that fit.
    """

    max_tokens: int
    max_tiles: int
    max_open_rows: int = 20

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_tiles", "max_open_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"packing: {name} is {getattr(self, name)}, expected at least 1")


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


@runtime_checkable
class RowBuilder(Protocol[Ref]):
    """Takes measured documents, gives rows when they are ready.

    Attributes:
        open_rows: Rows that wait for documents, oldest first; a builder remembers nothing else.
    """

    open_rows: list[PackedRow[Ref]]

    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> list[PackedRow[Ref]]:
        """Take one document; return the rows that are ready now."""

    def flush(self) -> list[PackedRow[Ref]]:
        """Return the rows that are still open."""


class Packer(Generic[Ref]):
    """Packs documents into rows under `limits`."""

    def __init__(self, limits: PackingLimits):
        self.limits = limits
        self.open_rows: list[PackedRow[Ref]] = []

    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> list[PackedRow[Ref]]:
        """Take one document; return the rows that are ready now.

        Raises:
            DataError: The document alone is larger than a row.
        """
        limits = self.limits
        if num_tokens > limits.max_tokens or num_tiles > limits.max_tiles:
            raise DataError(
                f"the document has {num_tokens} tokens and {num_tiles} tiles, expected at most {limits.max_tokens} "
                f"tokens and {limits.max_tiles} tiles; raise max_packed_tokens or num_images_expected"
            )
        fitting = [row for row in self.open_rows if self._fits(row, num_tokens, num_tiles)]
        if fitting:
            row = max(fitting, key=self._fullness)
        else:
            row = PackedRow()
            self.open_rows.append(row)
        row.add(ref, num_tokens=num_tokens, num_tiles=num_tiles)
        return self._take_ready()

    def flush(self) -> list[PackedRow[Ref]]:
        """Return the rows that are still open, oldest first."""
        rows, self.open_rows = self.open_rows, []
        return rows

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


class FixedCountRows(Generic[Ref]):
    """Rows of a fixed number of documents, in order (training without packing)."""

    def __init__(self, documents_per_row: int = 1):
        if documents_per_row < 1:
            raise ConfigError(f"documents per row is {documents_per_row}, expected at least 1")
        self.documents_per_row = documents_per_row
        self.open_rows: list[PackedRow[Ref]] = []  # one at most

    def add(self, ref: Ref, *, num_tokens: int, num_tiles: int) -> list[PackedRow[Ref]]:
        """Take one document; return the row that it completes."""
        if not self.open_rows:
            self.open_rows.append(PackedRow())
        (row,) = self.open_rows
        row.add(ref, num_tokens=num_tokens, num_tiles=num_tiles)
        return self.flush() if len(row.refs) == self.documents_per_row else []

    def flush(self) -> list[PackedRow[Ref]]:
        """Return the incomplete row, if there is one."""
        rows, self.open_rows = self.open_rows, []
        return rows


@dataclass
class FillReport:
    """How full rows are: what padding-free packing leaves unused.

    Attributes:
        num_rows: Rows seen.
        num_documents: Documents in them.
        num_tokens: Tokens in them.
        num_tiles: Tiles in them.
    """

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
