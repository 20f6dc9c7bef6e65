"""What transformers' AutoProcessor and pipelines need beside a native model: tokenizer, chat template, picture sizes.

    InternLM2's sentencepiece model  ->  tokenizer.json of the same ids; other tokenizers stay as they are
    conversation template            ->  chat_template.jinja, whose contents may be lists of texts and pictures
    tile size, numbers of tiles      ->  processor_config.json, and the flat files that older releases read

Files are written as data: transformers' own processor classes cannot be built without torchvision.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from internvl.errors import ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMAGENET_MEAN, IMAGENET_STD, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from internvl.model.conversation import get_conversation
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer, write_chat_template

logger = logging.getLogger(__name__)

# By the names that InternVLProcessor asks its tokenizer for.
_NAMED_TOKENS: dict[str, str | AddedToken] = {
    "start_image_token": IMG_START_TOKEN,
    "end_image_token": IMG_END_TOKEN,
    "context_image_token": IMG_CONTEXT_TOKEN,
    "video_token": "<video>",  # replaced by frames before the text is tokenized
}
_BICUBIC = 3


def write_processor(folder: Path, config: InternVLChatConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write tokenizer, chat template and processor configs of a native model into its folder.

    Raises:
        ConfigError: transformers has no tokenizer that gives the same ids.
    """
    tokenizer = to_portable_tokenizer(tokenizer)
    others = [token for token in tokenizer.extra_special_tokens if token not in _NAMED_TOKENS.values()]
    tokenizer.add_special_tokens({"extra_special_tokens": others})
    tokenizer._set_model_specific_special_tokens(_NAMED_TOKENS)
    tokenizer.chat_template = write_chat_template(get_conversation(config.template or "internlm2-chat"))
    tokenizer._set_processor_class("InternVLProcessor")
    tokenizer.save_pretrained(folder)
    image, video = describe_images(config), describe_videos(config)
    processor = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": config.num_image_token,
        "image_processor": image,
        "video_processor": video,
    }
    contents = {"processor": processor, "preprocessor": image, "video_preprocessor": video}
    for name, content in contents.items():
        text = json.dumps({"processor_class": "InternVLProcessor"} | content, indent=2, sort_keys=True)
        (folder / f"{name}_config.json").write_text(text + "\n", encoding="utf-8")


def describe_images(config: InternVLChatConfig) -> dict[str, Any]:
    """The fields of the image processor that cuts pictures as `Tiling` does."""
    if not config.use_thumbnail:
        logger.warning("the export adds a thumbnail to pictures of several tiles: transformers always does")
    if config.pad2square:
        logger.warning("the export does not pad pictures to squares: transformers' image processor cannot")
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": min(config.min_dynamic_patch, config.max_dynamic_patch),
        "max_patches": config.max_dynamic_patch,
        **_describe_pixels(config),
    }


def describe_videos(config: InternVLChatConfig) -> dict[str, Any]:
    """The fields of the video processor: every frame that it is given becomes one tile."""
    return {"video_processor_type": "InternVLVideoProcessor", "do_sample_frames": False, **_describe_pixels(config)}


def _describe_pixels(config: InternVLChatConfig) -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": config.image_size, "width": config.image_size},
    }


def to_portable_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that gives the same ids and needs no code beside its files.

    Raises:
        ConfigError: There is none.
    """
    if isinstance(tokenizer, InternLM2Tokenizer):
        tokenizer = to_fast_tokenizer(tokenizer)
    tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def list_end_tokens(config: InternVLChatConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at which an answer ends: the end of the text, and the template's own."""
    stop_token = get_conversation(config.template or "internlm2-chat").stop_token
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(stop_token)]
    return sorted({end for end in ends if end is not None})


def to_fast_tokenizer(slow: InternLM2Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers itself that gives the ids of InternLM2's.

    Raises:
        ConfigError: The sentencepiece model is not BPE.
    """
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(slow.sp_model.serialized_model_proto())
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise ConfigError(f"{slow.vocab_file} is no BPE model, and transformers has no other for it")
    added = slow.added_tokens_decoder
    scores = {str(added.get(number, piece.piece)): piece.score for number, piece in enumerate(proto.pieces)}
    vocabulary = {name: number for number, name in enumerate(scores)}
    unmergeable = {name for name, piece in zip(scores, proto.pieces, strict=True) if piece.type != piece.NORMAL}
    merges = generate_merges(vocabulary, scores, skip_tokens=unmergeable)
    whole = [
        piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED
    ]  # found before others are merged
    backend = Tokenizer(
        BPE(
            vocabulary,
            merges,
            unk_token=slow.unk_token,
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
            ignore_merges=bool(whole),
        )
    )
    spec = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    ends: list[decoders.Decoder] = []
    if spec.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend("▁"))
        ends.append(decoders.Strip(" ", 1, 0))
    if spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(spec.precompiled_charsmap))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    if whole:
        pattern = "|".join(map(re.escape, sorted(whole, key=len, reverse=True)))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.add_special_tokens([added[number] for number in sorted(added)])
    bos = slow.bos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, slow.bos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=slow.eos_token,
        unk_token=slow.unk_token,
        pad_token=slow.pad_token,
        extra_special_tokens=list(slow.extra_special_tokens),
        model_max_length=slow.model_max_length,
        clean_up_tokenization_spaces=False,
    )
