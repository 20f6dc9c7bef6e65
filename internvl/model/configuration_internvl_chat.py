"""Configs of InternVL2: vision tower, InternLM2 decoder, and the chat model that joins them.

Field names and defaults are those of released InternVL2 checkpoints, so that any of their config.json files loads.
Fields of a run (`chunk_num`, `attn_type`, `group_list`, ...), which older code saved with the model, are dropped.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from transformers import AutoConfig, LlamaConfig, Phi3Config, PretrainedConfig, Qwen2Config, Qwen3Config

from .errors import ConfigError
from .scaling import TRAINED_ROPE_TYPES, check_logn_scaling, read_rope_scaling
from .v2pe import RANDOM_STRIDES, check_version

# Fields of older files that carry no meaning here.
_RUN_FIELDS = (
    "attn_type",
    "chunk_num",
    "compress_seq",
    "group_list",
    "img_emb_down_sample_ratio",
    "interaction",
    "final_size",
    "fuse_method",
    "compress_method",
)


class InternVisionConfig(PretrainedConfig):
    """InternViT. Sizes are in pixels (`image_size`, `patch_size`) and channels."""

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"

    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 224,
        qkv_bias: bool = False,
        hidden_size: int = 3200,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        qk_normalization: bool = True,
        num_hidden_layers: int = 48,
        use_flash_attn: bool = True,
        hidden_act: str = "gelu",
        norm_type: str = "rms_norm",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 0.1,
        **kwargs: Any,
    ):
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.qkv_bias = qkv_bias
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.qk_normalization = qk_normalization
        self.num_hidden_layers = num_hidden_layers
        self.use_flash_attn = use_flash_attn
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        super().__init__(**kwargs)


class InternLM2Config(PretrainedConfig):
    """InternLM2 decoder.

    `rope_scaling` is None or `{"type": "linear" | "dynamic" | "yarn", "factor": >= 1}`, for ordinary positions;
    `"scale_v2pe": true` extends linear and YaRN to V2PE positions. YaRN may name its
    `original_max_position_embeddings`. `{"type": "v2pe"}`, which older code saved, means no scaling.

    `logn_scaling` is None, or the training length in tokens beyond which queries are made longer. Both: see rotary.py.
    """

    model_type = "internlm2"
    base_config_key = "llm_config"
    _auto_class = "AutoConfig"
    rope_scaling = None  # a plain field here; the base class has a property of this name

    def __init__(
        self,
        vocab_size: int = 103168,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int = 0,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        tie_word_embeddings: bool = False,
        bias: bool = True,
        rope_theta: float = 10000,
        rope_scaling: dict | None = None,
        logn_scaling: int | None = None,
        **kwargs: Any,
    ):
        # The released files name a CUDA kernel here; which kernel runs is decided by internvl.model.attention.
        kwargs.pop("attn_implementation", None)
        kwargs.pop("rope_pos_id_version", None)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.bias = bias
        self.rope_theta = rope_theta
        scaling = None if rope_scaling is None else read_rope_scaling(rope_scaling, source="llm_config.rope_scaling")
        self.rope_scaling = None if scaling is None else scaling.to_dict()
        check_logn_scaling(logn_scaling, source="llm_config.logn_scaling")
        self.logn_scaling = logn_scaling
        super().__init__(**kwargs)


class ScalablePhi3Config(Phi3Config):
    """Phi3's config that also takes linear, dynamic NTK and YaRN scaling (transformers' own knows longrope only)."""

    # Its base is a dataclass that takes further fields; checkers that go by the declared ones would refuse those.
    __no_type_check__ = True

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The base class's, without Phi3's own reading of `yarn`."""
        kwargs = super(Phi3Config, self).convert_rope_params_to_dict(**kwargs)
        cast(dict[str, object], self.rope_parameters).setdefault("partial_rotary_factor", 1.0)
        return kwargs

    def validate_rope(self) -> None:
        """The base class's, without Phi3's own list of types."""
        super(Phi3Config, self).validate_rope()


