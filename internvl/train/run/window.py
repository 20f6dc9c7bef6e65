"""The window: what the run counted since its last report, and the report itself.

    rows --note--> step in progress --end_step--> counts of this rank --collect--> counts of all ranks
                                                                                    |-> window, until the next report
                                                                                    `-> totals, of all starts of the run

A bad step is counted, but its rows and its loss are not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from internvl.train.run.counts import Counts, RowStatistics, RunTotals
from internvl.train.run.metrics import Stopwatch, describe_sources, describe_window, measure_peak_memory
from internvl.train.run.record import Ending, RunSummary
from internvl.train.run.utilisation import Workload


class Window:
    """Counts the steps of a run and reports them.

    `sources` are the names of the data sets in the order of the meta file. A row limit adds the fill rate to reports, a
    workload the model FLOPs utilisation.
    """

    def __init__(self, sources: Sequence[str], *, max_row_tokens: int | None = None, workload: Workload | None = None):
        self.sources = tuple(sources)
        self.max_row_tokens = max_row_tokens
        self.workload = workload
        self.rows = RowStatistics(len(self.sources))  # of this rank
        self.totals = RunTotals(Counts.zeros(self.sources))  # of all starts; the same on all ranks after `collect`
        self.stopwatch = Stopwatch()  # of this start
        self.learning_rates: dict[str, float] = {}  # by parameter group, as the step in progress uses them
        self.num_skipped = 0
        self.peak_memory = 0
        self._counts = Counts.zeros(self.sources)
        self._num_steps = self._num_bad_steps = 0
        self._steps_this_start = self._bad_steps_this_start = 0

    def begin_step(self, step: int, learning_rates: dict[str, float]) -> None:
        """Note the learning rates of the step after `step`; the first step starts the stopwatch."""
        self.stopwatch.start(step)
        self.learning_rates = learning_rates

    def end_step(self, *, is_taken: bool) -> None:
        """Keep the counts of the step, or forget them where the optimiser left it out."""
        self.rows.end_step(is_taken=is_taken)
        self._num_steps += 1
        self._steps_this_start += 1

    def count_bad_step(self) -> None:
        """Note that the run goes on although the step was left out."""
        self.totals.bad_steps += 1
        self._num_bad_steps += 1
        self._bad_steps_this_start += 1

    def collect(self, gather: Callable[[Tensor], Tensor], *, num_skipped: int, device: torch.device | str) -> None:
        """Add the counts of all ranks since the last call to the window and to the totals. Collective.

        `gather` concatenates tensors of all ranks (accelerate's); `num_skipped` documents this rank has left out.
        """
        own = torch.tensor([num_skipped, measure_peak_memory()], dtype=torch.float64)
        gathered = gather(torch.cat([self.rows.take(), own]).to(device).unsqueeze(0)).cpu()
        counts = Counts(self.sources, gathered[:, :-2].sum(0))
        self.num_skipped, self.peak_memory = int(gathered[:, -2].sum()), int(gathered[:, -1].max())
        self._counts += counts
        self.totals.counts += counts

    def report(self, logs: dict[str, float], *, step: int, max_steps: int, num_processes: int) -> None:
        """Complete the Trainer's log (in place) with what docs/training.md lists, and begin the next window."""
        self._correct_for_bad_steps(logs)
        if self.learning_rates:
            # DeepSpeed's own optimiser has moved the schedule on by the time the Trainer asks for the rate.
            logs["learning_rate"] = next(iter(self.learning_rates.values()))
        window, self._counts = self._counts, Counts.zeros(self.sources)
        elapsed_s = self.stopwatch.lap()
        logs |= describe_window(
            window, elapsed_s=elapsed_s, num_processes=num_processes, max_row_tokens=self.max_row_tokens
        )
        if self.workload is not None:
            logs |= self.workload.describe(window, elapsed_s=elapsed_s, num_processes=num_processes)
        logs |= {
            "peak_memory_gib": self.peak_memory / 2**30,
            "eta_s": round(self.stopwatch.eta(step, max_steps), 1),
            "skipped_documents": float(self.num_skipped),
            "bad_steps": float(self.totals.bad_steps),
        }
        if len(set(self.learning_rates)) > 1:
            logs |= {f"learning_rate/{name}": rate for name, rate in self.learning_rates.items()}
        logs |= describe_sources(window)

    def _correct_for_bad_steps(self, logs: dict[str, float]) -> None:
        """Make the loss a mean over the steps that were taken; without any there is no loss to report."""
        num_taken = self._num_steps - self._num_bad_steps
        if self._num_bad_steps:
            logs["loss"] *= self._num_steps / max(num_taken, 1)
            if not num_taken:
                del logs["loss"]
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]
        self._num_steps = self._num_bad_steps = 0

    def correct_mean_loss(self, mean: float) -> float:
        """Turn a mean over all steps of this start, to which bad ones added nothing, into that over the taken ones."""
        return mean * (self._steps_this_start / max(self._steps_this_start - self._bad_steps_this_start, 1))

    def summarise(
        self, status: Ending, *, step: int, log_history: Sequence[Mapping[str, float]], folder: Path
    ) -> RunSummary:
        """What the run has come to, after `collect`; `log_history` is the Trainer's."""
        losses = [entry["loss"] for entry in log_history if "loss" in entry]
        if not losses and self._steps_this_start:  # a run that is shorter than --logging_steps
            losses = [entry["train_loss"] for entry in log_history if "train_loss" in entry]
        return RunSummary(
            status=status,
            steps=step,
            bad_steps=self.totals.bad_steps,
            skipped_documents=self.num_skipped,
            counts=self.totals.counts,
            seconds=round(self.totals.seconds + self.stopwatch.elapsed(), 3),
            steps_this_start=self._steps_this_start,
            seconds_this_start=round(self.stopwatch.elapsed(), 3),
            peak_memory_bytes=self.peak_memory,
            final_loss=losses[-1] if losses else None,
            model=str(folder.resolve()),
        )
