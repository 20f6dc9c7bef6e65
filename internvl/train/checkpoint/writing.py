"""Where a run continues, and how a folder is written so that it is never seen half-written.

A checkpoint is written by all ranks into a folder of another name. When every rank has written its part, rank 0 notes
all files and their sizes in complete.json and gives the folder its name:

    output_dir/.saving/checkpoint-20/...     ->     output_dir/checkpoint-20/{..., complete.json}

So a folder checkpoint-N without complete.json, or with files of other sizes, was damaged later (or comes from
elsewhere), and a run does not continue from it by itself.
"""

import errno
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from internvl.atomic import REMOVED_PREFIX, publish_folder, remove_folder, replace_files, write_json
from internvl.data.cursor import LoaderState
from internvl.errors import CheckpointError, ConfigError
from internvl.train.checkpoint.resharding import resharded_folder

logger = logging.getLogger(__name__)

MARKER = "complete.json"
POSITION_FILE = "data_position.json"

_STAGING = ".saving"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_MODEL_PATTERNS = ("config.json", "*.safetensors", "pytorch_model*.bin")
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_STATE_FILES = ("trainer_state.json", POSITION_FILE)
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch.save and safetensors say when a write fails: neither raises OSError.
_FAILED_WRITE = re.compile(r"inline_container|PytorchStreamWriter|file write failed")
_VISIBLE_WITHIN_S = 60.0  # files of other nodes on a network file system


def find_resume_checkpoint(output_dir: str, *, overwrite: bool, wanted: str | None = None) -> str | None:
    """Choose the checkpoint that a run continues from: the last one that is complete.

    Args:
        output_dir: Folder of the run.
        overwrite: Start anew whatever the folder holds.
        wanted: An explicit checkpoint folder, which wins, unless it is one of this run and damaged.

    Returns:
        A checkpoint folder, or None to start from the beginning.

    Raises:
        ConfigError: The folder holds a model but no checkpoint, or `wanted` does not exist.
        CheckpointError: Every checkpoint that comes into question is damaged.
    """
    folder = Path(output_dir)
    if wanted is not None and wanted.lower() not in ("true", "false"):
        return _choose_wanted(Path(wanted), folder)
    if overwrite or not folder.is_dir():
        return None
    checkpoints = list_checkpoints(folder)
    if not checkpoints and any(path.is_file() for pattern in _MODEL_PATTERNS for path in folder.glob(pattern)):
        raise ConfigError(
            f"--output_dir {output_dir} is not empty and holds no checkpoint to continue from; choose another folder, "
            "or pass --overwrite_output_dir True"
        )
    return _choose_complete(checkpoints)


def _choose_wanted(wanted: Path, output_dir: Path) -> str | None:
    """A damaged checkpoint of the run's own folder gives way to the one before it."""
    if not (wanted / "trainer_state.json").is_file():
        raise ConfigError(f"--resume_from_checkpoint {wanted}: no such checkpoint (it has no trainer_state.json)")
    if not (wanted / MARKER).is_file():
        logger.warning("%s has no %s: whether it is complete is not known", wanted, MARKER)
        return str(wanted)
    own = list_checkpoints(output_dir) if output_dir.is_dir() else []
    if wanted.resolve() in [path.resolve() for path in own]:
        return _choose_complete([path for path in own if _step_of(path) <= _step_of(wanted)])
    return _choose_complete([wanted])


