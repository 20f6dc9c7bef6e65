"""Convert between InternVL2 checkpoints and transformers' own `InternVLForConditionalGeneration`.

    python -m internvl.tools.export_native work_dirs/run work_dirs/native
    python -m internvl.tools.export_native work_dirs/native work_dirs/again --back

Weights are renamed and fused matrices are cut, so nothing is rounded. Decoders that transformers has no native model
for are rewritten where that is exact: InternLM2 is a Llama whose query, key and value rows lie in one matrix.

    InternVLChatModel                             InternVLForConditionalGeneration
    vision_model.encoder.layers.0.attn.qkv        model.vision_tower.encoder.layer.0.attention.{q,k,v}_proj
    vision_model.encoder.layers.0.ls1             model.vision_tower.encoder.layer.0.lambda_1
    mlp1.{0,1,3}                                  model.multi_modal_projector.{layer_norm,linear_1,linear_2}
    language_model.model.*                        model.language_model.*
    language_model.lm_head                        lm_head
    ...layers.0.attention.wqkv (InternLM2)        ...layers.0.self_attn.{q,k,v}_proj

The native model has ordinary positions only: V2PE cannot be expressed there. What belongs to chatting and to V2PE
(template, tiling, stride) travels in the field `internvl_chat` of the native config.json, so that `--back` finds it.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from internvl.errors import CheckpointError, ConfigError, InternVLError
from internvl.model.configuration_internvl_chat import InternLM2Config, InternVLChatConfig
from internvl.model.constants import IMG_CONTEXT_TOKEN
from internvl.model.conversation import get_conversation
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.model.scaling import read_logn_scaling
from internvl.tools.conversion import convert_folder

logger = logging.getLogger(__name__)

# Names by their beginnings, the first match counts; `#` is the number of a layer.
_VISION_LAYER, _NATIVE_VISION_LAYER = "vision_model.encoder.layers.#.", "model.vision_tower.encoder.layer.#."
_NAMES = (
    ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (_VISION_LAYER + "ls1", _NATIVE_VISION_LAYER + "lambda_1"),
    (_VISION_LAYER + "ls2", _NATIVE_VISION_LAYER + "lambda_2"),
    (_VISION_LAYER + "attn.proj.", _NATIVE_VISION_LAYER + "attention.projection_layer."),
    (_VISION_LAYER + "attn.", _NATIVE_VISION_LAYER + "attention."),
    (_VISION_LAYER + "norm1.", _NATIVE_VISION_LAYER + "layernorm_before."),
    (_VISION_LAYER + "norm2.", _NATIVE_VISION_LAYER + "layernorm_after."),
    (_VISION_LAYER + "mlp.", _NATIVE_VISION_LAYER + "mlp."),
    ("mlp1.0.", "model.multi_modal_projector.layer_norm."),
    ("mlp1.1.", "model.multi_modal_projector.linear_1."),
    ("mlp1.3.", "model.multi_modal_projector.linear_2."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
_LLAMA_NAMES_OF_INTERNLM2 = (
    ("tok_embeddings.", "embed_tokens."),
    ("attention.wo.", "self_attn.o_proj."),
    ("feed_forward.w1.", "mlp.gate_proj."),
    ("feed_forward.w2.", "mlp.down_proj."),
    ("feed_forward.w3.", "mlp.up_proj."),
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("language_model.output.", "language_model.lm_head."),
)
# Fields of the chat config that the native config has no place for.
_CHAT_FIELDS = (
    "template",
    "pad2square",
    "dynamic_image_size",
    "use_thumbnail",
    "dynamic_max_patch",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "min_num_frame",
    "max_num_frame",
    "force_image_size",
    "rope_pos_id_version",
    "rope_pos_id_stride",
    "rope_pos_id_random_strides",
)
# Tiling of released InternVL2 checkpoints, for native checkpoints that say nothing about it.
_RELEASED_TILING = {"dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 12}
_NATIVE_QK_NORM_EPS = 1e-6
_DECODERS = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


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
        CheckpointError: `native` is missing, is no such folder, or its weights do not fit its config.
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


# -------------------------------------------------------------------------------------------------------------- configs


def check_exportable(config: InternVLChatConfig) -> None:
    """Refuse what transformers' model computes differently.

    Raises:
        ConfigError: Which field, and why.
    """
    if config.ps_version != "v2":
        raise ConfigError(
            f"ps_version is {config.ps_version!r}: its visual tokens are in transposed order, and transformers' model "
            "has row order (v2) only; no rewriting of weights changes that"
        )
    vision = config.vision_config
    if vision.qk_normalization and vision.layer_norm_eps != _NATIVE_QK_NORM_EPS:
        raise ConfigError(
            f"vision_config.layer_norm_eps is {vision.layer_norm_eps} with qk_normalization: transformers' model "
            f"normalises queries and keys with {_NATIVE_QK_NORM_EPS} whatever the config says"
        )
    text = config.llm_config
    if text.model_type == "phi3" and text.rope_parameters["rope_type"] not in ("default", "longrope"):
        raise ConfigError(
            f"llm_config.rope_parameters: transformers' Phi3 takes no {text.rope_parameters['rope_type']}; "
            "expected default or longrope"
        )
    if int(1 / config.downsample_ratio) != round(1 / config.downsample_ratio):
        raise ConfigError(
            f"downsample_ratio is {config.downsample_ratio}: transformers' projector is "
            f"{int(1 / config.downsample_ratio)} patches a side wide, ours {round(1 / config.downsample_ratio)}; "
            "expected 1 / whole number"
        )


def build_native_config(
    config: InternVLChatConfig, *, image_token_id: int, tie_word_embeddings: bool
) -> InternVLConfig:
    """The native config of a chat model."""
    vision = config.vision_config
    text = _llama_config(config.llm_config) if isinstance(config.llm_config, InternLM2Config) else config.llm_config
    chat: dict[str, Any] = {"internvl_chat": {name: getattr(config, name) for name in _CHAT_FIELDS}}
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            attention_bias=vision.qkv_bias,
            use_qk_norm=vision.qk_normalization,
            intermediate_size=vision.intermediate_size,
            hidden_act=vision.hidden_act,
            attention_dropout=vision.attention_dropout,
            initializer_range=vision.initializer_range,
            norm_type=vision.norm_type,
            layer_norm_eps=vision.layer_norm_eps,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            num_channels=vision.num_channels,
            layer_scale_init_value=vision.initializer_factor,
        ),
        text_config={
            **_portable_fields(text),
            "model_type": text.model_type,
            "tie_word_embeddings": tie_word_embeddings,
        },
        image_token_id=image_token_id,
        image_seq_length=config.num_image_token,
        downsample_ratio=config.downsample_ratio,
        vision_feature_layer=config.select_layer,
        tie_word_embeddings=tie_word_embeddings,
        **chat,
    )


def build_chat_config(native: InternVLConfig, *, template: str | None = None) -> InternVLChatConfig:
    """The chat config of a native model.

    Raises:
        ConfigError: Our model computes something else, or no template is known.
    """
    _check_importable(native)
    vision: Any = native.vision_config
    text: Any = native.text_config
    chat = dict(getattr(native, "internvl_chat", None) or _RELEASED_TILING)
    chat["template"] = template or chat.get("template")
    if chat["template"] is None:
        raise ConfigError("the native config names no conversation template; add --template, for example internvl2_5")
    get_conversation(chat["template"])
    chat.setdefault("force_image_size", vision.image_size[0])
    return InternVLChatConfig(
        vision_config={
            "architectures": ["InternVisionModel"],
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "qkv_bias": vision.attention_bias,
            "qk_normalization": vision.use_qk_norm,
            "intermediate_size": vision.intermediate_size,
            "hidden_act": vision.hidden_act,
            "attention_dropout": vision.attention_dropout,
            "initializer_range": vision.initializer_range,
            "norm_type": vision.norm_type,
            "layer_norm_eps": vision.layer_norm_eps,
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "num_channels": vision.num_channels,
            "initializer_factor": vision.layer_scale_init_value,
        },
        llm_config={
            **_portable_fields(text),
            "architectures": [_DECODERS[text.model_type]],
        },
        architectures=["InternVLChatModel"],
        select_layer=cast(int, native.vision_feature_layer),
        downsample_ratio=native.downsample_ratio,
        ps_version="v2",
        img_context_token_id=native.image_token_id,
        **chat,
    )


def _check_importable(native: InternVLConfig) -> None:
    vision: Any = native.vision_config
    text: Any = native.text_config
    expected = {
        "vision_config.use_mask_token": (vision.use_mask_token, False),
        "vision_config.use_mean_pooling": (vision.use_mean_pooling, True),
        "vision_config.use_absolute_position_embeddings": (vision.use_absolute_position_embeddings, True),
        "vision_feature_select_strategy": (native.vision_feature_select_strategy, "default"),
        "projector_hidden_act": (native.projector_hidden_act, "gelu"),
    }
    for name, (value, wanted) in expected.items():
        if value != wanted:
            raise ConfigError(f"{name} is {value!r}; InternVL2's own layout can only express {wanted!r}")
    if isinstance(native.vision_feature_layer, (list, tuple)):
        raise ConfigError(f"vision_feature_layer is {native.vision_feature_layer}; expected one number")
    for name, (height, width) in (("image_size", vision.image_size), ("patch_size", vision.patch_size)):
        if height != width:
            raise ConfigError(f"vision_config.{name} is {height} x {width}; expected a square")
    if vision.use_qk_norm and vision.layer_norm_eps != _NATIVE_QK_NORM_EPS:
        raise ConfigError(
            f"vision_config.layer_norm_eps is {vision.layer_norm_eps} with use_qk_norm: transformers' model normalises "
            f"queries and keys with {_NATIVE_QK_NORM_EPS}, ours with layer_norm_eps"
        )
    if text.model_type not in _DECODERS:
        raise ConfigError(f"text_config.model_type is {text.model_type!r}; supported: {', '.join(_DECODERS)}")


def _portable_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Fields of a decoder's config without those that name code or a save."""
    dropped = ("architectures", "auto_map", "_name_or_path", "transformers_version", "model_type")
    return {name: value for name, value in config.to_dict().items() if name not in dropped}