class InternVLChatConfig(PretrainedConfig):
    """InternVL2 chat model.

    Attributes:
        vision_config: InternVisionConfig (a dict is converted).
        llm_config: Config of the decoder; a dict is converted by its `architectures[0]`.
        select_layer: Hidden state of the vision tower that is used (-1: the last).
        force_image_size: Side of a tile in pixels; None: `vision_config.image_size`.
        downsample_ratio: Side ratio of pixel shuffle (0.5: four patches become one visual token).
        template: Name of the conversation template.
        ps_version: `v2`, or `v1` for the spatially transposed pixel shuffle of the first release.
        img_context_token_id: Id of `<IMG_CONTEXT>`; None in files that were not saved by this project.
        rope_pos_id_version: Positions the model was trained with: `default`, `v2pe_fix` or `v2pe_rnd`.
        rope_pos_id_stride: Stride of `v2pe_fix`.
        rope_pos_id_random_strides: Strides that `v2pe_rnd` draws from.
    """

    model_type = "internvl_chat"
    is_composition = True
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}
    _auto_class = "AutoConfig"

    def __init__(
        self,
        vision_config: InternVisionConfig | dict | None = None,
        llm_config: PretrainedConfig | dict | None = None,
        use_backbone_lora: int = 0,
        use_llm_lora: int = 0,
        pad2square: bool = False,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        template: str | None = None,
        dynamic_image_size: bool = False,
        use_thumbnail: bool = False,
        ps_version: str = "v1",
        dynamic_max_patch: bool = False,
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 6,
        min_num_frame: int = 4,
        max_num_frame: int = 20,
        rope_pos_id_version: str = "default",
        rope_pos_id_stride: float | None = None,
        rope_pos_id_random_strides: tuple[float, ...] | list[float] = RANDOM_STRIDES,
        img_context_token_id: int | None = None,
        **kwargs: Any,
    ):
        for name in _RUN_FIELDS:
            kwargs.pop(name, None)
        kwargs.pop("attn_implementation", None)
        check_version(rope_pos_id_version)
        if ps_version not in ("v1", "v2"):
            raise ConfigError(f"ps_version must be 'v1' or 'v2', got {ps_version!r}")
        self.vision_config = _vision_config(vision_config)
        self.llm_config = _llm_config(llm_config)
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        self.pad2square = pad2square
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.dynamic_max_patch = dynamic_max_patch
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.min_num_frame = min_num_frame
        self.max_num_frame = max_num_frame
        self.rope_pos_id_version = rope_pos_id_version
        self.rope_pos_id_stride = rope_pos_id_stride
        self.rope_pos_id_random_strides = list(rope_pos_id_random_strides)
        self.img_context_token_id = img_context_token_id
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Side of a tile in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def num_image_token(self) -> int:
        """T, visual tokens per tile."""
        side = self.image_size // self.vision_config.patch_size
        return math.floor(side * side * self.downsample_ratio**2 + 1e-6)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """Config of the decoder (transformers' generation code asks for it)."""
        return self.llm_config


def _vision_config(config: InternVisionConfig | dict | None) -> InternVisionConfig:
    if isinstance(config, InternVisionConfig):
        return config
    return InternVisionConfig(**(config or {}))


_LLM_CONFIGS: dict[str, type[PretrainedConfig]] = {
    "InternLM2ForCausalLM": InternLM2Config,
    "LlamaForCausalLM": LlamaConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "Phi3ForCausalLM": ScalablePhi3Config,
}


def _llm_config(config: PretrainedConfig | dict | None) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    fields = dict(config or {})
    architecture = (fields.get("architectures") or ["InternLM2ForCausalLM"])[0]
    if architecture not in _LLM_CONFIGS:
        raise ConfigError(f"llm_config.architectures[0] is {architecture!r}; supported: {', '.join(_LLM_CONFIGS)}")
    fields.pop("attn_implementation", None)
    fields.pop("rope_pos_id_version", None)
    check_logn_scaling(fields.get("logn_scaling"), source="llm_config.logn_scaling")
    if architecture != "InternLM2ForCausalLM":
        fields |= _native_rope_fields(fields)
    return _LLM_CONFIGS[architecture](**fields)


def _native_rope_fields(fields: Mapping[str, Any]) -> dict[str, object]:
    """Fields of rope scaling in the form that configs of transformers keep."""
    name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    entry = dict(fields.get(name) or {})
    # transformers does not know `scale_v2pe`, so it goes beside the entry.
    scale_v2pe = entry.pop("scale_v2pe", fields.get("scale_v2pe", False))
    old_kind = entry.pop("type", "default")
    kind = entry.get("rope_type", old_kind)
    # Older code calls longrope `su`, or `yarn` with lists of factors.
    if kind in ("su", "yarn") and "short_factor" in entry:
        kind = "longrope"
    # The type `v2pe` of older code is no scaling.
    if kind == "v2pe":
        kind, entry = "default", {key: entry[key] for key in ("rope_theta", "partial_rotary_factor") if key in entry}
    if kind in ("linear", "dynamic", "yarn"):
        checked = {"type": kind, "factor": entry.get("factor"), "scale_v2pe": scale_v2pe}
        read_rope_scaling(checked, source=f"llm_config.{name}")
    elif kind not in ("default", *TRAINED_ROPE_TYPES):
        raise ConfigError(
            f"llm_config.{name}: type {kind!r}; expected one of default, linear, dynamic, yarn, "
            f"{', '.join(TRAINED_ROPE_TYPES)}"
        )
    if entry:
        entry["rope_type"] = kind
    return {name: entry or None, **({"scale_v2pe": True} if scale_v2pe else {})}
