"""What tools that turn one checkpoint folder into another share: checks, state dicts, a finished folder.

A folder appears under its final name only when it is complete; nothing is ever written into a folder that holds files.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from internvl.atomic import stage_folders
from internvl.errors import CheckpointError, ConfigError
from internvl.folder_owner import own_folder
from internvl.infer.checkpoint import check_checkpoint
from internvl.model.checkpoint_folder import list_weights

# Files that belong to a checkpoint besides weights and config; training state is not copied.
COMPANIONS = (
    "tokenizer*",
    "tokenization_*.py",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    "*preprocessor_config.json",
)


@contextmanager
def convert_folder(source: Path, out: Path, *, model_type: str) -> Iterator[Path]:
    """Yield an empty folder to write weights and config into; it becomes `out` when the block ends without an error.

    Args:
        source: Checkpoint folder; its tokenizer files and generation config are copied.
        out: Folder to make: missing, or empty.
        model_type: What the config.json of `source` must say.

    Raises:
        CheckpointError: `source` is missing, incomplete or of another model type.
        ConfigError: `out` is a file or holds files, or another process is making it.
    """
    found = check_checkpoint(source).get("model_type")
    if found != model_type:
        raise CheckpointError(f"{source}/config.json: model_type is {found!r}, expected {model_type!r}")
    out = out.absolute()
    with own_folder(out, "a conversion"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} exists and is not an empty folder; choose another folder, or move that one away")
        with stage_folders(out.parent, [Path(out.name)]) as staging:
            folder = staging / out.name
            folder.mkdir()
            yield folder
            for path in {path for pattern in COMPANIONS for path in source.glob(pattern) if path.is_file()}:
                if not (folder / path.name).exists():
                    shutil.copyfile(path, folder / path.name)


def link_weights(source: Path, folder: Path) -> None:
    """Put a checkpoint's weight files into a folder, as further names of the same files where the disk allows it.

    Files of a checkpoint are replaced and never written into, so neither folder changes with the other.

    Raises:
        CheckpointError: There are none, or one is missing.
    """
    for path in [*list_weights(source), *source.glob("*.index.json")]:
        try:
            os.link(path.resolve(), folder / path.name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, folder / path.name)


def read_state_dict(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder by name, sharded or not, without building a model.

    Raises:
        CheckpointError: A weight file cannot be read.
    """
    state: dict[str, Tensor] = {}
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    for path in paths:
        try:
            is_safe = path.suffix == ".safetensors"
            state |= load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; copy the checkpoint again") from error
    return state
