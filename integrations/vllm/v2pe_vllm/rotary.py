"""Rotary embedding at fractional positions. Needs torch only."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .positions import read_positions


class V2PERotaryEmbedding(nn.Module):
    """Takes the place of a decoder layer's own rotary embedding, which looks whole positions up in a table.

    Angles are computed in float64 and only cosines and sines are rounded, to float32: bf16 or float32 angles would make
    neighbouring visual tokens equal at small strides. Queries and keys are rotated in float32.

    Args:
        head_dim: Width of a head; as much of it is rotated as there are frequencies.
        frequencies: Inverse frequencies, one per rotated pair, any scaling included.
        table_scale: Factor of cosines and sines (YaRN, longrope).
        num_image_token: T, visual tokens per tile.
    """

    def __init__(self, *, head_dim: int, frequencies: Sequence[float], table_scale: float, num_image_token: int):
        super().__init__()
        self.head_dim, self.table_scale, self.num_image_token = head_dim, table_scale, num_image_token
        # Not from a checkpoint, and float64 whatever the dtype of the model is.
        self.register_buffer("frequencies", torch.tensor(frequencies, dtype=torch.float64), persistent=False)

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys.

        Args:
            positions: Rows (3, tokens) of integers, see positions.py.
            query: (tokens, heads * head_dim).
            key: (tokens, key heads * head_dim).
        """
        angles = read_positions(positions, num_image_token=self.num_image_token)[:, None, None] * self.frequencies
        cos, sin = (angles.cos() * self.table_scale).float(), (angles.sin() * self.table_scale).float()
        return self._rotate(query, cos, sin), self._rotate(key, cos, sin)

    def _rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(a, b) -> (a cos - b sin, b cos + a sin) of the halves of the rotated part of every head."""
        width = 2 * cos.shape[-1]
        heads = states.view(len(states), -1, self.head_dim)
        a, b = heads[..., :width].float().chunk(2, dim=-1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(states.dtype)
        return torch.cat([rotated, heads[..., width:]], dim=-1).view_as(states)