def _choose_complete(checkpoints: list[Path]) -> str | None:
    problems: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints):
        problem = find_problem(checkpoint)
        if problem is None:
            for damaged, cause in problems.items():
                logger.warning("%s is damaged (%s): continuing from %s instead", damaged, cause, checkpoint.name)
            return str(checkpoint)
        problems[checkpoint] = problem
    if problems:
        causes = "".join(f"\n  {checkpoint}: {problem}" for checkpoint, problem in problems.items())
        raise CheckpointError(
            f"none of the checkpoints is complete:{causes}\ndelete them (or pass --overwrite_output_dir True) to start "
            "anew, or name one with --resume_from_checkpoint"
        )
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Folders checkpoint-N by their N, complete or not."""
    steps = {path: _CHECKPOINT.fullmatch(path.name) for path in output_dir.iterdir() if path.is_dir()}
    return sorted((path for path, match in steps.items() if match), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


# Writing a checkpoint -----------------------------------------------------------------------------------------------


def staging_folder(output_dir: Path) -> Path:
    """Where a checkpoint lies while it is written, the same for all ranks."""
    return output_dir / _STAGING


def remove_partial_saves(output_dir: Path) -> None:
    """Remove what a killed run left of a checkpoint that it was writing, deleting or converting."""
    for folder in (output_dir / _STAGING, resharded_folder(output_dir), *output_dir.glob(f"{REMOVED_PREFIX}*")):
        shutil.rmtree(folder, ignore_errors=True)


def list_files(folder: Path) -> dict[str, int]:
    """Relative path -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def publish_checkpoint(
    staged: Path, *, listings: Iterable[Mapping[str, int]], weight_names: Collection[str], num_ranks: int
) -> Path:
    """Check a checkpoint that all ranks have written, mark it as complete and give it its name.

    Args:
        staged: output_dir/.saving/checkpoint-N. An older folder checkpoint-N is replaced.
        listings: `list_files` as each node sees them: a file of another node may become visible here a little later.
        weight_names: Tensors that its safetensors files must hold; empty: weights are kept in other files.
        num_ranks: Processes of the run.

    Returns:
        The checkpoint, output_dir/checkpoint-N.

    Raises:
        CheckpointError: Files or tensors are missing.
    """
    expected: dict[str, int] = {}
    for listing in listings:
        for name, size in listing.items():
            expected[name] = max(size, expected.get(name, 0))
    if problem := _wait_for_files(staged, expected):
        raise CheckpointError(f"{staged}: {problem}; --output_dir must be one folder that all nodes share")
    names = _read_weight_names(staged)
    if missing := sorted(set(weight_names) - names):
        raise CheckpointError(f"{staged}: {len(missing)} weights were not written, among them {missing[0]}")
    _write_through([staged / name for name in expected])
    loss = _read_recent_loss(staged, since=_last_step_before(staged))
    content = {"files": dict(sorted(expected.items())), "num_weights": len(names), "num_ranks": num_ranks, "loss": loss}
    write_json(staged / MARKER, content, indent=None)
    _write_through([staged / MARKER])
    final = staged.parent.parent / staged.name
    publish_folder(staged, final)
    _write_through([final.parent])
    return final


def _last_step_before(staged: Path) -> int:
    published = [_step_of(path) for path in list_checkpoints(staged.parent.parent)]
    return max((step for step in published if step < _step_of(staged)), default=0)


def _read_recent_loss(checkpoint: Path, *, since: int) -> float | None:
    """Mean of the training losses logged behind step `since`; None where there is none, or no finite one."""
    path = checkpoint / "trainer_state.json"
    history = json.loads(path.read_text(encoding="utf-8")).get("log_history", []) if path.is_file() else []
    losses = [float(entry["loss"]) for entry in history if entry.get("step", 0) > since and "loss" in entry]
    mean = sum(losses) / len(losses) if losses else math.nan
    return mean if math.isfinite(mean) else None


