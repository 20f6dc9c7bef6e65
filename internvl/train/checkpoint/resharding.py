"""Resharding: a DeepSpeed checkpoint of some ranks, made ready for another number of them.

With ZeRO every rank saves its own slice of the optimiser (with stage 3, of the weights too). DeepSpeed's universal
format holds whole tensors instead, of which any number of ranks take their slices:

    checkpoint-20/global_step20/  slice of rank 0 | slice of rank 1
        -> .resharded/checkpoint-20/global_step20/zero/PARAMETER/{fp32,exp_avg,exp_avg_sq}.pt
        -> slice of rank 0 | slice of rank 1 | slice of rank 2 | slice of rank 3

Rank 0 lets DeepSpeed's own converter write the copy in a process of its own; the checkpoint stays as it is. The copy is
removed at the run's next save, which holds slices of the new ranks.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl.errors import CheckpointError, ConfigError
from internvl.train.checkpoint.pickles import read_pickle

logger = logging.getLogger(__name__)

RESHARDED = ".resharded"  # below the run's folder: copies for another number of ranks
_SOURCE = "source"
_SLICE_OF_OPTIMISER = "*_optim_states.pt"
_SLICE_OF_WEIGHTS = "*zero_pp_rank_*_model_states.pt"
_MAX_WORKERS = 4
_NUM_LINES_SHOWN = 3


@dataclass(frozen=True)
class Slices:
    """How DeepSpeed split a checkpoint: by how many ranks, and whether weights are split as well (ZeRO-3)."""

    num_ranks: int
    has_weights: bool


def find_slices(checkpoint: Path) -> Slices | None:
    """How a checkpoint is split; None: it was saved without DeepSpeed."""
    for folder in checkpoint.glob("global_step*"):
        if num_ranks := len([*folder.glob(_SLICE_OF_OPTIMISER)]):
            return Slices(num_ranks, has_weights=any(folder.glob(_SLICE_OF_WEIGHTS)))
    return None


def check_engine(checkpoint: Path, *, zero_stage: int) -> None:
    """Check that this run can read the optimiser of a checkpoint; stage 0 means without DeepSpeed.

    Raises:
        ConfigError: Only one of the two uses DeepSpeed, or only one of them splits weights.
    """
    slices = find_slices(checkpoint)
    saved = "without DeepSpeed" if slices is None else "with ZeRO-3" if slices.has_weights else "with ZeRO-1 or ZeRO-2"
    fits = slices is None if zero_stage == 0 else slices is not None and slices.has_weights == (zero_stage == 3)
    if not fits:
        now = f"uses ZeRO-{zero_stage}" if zero_stage else "goes without DeepSpeed"
        raise ConfigError(
            f"{checkpoint} was saved {saved}, this run {now}: its optimiser cannot be read. Give --deepspeed as it was "
            f"(ZeRO-1 and ZeRO-2 may be exchanged), or start a new run from its weights (--model_name_or_path "
            f"{checkpoint}, another --output_dir)"
        )


def write_universal_copy(checkpoint: Path, output_dir: Path) -> Path:
    """Write a copy of a checkpoint that any number of ranks can load: output_dir/.resharded/checkpoint-N.

    It holds the optimiser in the universal format and all small files. It takes 12 bytes of disk per trained
    parameter, twice as much while it is written.

    Raises:
        CheckpointError: The slices cannot be read, or the copy cannot be written.
    """
    copy = output_dir / RESHARDED / checkpoint.name
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.is_file() and path.suffix not in (".safetensors", ".bin"):
            shutil.copy2(path, copy)
    slices = next(folder for folder in checkpoint.glob("global_step*") if any(folder.glob(_SLICE_OF_OPTIMISER)))
    # A plain name in the copy, because the converter reads its input path as a pattern.
    (copy / _SOURCE).symlink_to(slices.resolve())
    _convert(copy, slices.name)
    (copy / _SOURCE).unlink()
    return copy


def _convert(folder: Path, name: str) -> None:
    """Run DeepSpeed's converter inside `folder`."""
    num_workers = str(min(_MAX_WORKERS, len(os.sched_getaffinity(0))))
    workers = ["--num_extract_workers", num_workers, "--num_merge_workers", num_workers]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state", *workers]
    command += ["--input_folder", _SOURCE, "--output_folder", name]
    # On the CPU: the GPUs belong to the ranks that wait for the copy.
    environ = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    if result.returncode or not (folder / name / "zero" / "optimizer_state.pt").is_file():
        causes = "\n  ".join(result.stderr.strip().splitlines()[-_NUM_LINES_SHOWN:])
        free = shutil.disk_usage(folder).free / 2**30
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(
            f"{folder.name} could not be converted for another number of ranks (exit code {result.returncode}, "
            f"{free:.1f} GiB are free in {folder.parent}):\n  {causes}\nresume with the number of ranks that saved it"
        )


def read_group_settings(copy: Path) -> list[dict[str, object]]:
    """What the optimiser's parameter groups had set (weight decay, ...), in their order."""
    (path,) = copy.glob("global_step*/zero/optimizer_state.pt")
    groups = cast("dict[str, list[dict[str, object]]]", read_pickle(path))["param_groups"]
    # Learning rates come from the schedule of this run.
    return [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]


def restore_settings(optimizer: torch.optim.Optimizer, settings: Sequence[Mapping[str, object]]) -> None:
    """Undo what DeepSpeed's loader of universal checkpoints does to an optimiser with several parameter groups.

    With ZeRO-3 it gives all groups the settings of the first one. It also gives them one tensor that counts the steps,
    which then counts each step once per group.

    Raises:
        CheckpointError: There are other groups than in the checkpoint.
    """
    groups = optimizer.param_groups
    if len(groups) != len(settings):
        raise CheckpointError(
            f"the optimiser has {len(groups)} parameter groups, the checkpoint {len(settings)}; resume with the same "
            "learning-rate, weight-decay and freezing options"
        )
    for group, values in zip(groups, settings, strict=True):
        group.update(values)
    for state in optimizer.state.values():
        if isinstance(step := state.get("step"), torch.Tensor):
            state["step"] = step.clone()


class RestoreSettings(TrainerCallback):
    """Calls `restore_settings` when DeepSpeed has loaded a universal copy."""

    def __init__(self, copy: Path):
        self.copy = copy

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Reach through accelerate's wrapper and DeepSpeed's optimiser to the one inside."""
        restore_settings(kwargs["optimizer"].optimizer.optimizer, read_group_settings(self.copy))  # type: ignore[attr-defined]
