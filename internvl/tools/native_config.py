"""The config of a chat model as that of transformers' own InternVL, and back; what either cannot express is refused.

The native model has ordinary positions only: V2PE cannot be expressed there. What belongs to chatting and to V2PE
(template, tiling, stride) travels in the field `internvl_chat` of the native config.
"""

from typing import Any

from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig, PreTrainedConfig

from internvl.errors import ConfigError
from internvl.model.configuration_internvl_chat import InternLM2Config, InternVLChatConfig
from internvl.model.conversation import get_conversation

# Fields of the chat config that the native config has no place for.
_CHAT_FIELDS = (
    "template",
    "pad2square",
    "normalize_type",
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
# Fields of the vision tower: our name, the native one.
_VISION_FIELDS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "norm_type": "norm_type",
    "layer_norm_eps": "layer_norm_eps",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "num_channels",
    "initializer_factor": "layer_scale_init_value",
}
_NATIVE_QK_NORM_EPS = 1e-6
_DECODERS = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


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
    """The native config of a chat model that `check_exportable` lets pass."""
    vision, text = config.vision_config, config.llm_config
    if isinstance(text, InternLM2Config):
        text = _llama_config(text)
    chat: dict[str, Any] = {"internvl_chat": {name: getattr(config, name) for name in _CHAT_FIELDS}}
    return InternVLConfig(
        vision_config={theirs: getattr(vision, ours) for ours, theirs in _VISION_FIELDS.items()},
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

    Args:
        native: The config.
        template: Conversation template; None: the one that an export has left in the config.

    Raises:
        ConfigError: Our model computes something else, or no template is known.
    """
    vision, text = native.vision_config, native.text_config
    assert isinstance(vision, InternVLVisionConfig)
    assert isinstance(text, PreTrainedConfig)
    if isinstance(native.vision_feature_layer, (list, tuple)):
        raise ConfigError(f"vision_feature_layer is {native.vision_feature_layer}; expected one number")
    _check_importable(native, vision, text)
    sides = {name: _read_square(name, getattr(vision, name)) for name in ("image_size", "patch_size")}
    chat = dict(getattr(native, "internvl_chat", None) or _RELEASED_TILING)
    chat["template"] = template or chat.get("template")
    if chat["template"] is None:
        raise ConfigError("the native config names no conversation template; add --template, for example internvl2_5")
    get_conversation(chat["template"])
    chat.setdefault("force_image_size", sides["image_size"])
    return InternVLChatConfig(
        vision_config={
            "architectures": ["InternVisionModel"],
            **{ours: getattr(vision, theirs) for ours, theirs in _VISION_FIELDS.items()},
            **sides,
        },
        llm_config={**_portable_fields(text), "architectures": [_DECODERS[text.model_type]]},
        architectures=["InternVLChatModel"],
        select_layer=native.vision_feature_layer,
        downsample_ratio=native.downsample_ratio,
        ps_version="v2",
        img_context_token_id=native.image_token_id,
        **chat,
    )


def _check_importable(native: InternVLConfig, vision: InternVLVisionConfig, text: PreTrainedConfig) -> None:
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
    if vision.use_qk_norm and vision.layer_norm_eps != _NATIVE_QK_NORM_EPS:
        raise ConfigError(
            f"vision_config.layer_norm_eps is {vision.layer_norm_eps} with use_qk_norm: transformers' model normalises "
            f"queries and keys with {_NATIVE_QK_NORM_EPS}, ours with layer_norm_eps"
        )
    if text.model_type not in _DECODERS:
        raise ConfigError(f"text_config.model_type is {text.model_type!r}; supported: {', '.join(_DECODERS)}")


def _read_square(name: str, size: tuple[int, int]) -> int:
    height, width = size
    if height != width:
        raise ConfigError(f"vision_config.{name} is {height} x {width}; expected a square")
    return height


def _portable_fields(config: PreTrainedConfig) -> dict[str, object]:
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
