"""What tools that turn one checkpoint folder into another share: checks, loading without surprises, a finished folder.

A folder appears under its final name only when it is complete; nothing is ever written into a folder that holds files.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from internvl.build.folders import stage_folders
from internvl.errors import CheckpointError, ConfigError
from internvl.infer.checkpoint import check_checkpoint

# Files that belong to a checkpoint besides weights and config; training state is left behind.
_COMPANIONS = (
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

ModelType = TypeVar("ModelType", bound=PreTrainedModel)


@contextmanager
def convert_folder(source: Path, out: Path, *, model_type: str) -> Iterator[Path]:
    """Yield an empty folder to write weights and config into; it becomes `out` when the block ends without an error.

    Args:
        source: Checkpoint folder; its tokenizer files and generation config are copied.
        out: Folder to make: missing, or empty.
        model_type: What the config.json of `source` must say.

    Raises:
        CheckpointError: `source` is missing, incomplete or of another model type.
        ConfigError: `out` is a file or holds files.
    """
    found = check_checkpoint(source).get("model_type")
    if found != model_type:
        raise CheckpointError(f"{source}/config.json: model_type is {found!r}, expected {model_type!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; choose another folder, or move that one away")
    out = out.absolute()
    with stage_folders(out.parent, [Path(out.name)]) as staging:
        folder = staging / out.name
        folder.mkdir()
        yield folder
        for path in {path for pattern in _COMPANIONS for path in source.glob(pattern) if path.is_file()}:
            if not (folder / path.name).exists():
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


def load_strictly(
    model_class: type[ModelType],
    folder: Path,
    *,
    config: PretrainedConfig | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> ModelType:
    """A model, in evaluation mode, all of whose parameters come from the weights, and all of whose weights were used.

    Args:
        model_class: Class to build.
        folder: Checkpoint folder; only named in errors when `state` is given.
        config: Config; None: the folder's.
        state: Weights to use instead of the folder's.

    Raises:
        CheckpointError: Weights are missing, unknown or of another shape.
    """
    arguments: dict[str, Any] = {"config": config, "output_loading_info": True, "dtype": "auto"}
    if state is not None:
        arguments |= {"state_dict": dict(state), "dtype": next(iter(state.values())).dtype}
    try:
        loaded: Any = model_class.from_pretrained(str(folder) if state is None else None, **arguments)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the weights of {folder} do not fit {model_class.__name__}: {error}") from error
    model, report = loaded
    if any(".lora_" in name for name in report["unexpected_keys"]):
        raise CheckpointError(
            f"{folder} holds LoRA adapters; fold them in first: python -m internvl.tools.merge_lora {folder} OUT"
        )
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            names = sorted(report[problem])
            raise CheckpointError(
                f"{folder}: {len(names)} {problem.replace('_', ' ')} for {model_class.__name__}, for example "
                f"{names[:3]}; expected exactly the weights that its config.json describes"
            )
    return model.eval()
