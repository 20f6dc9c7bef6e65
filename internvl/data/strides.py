"""Strides of a training document: how many positions one tile of each image spans.

A batch carries strides as integers in units of 1/65536, never positions: a trainer may cast floating tensors to
bfloat16, and the model makes positions from ids and strides (internvl/model/v2pe.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from internvl.errors import ConfigError
from internvl.model.positions import check_stride, has_axes, takes_stride
from internvl.model.positions_scheme import Stride
from internvl.model.v2pe import RANDOM_STRIDES, stride_to_units


@dataclass(frozen=True, kw_only=True)
class StrideOptions:
    """The options of a run that decide strides. Wrong ones raise ConfigError."""

    rope_pos_id_version: str = "default"  # see internvl/model/positions.py
    rope_pos_id_stride: Stride | None = None  # of `v2pe_fix`, and of versions of several axes
    random_strides: Sequence[Stride] = RANDOM_STRIDES  # what `v2pe_rnd` draws from, uniformly
    rope_pos_id_rnd_scope: Literal["image", "sample"] = "image"  # a stride per image, or one per document

    def __post_init__(self) -> None:
        check_stride(self.rope_pos_id_version, self.rope_pos_id_stride)
        if self.rope_pos_id_rnd_scope not in ("image", "sample"):
            raise ConfigError(f"rope_pos_id_rnd_scope is {self.rope_pos_id_rnd_scope!r}, expected 'image' or 'sample'")
        if self.rope_pos_id_version == "v2pe_rnd" and not self.random_strides:
            raise ConfigError("random_strides is empty, expected at least one stride")
        _ = self._chosen_units  # converted early, so that errors come early

    @cached_property
    def _chosen_units(self) -> np.ndarray:
        """The strides to draw from; none where the version decides alone."""
        strides: Sequence[Stride] = ()
        if takes_stride(self.rope_pos_id_version) and self.rope_pos_id_stride is not None:
            strides = (self.rope_pos_id_stride,)
        elif self.rope_pos_id_version == "v2pe_rnd":
            strides = self.random_strides
        return np.array([stride_to_units(stride) for stride in strides], dtype=np.int64)

    def draw(self, num_images: int, rng: np.random.Generator, *, num_image_token: int) -> Int64[Tensor, " images"]:
        """Draw a stride per image, in units of 1/65536; 0: several axes, of which none is stretched."""
        if len(self._chosen_units) == 0:
            units = 0 if has_axes(self.rope_pos_id_version) else stride_to_units(num_image_token)
            return torch.full((num_images,), units, dtype=torch.int64)
        if self.rope_pos_id_rnd_scope == "sample":
            return torch.full((num_images,), int(rng.choice(self._chosen_units)), dtype=torch.int64)
        return torch.from_numpy(rng.choice(self._chosen_units, size=num_images))