def _llama_config(config: InternLM2Config) -> LlamaConfig:
    """The Llama that computes what an InternLM2 computes."""
    scaling = config.rope_scaling or {"type": "default"}
    rope = {"rope_theta": float(config.rope_theta), "rope_type": scaling["type"]}
    rope |= {name: scaling[name] for name in ("factor", "original_max_position_embeddings") if name in scaling}
    reach: dict[str, Any] = {"scale_v2pe": True} if scaling.get("scale_v2pe") else {}
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        initializer_range=config.initializer_range,
        rms_norm_eps=config.rms_norm_eps,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        attention_bias=config.bias,
        rope_parameters=rope,
        **reach,
    )


# -------------------------------------------------------------------------------------------------------------- weights


def to_native_state(state: Mapping[str, Tensor], config: InternVLChatConfig) -> dict[str, Tensor]:
    """Weights of a chat model under the native names.

    Raises:
        CheckpointError: A weight that no rule covers.
    """
    state = _cut_vision_attention(state)
    if isinstance(config.llm_config, InternLM2Config):
        state = _write_as_llama(state, config.llm_config)
    return {_rename(key, _NAMES): weight for key, weight in state.items()}


def from_native_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a native model under the names of a chat model; the inverse of `to_native_state`, but for InternLM2.

    Raises:
        CheckpointError: A weight that no rule covers.
    """
    names = tuple((new, old) for old, new in _NAMES)
    renamed = {_rename(key, names): weight for key, weight in state.items()}
    fused: dict[str, Tensor] = {}
    for key, weight in renamed.items():
        kind = re.search(r"^vision_model\..*\.attn\.([qkv])_proj\.", key)
        if kind is None:
            fused[key] = weight
        elif kind[1] == "q":
            parts = [renamed[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            fused[key.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    return fused


def split_wqkv(fused: Tensor, *, num_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """InternLM2's fused matrix (or bias) as query, key and value.

    Rows: one group per key/value head, with its query heads, then the key head, then the value head.

        ((g n d), ...) -> (g (n-2) d, ...), (g d, ...), (g d, ...)
    """
    groups = rearrange(fused, "(g n d) ... -> g n d ...", g=num_kv_heads, d=head_dim)
    query = rearrange(groups[:, :-2], "g n d ... -> (g n d) ...")
    return query, groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)


def _cut_vision_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cut: dict[str, Tensor] = {}
    for key, weight in state.items():
        if ".attn.qkv." in key:
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                cut[key.replace(".qkv.", f".{letter}_proj.")] = part
        else:
            cut[key] = weight
    return cut


def _write_as_llama(state: Mapping[str, Tensor], config: InternLM2Config) -> dict[str, Tensor]:
    head_dim = config.hidden_size // config.num_attention_heads
    llama: dict[str, Tensor] = {}
    for key, weight in state.items():
        if not key.startswith("language_model."):
            llama[key] = weight
        elif ".attention.wqkv." in key:
            parts = split_wqkv(weight, num_kv_heads=config.num_key_value_heads, head_dim=head_dim)
            for letter, part in zip("qkv", parts, strict=True):
                llama[key.replace(".attention.wqkv.", f".self_attn.{letter}_proj.")] = part
        else:
            for old, new in _LLAMA_NAMES_OF_INTERNLM2:
                key = key.replace(old, new)
            llama[key] = weight
    return llama


def _rename(key: str, names: Sequence[tuple[str, str]]) -> str:
    layer = re.search(r"\blayers?\.(\d+)\.", key)
    general = re.sub(r"\b(layers?)\.\d+\.", r"\1.#.", key, count=1)
    for old, new in names:
        if general.startswith(old):
            return (new + general[len(old) :]).replace("#", layer[1] if layer else "#")
    raise CheckpointError(f"weight {key} has no counterpart in the other layout; is this an InternVL checkpoint?")


# ---------------------------------------------------------------------------------------------------------- the command


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
    logger.warning("the export has plain positions: transformers' InternVL cannot express V2PE%s", trained)
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
    parser = argparse.ArgumentParser(
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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    checkpoint, out, max_shard_size = arguments.checkpoint, arguments.out, arguments.max_shard_size
    try:
        if arguments.back:
            import_checkpoint(checkpoint, out, template=arguments.template, max_shard_size=max_shard_size)
        elif arguments.template:
            raise ConfigError("--template goes with --back only; the native layout has no place for it")
        else:
            export_checkpoint(checkpoint, out, max_shard_size=max_shard_size)
    except InternVLError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    logger.info("%s: written", out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
