"""Prepare a checkpoint for vLLM with the plug-in of integrations/vllm, which serves it with V2PE positions.

    python -m internvl.tools.export_vllm work_dirs/run work_dirs/served --rope_pos_id_stride 16
    vllm serve work_dirs/served

Weights stay as they are: the export holds further names of the same files, or copies on another disk. What it adds is a
config.json with all that the plug-in needs, positions and rotary frequencies included, and a tokenizer that needs no
code. Frequencies come from internvl/model/rotary.py, so that every scaling means the same there as here.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from internvl.command import command
from internvl.errors import ConfigError
from internvl.infer.flags import add_flags, from_arguments
from internvl.infer.settings import InferenceSettings
from internvl.model import positions
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from internvl.model.conversation import get_conversation
from internvl.model.language_models import check_architecture, check_window
from internvl.model.loading import read_chat_config
from internvl.model.positions import has_axes
from internvl.model.registration import load_tokenizer
from internvl.model.rotary import find_frequencies, scaling_in_use, unscaled_length
from internvl.model.scaling import apply_rope_scaling, read_logn_scaling, read_scaling_entry
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer, write_chat_template
from internvl.model.v2pe import stride_to_units
from internvl.parser import CommandParser
from internvl.tools.conversion import convert_folder, link_weights
from internvl.tools.native_processor import list_end_tokens, to_portable_tokenizer

logger = logging.getLogger(__name__)

# Names that the plug-in registers (integrations/vllm/v2pe_vllm/__init__.py).
ARCHITECTURE, MODEL_TYPE = "V2PEInternVLChatModel", "v2pe_internvl_chat"
# Where the plug-in puts visual tokens (integrations/vllm/v2pe_vllm/processor.py).
_IMAGE = f"{IMG_START_TOKEN}{IMG_CONTEXT_TOKEN}{IMG_END_TOKEN}"
_VIDEO = f"Frame1: {IMG_START_TOKEN}{IMG_END_TOKEN}"
# Settings that a server has for good; others belong to a request, or to vLLM.
_FLAGS = ("rope_pos_id_version", "rope_pos_id_stride", "rope_scaling", "max_num")
# What vLLM's InternVL does with pictures and features, and this project can do in other ways.
_SERVED = {"pad2square": False, "normalize_type": "imagenet", "downsample_ratio": 0.5, "select_layer": -1}


def export_checkpoint(
    checkpoint: Path, out: Path, *, settings: InferenceSettings | None = None, max_model_len: int | None = None
) -> None:
    """Write a folder that `vllm serve` takes, once the plug-in is installed.

    Args:
        checkpoint: An `InternVLChatModel` folder.
        out: Folder to make.
        settings: Positions, scaling and tiles to serve (other fields mean nothing here); None: the checkpoint's own.
        max_model_len: Most tokens of a request, prompt and answer; None: what the checkpoint's config says.

    Raises:
        CheckpointError: `checkpoint` is missing or incomplete.
        ConfigError: vLLM or the plug-in cannot serve it, the positions are not fixed, or `out` holds files.
    """
    with convert_folder(checkpoint, out, model_type=InternVLChatConfig.model_type) as folder:
        config, settings = read_chat_config(checkpoint), settings or InferenceSettings()
        if settings.rope_scaling is not None:
            apply_rope_scaling(config.llm_config, settings.rope_scaling)
        served = choose_positions(config, settings)
        fields = build_served_config(config, served, max_model_len=max_model_len)
        tokenizer = load_tokenizer(checkpoint)
        if isinstance(tokenizer, InternLM2Tokenizer):
            tokenizer.add_image_tokens(config.llm_config.vocab_size)
        tokenizer = to_portable_tokenizer(tokenizer)
        # vLLM turns rendered chats into ids without the tokens that a tokenizer puts in front.
        tokenizer.chat_template = write_chat_template(
            get_conversation(config.template or "internlm2-chat"),
            image=_IMAGE,
            video=_VIDEO,
            opening=str(tokenizer.decode(tokenizer("")["input_ids"])),
        )
        tokenizer.save_pretrained(folder)
        has_defaults = (checkpoint / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(checkpoint) if has_defaults else GenerationConfig()
        generation.eos_token_id = list_end_tokens(config, tokenizer)
        generation.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        link_weights(checkpoint, folder)
    logger.info(
        "%s: rope_pos_id_version %s, rope_pos_id_stride %s, at most %d tokens",
        out,
        fields["rope_pos_id_version"],
        fields["rope_pos_id_stride"],
        fields["text_config"]["max_position_embeddings"],
    )


def choose_positions(config: InternVLChatConfig, settings: InferenceSettings) -> InferenceSettings:
    """The positions to serve, as `InferenceSettings.for_checkpoint` decides, but never a version that is not asked for.

    Raises:
        ConfigError: The checkpoint was trained with random strides, and neither it nor `settings` has one to serve;
            the version is on several axes; or the stride is not a multiple of 1/65536.
    """
    version, stride = positions.choose_positions(
        settings.rope_pos_id_version, settings.rope_pos_id_stride, config.rope_pos_id_version, config.rope_pos_id_stride
    )
    if version == "v2pe_rnd":
        if stride is None:
            raise ConfigError(
                "rope_pos_id_version is v2pe_rnd, whose strides are drawn in training only; add --rope_pos_id_stride "
                "(such as 64) or --rope_pos_id_version default"
            )
        version = "v2pe_fix"
    if has_axes(version):
        raise ConfigError(
            f"rope_pos_id_version {version} is on several axes, which the plug-in for vLLM does not place; serve it "
            "with `v2pe serve`, or add --rope_pos_id_version default or v2pe_fix"
        )
    served = replace(settings, rope_pos_id_version=version).for_checkpoint(config)
    if version == "default":
        return replace(served, rope_pos_id_stride=config.num_image_token)
    assert served.rope_pos_id_stride is not None  # checked by `for_checkpoint`
    stride_to_units(served.rope_pos_id_stride)
    return served


def build_served_config(
    config: InternVLChatConfig, served: InferenceSettings, *, max_model_len: int | None = None
) -> dict[str, Any]:
    """The fields of the export's config.json.

    Beside the checkpoint's own these are `rope_frequencies` (one per rotated pair) and `rope_table_scale`, both with
    any scaling included, and `mrope_section`, at which vLLM lets the model make its positions. The decoder's own
    scaling is gone, and its `max_position_embeddings` is the most tokens of a request.

    Args:
        config: Of the checkpoint.
        served: From `choose_positions`.
        max_model_len: See `export_checkpoint`.

    Raises:
        ConfigError: Something that vLLM or the plug-in computes differently, by its name.
    """
    check_servable(config)
    decoder = config.llm_config
    is_v2pe = served.rope_pos_id_version != "default"
    kind = scaling_in_use(decoder, torch.zeros(1, 1, dtype=torch.float64 if is_v2pe else torch.int64))
    frequencies, table_scale = find_frequencies(decoder, kind)
    limit = unscaled_length(decoder, kind)
    max_model_len = max_model_len or limit or decoder.max_position_embeddings
    if limit is not None and max_model_len > limit:
        raise ConfigError(
            f"--max_model_len is {max_model_len}, expected at most {limit}: rope scaling {kind} changes frequencies "
            "beyond, by the final length of every sequence, which vLLM cannot do"
        )
    return {
        **_portable_fields(config),
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "vision_config": _portable_fields(config.vision_config),
        "text_config": _decoder_fields(decoder) | {"max_position_embeddings": max_model_len},
        "dynamic_image_size": True,  # here `max_dynamic_patch` alone says how pictures are cut
        "max_dynamic_patch": served.max_num,
        "min_dynamic_patch": min(config.min_dynamic_patch, served.max_num or config.max_dynamic_patch),
        "rope_pos_id_version": served.rope_pos_id_version,
        "rope_pos_id_stride": served.rope_pos_id_stride,
        "rope_frequencies": frequencies.tolist(),
        "rope_table_scale": table_scale,
        "mrope_section": [len(frequencies)],
    }


def check_servable(config: InternVLChatConfig) -> None:
    """Refuse what vLLM or the plug-in computes differently.

    Raises:
        ConfigError: Which field, and what is served.
    """
    decoder = config.llm_config
    check_architecture(decoder)
    check_window(decoder)
    for name, value in _SERVED.items():
        if getattr(config, name) != value:
            raise ConfigError(f"{name} is {getattr(config, name)!r}; the plug-in for vLLM serves {value!r} only")
    if config.image_size != config.vision_config.image_size:
        raise ConfigError(
            f"force_image_size is {config.image_size} and vision_config.image_size {config.vision_config.image_size}; "
            "vLLM does not resize position embeddings, so both have to be equal"
        )
    if decoder.model_type == "internlm2" and decoder.bias:
        raise ConfigError("llm_config.bias is true; vLLM's InternLM2 has no biases (released checkpoints have none)")
    if read_logn_scaling(decoder) is not None:
        raise ConfigError(
            f"llm_config.logn_scaling is {read_logn_scaling(decoder)}; vLLM does not scale queries by the number of "
            "their keys. Serve it with python -m internvl.infer.chat, or set the field to null if the model does "
            "without"
        )


def _decoder_fields(decoder: PreTrainedConfig) -> dict[str, Any]:
    """A decoder's config without scaling, which is in the frequencies, and without a window, which is not used."""
    entry, fields = read_scaling_entry(decoder), _portable_fields(decoder)
    theta = entry.get("rope_theta") or decoder.rope_theta
    part = {"partial_rotary_factor": entry["partial_rotary_factor"]} if "partial_rotary_factor" in entry else {}
    for name in ("rope_scaling", "rope_theta", "scale_v2pe", "original_max_position_embeddings", "sliding_window"):
        fields.pop(name, None)
    return {
        **fields,
        "architectures": decoder.architectures,
        "model_type": decoder.model_type,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, **part},
    }


def _portable_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Fields of a config without those that name code, a save, or a part that has an entry of its own."""
    dropped = ("auto_map", "_name_or_path", "transformers_version", "llm_config", "vision_config")
    return {name: value for name, value in config.to_dict().items() if name not in dropped}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m internvl.tools.export_vllm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder to serve")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; must be missing or empty")
    add_flags(parser, InferenceSettings, only=_FLAGS)
    parser.add_argument("--max_model_len", type=int, metavar="TOKENS",
                        help="most tokens of a request, prompt and answer (default: the checkpoint's "
                             "max_position_embeddings, or the length at which its scaling begins)")  # fmt: skip
    return parser


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = from_arguments(InferenceSettings, arguments)
    export_checkpoint(arguments.checkpoint, arguments.out, settings=settings, max_model_len=arguments.max_model_len)
    return 0


if __name__ == "__main__":
    sys.exit(main())
