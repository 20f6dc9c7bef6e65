"""What a checkpoint folder holds, and how to see that it is complete.

    checkpoint-20/
        config.json, model*.safetensors        the model, with its adapters (LoRA) unfolded
        tokenizer*, generation_config.json     what a loadable model folder needs besides
        optimizer.pt, scheduler.pt             without DeepSpeed: optimiser and learning-rate schedule
        global_step20/, latest, scheduler.pt   with DeepSpeed: the slices of every rank
        rng_state*.pth                         random generators of every rank
        trainer_state.json                     step and log history (transformers)
        training_args.bin                      arguments of the Trainer
        data_position.json                     where every stream of the data goes on
        totals.json                            rows, tokens, seconds, bad steps of all starts
        complete.json                          files with sizes, number of weights and ranks, recent loss; written last

complete.json is written when every rank has written its part. A folder without it, or with files of other sizes, was
damaged later or comes from elsewhere.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from internvl.data.cursor import LoaderState
from internvl.errors import CheckpointError
from internvl.train.state_files import WRONG_CONTENT, find_wrong_type, read_state_file

MARKER = "complete.json"
POSITION_FILE = "data_position.json"
TOTALS_FILE = "totals.json"
TRAINER_STATE_FILE = "trainer_state.json"

# What resuming reads of it, and names of which it reads nothing (transformers is not exact about their types).
_TRAINER_STATE: dict[str, Any] = {field.name: object for field in fields(TrainerState)} | {
    "global_step": int,
    "log_history": list[dict[str, float]],
    **dict.fromkeys(("epoch", "logging_steps", "max_steps", "save_steps", "total_flos"), float),
}
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Folders checkpoint-N sorted by N, complete or not."""
    return sorted(
        (path for path in output_dir.iterdir() if path.is_dir() and _CHECKPOINT.fullmatch(path.name)), key=step_of
    )


def step_of(checkpoint: Path) -> int:
    """N of checkpoint-N."""
    return int(checkpoint.name.rpartition("-")[2])


def list_files(folder: Path) -> dict[str, int]:
    """Relative path -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def compare_files(folder: Path, expected: Mapping[str, int]) -> str | None:
    """The first file that is missing or has another size; None where all are as expected."""
    for name, size in expected.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes, expected {size}"
    return None


def read_weight_names(folder: Path) -> set[str]:
    """Names of the tensors in the safetensors files of a folder."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def find_problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: files, sizes, readable states, number of weights.

    File contents are not read beyond that: a flipped bit in a weight is not found.
    """
    try:
        marker = read_state_file(checkpoint / MARKER)
        files, num_weights = dict(marker["files"]), int(marker["num_weights"])
        if marker.get("loss") is not None:
            float(marker["loss"])
    except FileNotFoundError:
        return f"it has no {MARKER}"
    except CheckpointError as error:
        return str(error)
    except WRONG_CONTENT as error:
        return f"{MARKER} cannot be read: {error!r}"
    if problem := compare_files(checkpoint, files) or find_wrong_state(checkpoint):
        return problem
    try:
        found = len(read_weight_names(checkpoint))
    except (OSError, SafetensorError) as error:
        return f"the weights cannot be read: {error}"
    return None if found == num_weights else f"it holds {found} weights, expected {num_weights}"


def find_wrong_state(checkpoint: Path) -> str | None:
    """What is wrong with the states that resuming reads, or None. A file that is not there is not wrong."""
    for name in (TRAINER_STATE_FILE, POSITION_FILE):
        try:
            state = read_state_file(checkpoint / name)
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            return str(error)
        if name == TRAINER_STATE_FILE and (problem := find_wrong_type({"global_step": None, **state}, _TRAINER_STATE)):
            return f"{name} cannot be used: {problem}"
    return None


def find_best(checkpoints: Iterable[Path]) -> Path | None:
    """The complete checkpoint with the lowest training loss on the way to it; the earlier one of two equal ones.

    The loss is the mean of those logged since the checkpoint before (`loss` in complete.json), since training does not
    evaluate. None where no loss was logged.
    """
    losses: dict[Path, float] = {}
    for checkpoint in sorted(checkpoints, key=step_of):
        if find_problem(checkpoint) is None:
            loss = read_state_file(checkpoint / MARKER).get("loss")
            losses |= {} if loss is None else {checkpoint: float(loss)}
    return min(losses, key=lambda checkpoint: losses[checkpoint], default=None)


def read_position(checkpoint: Path) -> LoaderState:
    """The position of the training data in a checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    try:
        return cast(LoaderState, read_state_file(checkpoint / POSITION_FILE))
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"{checkpoint} has no readable {POSITION_FILE} ({error}): where its data goes on is not known. Resume from "
            "another checkpoint, or pass --ignore_data_skip True to start the data from its beginning"
        ) from None
