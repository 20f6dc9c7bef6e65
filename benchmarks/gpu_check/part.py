"""What a part is given, and what it gives back: rows of a table, one after the other."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Cell = str | int | float | None
Row = dict[str, Cell]  # heading -> value


class Skipped(Exception):
    """The part cannot run here, for this reason."""


class CheckFailed(Exception):
    """The part ran, and what it found is wrong."""


@dataclass(frozen=True)
class Job:
    """What a part is asked to do."""

    device: torch.device  # the first card, or the CPU
    deadline: float  # of time.monotonic()

    @property
    def is_tiny(self) -> bool:
        """Whether this run only shows that the code works: on the CPU, at sizes that say nothing about a card."""
        return self.device.type == "cpu"

    @property
    def seconds_left(self) -> float:
        """Until the budget ends."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Measured:
    """The best of several runs."""

    seconds: float
    peak_bytes: int | None  # most bytes of tensors at a time; None: on the CPU, where nobody counts them


def measure(work: Callable[[], object], device: torch.device, *, repeats: int = 1) -> Measured:
    """Time `work`, waiting for the card before and after."""
    seconds, peaks = [], []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            peaks.append(torch.cuda.max_memory_allocated(device))
        seconds.append(time.perf_counter() - start)
    return Measured(min(seconds), max(peaks, default=None))