def _wait_for_files(folder: Path, expected: Mapping[str, int]) -> str | None:
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while (problem := _compare_files(folder, expected)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return problem


def _compare_files(folder: Path, expected: Mapping[str, int]) -> str | None:
    for name, size in expected.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes, expected {size}"
    return None


def _read_weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _write_through(paths: Iterable[Path]) -> None:
    """Have files and folders on the disk: a node may lose power."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: all files there, sizes, readable states, number of weights.

    File contents are not read beyond that: a changed bit in a weight is not found.
    """
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        files, num_weights = dict(marker["files"]), int(marker["num_weights"])
    except FileNotFoundError:
        return f"it has no {MARKER}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MARKER} cannot be read: {error!r}"
    if problem := _compare_files(checkpoint, files):
        return problem
    try:
        for name in _STATE_FILES:
            if name in files:
                json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{name} cannot be read: {error}"
    try:
        found = len(_read_weight_names(checkpoint))
    except (OSError, SafetensorError) as error:
        return f"the weights cannot be read: {error}"
    return None if found == num_weights else f"it holds {found} weights, expected {num_weights}"


def find_best(checkpoints: Iterable[Path]) -> Path | None:
    """The complete checkpoint with the lowest training loss on the way to it; the earlier one of two equal ones.

    There is no evaluation during training, so the loss is the mean of those logged since the checkpoint before
    (`loss` in complete.json). None where no loss was logged.
    """
    losses: dict[Path, float] = {}
    for checkpoint in sorted(checkpoints, key=_step_of):
        if find_problem(checkpoint) is None:
            loss = json.loads((checkpoint / MARKER).read_text(encoding="utf-8")).get("loss")
            losses |= {} if loss is None else {checkpoint: loss}
    return min(losses, key=lambda checkpoint: losses[checkpoint], default=None)


def rotate_checkpoints(newest: Path, *, keep: int | None) -> None:
    """Delete older checkpoints but the best one, once the newest one is seen to be complete.

    Args:
        newest: The checkpoint just written.
        keep: How many complete ones stay, the newest included; None or 0: all. The best one stays besides.

    Raises:
        CheckpointError: The newest one is damaged; nothing is deleted.
    """
    if problem := find_problem(newest):
        raise CheckpointError(f"{newest} was damaged while it was saved ({problem}); older checkpoints are kept")
    if not keep:
        return
    older = [path for path in list_checkpoints(newest.parent) if _step_of(path) < _step_of(newest)]
    best = find_best([*older, newest])
    num_kept = 1
    for checkpoint in reversed(older):
        if num_kept < keep and find_problem(checkpoint) is None:
            num_kept += 1
        elif checkpoint != best:
            logger.info("deleting %s (--save_total_limit %d)", checkpoint, keep)
            remove_folder(checkpoint)


@contextmanager
def explain_failed_write(folder: Path) -> Iterator[None]:
    """Turn the many errors of a full disk into one that says what to do.

    Raises:
        CheckpointError: Something below `folder` could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_failed_write(error):
            raise
        try:
            free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free"
        except OSError:
            free = "free space unknown"
        raise CheckpointError(
            f"a checkpoint could not be written to {folder} ({free}): {error}. The checkpoints saved before are "
            "intact. Free space, or keep fewer checkpoints with --save_total_limit, and start the same command again"
        ) from error


def _is_failed_write(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL_DISK
    return isinstance(error, SafetensorError) or bool(_FAILED_WRITE.search(str(error)))


def read_position(checkpoint: Path) -> LoaderState:
    """The position of the training data in a checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    try:
        return json.loads((checkpoint / POSITION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} has no readable {POSITION_FILE} ({error}): where its data goes on is not known. Resume from "
            "another checkpoint, or pass --ignore_data_skip True to start the data from its beginning"
        ) from None


@contextmanager
def replace_model_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write a model into; its files appear in `folder`, config.json last.

    Weight files of an earlier save that the new ones do not overwrite are removed, so that weights of two models
    never lie side by side.
    """

    def remove_stale_weights(new: set[str]) -> None:
        if any(Path(name).match(pattern) for name in new for pattern in _WEIGHT_PATTERNS):
            _remove_stale_weights(folder, new)

    with replace_files(folder, last="config.json", before_moving=remove_stale_weights) as staging:
        yield staging


def _remove_stale_weights(folder: Path, new: set[str]) -> None:
    for pattern in _WEIGHT_PATTERNS:
        for path in folder.glob(pattern):
            if path.name not in new:
                path.unlink()
