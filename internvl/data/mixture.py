"""Mixture: the order of documents in an epoch, and how often each of them is seen.

A data set of n rows with `repeat_time` r gives floor(n * r) documents: all rows floor(r) times, and a random sample of
rows for the rest. With resampling the same total is split in proportion to sqrt(documents) instead. Everything is a
pure function of (specs, seed, epoch) and is kept as index arrays, 12 bytes per document.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32

DataOrder = Literal["shuffle", "sequential"]


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """The documents of an epoch in order, as columns."""

    source: Int32[np.ndarray, " documents"]  # number of the data set in the meta file
    row: Int32[np.ndarray, " documents"]  # row in its annotation file
    repeat: Int32[np.ndarray, " documents"]  # how often the row was seen before in this epoch

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: slice | np.ndarray) -> "EpochOrder":
        """The documents at `index`, copied, so that the whole order can be freed."""
        return EpochOrder(self.source[index].copy(), self.row[index].copy(), self.repeat[index].copy())


def count_documents(
    lengths: Sequence[int], repeat_times: Sequence[float], *, use_data_resampling: bool = False
) -> list[int]:
    """Documents that every data set gives to an epoch; resampling splits the total by their square roots."""
    # 1e-6 of a row: 0.3 * 10 must give 3 rows, whichever way the product was rounded.
    counts = [int(length * repeat + 1e-6) for length, repeat in zip(lengths, repeat_times, strict=True)]
    total = sum(counts)
    return _share(total, np.sqrt(counts)) if use_data_resampling and total else counts


def _share(total: int, weights: np.ndarray) -> list[int]:
    """Split `total` in proportion to `weights` into whole numbers (largest remainders get the rest)."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts.tolist()


def order_epoch(
    names: Sequence[str],
    lengths: Sequence[int],
    counts: Sequence[int],
    *,
    seed: int,
    epoch: int,
    data_order: DataOrder = "shuffle",
) -> EpochOrder:
    """The order of an epoch's documents.

    Args:
        names: Names of the data sets; they seed the random samples, so a new data set does not change the others.
        epoch: Number of the epoch; samples and order are drawn again for each.
        data_order: `shuffle`, or `sequential` for the order of the meta file and of the rows (for curricula).
    """
    parts = [
        _order_source(name, length, count, seed=seed, epoch=epoch)
        for name, length, count in zip(names, lengths, counts, strict=True)
    ]
    source = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for rows, _ in parts])
    empty = np.zeros(0, dtype=np.int32)
    rows, repeats = (np.concatenate(columns) for columns in zip((empty, empty), *parts, strict=True))
    order = EpochOrder(source, rows, repeats)
    if data_order == "sequential":
        return order
    return order.take(np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(len(order)))


def _order_source(name: str, length: int, count: int, *, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, repeats) of one data set, int32, copy after copy; the sampled last copy keeps the order of the rows."""
    if length == 0:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
    copies, num_sampled = divmod(count, length)
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, zlib.crc32(name.encode())]))
    sampled = np.sort(rng.choice(length, size=num_sampled, replace=False))
    rows = np.concatenate([np.tile(np.arange(length), copies), sampled])
    repeats = np.repeat(np.arange(copies + 1), [length] * copies + [num_sampled])
    return rows.astype(np.int32), repeats.astype(np.int32)
