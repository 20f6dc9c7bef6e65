"""Fold the LoRA adapters of a training checkpoint into plain InternVL2 weights.

    python -m internvl.tools.merge_lora work_dirs/run/checkpoint-500 work_dirs/merged

A run's own folder holds merged weights already; its `checkpoint-*` folders keep adapters, which resuming needs. The
result loads like any InternVL2 checkpoint. Adapters saved by the public V2PE and InternVL code, which name weights
`language_model.base_model.model.*`, are taken as well.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from internvl.command import command
from internvl.errors import CheckpointError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parser import CommandParser
from internvl.tools.conversion import convert_folder, read_state_dict
from internvl.train.trainable import merge_lora

logger = logging.getLogger(__name__)

_PEFT_WRAPPER = ".base_model.model."


def merge_checkpoint(checkpoint: Path, out: Path, *, max_shard_size: str = "5GB") -> int:
    """Write the merged model.

    Args:
        checkpoint: Folder with adapters beside the base weights.
        out: Folder to make.
        max_shard_size: Largest weight file.

    Returns:
        Number of linear layers whose adapters were folded in.

    Raises:
        CheckpointError: The folder is missing, has no adapters, or its weights do not fit its config.
        ConfigError: `out` holds files.
    """
    with convert_folder(checkpoint, out, model_type=InternVLChatConfig.model_type) as folder:
        state = {key.replace(_PEFT_WRAPPER, "."): weight for key, weight in read_state_dict(checkpoint).items()}
        num_adapters = sum(".lora_A." in key for key in state)
        if not num_adapters:
            raise CheckpointError(
                f"{checkpoint} holds no LoRA adapters (no weight is named *.lora_A.*): its weights are plain already; "
                "give a checkpoint-* folder of a run with --use_llm_lora or --use_backbone_lora"
            )
        config = read_chat_config(checkpoint)
        config.use_llm_lora = config.use_backbone_lora = 0
        model: InternVLChatModel = load_strictly(InternVLChatModel, checkpoint, config=config, state=merge_lora(state))
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    return num_adapters


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m internvl.tools.merge_lora",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with adapters (checkpoint-*)")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; must be missing or empty")
    parser.add_argument("--max_shard_size", default="5GB", help="largest weight file (default: %(default)s)")
    return parser


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    num_adapters = merge_checkpoint(arguments.checkpoint, arguments.out, max_shard_size=arguments.max_shard_size)
    logger.info("%s: adapters of %d layers folded in", arguments.out, num_adapters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
