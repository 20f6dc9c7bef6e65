"""Pickles: the files of a checkpoint that torch.save wrote, checked before any library opens them.

A pickle may name any function of any package, and DeepSpeed unpickles its slices without limits. So the names in every
file are listed first, which runs nothing and reads no tensor: only those of tensors, of plain containers and of
DeepSpeed's own records may be there. training_args.bin, which names more, is never opened.
"""

from pathlib import Path
from pkgutil import resolve_name

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from internvl.errors import CheckpointError

_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
_NEVER_OPENED = "training_args.bin"
_LATEST = "latest"  # names the folder that DeepSpeed opens

# Besides what torch itself takes for data: numpy's arrays (states of generators), and records of DeepSpeed.
_OF_NUMPY = {
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
}
_OF_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def check_pickles(checkpoint: Path) -> None:
    """Check every file of a checkpoint that resuming unpickles.

    Raises:
        CheckpointError: A file names something else than data, or is not what torch.save writes.
    """
    slices = [path for path in checkpoint.glob("global_step*") if path.is_dir()]
    latest = checkpoint / _LATEST
    named = latest.read_text(errors="replace").strip() if latest.is_file() else ""  # a pipe would be waited for
    if latest.exists() and named not in [path.name for path in slices]:
        raise CheckpointError(f"{latest} names no folder of the checkpoint; resume from another checkpoint")
    for folder in (checkpoint, *slices):
        for path in sorted(folder.iterdir()):
            if path.suffix in _SUFFIXES and path.name != _NEVER_OPENED:
                _check_pickle(path)


def _check_pickle(path: Path) -> None:
    try:
        # Not of a pipe, which would hang.
        names = get_unsafe_globals_in_checkpoint(str(path)) if path.is_file() else None
    except Exception as error:  # what broken files make a parser raise has no end
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is not what torch.save writes ({reason}); resume from another checkpoint"
        ) from error
    if names is None:
        raise CheckpointError(f"{path} is no regular file; resume from another checkpoint")
    if foreign := sorted({*names} - _OF_NUMPY - _OF_DEEPSPEED):
        raise CheckpointError(
            f"{path} names {foreign[0]}, which may run code when the file is opened; expected tensors and plain "
            "containers. Nothing of it was run: resume from a checkpoint that this code has written"
        )


def read_pickle(path: Path) -> object:
    """What a file of DeepSpeed holds, tensors mapped into memory: data only, as `check_pickles` defines it."""
    _check_pickle(path)
    with safe_globals([resolve_name(name) for name in sorted(_OF_DEEPSPEED)]):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
