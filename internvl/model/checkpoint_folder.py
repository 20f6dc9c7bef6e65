"""Checkpoint folders: found, and looked at before anything is built from them.

    name  --find_checkpoint-->  folder  --check_files-->  config.json, tokenizer and weights are there and whole
                                                --check_size-->  the weights are as large as the config says

A folder may be half a download, or come from a stranger. Only regular files of the folder itself are opened, and a
config that describes more than the weight files hold is refused before memory is taken for it.
"""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig

from .errors import CheckpointError, did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHT_FILES = (("*.safetensors", "model.safetensors"), ("pytorch_model*.bin", "pytorch_model.bin"))
_JSON_FILES = ("*config.json", "*tokens*.json", "tokenizer.json", "vocab.json")
_TEXT_FILES = ("merges.txt", "vocab.txt", "*.jinja")
_LARGEST_JSON = _LARGEST_HEADER = 2**28  # bytes
_SHIPPED = Path(__file__).parents[1] / "shipped"  # of an installed package
_COPY_AGAIN = "copy or download the checkpoint again"


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: itself, one that the package carries, or that of a hub id in the hub's local cache.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(name)
    if (folder / "config.json").exists():
        return folder
    if (_SHIPPED / folder / "config.json").exists():
        return _SHIPPED / folder
    is_hub_id = _HUB_ID.fullmatch(str(name)) is not None
    if is_hub_id:
        try:
            return Path(snapshot_download(str(name), local_files_only=True))
        except Exception:  # the hub's library has many, and all of them mean that the cache does not have it
            pass
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"checkpoint {folder} is a file; expected the folder that holds it")
    model = str(name) if is_hub_id and not folder.parent.is_dir() else "OpenGVLab/InternVL2-2B"
    beside = [path.name for path in folder.parent.glob("*") if path.is_dir()]
    raise CheckpointError(
        f"checkpoint folder {folder} does not exist{did_you_mean(folder.name, beside)} (current directory "
        f"{Path.cwd()}); download a model by `hf download {model} --local-dir "
        f"pretrained/{Path(model).name}` and give that folder"
    )


def check_files(folder: Path) -> None:
    """Check that every file a model is loaded from is there, whole, and in the folder.

    Raises:
        CheckpointError: Config or weights are missing, broken or elsewhere, or a tokenizer file is broken.
    """
    read_json(folder / "config.json")
    list_weights(folder)
    check_text_files(folder)


def check_text_files(folder: Path) -> None:
    """Check the form of all JSON and text files, those of the tokenizer among them.

    Raises:
        CheckpointError: One of them is no regular file, or no JSON object, or no UTF-8 text.
    """
    for path in sorted({path for pattern in _JSON_FILES for path in folder.glob(pattern)}):
        read_json(path)
    for path in sorted({path for pattern in _TEXT_FILES for path in folder.glob(pattern)}):
        read_text(path)
    if (folder / "tokenizer.model").exists():
        _check_regular(folder / "tokenizer.model")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint folder.

    Raises:
        CheckpointError: The file is missing or not regular, or holds anything else.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error or 'nested too deeply'}; {_COPY_AGAIN}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; expected a folder written by save_pretrained")
    return content


def read_text(path: Path) -> str:
    """A UTF-8 text of a checkpoint folder.

    Raises:
        CheckpointError: The file is missing, not regular, too large, or no UTF-8.
    """
    if _check_regular(path) > _LARGEST_JSON:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, expected at most {_LARGEST_JSON}")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no UTF-8 text: {error}; {_COPY_AGAIN}") from error


def _check_regular(path: Path) -> int:
    """Size of a file that can be opened without waiting for anybody, as a pipe would have us do."""
    if path.is_file():
        return path.stat().st_size
    if path.exists():
        raise CheckpointError(f"{path} is no regular file; {_COPY_AGAIN}")
    raise CheckpointError(f"{path} is missing; expected a folder written by save_pretrained")


def list_weights(folder: Path) -> list[Path]:
    """The weight files of a folder: one, or the shards that an index names.

    Raises:
        CheckpointError: There are none, an index has another form or names files that are missing or outside.
    """
    for pattern, name in _WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.exists():
            return _read_index(index)
        found = sorted(folder.glob(pattern))
        if found:
            for path in found:
                _check_regular(path)
            return [folder / name] if folder / name in found else found
    raise CheckpointError(f"{folder} holds no weights: expected model.safetensors or its shards with their index")


def _read_index(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: expected an object weight_map of weights and the files that hold them")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if not _is_inside(index.parent, name)]
    if outside:
        raise CheckpointError(f"{index} names files outside of its folder: {', '.join(outside)}; {_COPY_AGAIN}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(
            f"{index.parent}: {index.name} lists shards that are not there: {missing or 'none'}; {_COPY_AGAIN}"
        )
    return [index.parent / name for name in names]


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a file lies in the folder, or where the hub's cache keeps the files of the folder's repository."""
    if Path(name).name != name or "\0" in name:
        return False
    place = Path(os.path.realpath(folder / name))  # takes links that lead in circles, which `resolve` does not
    folder = folder.resolve()
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    return place.parent in (folder, blobs)


def check_size(config: PreTrainedConfig, weights: Sequence[Path]) -> None:
    """Compare a config with the weight files, from their headers.

    Args:
        config: Of a chat model, a vision tower or a decoder.
        weights: Its weight files.

    Raises:
        CheckpointError: A header is broken, or the config describes many more parameters than the files hold.
    """
    num_needed = count_least_parameters(config)
    num_held = sum(_count_held(path) for path in weights)
    # Where fewer are missing, loading is cheap and lists them by name.
    if num_needed > 2 * num_held:
        raise CheckpointError(
            f"config.json in {weights[0].parent} describes a model of at least {num_needed} parameters, the weight "
            f"files hold {num_held} at most; {_COPY_AGAIN}"
        )


def count_least_parameters(config: PreTrainedConfig) -> int:
    """A lower bound for the parameters of a model: its embeddings and the large matrices of its layers."""
    parts = [part for name in ("vision_config", "llm_config") if (part := getattr(config, name, None)) is not None]
    if parts:
        return sum(map(count_least_parameters, parts))

    def size(name: str) -> int:
        value = getattr(config, name, 0)
        return value if isinstance(value, int) else 0

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    head_dim = size("head_dim") or hidden // max(heads, 1)
    attention = hidden * head_dim * (2 * heads + 2 * size("num_key_value_heads"))
    patches = (size("image_size") // max(size("patch_size"), 1)) ** 2 + size("num_channels") * size("patch_size") ** 2
    embeddings = (size("vocab_size") + patches) * hidden
    return embeddings + size("num_hidden_layers") * (attention + 2 * hidden * size("intermediate_size"))


def _count_held(path: Path) -> int:
    """Parameters in a file: from the header of safetensors; of others no more than there are bytes."""
    size = _check_regular(path)
    if path.suffix != ".safetensors":
        return size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"its header has {length} bytes, the file {size}")
            header = json.loads(file.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in tensors), default=0)
        if 8 + length + end != size:
            raise ValueError(f"its header tells of {8 + length + end} bytes, the file has {size}")
        sizes = [(math.prod(entry["shape"]), entry["data_offsets"]) for entry in tensors]
        return sum(min(length, stop - start) for length, (start, stop) in sizes)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error!r}; {_COPY_AGAIN}") from error
