"""Configs of an export (`python -m internvl.tools.export_vllm`), so that vLLM reads it without code of the folder."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig


class InternLM2TextConfig(PreTrainedConfig):
    """InternLM2, which transformers does not have; the export gives all fields."""

    model_type = "internlm2"


class V2PEInternVLConfig(PreTrainedConfig):
    """Vision tower, decoder, tiling, and where visual tokens stand.

    Attributes:
        rope_pos_id_version: `default` or `v2pe_fix`.
        rope_pos_id_stride: Positions that one tile spans; T with `default`.
        rope_frequencies: Inverse rotary frequencies, scaling included.
        rope_table_scale: Factor of cosines and sines.
    """

    model_type = "v2pe_internvl_chat"

    def __init__(
        self, vision_config: dict[str, Any] | None = None, text_config: dict[str, Any] | None = None, **fields: Any
    ):
        super().__init__(**fields)
        self.vision_config = PreTrainedConfig(**vision_config or {})
        text_config = {"model_type": "internlm2", **(text_config or {})}
        self.text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
