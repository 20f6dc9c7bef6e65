"""Pictures, videos and strides of a request on their way to the model.

    images, videos, mm_processor_kwargs  ->  pixels, <IMG_CONTEXT> tokens, and a stride for every image or video

A prompt shows where a picture belongs by special tokens alone, so that the text around them becomes the same ids as in
this project, whatever the tokenizer merges: `<img><IMG_CONTEXT></img>` is an image, `Frame1: <img></img>` a video. A
video is its frames as pictures of one tile, a line each, as in training.

A stride of a request is an option of its pictures' processing. vLLM hashes those options with a picture, and that hash
is part of the keys of its prefix cache and its feature cache: equal pictures at different strides never share keys and
values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BatchFeature
from vllm.model_executor.models.internvl import (
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import PromptUpdate, PromptUpdateDetails
from vllm.transformers_utils.processors.internvl import InternVLProcessor

from .positions import stride_to_units

STRIDE = "rope_pos_id_stride"
PLACEHOLDERS = {"image": "<img><IMG_CONTEXT></img>", "video": "Frame1: <img></img>"}
_TARGETS = {"image": ("<img>", "<IMG_CONTEXT>", "</img>"), "video": ("<img>", "</img>")}
_UNITS = {"image": "image_stride_units", "video": "video_stride_units"}


def stride_of(modality: str, data: Mapping[str, Any]) -> int:
    """Stride of a processed image or video, in units of 1/65536."""
    return int(data[_UNITS[modality]].data)


class V2PEProcessor(InternVLProcessor):
    """Writes the frames of videos as this project does."""

    def get_video_repl(self, num_patches: int) -> PromptUpdateDetails:
        """The tokens of a video of `num_patches` frames, after `Frame1: `."""
        frame = [self.start_image_token_id, *[self.ctx_image_token_id] * self.image_seq_length, self.end_image_token_id]
        ids = [*frame]
        for number in range(2, num_patches + 1):
            ids += [*self.tokenizer.encode(f"\nFrame{number}: ", add_special_tokens=False), *frame]
        return PromptUpdateDetails.select_token_id(ids, self.ctx_image_token_id)


class V2PEProcessingInfo(InternVLProcessingInfo):
    """What a request may ask for."""

    @property
    def ctx_video_token(self) -> str:
        """The visual token of videos: that of images, for every decoder."""
        return "<IMG_CONTEXT>"

    def get_hf_processor(self, **kwargs: object) -> V2PEProcessor:
        """The processor of pictures and videos; the stride is none of its business."""
        kwargs.pop(STRIDE, None)
        plain = super().get_hf_processor(**kwargs)
        return V2PEProcessor(
            tokenizer=plain.tokenizer,
            image_processor=plain.image_processor,
            video_processor=plain.video_processor,
            image_seq_length=plain.image_seq_length,
            ctx_video_token=plain.ctx_video_token,
        )

    def read_stride(self, kwargs: Mapping[str, object]) -> int:
        """The stride of a request, otherwise the server's, in units of 1/65536.

        Raises:
            ValueError: It is malformed, or the server has plain positions.
        """
        config = self.get_hf_config()
        stride = self.ctx.get_merged_mm_kwargs(kwargs).get(STRIDE)
        if stride is None:
            return stride_to_units(config.rope_pos_id_stride)
        if config.rope_pos_id_version == "default":
            raise ValueError(
                f"{STRIDE} is {stride!r} in a request, but the model is served with rope_pos_id_version default, "
                "whose rotary frequencies may differ; export it with --rope_pos_id_stride"
            )
        return stride_to_units(stride)


class V2PEDummyInputsBuilder(InternVLDummyInputsBuilder):
    """Writes the prompt that vLLM measures memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Placeholders only."""
        return "".join(text * mm_counts.get(modality, 0) for modality, text in PLACEHOLDERS.items())


class V2PEMultiModalProcessor(InternVLMultiModalProcessor):
    """Finds placeholders by their special tokens, and adds a stride to every image and video."""

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        find_ids = self.info.get_tokenizer().convert_tokens_to_ids
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return [replace(update, target=find_ids(list(_TARGETS[update.modality]))) for update in updates]

    def _postprocess_hf_mm_data(
        self,
        mm_data: Mapping[str, object],
        hf_processor_mm_kwargs: Mapping[str, object],
        processed_data: BatchFeature,
    ) -> BatchFeature:
        processed = super()._postprocess_hf_mm_data(mm_data, hf_processor_mm_kwargs, processed_data)
        units = torch.tensor(self.info.read_stride(hf_processor_mm_kwargs))
        return BatchFeature({**processed, **dict.fromkeys(_UNITS.values(), units)})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        for modality, name in _UNITS.items():
            num_items = len(hf_inputs.get(f"{modality}_num_patches", ()))
            fields[name] = MultiModalFieldConfig.shared(modality, num_items, keep_on_cpu=True)
        return fields
