"""Checkpoint folders: completeness check, fingerprint, loading.

The checks read a few kilobytes, so that a wrong path costs no time. The fingerprint says whether two evaluations were
made with the same weights, without reading gigabytes.
"""

import hashlib
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from internvl.errors import CheckpointError
from internvl.infer.settings import InferenceSettings
from internvl.model.checkpoint_folder import check_files, find_checkpoint, read_json
from internvl.model.constants import IMG_CONTEXT_TOKEN
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.model.scaling import apply_rope_scaling, choose_logn_scaling
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer

_CONTENT_PATTERNS = ("config.json", "tokenizer*", "*tokens*.json", "*.safetensors", "pytorch_model*.bin")
_WHOLE_FILE_BYTES = 64 * 2**20
_NUM_BLOCKS, _BLOCK_BYTES = 256, 64 * 2**10


def check_checkpoint(folder: str | Path) -> dict[str, object]:
    """Check that a folder, or the hub's cache under that id, holds a complete checkpoint.

    Returns:
        Its config.json.

    Raises:
        CheckpointError: Folder, config, tokenizer or weights are missing or broken.
    """
    folder = find_checkpoint(folder)
    check_files(folder)
    return read_json(folder / "config.json")


def fingerprint_checkpoint(folder: str | Path) -> str:
    """Hash config, tokenizer and weights; the folder's name and place do not matter.

    Files up to 64 MiB count whole, larger ones by their size and 256 blocks of 64 KiB spread evenly over them.
    """
    folder = find_checkpoint(folder)
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _CONTENT_PATTERNS for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(file.read())
                continue
            for block in range(_NUM_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * block // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]


def load_checkpoint(
    folder: str | Path, settings: InferenceSettings
) -> tuple[InternVLChatModel, PreTrainedTokenizerBase]:
    """Load model (in evaluation mode) and tokenizer.

    Args:
        settings: Device, dtype and scalings; scalings that are set replace those of the checkpoint's config.

    Raises:
        CheckpointError: Files are missing or broken, weights do not fit the config, or the tokenizer does not know
            the image tokens.
        ConfigError: The model is of an unknown kind, or cannot take the scaling.
    """
    settings = settings.on_device()
    config = read_chat_config(folder)
    if settings.rope_scaling is not None:
        apply_rope_scaling(config.llm_config, settings.rope_scaling)
    choose_logn_scaling(config.llm_config, settings.logn_scaling)
    tokenizer = load_tokenizer(folder)
    if isinstance(tokenizer, InternLM2Tokenizer):
        tokenizer.add_image_tokens(config.llm_config.vocab_size)
    image_token_id = cast(int, tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN))
    if image_token_id is None or image_token_id == tokenizer.unk_token_id:
        raise CheckpointError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens without {IMG_CONTEXT_TOKEN}, expected those of an "
            f"InternVL2 model with {config.llm_config.vocab_size}; copy tokenizer_config.json and added_tokens.json of "
            "the release into the folder"
        )
    dtype = getattr(torch, str(settings.dtype))
    model: InternVLChatModel = load_strictly(InternVLChatModel, folder, config=config, dtype=dtype)
    model.img_context_token_id = image_token_id
    model.to(torch.device(str(settings.device)))  # type: ignore[arg-type]  # transformers wraps `to` without its types
    return model, tokenizer
