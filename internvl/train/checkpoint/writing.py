"""Writing: how a checkpoint is written so that training goes on meanwhile, and it is never seen half-written.

All ranks write into a folder of another name. Then rank 0 lists the files in complete.json and renames the folder:

    step that saves       every rank   copies weights and optimiser slice to main memory, writes what is small
    steps that follow     a thread     writes the copies                -> output_dir/.saving/checkpoint-20/
    step when all are     all          lists of files                   -> rank 0
    written               rank 0       checks, complete.json, rename    -> output_dir/checkpoint-20/; deletes older ones
"""

import errno
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object, wait_for_everyone
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl.atomic import REMOVED_PREFIX, publish_folder, remove_folder, replace_files, write_json
from internvl.data.cursor import merge_states
from internvl.errors import CheckpointError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.train.checkpoint.background import BackgroundJobs, copy_to_main_memory
from internvl.train.checkpoint.contents import (
    MARKER,
    POSITION_FILE,
    TOTALS_FILE,
    TRAINER_STATE_FILE,
    compare_files,
    find_best,
    find_problem,
    list_checkpoints,
    list_files,
    read_weight_names,
    step_of,
)
from internvl.train.checkpoint.resharding import RESHARDED, find_slices, write_universal_copy
from internvl.train.run.preemption import any_rank
from internvl.train.state_files import read_state_file
from internvl.train.trainable import merge_lora

logger = logging.getLogger(__name__)

_STAGING = ".saving"
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch.save and safetensors say when a write fails: neither raises OSError.
_FAILED_WRITE = re.compile(r"inline_container|PytorchStreamWriter|file write failed")
_VISIBLE_WITHIN_S = 60.0  # files of other nodes on a network file system


@dataclass(frozen=True)
class UnfinishedCheckpoint:
    """A checkpoint whose files are being written."""

    staged: Path
    keeps_older: bool
    writing: BackgroundJobs


