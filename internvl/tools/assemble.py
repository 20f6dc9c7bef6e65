"""Put a chat model together from parts: a language model, a vision tower, a projector.

    python -m internvl.tools.assemble --llm_path pretrained/SmolLM2-135M --template Hermes-2 --out pretrained/Smol-VL

The language model is any folder of a supported decoder (InternLM2, Llama, Qwen2, Qwen3, Phi3). Its tokenizer gets the
nine image and grounding tokens; their embeddings start as the mean of the others. Without --vision_path the tower is
fresh (sizes of InternViT-300M, or of --vision_config), without --mlp_path so is the projector. Text-only answers of the
assembled model are those of the bare language model.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from internvl.atomic import stage_folders
from internvl.command import command
from internvl.errors import CheckpointError, ConfigError
from internvl.folder_owner import own_folder
from internvl.model.configuration_internvl_chat import InternVisionConfig, InternVLChatConfig
from internvl.model.constants import IMG_CONTEXT_TOKEN, SPECIAL_TOKENS
from internvl.model.conversation import get_conversation
from internvl.model.language_models import grow_vocabulary
from internvl.model.loading import load_strictly
from internvl.model.modeling_intern_vit import InternVisionModel
from internvl.model.modeling_internlm2 import InternLM2ForCausalLM
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.parser import CommandParser
from internvl.train.model_loading import load_projector

logger = logging.getLogger(__name__)

# InternViT-300M-448px, the tower of InternVL2 up to 8B.
_DEFAULT_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "initializer_factor": 1.0,
}


@dataclass(frozen=True)
class Parts:
    """What a chat model is put together from."""

    llm_path: Path  # folder of a decoder with its tokenizer
    vision_path: Path | None = None  # folder of an InternViT; None: fresh weights
    vision_config: Mapping[str, object] | None = None  # fields of a fresh tower; None: InternViT-300M
    mlp_path: Path | None = None  # file with a state dict of `mlp1`; None: fresh weights


def assemble(
    parts: Parts,
    *,
    out: Path,
    template: str,
    force_image_size: int | None = None,
    downsample_ratio: float = 0.5,
    seed: int = 0,
) -> InternVLChatModel:
    """Make and save a chat model.

    Args:
        parts: What it is made of.
        out: Folder to make; must be missing or empty.
        template: Conversation template of the decoder.
        force_image_size: Side of a tile in pixels; None: the tower's own.
        downsample_ratio: Side ratio of pixel shuffle.
        seed: Of fresh weights.

    Raises:
        CheckpointError: A part is missing or does not fit.
        ConfigError: Unknown architecture or template, or `out` is not empty.
    """
    get_conversation(template)  # an unknown one is an error before anything is loaded
    _check_empty(out)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(parts.llm_path)
    decoder = _load_decoder(parts.llm_path)
    num_added = tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    decoder_config = decoder.config.to_dict()
    tower = None
    vision_config = InternVisionConfig.from_dict(dict(parts.vision_config or _DEFAULT_VISION))
    if parts.vision_path is not None:
        tower = load_strictly(InternVisionModel, parts.vision_path, dtype=torch.float32, flag="--vision_path")
        vision_config = cast(InternVisionConfig, tower.config)
    config = InternVLChatConfig(
        vision_config=vision_config,
        llm_config={**decoder_config, "architectures": [type(decoder).__name__]},
        template=template,
        force_image_size=force_image_size,
        downsample_ratio=downsample_ratio,
        ps_version="v2",
        dynamic_image_size=True,
        use_thumbnail=True,
        max_dynamic_patch=12,
        dtype=torch.float32,
    )
    model = InternVLChatModel(config)
    state = {key.replace("rotary_emb.", "rotary_emb.native."): value for key, value in decoder.state_dict().items()}
    model.language_model.load_state_dict(state)
    if num_added:
        grow_vocabulary(model.language_model, len(tokenizer), num_added)
    if tower is not None:
        model.vision_model.load_state_dict(tower.state_dict())
    if parts.mlp_path is not None:
        load_projector(model, parts.mlp_path)
    if force_image_size is not None and force_image_size != config.vision_config.image_size:
        model.vision_model.resize_pos_embeddings(force_image_size)
    model.img_context_token_id = cast(int, tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN))
    out = out.absolute()
    with own_folder(out, "assemble"):
        _check_empty(out)
        with stage_folders(out.parent, [Path(out.name)]) as staging:
            model.save_pretrained(staging / out.name)
            tokenizer.save_pretrained(staging / out.name)
    logger.info("%s: %s with %d tokens, T = %d", out, type(decoder).__name__, len(tokenizer), model.num_image_token)
    return model.eval()


def _check_empty(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out} is not empty; choose a new folder")


def _load_decoder(folder: Path) -> PreTrainedModel:
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--llm_path {folder} cannot be loaded: {error}") from error
    architecture = (fields.get("architectures") or [None])[0]
    model_class: Any = InternLM2ForCausalLM if architecture == "InternLM2ForCausalLM" else AutoModelForCausalLM
    decoder: PreTrainedModel = load_strictly(model_class, folder, dtype=torch.float32, flag="--llm_path")
    return decoder


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    parser = CommandParser(
        prog="python -m internvl.tools.assemble",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--llm_path", type=Path, required=True, help="folder of the language model and its tokenizer")
    parser.add_argument("--vision_path", type=Path, help="folder of an InternViT; fresh weights without it")
    parser.add_argument("--vision_config", type=json.loads, help="json object: fields of a fresh tower")
    parser.add_argument("--mlp_path", type=Path, help="state dict of the projector; fresh weights without it")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--template", required=True, help="conversation template, for example Hermes-2")
    parser.add_argument("--force_image_size", type=int, help="side of a tile in pixels")
    parser.add_argument("--downsample_ratio", type=float, default=0.5, help="side ratio of pixel shuffle")
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = vars(parser.parse_args(argv))
    parts = Parts(**{field.name: options.pop(field.name) for field in fields(Parts)})
    assemble(parts, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
