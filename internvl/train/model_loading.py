"""Model loading: from a checkpoint folder and flags to the model that a run starts with.

Every process loads the whole model, also under ZeRO-3, which shards it when training starts: so freezing, new tokens,
LoRA and resized position tables need no special case for shards.
"""

import logging
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import PreTrainedTokenizerBase

from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMG_CONTEXT_TOKEN, SPECIAL_TOKENS
from internvl.model.language_models import grow_vocabulary
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.model.scaling import apply_rope_scaling, parse_rope_scaling
from internvl.train.arguments import DataTrainingArguments, ModelArguments

logger = logging.getLogger(__name__)

# What the checkpoint decides where no flag is given, with the values of the released models.
_OF_CHECKPOINT = {"conv_style": "internlm2-chat", "force_image_size": 448, "down_sample_ratio": 0.5}
_RELEASED_PATCH_SIZE = 14  # pixels
_TILING = (
    "pad2square",
    "dynamic_image_size",
    "dynamic_max_patch",
    "use_thumbnail",
    "min_dynamic_patch",
    "max_dynamic_patch",
)


def settle_flags(args: DataTrainingArguments, config: InternVLChatConfig | None) -> list[str]:
    """Give template, tile size and pixel-shuffle ratio those of the checkpoint, where no flag did.

    Without a checkpoint they are those of the released models.

    Returns:
        Flags of template and tiles that differ from the checkpoint's config, such as `force_image_size 448 (56)`.

    Raises:
        ConfigError: The ratio contradicts the checkpoint, or tiles of this size cannot be cut into visual tokens.
    """
    own = dict(_OF_CHECKPOINT)
    if config is not None:
        own |= {"force_image_size": config.image_size, "down_sample_ratio": config.downsample_ratio}
        own |= {"conv_style": config.template} if config.template else {}
        own |= {name: getattr(config, name) for name in _TILING if hasattr(config, name)}
    for name in _OF_CHECKPOINT:
        if getattr(args, name) is None:
            setattr(args, name, own[name])
    # The projector's input width depends on the ratio, so its weights fit this one only.
    if config is not None and args.down_sample_ratio != config.downsample_ratio:
        raise ConfigError(
            f"--down_sample_ratio {args.down_sample_ratio} contradicts the checkpoint's "
            f"downsample_ratio {config.downsample_ratio}; use that"
        )
    count_visual_tokens(args, config)
    return [f"{name} {getattr(args, name)} ({value})" for name, value in own.items() if getattr(args, name) != value]


def count_visual_tokens(args: DataTrainingArguments, config: InternVLChatConfig | None) -> int:
    """T, visual tokens per tile, under settled flags.

    Raises:
        ConfigError: Tiles are not made of whole patches, or patches cannot be joined.
    """
    patch_size = _RELEASED_PATCH_SIZE if config is None else config.vision_config.patch_size
    image_size, ratio = int(args.force_image_size or 0), float(args.down_sample_ratio or 0)
    if image_size % patch_size:
        raise ConfigError(f"--force_image_size {image_size} is not a multiple of the ViT's patch size {patch_size}")
    side = image_size // patch_size * ratio
    if side != int(side):
        raise ConfigError(
            f"--force_image_size {image_size} has {image_size // patch_size} patches per side, which "
            f"--down_sample_ratio {ratio} does not join without a rest; expected a multiple of {patch_size / ratio:g}"
        )
    return int(side) ** 2


def load_training_tokenizer(args: ModelArguments, max_seq_length: int) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer with all image and grounding tokens, and how many of them had to be added."""
    tokenizer = load_tokenizer(args.tokenizer_path or str(args.model_name_or_path))
    tokenizer.model_max_length = max_seq_length
    num_added = tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    return tokenizer, num_added


def load_training_model(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    *,
    tokenizer: PreTrainedTokenizerBase,
    num_added_tokens: int = 0,
    dtype: torch.dtype = torch.float32,
) -> InternVLChatModel:
    """Load the checkpoint and bring it into the shape that the flags ask for; its config says so after training.

    The vocabulary grows by the tokens that `load_training_tokenizer` added.

    Raises:
        CheckpointError: The folder or `mlp_path` does not fit the model.
        ConfigError: Flags contradict the checkpoint.
    """
    folder = str(model_args.model_name_or_path)
    config = read_chat_config(folder)
    if differing := settle_flags(data_args, config):
        logger.info("flags that differ from the checkpoint's config (its value): %s", ", ".join(differing))
    _update_config(config, model_args, data_args)
    model: InternVLChatModel = load_strictly(InternVLChatModel, folder, config=config, dtype=dtype)
    if model_args.mlp_path is not None:
        load_projector(model, Path(model_args.mlp_path))
    _resize_tiles(model, int(data_args.force_image_size or 0))
    if num_added_tokens:
        grow_vocabulary(model.language_model, len(tokenizer), num_added_tokens)
        logger.info("vocabulary: %d tokens, %d of them new", len(tokenizer), num_added_tokens)
    model.img_context_token_id = tokenizer.get_vocab()[IMG_CONTEXT_TOKEN]
    config.img_context_token_id = model.img_context_token_id
    return model


def _update_config(config: InternVLChatConfig, model_args: ModelArguments, data_args: DataTrainingArguments) -> None:
    if model_args.rope_scaling is not None:
        apply_rope_scaling(config.llm_config, parse_rope_scaling(model_args.rope_scaling))
    config.vision_config.drop_path_rate = model_args.drop_path_rate
    config.select_layer = model_args.vision_select_layer
    config.ps_version = model_args.ps_version
    config.template = data_args.conv_style
    for name in (
        *_TILING,
        "normalize_type",
        "min_num_frame",
        "max_num_frame",
        "rope_pos_id_version",
        "rope_pos_id_stride",
        "rope_pos_id_random_strides",
    ):
        setattr(config, name, getattr(data_args, name))


def _resize_tiles(model: InternVLChatModel, image_size: int) -> None:
    if model.config.vision_config.image_size != image_size:
        logger.info("ViT position table: %d -> %d pixels", model.config.vision_config.image_size, image_size)
        model.vision_model.resize_pos_embeddings(image_size)
    model.config.force_image_size = image_size
    model.num_image_token = model.config.num_image_token


def load_projector(model: InternVLChatModel, path: Path) -> None:
    """Load a state dict into the projector `mlp1`; keys may start with `mlp1.`.

    Raises:
        CheckpointError: The file cannot be read or does not fit.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.mlp1.load_state_dict({key.removeprefix("mlp1."): value for key, value in state.items()})
    except (RuntimeError, AttributeError, OSError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"--mlp_path {path} does not hold the projector's weights: {error}") from error