class CheckpointWriter:
    """Writes the checkpoints of a run; every rank has one, and all use it together.

    Args:
        output_dir: Folder of the run, shared by all nodes.
        is_main: Whether this rank publishes: one rank of the run does.
        is_node_main: Whether this rank lists the files that its node sees.
        num_ranks: Processes of the run.
        keep: How many checkpoints stay besides the best one; None or 0: all.
        tokenizer: Saved beside the weights.
        companions: Further files that are copied beside the weights (generation_config.json).
        in_background: Whether training goes on while large files are written, from copies in main memory.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        is_main: bool,
        is_node_main: bool,
        num_ranks: int,
        keep: int | None,
        tokenizer: PreTrainedTokenizerBase,
        companions: Iterable[Path] = (),
        in_background: bool = True,
    ):
        self.output_dir, self.num_ranks, self.keep = output_dir, num_ranks, keep
        self.is_main, self.is_node_main = is_main, is_node_main
        self.tokenizer, self.companions, self.in_background = tokenizer, tuple(companions), in_background
        self.note_published: Callable[[int], None] = lambda step: None  # called when checkpoint-`step` is complete
        self.unfinished: UnfinishedCheckpoint | None = None
        self.jobs: list[Callable[[], None]] = []  # what is left to write of the checkpoint that is being staged
        self.folder = output_dir  # where the Trainer writes: the staging folder while a checkpoint is written
        self.weight_names: set[str] = set()  # tensors that the next checkpoint must hold; empty: not checked

    @contextmanager
    def stage(self, step: int, *, keep_older: bool = False) -> Iterator[Path]:
        """Yield the folder to write checkpoint-`step` into; its large files are written after the block. Collective.

        The checkpoint before is finished first, so at most one copy of the state lies in main memory.

        Raises:
            CheckpointError: The disk is full, or a checkpoint is not what was meant to be written.
        """
        self.finish()
        self.folder = staging_folder(self.output_dir)
        staged = self.folder / f"checkpoint-{step}"
        try:
            with explain_failed_write(self.output_dir):
                self.remove_leftovers()
                if self.is_main:
                    staged.mkdir(parents=True)
                wait_for_everyone()  # nobody writes before rank 0 has removed what a killed run left
                yield staged
        except BaseException:
            self.remove_leftovers()
            raise
        finally:
            self.folder, jobs, self.jobs = self.output_dir, self.jobs, []
        self.unfinished = UnfinishedCheckpoint(staged, keep_older, BackgroundJobs(jobs))
        if not self.in_background:
            self.finish()

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes files of a checkpoint."""
        return self.unfinished is not None and self.unfinished.writing.are_running

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is complete, and publish it. Collective.

        Raises:
            CheckpointError: The disk is full, or the checkpoint is not what was meant to be written.
        """
        unfinished, self.unfinished = self.unfinished, None
        if unfinished is None:
            return
        try:
            with explain_failed_write(self.output_dir):
                unfinished.writing.wait()
                wait_for_everyone()  # all files are written now; the first rank of each node sees those of its node
                listings = gather_object([list_files(unfinished.staged) if self.is_node_main else {}])
                if self.is_main:
                    self.publish(unfinished.staged, listings, keep_older=unfinished.keeps_older)
        finally:
            self.remove_leftovers()
        wait_for_everyone()
        self.note_published(step_of(unfinished.staged))

    def save(self, state_dict: object, path: str | Path) -> None:
        """Write a state of tensors, as torch.save does, after the block of `stage`. DeepSpeed calls this, too."""
        copied = copy_to_main_memory(state_dict) if self.in_background else state_dict

        def write() -> None:
            torch.save(copied, path)
            _flush_to_disk([Path(path)])

        self.jobs.append(write)

    def save_model(self, folder: Path, model: InternVLChatModel, state: dict[str, Tensor], args: object) -> None:
        """Write weights, config, tokenizer, companions and the Trainer's arguments; all files appear at once.

        Those of a checkpoint are written after the block of `stage`. The run's own folder is written here and now, and
        gets plain InternVL2 weights (adapters folded in).
        """
        self.weight_names = set(state) - set(model.all_tied_weights_keys)
        is_checkpoint = folder != self.output_dir
        if not is_checkpoint:
            state = merge_lora(state)  # a checkpoint keeps its adapters, which resuming needs
        elif self.in_background:
            state = copy_to_main_memory(state)

        def write() -> None:
            with replace_model_files(folder) as staging:
                model.save_pretrained(staging, state_dict=state)
                self.tokenizer.save_pretrained(staging)
                for companion in self.companions:
                    (staging / companion.name).write_bytes(companion.read_bytes())
                torch.save(args, staging / "training_args.bin")
                _flush_to_disk(staging.iterdir())

        if is_checkpoint:
            self.jobs.append(write)
        else:
            with explain_failed_write(self.output_dir):
                write()

    def write_progress(self, staged: Path, *, position: Mapping[str, object], totals: Mapping[str, object]) -> None:
        """Add where this rank's data goes on, and what the whole run has done so far. Collective."""
        positions = gather_object([position])
        if self.is_main:
            write_json(staged / POSITION_FILE, merge_states(positions), indent=None)
            write_json(staged / TOTALS_FILE, totals)

    def publish(self, staged: Path, listings: Iterable[Mapping[str, int]], *, keep_older: bool) -> None:
        """Give a checkpoint that all ranks have written its name, then delete older ones. Rank 0 does."""
        weights = self.weight_names
        checkpoint = publish_checkpoint(staged, listings=listings, weight_names=weights, num_ranks=self.num_ranks)
        if not keep_older:
            rotate_checkpoints(checkpoint, keep=self.keep)

    def reshard(self, checkpoint: Path) -> Path | None:
        """Convert a DeepSpeed checkpoint of another number of ranks; None: it fits. Collective.

        Raises:
            CheckpointError: Its slices cannot be read, or the copy cannot be written.
        """
        slices = find_slices(checkpoint)
        if slices is None or slices.num_ranks == self.num_ranks:
            return None
        logger.info("converting %s from %d to %d ranks", checkpoint, slices.num_ranks, self.num_ranks)
        return gather_object([write_universal_copy(checkpoint, self.output_dir)] if self.is_main else [])[0]

    def remove_leftovers(self) -> None:
        """Remove what a killed run left half-written; rank 0 does."""
        if self.is_main:
            remove_leftovers(self.output_dir)


