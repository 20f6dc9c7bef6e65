"""Convert between InternVL2 checkpoints and transformers' own `InternVLForConditionalGeneration`.

    python -m internvl.tools.export_native work_dirs/run work_dirs/native
    python -m internvl.tools.export_native work_dirs/native work_dirs/again --back

Decoders that transformers has no native model for are rewritten where that is exact: InternLM2 is a Llama whose query,
key and value rows lie in one matrix. V2PE cannot be expressed in the native model, so the export has ordinary
positions; its settings travel along, so that `--back` finds them.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedModel

from internvl.command import command
from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMG_CONTEXT_TOKEN
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.model.scaling import read_logn_scaling
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer
from internvl.parser import CommandParser
from internvl.tools.conversion import convert_folder
from internvl.tools.native_config import build_chat_config, build_native_config, check_exportable
from internvl.tools.native_processor import list_end_tokens, write_processor
from internvl.tools.native_weights import from_native_state, to_native_state

logger = logging.getLogger(__name__)


def export_checkpoint(checkpoint: Path, out: Path, *, max_shard_size: str = "5GB") -> None:
    """Write an `InternVLChatModel` folder as an `InternVLForConditionalGeneration` folder.

    Logits at `default` positions stay the same, with one exception: beyond `max_position_embeddings` transformers
    changes the base of dynamic NTK while it decodes, and has one base for a whole batch (a warning says so).

    Args:
        checkpoint: Folder to convert.
        out: Folder to make.
        max_shard_size: Largest weight file.

    Raises:
        CheckpointError: `checkpoint` is missing, or its weights do not fit its config.
        ConfigError: transformers' model computes something else, or `out` holds files.
    """
    with convert_folder(checkpoint, out, model_type=InternVLChatConfig.model_type) as folder:
        config = read_chat_config(checkpoint)
        check_exportable(config)
        model = load_strictly(InternVLChatModel, checkpoint, config=config)
        is_tied = _is_tied(model)
        native_config = build_native_config(
            config, image_token_id=_find_image_token(model, checkpoint), tie_word_embeddings=is_tied
        )
        state = to_native_state(model.state_dict(), config)
        if is_tied:
            del state["lm_head.weight"]
        native = load_strictly(InternVLForConditionalGeneration, checkpoint, config=native_config, state=state)
        _add_processor(native, checkpoint, folder, config)
        native.save_pretrained(folder, max_shard_size=max_shard_size)
    _report_positions(config)


def import_checkpoint(native: Path, out: Path, *, template: str | None = None, max_shard_size: str = "5GB") -> None:
    """Write an `InternVLForConditionalGeneration` folder as an `InternVLChatModel` folder.

    An InternLM2 that was exported as Llama comes back as InternVL with a Llama decoder, which computes the same.

    Args:
        native: Folder to convert.
        out: Folder to make.
        template: Conversation template; None: the one that the export left in the config.
        max_shard_size: Largest weight file.

    Raises:
        CheckpointError: `native` is missing or of another kind, or its weights do not fit its config.
        ConfigError: Our model computes something else, no template is known, or `out` holds files.
    """
    with convert_folder(native, out, model_type=InternVLConfig.model_type) as folder:
        native_config = InternVLConfig.from_pretrained(native)
        config = build_chat_config(native_config, template=template)
        model = load_strictly(InternVLForConditionalGeneration, native, config=native_config)
        state = from_native_state(model.state_dict())
        # What the loaded model does counts: the flag defaults to True and is ignored when both weights are there.
        config.tie_word_embeddings = config.llm_config.tie_word_embeddings = _is_tied(model)
        if config.tie_word_embeddings:
            del state["language_model.lm_head.weight"]
        load_strictly(InternVLChatModel, native, config=config, state=state).save_pretrained(
            folder, max_shard_size=max_shard_size
        )


def _add_processor(native: PreTrainedModel, checkpoint: Path, folder: Path, config: InternVLChatConfig) -> None:
    """Write what AutoProcessor needs, and let generation end where an answer does."""
    try:
        tokenizer = load_tokenizer(checkpoint)
        if isinstance(tokenizer, InternLM2Tokenizer):
            tokenizer.add_image_tokens(config.llm_config.vocab_size)
        write_processor(folder, config, tokenizer)
    except (CheckpointError, ConfigError) as error:
        logger.warning("the export has no processor, and AutoProcessor will not load it: %s", error)
        return
    assert native.generation_config is not None
    native.generation_config.eos_token_id = list_end_tokens(config, tokenizer)
    native.generation_config.pad_token_id = tokenizer.pad_token_id


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _find_image_token(model: InternVLChatModel, checkpoint: Path) -> int:
    if model.img_context_token_id is not None:
        return model.img_context_token_id
    tokenizer = load_tokenizer(checkpoint)
    if IMG_CONTEXT_TOKEN not in tokenizer.get_vocab():
        raise CheckpointError(
            f"config.json of {checkpoint} has no img_context_token_id and its tokenizer does not know "
            f"{IMG_CONTEXT_TOKEN}; is it an InternVL2 model?"
        )
    return tokenizer.get_vocab()[IMG_CONTEXT_TOKEN]


def _report_positions(config: InternVLChatConfig) -> None:
    trained = f" (the checkpoint says {config.rope_pos_id_version})" if config.rope_pos_id_version != "default" else ""
    logger.warning("the export has plain positions: transformers' InternVL has no others%s", trained)
    llm = config.llm_config
    if read_logn_scaling(llm) is not None:
        logger.warning("the export is without log-n scaling of queries: transformers' InternVL cannot express it")
    rope = getattr(llm, "rope_scaling", None) or getattr(llm, "rope_parameters", None) or {}
    if "dynamic" in (rope.get("type"), rope.get("rope_type")):
        logger.warning(
            "beyond %d tokens transformers changes the rotary base while it decodes and shares one base in a batch; "
            "answers there can differ from this project's",
            llm.max_position_embeddings,
        )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m internvl.tools.export_native",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder to convert")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; must be missing or empty")
    parser.add_argument("--back", action="store_true", help="from transformers' layout to InternVL2's")
    parser.add_argument("--template", help="with --back: conversation template (default: what the export recorded)")
    parser.add_argument("--max_shard_size", default="5GB", help="largest weight file (default: %(default)s)")
    return parser


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    checkpoint, out, max_shard_size = arguments.checkpoint, arguments.out, arguments.max_shard_size
    if arguments.back:
        import_checkpoint(checkpoint, out, template=arguments.template, max_shard_size=max_shard_size)
    elif arguments.template:
        raise ConfigError("--template goes with --back only; the native layout has no place for it")
    else:
        export_checkpoint(checkpoint, out, max_shard_size=max_shard_size)
    logger.info("%s: written", out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
