"""InternVL2-2B from its config, with random weights, and rows for it: half of them visual, all text supervised."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_check.part import Job
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.plan.released_models import RELEASED

VISUAL = 5  # id of a visual token
# The decoder and tower of a run on the CPU.
_TINY_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_DECODER = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def build_config(*, tiny: bool) -> InternVLChatConfig:
    """InternVL2-2B, or a small model of the same kind; tiles of 256 or 4 tokens."""
    tower, decoder = (dict(fields) for fields in RELEASED["InternVL2-2B"])
    if tiny:
        tower |= _TINY_TOWER | {"image_size": 56}
        decoder |= _TINY_DECODER | {"num_attention_heads": 4, "num_key_value_heads": 2}
    return InternVLChatConfig(
        vision_config={**tower, "patch_size": 14},
        llm_config={**decoder, "max_position_embeddings": 2**20, "rope_scaling": None, "rope_theta": 1e6},
        ps_version="v2",
        downsample_ratio=0.5,
        img_context_token_id=VISUAL,
    )


def build_model(job: Job) -> InternVLChatModel:
    """The model of this job in bfloat16, on its device."""
    torch.manual_seed(0)
    with job.device:
        return InternVLChatModel(build_config(tiny=job.is_tiny)).to(torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """A packed row on the device."""

    input_ids: Tensor  # (1, tokens)
    labels: Tensor  # (1, tokens), -100 at visual tokens
    pixel_values: Tensor  # uint8 (tiles, 3, side, side)
    cu_seqlens: Tensor  # (documents + 1,)

    @property
    def num_tokens(self) -> int:
        """Length."""
        return self.input_ids.shape[1]

    @property
    def supervised(self) -> float:
        """Share of the tokens that have a label."""
        return float((self.labels != -100).float().mean())


def make_row(config: InternVLChatConfig, tokens: int, device: torch.device, *, document: int | None = None) -> Row:
    """Documents of equal length, at most `document` tokens (None: one); a tile in every two tiles' worth of tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, config.llm_config.vocab_size, (1, tokens), generator=generator)
    visual, period = config.num_image_token, 2 * config.num_image_token
    starts = range(1, tokens - period + 2, period)
    for first in starts:
        ids[0, first : first + visual] = VISUAL
    size = (len(starts), 3, config.image_size, config.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    num_documents = -(-tokens // (document or tokens))
    cuts = [i * tokens // num_documents // period * period for i in range(num_documents)]  # no tile is cut
    borders = torch.tensor([*cuts, tokens])
    labels = ids.masked_fill(ids == VISUAL, -100)
    return Row(*(x.to(device) for x in (ids, labels, pixels, borders)))