class PublishWhenWritten(TrainerCallback):
    """Publishes a checkpoint after the first step at whose end all ranks have written their files."""

    def __init__(self, writer: CheckpointWriter):
        self.writer = writer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Ask all ranks, while there is a checkpoint to ask about."""
        if self.writer.unfinished is not None and not any_rank(self.writer.is_writing, device=args.device):
            self.writer.finish()


def staging_folder(output_dir: Path) -> Path:
    """Where a checkpoint lies while it is written, the same for all ranks."""
    return output_dir / _STAGING


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a killed run left of a checkpoint that it was writing, deleting or converting."""
    for folder in (output_dir / _STAGING, output_dir / RESHARDED, *output_dir.glob(f"{REMOVED_PREFIX}*")):
        shutil.rmtree(folder, ignore_errors=True)


def publish_checkpoint(
    staged: Path, *, listings: Iterable[Mapping[str, int]], weight_names: Collection[str], num_ranks: int
) -> Path:
    """Check a checkpoint that all ranks have written, mark it as complete and give it its name.

    Args:
        staged: output_dir/.saving/checkpoint-N. An older folder checkpoint-N is replaced.
        listings: `list_files` as each node sees them; files of other nodes may become visible here a little later.
        weight_names: Tensors that its safetensors files must hold; empty: weights are kept in other files.
        num_ranks: Processes of the run.

    Raises:
        CheckpointError: Files or tensors are missing.
    """
    expected: dict[str, int] = {}
    for listing in listings:
        for name, size in listing.items():
            expected[name] = max(size, expected.get(name, 0))
    if problem := _wait_for_files(staged, expected):
        raise CheckpointError(f"{staged}: {problem}; --output_dir must be one folder that all nodes share")
    names = read_weight_names(staged)
    if missing := sorted(set(weight_names) - names):
        raise CheckpointError(f"{staged}: {len(missing)} weights were not written, among them {missing[0]}")
    _flush_to_disk([staged / name for name in expected])
    loss = _read_recent_loss(staged)
    content = {"files": dict(sorted(expected.items())), "num_weights": len(names), "num_ranks": num_ranks, "loss": loss}
    write_json(staged / MARKER, content, indent=None)
    _flush_to_disk([staged / MARKER])
    final = staged.parent.parent / staged.name
    publish_folder(staged, final)
    _flush_to_disk([final.parent])
    return final


def _read_recent_loss(staged: Path) -> float | None:
    """Mean of the losses logged after the last published checkpoint; None where there is none, or no finite one."""
    published = [step_of(path) for path in list_checkpoints(staged.parent.parent)]
    since = max((step for step in published if step < step_of(staged)), default=0)
    path = staged / TRAINER_STATE_FILE
    history = read_state_file(path).get("log_history", []) if path.is_file() else []
    losses = [float(entry["loss"]) for entry in history if entry.get("step", 0) > since and "loss" in entry]
    mean = sum(losses) / len(losses) if losses else math.nan
    return mean if math.isfinite(mean) else None


def _wait_for_files(folder: Path, expected: Mapping[str, int]) -> str | None:
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while (problem := compare_files(folder, expected)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return problem


def _flush_to_disk(paths: Iterable[Path]) -> None:
    # A node may lose power: without fsync the rename can reach the disk before the content does.
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rotate_checkpoints(newest: Path, *, keep: int | None) -> None:
    """Delete checkpoints older than `newest`, after a look at that.

    Of complete ones `keep` stay, the newest included, and the best one besides; None or 0: all.

    Raises:
        CheckpointError: The newest one is damaged; nothing is deleted.
    """
    if problem := find_problem(newest):
        raise CheckpointError(f"{newest} was damaged while it was saved ({problem}); older checkpoints are kept")
    if not keep:
        return
    older = [path for path in list_checkpoints(newest.parent) if step_of(path) < step_of(newest)]
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


def replace_model_files(folder: Path) -> AbstractContextManager[Path]:
    """Gives an empty folder to write a model into; its files appear in `folder`, config.json last.

    Weight files of an earlier save that the new ones do not overwrite are removed, so that weights of two models
    never lie side by side.
    """

    def remove_stale_weights(new: set[str]) -> None:
        if any(Path(name).match(pattern) for name in new for pattern in _WEIGHT_PATTERNS):
            for path in [path for pattern in _WEIGHT_PATTERNS for path in folder.glob(pattern)]:
                if path.name not in new:
                    path.unlink(missing_ok=True)

    return replace_files(folder, last="config.json", before_moving=remove_stale_weights)
