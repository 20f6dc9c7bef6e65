"""What a run reports besides its loss: speed, fill rate, skipped documents; and one readable line per report."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import ProgressCallback

from internvl.model.constants import IGNORE_INDEX

logger = logging.getLogger(__name__)


@dataclass
class RowStatistics:
    """Counts of the rows that this process trained on since the last report.

    Attributes:
        max_row_tokens: Most tokens of a row; None when rows have no limit.
    """

    max_row_tokens: int | None = None
    _counts: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    _since: float = field(default_factory=time.perf_counter)

    def note(self, batch: Mapping[str, Tensor], *, counts_row: bool = True) -> None:
        """Count the rows, tokens, targets and tiles of a batch.

        `counts_row`: whether this process speaks for the row; of those that share one, one does. All count tiles.
        """
        row = [1, batch["input_ids"].numel(), int((batch["labels"] != IGNORE_INDEX).sum())] if counts_row else [0, 0, 0]
        self._counts += torch.tensor([*row, len(batch["pixel_values"])])

    def take_counts(self) -> Tensor:
        """Counts since the last call, float64 (4,); summed over processes they go into `describe`."""
        counts, self._counts = self._counts, torch.zeros_like(self._counts)
        return counts

    def describe(self, counts: Tensor) -> dict[str, float]:
        """Rates of the window that ends now, from counts summed over all processes."""
        now = time.perf_counter()
        elapsed_s, self._since = max(now - self._since, 1e-9), now
        num_rows, num_tokens, num_targets, num_tiles = counts.tolist()
        rates = {
            "tokens_per_second": round(num_tokens / elapsed_s, 1),
            "targets": num_targets,
            "tiles": num_tiles,
        }
        if self.max_row_tokens and num_rows:
            rates["fill_rate"] = round(num_tokens / (num_rows * self.max_row_tokens), 4)
        return rates


class StepReport(ProgressCallback):
    """transformers' progress bar, with a log line per report in place of a printed dict.

    The bar shows on terminals; the lines go through `logging`, so they reach training_log.txt as well.
    """

    def __init__(self, *, show_bar: bool):
        super().__init__()
        self.show_bar = show_bar

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        self.current_step = state.global_step
        if self.show_bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write a line such as `step 20/650  loss 1.234  learning_rate 0.001  ...`."""
        if state.is_world_process_zero and logs and "loss" in logs:
            values = "  ".join(f"{name} {value:.5g}" for name, value in logs.items() if name != "epoch")
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, values)
