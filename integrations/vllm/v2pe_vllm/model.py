"""The model: vLLM's InternVL with V2PE positions and a rotary embedding that takes them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.internvl import InternVLChatModel
from vllm.multimodal import MULTIMODAL_REGISTRY

from .positions import Image, build_rows, find_runs
from .processor import PLACEHOLDERS, V2PEDummyInputsBuilder, V2PEMultiModalProcessor, V2PEProcessingInfo, stride_of
from .rotary import V2PERotaryEmbedding

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec


@MULTIMODAL_REGISTRY.register_processor(
    V2PEMultiModalProcessor, info=V2PEProcessingInfo, dummy_inputs=V2PEDummyInputsBuilder
)
class V2PEInternVLChatModel(InternVLChatModel, SupportsMRoPE):
    """InternVL2 whose visual tokens advance by stride / T; the decoder is one that vLLM has."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        text = self.config.text_config
        rotary = V2PERotaryEmbedding(
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            frequencies=self.config.rope_frequencies,
            table_scale=self.config.rope_table_scale,
            num_image_token=self.num_image_token,
        )
        _replace_rotary(self.language_model, rotary)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What a prompt without a chat template shows for a picture or a video."""
        return PLACEHOLDERS[modality]

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: "list[MultiModalFeatureSpec]"
    ) -> tuple[Tensor, int]:
        """Positions of a prompt as integers, see `positions.build_rows`.

        Visual tokens are those that features are put on. The same token written in a text is text.
        """
        images = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            if feature.data is None:
                raise ValueError("a picture has come without its stride; the model needs vLLM's processor cache")
            place, units = feature.mm_position, stride_of(feature.modality, feature.data)
            mask = torch.ones(place.length, dtype=torch.bool) if place.is_embed is None else place.is_embed
            images += [Image(place.offset + start, length, units) for start, length in find_runs(mask.cpu())]
        return build_rows(len(input_tokens), images, num_image_token=self.num_image_token)


def _replace_rotary(decoder: nn.Module, rotary: V2PERotaryEmbedding) -> None:
    """Put one rotary embedding into all attention layers of a decoder.

    Raises:
        ValueError: The decoder has none where it is looked for.
    """
    attentions = [module for module in decoder.modules() if hasattr(module, "rotary_emb")]
    if not attentions:
        raise ValueError(f"{type(decoder).__name__} has no layer with a rotary_emb; this decoder cannot be served")
    for attention in attentions:
        attention.rotary_emb = rotary
