"""Configs of InternVL2: vision tower, InternLM2 decoder, and the chat model that joins them.

Field names and defaults are those of released InternVL2 checkpoints, so that any of their config.json files loads.
Fields of a run (`chunk_num`, `attn_type`, `group_list`, ...), which older code saved with the model, are dropped.
"""

import dataclasses
import inspect
import math
from collections.abc import Collection, Mapping
from functools import wraps
from types import NoneType
from typing import Any, cast, get_args

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig, Phi3Config, PretrainedConfig, Qwen2Config, Qwen3Config

from .constants import PIXEL_STATISTICS
from .errors import CheckpointError, ConfigError
from .positions import check_stride, check_version
from .scaling import TRAINED_ROPE_TYPES, check_logn_scaling, read_rope_scaling
from .v2pe import RANDOM_STRIDES

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
    "attn_implementation",
)

# Largest values of fields that take memory or time. A file that says more is broken.
_LARGEST = {
    "num_hidden_layers": 1000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 100_000,
    "hidden_size": 10**6,
    "intermediate_size": 10**7,
    "vocab_size": 10**8,
    "max_position_embeddings": 10**12,
    "num_channels": 1000,
    "patch_size": 10_000,
    "image_size": 100_000,
    "force_image_size": 100_000,
    "min_dynamic_patch": 10_000,
    "max_dynamic_patch": 10_000,
    "min_num_frame": 10**6,
    "max_num_frame": 10**6,
}

# Configs are dataclasses that take further fields; checkers of calls that go by the declared ones would refuse those.
_TAKES_FURTHER_FIELDS = True


class _TolerantConfig(PretrainedConfig):
    """A config that takes its fields as files and older code give them, see `_read_fields`; the first ones by place."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put the reading of fields in front of the constructor that transformers makes, which takes names only."""
        super().__init_subclass__(**kwargs)
        take_fields, names = cls.__init__, list(inspect.get_annotations(cls))

        @wraps(take_fields)
        def init(self: Any, *values: Any, **fields: Any) -> None:
            fields |= zip(names[: len(values)], values, strict=True)
            take_fields(self, **_read_fields(cls, fields))

        cls.__init__ = init  # type: ignore[method-assign]


@strict
class InternVisionConfig(_TolerantConfig):
    """InternViT. Sizes are in pixels (`image_size`, `patch_size`) and channels."""

    __no_type_check__ = _TAKES_FURTHER_FIELDS
    model_type = "intern_vit_6b"
    base_config_key = "vision_config"

    num_channels: int = 3
    patch_size: int = 14
    image_size: int = 224
    qkv_bias: bool = False
    hidden_size: int = 3200
    num_attention_heads: int = 25
    intermediate_size: int = 12800
    qk_normalization: bool = True
    num_hidden_layers: int = 48
    use_flash_attn: bool = True
    hidden_act: str = "gelu"
    norm_type: str = "rms_norm"
    layer_norm_eps: float | int = 1e-6
    dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    initializer_factor: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the sizes."""
        check_sizes(vars(self), source="vision_config")
        super().__post_init__(**kwargs)


@strict
class InternLM2Config(_TolerantConfig):
    """InternLM2 decoder.

    `rope_scaling` is None or `{"type": "linear" | "dynamic" | "yarn", "factor": >= 1}`, for ordinary positions;
    `"scale_v2pe": true` extends linear and YaRN to V2PE positions. YaRN may name its
    `original_max_position_embeddings`. `{"type": "v2pe"}`, which older code saved, means no scaling.

    `logn_scaling` is None, or the training length in tokens beyond which queries are made longer. Both: see rotary.py.
    """

    __no_type_check__ = _TAKES_FURTHER_FIELDS
    model_type = "internlm2"
    base_config_key = "llm_config"
    _auto_class = "AutoConfig"

    vocab_size: int = 103168
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0  # 0: as many as heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float | int = 0.02
    rms_norm_eps: float | int = 1e-6
    use_cache: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int | list[int] = 2
    tie_word_embeddings: bool = False
    bias: bool = True
    rope_theta: float | int = 10000
    rope_scaling: dict | None = None  # hides a property of the base class
    logn_scaling: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check and complete the fields."""
        # The released files name a CUDA kernel here; which kernel runs is decided by internvl.model.attention.
        kwargs.pop("attn_implementation", None)
        kwargs.pop("rope_pos_id_version", None)
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        check_sizes(vars(self), source="llm_config")
        if self.rope_scaling is not None:
            scaling = read_rope_scaling(self.rope_scaling, source="llm_config.rope_scaling")
            self.rope_scaling = cast(dict | None, scaling.to_dict())
        check_logn_scaling(self.logn_scaling, source="llm_config.logn_scaling")
        super().__post_init__(**kwargs)


