"""Metrics: what a run reports besides its loss, as numbers for every log and as one line for people.

docs/training.md defines every number. A report covers the window since the last one.
"""

import logging
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from internvl.train.run.counts import Counts

logger = logging.getLogger(__name__)


class Stopwatch:
    """Seconds of the window, and of this start."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._began: float | None = None
        self._lap_began = 0.0
        self._first_step = 0

    def start(self, step: int) -> None:
        """Begin, after `step` steps; later calls do nothing."""
        if self._began is None:
            self._began = self._lap_began = self._clock()
            self._first_step = step

    def lap(self) -> float:
        """Seconds since the last call, or since the start; above 0."""
        now = self._clock()
        elapsed_s, self._lap_began = now - self._lap_began, now
        return max(elapsed_s, 1e-9)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return 0.0 if self._began is None else self._clock() - self._began

    def eta(self, step: int, max_steps: int) -> float:
        """Seconds that the rest will take at this start's mean speed."""
        return self.elapsed() / max(step - self._first_step, 1) * (max_steps - step)


def measure_peak_memory() -> int:
    """Most bytes that this process has held at a time: on its GPU, or in main memory without one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # Not ru_maxrss: a process inherits that from the one that started it.
    return int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1)) * 1024  # type: ignore[union-attr]


def describe_window(
    window: Counts, *, elapsed_s: float, num_processes: int, max_row_tokens: int | None = None
) -> dict[str, float]:
    """Speed and counts of a window, and its fill rate where rows have a limit."""
    tokens_per_second = window["tokens"] / elapsed_s
    described = {
        "tokens_per_second": round(tokens_per_second, 1),
        "tokens_per_second_per_process": round(tokens_per_second / num_processes, 1),
        "tiles_per_second": round(window["tiles"] / elapsed_s, 2),
        "targets": window["targets"],
        "tiles": window["tiles"],
        "samples": window["samples"],
    }
    if max_row_tokens and window["rows"]:
        described["fill_rate"] = round(window["tokens"] / (window["rows"] * max_row_tokens), 4)
    return described


def describe_sources(window: Counts) -> dict[str, float]:
    """`loss/NAME`, `samples/NAME` and `tokens/NAME` of every data set with samples in the window."""
    described: dict[str, float] = {}
    for name, counts in window.by_source():
        if counts["weight"]:
            described[f"loss/{name}"] = counts["loss"] / counts["weight"]
        described |= {f"samples/{name}": counts["samples"], f"tokens/{name}": counts["tokens"]}
    return described


def format_duration(seconds: float) -> str:
    """Such as `0:07` or `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def format_bar(logs: Mapping[str, float]) -> str:
    """What follows the bar: `loss 1.23, 51.2k tok/s, 6.4k/GPU, MFU 41.2%, fill 97%, 61.3 GiB, 12 tiles/s`."""
    parts = [
        ("loss", "loss {:.4g}", 1.0),
        ("tokens_per_second", "{:.1f}k tok/s", 1e-3),
        ("tokens_per_second_per_process", "{:.1f}k/GPU" if torch.cuda.is_available() else "{:.1f}k/process", 1e-3),
        ("mfu", "MFU {:.1f}%", 100.0),
        ("fill_rate", "fill {:.0f}%", 100.0),
        ("peak_memory_gib", "{:.1f} GiB", 1.0),
        ("tiles_per_second", "{:.1f} tiles/s", 1.0),
    ]
    shown = [form.format(logs[name] * scale) for name, form, scale in parts if name in logs]
    if logs.get("bad_steps"):
        shown.append(f"{logs['bad_steps']:.0f} bad steps")
    if "eta_s" in logs:
        shown.append(f"ETA {format_duration(logs['eta_s'])}")
    return ", ".join(shown)


class StepReport(ProgressCallback):
    """One bar on rank 0, and a log line per report; through `logging`, so it reaches training_log.txt as well."""

    def __init__(self, *, show_bar: bool):
        super().__init__()
        self.show_bar = show_bar

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Open the bar at the step where the run goes on."""
        self.current_step = state.global_step
        if self.show_bar and state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                dynamic_ncols=True,
                unit="step",
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Move the bar."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Write a line such as `step 20/650  loss 1.234  learning_rate 0.001  ...`, and the losses by data set."""
        if not state.is_world_process_zero or not logs or "tokens_per_second" not in logs:
            return
        # Other names with a slash (by data set, by parameter group) are left to trainer_state.json.
        values = "  ".join(f"{name} {value:.5g}" for name, value in logs.items() if "/" not in name and name != "epoch")
        logger.info("step %d/%d  %s", state.global_step, state.max_steps, values)
        losses = {name: value for name, value in logs.items() if name.startswith("loss/")}
        if len(losses) > 1:
            logger.info("  %s", "  ".join(f"{name} {value:.5g}" for name, value in losses.items()))
        if self.training_bar is not None:
            self.training_bar.set_postfix_str(format_bar(logs))
