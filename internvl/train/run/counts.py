"""Counts of the rows that a process trains on: by row, by document, by data set.

    batch --note--> step in progress --end_step--> since the last report --take--> vector, summed over processes
                         |                                                             |
                         +-- left out (loss or gradient not finite): forgotten         +-> Counts

Counts are float64 (exact up to 2^53). What needs the loss stays on the device until `take`, so that no step waits for
the device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from internvl.errors import CheckpointError
from internvl.model.constants import IGNORE_INDEX
from internvl.train.state_files import WRONG_CONTENT, read_state_file

ROW_COUNTS = ("rows", "samples", "tokens", "targets", "tiles", "pairs")
SOURCE_COUNTS = ("samples", "tokens", "targets", "weight", "loss")


@dataclass(frozen=True)
class Counts:
    """Sums over rows."""

    sources: tuple[str, ...]  # names of the data sets, in the order of the meta file
    # float64, `ROW_COUNTS`, then every one of `SOURCE_COUNTS` for all data sets. `pairs` are query-key pairs of causal
    # attention (n (n + 1) / 2 of every document), `weight` is sum(w) and `loss` sum(w * CE).
    vector: Tensor

    @classmethod
    def zeros(cls, sources: Sequence[str]) -> "Counts":
        """Start at zero."""
        return cls(tuple(sources), torch.zeros(count_entries(len(sources)), dtype=torch.float64))

    def __getitem__(self, name: str) -> float:
        """One of `ROW_COUNTS`."""
        return float(self.vector[ROW_COUNTS.index(name)])

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.sources, self.vector + other.vector)

    def by_source(self) -> Iterator[tuple[str, dict[str, float]]]:
        """(name, `SOURCE_COUNTS`) of every data set that had a sample."""
        table = self.vector[len(ROW_COUNTS) :].view(len(SOURCE_COUNTS), -1).T.tolist()
        for name, values in zip(self.sources, table, strict=True):
            if values[0]:
                yield name, dict(zip(SOURCE_COUNTS, values, strict=True))

    def to_json(self) -> dict[str, object]:
        """Numbers by name."""
        return {**{name: self[name] for name in ROW_COUNTS}, "sources": dict(self.by_source())}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], sources: Sequence[str]) -> "Counts":
        """Read what `to_json` gave; data sets that are not among `sources` are dropped."""
        of_sources = value.get("sources", {})
        numbers = [float(value.get(name, 0)) for name in ROW_COUNTS]
        for name in SOURCE_COUNTS:
            numbers += [float(of_sources.get(source, {}).get(name, 0)) for source in sources]
        return cls(tuple(sources), torch.tensor(numbers, dtype=torch.float64))


def count_entries(num_sources: int) -> int:
    """Length of `Counts.vector`."""
    return len(ROW_COUNTS) + len(SOURCE_COUNTS) * num_sources


@dataclass
class RunTotals:
    """What has happened in all starts of a run; the same on all ranks. `seconds` covers the starts before this one."""

    counts: Counts
    seconds: float = 0.0
    bad_steps: int = 0

    def to_json(self, *, more_seconds: float) -> dict[str, object]:
        """Numbers by name; `more_seconds` is the time of this start."""
        seconds = self.seconds + more_seconds
        return {"counts": self.counts.to_json(), "seconds": seconds, "bad_steps": self.bad_steps}

    @classmethod
    def read(cls, path: Path, sources: Sequence[str]) -> "RunTotals":
        """Read a file with what `to_json` gave; without it start at zero. Raises CheckpointError: it is damaged."""
        if not path.is_file():
            return cls(Counts.zeros(sources))
        saved = read_state_file(path)
        try:
            return cls(Counts.from_json(saved["counts"], sources), float(saved["seconds"]), int(saved["bad_steps"]))
        except WRONG_CONTENT as error:
            raise CheckpointError(
                f"{path} cannot be used: {error!r}; delete it to count from here on, or resume from another checkpoint"
            ) from error


class RowStatistics:
    """Counts the rows of one process."""

    def __init__(self, num_sources: int):
        self.num_sources = num_sources
        self._step = self._counted = torch.zeros(count_entries(num_sources), dtype=torch.float64)
        self._step_losses: Tensor | None = None
        self._losses: Tensor | None = None

    def note(self, batch: Mapping[str, Tensor], *, counts_row: bool = True) -> None:
        """Count a row, and this rank's tiles of it; `counts_row` for one of the processes that share the row."""
        num_tiles = float(len(batch["pixel_values"]))
        if not counts_row:
            self._step = self._step + self._assemble([0, 0, 0, 0, num_tiles, 0], {})
            return
        borders = batch["cu_seqlens"].reshape(-1).to("cpu", torch.int64)
        lengths = borders.diff()
        # Targets before each token, so that a document's are the difference at its borders.
        supervised = F.pad((batch["labels"].reshape(-1).cpu() != IGNORE_INDEX).cumsum(0), (1, 0))
        targets = supervised[borders[1:]] - supervised[borders[:-1]]
        pairs = float((lengths * (lengths + 1) // 2).sum())
        rows = [1, len(lengths), float(lengths.sum()), float(targets.sum()), num_tiles, pairs]
        of_documents = {"samples": torch.ones_like(lengths), "tokens": lengths, "targets": targets}
        refs = batch.get("document_refs")
        sources = torch.zeros_like(lengths) if refs is None else refs[:, 0]
        self._step = self._step + self._assemble(
            rows, {name: self._add_up(sources, values) for name, values in of_documents.items()}
        )

    def note_losses(self, sources: Tensor, weights: Tensor, losses: Tensor) -> None:
        """Add what this process computed of the documents of a row.

        All are (documents,): data sets (int64), and sum(w) and sum(w * CE) of this process's tokens (float64).
        """
        summed = torch.stack([self._add_up(sources, weights), self._add_up(sources, losses)])
        self._step_losses = summed if self._step_losses is None else self._step_losses + summed

    def end_step(self, *, is_taken: bool) -> None:
        """Keep the counts of the step, or forget them where the optimiser left it out."""
        if is_taken:
            self._counted = self._counted + self._step
            if self._step_losses is not None:
                self._losses = self._step_losses if self._losses is None else self._losses + self._step_losses
        self._step, self._step_losses = torch.zeros_like(self._step), None

    def take(self) -> Tensor:
        """Counts of the steps since the last call, float64 on the CPU; summed over processes a `Counts.vector`."""
        taken, self._counted = self._counted, torch.zeros_like(self._counted)
        if self._losses is not None:
            taken = taken + F.pad(self._losses.flatten().cpu(), (len(taken) - 2 * self.num_sources, 0))
            self._losses = None
        return taken

    def _add_up(self, sources: Tensor, values: Tensor) -> Tensor:
        total = torch.zeros(self.num_sources, dtype=torch.float64, device=values.device)
        return total.index_add_(0, sources.to(values.device), values.double())

    def _assemble(self, rows: Sequence[float], of_sources: Mapping[str, Tensor]) -> Tensor:
        nothing = torch.zeros(self.num_sources, dtype=torch.float64)
        parts = [of_sources.get(name, nothing) for name in SOURCE_COUNTS]
        return torch.cat([torch.tensor(rows, dtype=torch.float64), *parts])