class ScalablePhi3Config(Phi3Config):
    """Phi3's config that also takes linear, dynamic NTK and YaRN scaling (transformers' own knows longrope only)."""

    __no_type_check__ = _TAKES_FURTHER_FIELDS

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The base class's, without Phi3's own reading of `yarn`."""
        kwargs = super(Phi3Config, self).convert_rope_params_to_dict(**kwargs)
        cast(dict[str, object], self.rope_parameters).setdefault("partial_rotary_factor", 1.0)
        return kwargs

    def validate_rope(self) -> None:
        """The base class's, without Phi3's own list of types."""
        super(Phi3Config, self).validate_rope()


@strict
class InternVLChatConfig(_TolerantConfig):
    """InternVL2 chat model: a vision tower, a decoder, and how tiles, prompts and positions are made."""

    __no_type_check__ = _TAKES_FURTHER_FIELDS
    model_type = "internvl_chat"
    is_composition = True
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}
    _auto_class = "AutoConfig"

    vision_config: Any = None  # InternVisionConfig or its fields
    llm_config: Any = None  # config of the decoder, or its fields with `architectures`
    use_backbone_lora: int = 0
    use_llm_lora: int = 0
    pad2square: bool = False
    normalize_type: str = "imagenet"  # mean and deviation of pixel values: `imagenet`, `clip` or `siglip`
    select_layer: int = -1  # hidden state of the vision tower that is used (-1: the last)
    force_image_size: int | None = None  # side of a tile in pixels; None: that of `vision_config`
    downsample_ratio: float | int = 0.5  # side ratio of pixel shuffle (0.5: four patches become one visual token)
    template: str | None = None  # name of the conversation template
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    ps_version: str = "v1"  # `v2`, or `v1` for the spatially transposed pixel shuffle of the first release
    dynamic_max_patch: bool = False
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 6
    min_num_frame: int = 4
    max_num_frame: int = 20
    rope_pos_id_version: str = "default"  # positions of the training, see positions.py
    rope_pos_id_stride: float | int | None = None  # positions that one tile spans, of `v2pe_fix` and several axes
    rope_pos_id_random_strides: tuple | list = RANDOM_STRIDES  # that `v2pe_rnd` draws from
    img_context_token_id: int | None = None  # of `<IMG_CONTEXT>`; None in files that this project did not save
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the fields, and make configs of the two parts."""
        _refuse_quantised(kwargs)
        for name in _RUN_FIELDS:
            kwargs.pop(name, None)
        check_sizes(vars(self), source="config")
        check_version(self.rope_pos_id_version)
        for stride in self.rope_pos_id_random_strides:
            check_stride("v2pe_rnd", stride)
        if not 0 < self.downsample_ratio <= 1:
            raise ConfigError(f"downsample_ratio is {self.downsample_ratio!r}, expected more than 0 and at most 1")
        if self.ps_version not in ("v1", "v2"):
            raise ConfigError(f"ps_version must be 'v1' or 'v2', got {self.ps_version!r}")
        if self.normalize_type not in PIXEL_STATISTICS:
            raise ConfigError(f"normalize_type must be one of {[*PIXEL_STATISTICS]}, got {self.normalize_type!r}")
        self.vision_config = _vision_config(self.vision_config)
        self.llm_config = _llm_config(self.llm_config)
        self.rope_pos_id_random_strides = list(self.rope_pos_id_random_strides)
        super().__post_init__(**kwargs)

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


def check_sizes(fields: Mapping[str, object], *, source: str) -> None:
    """Check the sizes among the fields of a config.

    Raises:
        ConfigError: One is not a whole number from 1 to the largest that a model has.
    """
    for name, largest in _LARGEST.items():
        value = fields.get(name, 1)
        is_absent = value is None and name in ("force_image_size", "num_key_value_heads", "head_dim")
        if not is_absent and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest):
            raise ConfigError(f"{source}.{name} is {value!r}, expected a whole number from 1 to {largest}")


def _read_fields(config_class: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as their declared types want them.

    Null means the default, except where it is a value of its own. A number may be written as one of another type: 64.0
    for 64, 1 for 1.0 or true.
    """
    kinds = {field.name: get_args(field.type) or (field.type,) for field in dataclasses.fields(config_class)}
    return {
        name: _fit_number(value, kinds.get(name, ()))
        for name, value in fields.items()
        if value is not None or NoneType in kinds.get(name, ())
    }


def _fit_number(value: object, kinds: Collection[object]) -> object:
    """An equal number of a declared type, if there is one; otherwise the value."""
    if type(value) is float and float not in kinds and int in kinds and value.is_integer():
        return int(value)
    if type(value) is int and int not in kinds:
        if bool in kinds and value in (0, 1):
            return bool(value)
        return float(value) if float in kinds else value
    return value


def _refuse_quantised(fields: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a config says that its weights are quantised."""
    how = fields.get("quantization_config") or fields.get("compression_config")
    if how:
        method = how.get("quant_method") if isinstance(how, Mapping) else None
        raise CheckpointError(
            f"config.json has quantization_config ({method or 'unknown method'}): quantised checkpoints are not "
            "supported; take the unquantised one of the same model, and dtype bfloat16 or float16 to save memory"
        )


def _vision_config(config: InternVisionConfig | dict | None) -> InternVisionConfig:
    if isinstance(config, InternVisionConfig):
        return config
    _refuse_quantised(config or {})
    return InternVisionConfig(**(config or {}))


# Decoders that a chat model can have, by what their config.json calls them.
DECODER_CONFIGS: dict[str, type[PretrainedConfig]] = {
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
    _refuse_quantised(fields)
    architecture = (fields.get("architectures") or ["InternLM2ForCausalLM"])[0]
    if architecture not in DECODER_CONFIGS:
        raise ConfigError(f"llm_config.architectures[0] is {architecture!r}; supported: {', '.join(DECODER_CONFIGS)}")
    fields = _read_fields(DECODER_CONFIGS[architecture], fields)
    fields.pop("attn_implementation", None)
    fields.pop("rope_pos_id_version", None)
    check_logn_scaling(fields.get("logn_scaling"), source="llm_config.logn_scaling")
    if architecture != "InternLM2ForCausalLM":
        fields |= _native_rope_fields(fields)
        check_sizes(fields, source="llm_config")
    return DECODER_CONFIGS[architecture](**fields)


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
