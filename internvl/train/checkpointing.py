"""Where a run continues, and how a folder is written so that it is never seen half-written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from internvl.errors import ConfigError

# Files of a run that say nothing about training progress: an output folder with only these counts as new.
_BYSTANDERS = ("runs", "training_log.txt", "skipped.jsonl")
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


def find_resume_checkpoint(output_dir: str, *, overwrite: bool, wanted: str | None = None) -> str | None:
    """Choose the checkpoint that a run continues from.

    Args:
        output_dir: Folder of the run.
        overwrite: Start anew whatever the folder holds.
        wanted: An explicit checkpoint folder, which wins.

    Returns:
        A checkpoint folder, or None to start from the beginning.

    Raises:
        ConfigError: The folder is not empty and holds no checkpoint, or `wanted` does not exist.
    """
    if wanted is not None and wanted.lower() not in ("true", "false"):
        if not Path(wanted, "trainer_state.json").is_file():
            raise ConfigError(f"--resume_from_checkpoint {wanted}: no such checkpoint (it has no trainer_state.json)")
        return wanted
    folder = Path(output_dir)
    if overwrite or not folder.is_dir():
        return None
    last = get_last_checkpoint(output_dir)
    if last is None and any(entry.name not in _BYSTANDERS for entry in folder.iterdir()):
        raise ConfigError(
            f"--output_dir {output_dir} is not empty and holds no checkpoint to continue from; choose another folder, "
            "or pass --overwrite_output_dir True"
        )
    return last


@contextmanager
def replace_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; its files appear in `folder` when the block ends without an error.

    Files are renamed one by one on the same file system, config.json last. Weight files of an earlier save that the
    new ones do not overwrite are removed, so that weights of two models never lie side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield staging
        entries = sorted(staging.iterdir(), key=lambda entry: entry.name == "config.json")
        if any(entry.match(pattern) for entry in entries for pattern in _WEIGHT_PATTERNS):
            _remove_stale_weights(folder, {entry.name for entry in entries})
        for entry in entries:
            if entry.is_dir():
                shutil.rmtree(folder / entry.name, ignore_errors=True)
            os.replace(entry, folder / entry.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_stale_weights(folder: Path, new: set[str]) -> None:
    for pattern in _WEIGHT_PATTERNS:
        for path in folder.glob(pattern):
            if path.name not in new:
                path.unlink()
