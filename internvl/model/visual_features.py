"""Visual features: tiles become visual tokens, and visual tokens take their places in the text.

    tiles (n, 3, S, S) --normalise--> --ViT--> (n, 1+P, H) --pixel shuffle--> (n, T, 4H) --mlp1--> (n, T, D)

Tiles come as uint8 pixels, which are normalised here, on the model's device and a batch at a time: a quarter of the
bytes of float32 in the data workers, in their queues and on the way to a GPU. Floats are taken as normalised already.

A mixin of `InternVLChatModel`, which has the modules.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .configuration_internvl_chat import InternVLChatConfig
from .constants import PIXEL_STATISTICS
from .errors import ConfigError
from .modeling_intern_vit import InternVisionModel
from .shapes import Bool, Float, Float32, Num, Shaped, UInt8


class VisualFeaturesMixin(PreTrainedModel):
    """The part of `InternVLChatModel` that turns tiles into visual tokens."""

    config: InternVLChatConfig
    vision_model: InternVisionModel
    mlp1: nn.Sequential
    vit_batch_size: int | None

    def extract_feature(
        self, pixel_values: Num[Tensor, "tiles 3 height width"], *, num_batches: int | None = None
    ) -> Float[Tensor, "tiles tokens dim"]:
        """Visual tokens of tiles.

        With `vit_batch_size` n the tower runs on n tiles at a time, and the backward pass recomputes the activations
        of each batch: only its tiles are kept (of a frozen tower only its output). Features and gradients are the
        same. Zero tiles give zero features whose backward pass still reaches tower and projector.

        Args:
            pixel_values: uint8, or normalised floats.
            num_batches: Run the tower at least this often, on blank tiles that contribute nothing. Every run gathers
                sharded weights (ZeRO-3), so that all ranks must run it equally often.

        Raises:
            ConfigError: `vit_batch_size` is not a positive number.
        """
        size = max(len(pixel_values), 1) if self.vit_batch_size is None else self.vit_batch_size
        if size < 1:
            raise ConfigError(f"vit_batch_size must be a positive number of tiles, got {size}")
        batches = pixel_values.split(size) if len(pixel_values) else ()
        features = [self._encode_tiles(tiles) for tiles in batches]
        blank = pixel_values.new_zeros(1, *pixel_values.shape[1:])
        for _ in range(len(features), max(num_batches or 1, 1)):
            features.append(self._encode_tiles(blank)[:0])
        return torch.cat(features)

    def _encode_tiles(self, tiles: Tensor) -> Tensor:
        """One run of the tower and the projector, recomputed in the backward pass with `vit_batch_size`."""
        if self.vit_batch_size is None or not torch.is_grad_enabled():
            return self._project(self._run_tower(tiles))
        if any(parameter.requires_grad for parameter in self.vision_model.parameters()):
            return checkpoint(lambda tiles: self._project(self._run_tower(tiles)), tiles, use_reentrant=False)
        return checkpoint(self._project, self._run_tower(tiles), use_reentrant=False)

    def _run_tower(self, tiles: Num[Tensor, "tiles 3 height width"]) -> Float[Tensor, "tiles patches hidden"]:
        if tiles.dtype == torch.uint8:
            tiles = normalize_tiles(tiles, self.config.normalize_type)
        return self.vision_model(tiles, select_layer=self.config.select_layer)[:, 1:]  # without the class token

    def _project(self, states: Float[Tensor, "tiles patches hidden"]) -> Float[Tensor, "tiles tokens dim"]:
        side = math.isqrt(states.shape[1])
        grid = states.unflatten(1, (side, side))
        return self.mlp1(pixel_shuffle(grid, self.config.downsample_ratio, self.config.ps_version).flatten(1, 2))

    def _encode_images(
        self, pixel_values: Tensor | None, image_flags: Tensor | None, num_batches: int | None, *, needed: bool
    ) -> Float[Tensor, "tiles tokens dim"] | None:
        """Features of the real tiles; without tiles None, or zero features if they are `needed`.

        Ranks that work together need them: every rank's backward pass must reach the vision tower, or sharded
        optimisers wait for each other.
        """
        if pixel_values is not None and image_flags is not None:
            pixel_values = pixel_values[image_flags.reshape(-1).to(pixel_values.device) == 1]
        if pixel_values is None or not len(pixel_values):
            if not needed:
                return None
            size = self.config.image_size
            pixel_values = torch.zeros(0, 3, size, size, dtype=self.dtype, device=self.device)
        return self.extract_feature(pixel_values, num_batches=num_batches)


def normalize_tiles(
    tiles: UInt8[Tensor, "tiles 3 height width"], normalize_type: str = "imagenet"
) -> Float32[Tensor, "tiles 3 height width"]:
    """(pixel / 255 - mean) / std in float32, the same numbers on every device; statistics as in constants.py."""
    # Filled on the device, which nobody waits for; dividing by a Python number, CUDA would multiply by its inverse.
    fill = partial(torch.full, (1, 1, 1), dtype=torch.float32, device=tiles.device)
    mean, std = (torch.cat([fill(value) for value in values]) for values in PIXEL_STATISTICS[normalize_type])
    return tiles.to(torch.float32).div_(fill(255.0)).sub_(mean).div_(std)


def pixel_shuffle(
    grid: Shaped[Tensor, "tiles height width channels"], ratio: float, version: str
) -> Shaped[Tensor, "tiles rows columns folded_channels"]:
    """Fold neighbouring patches into channels.

    Args:
        ratio: Side ratio, 0.5 folds 2 x 2 patches into one.
        version: `v2`: rows first. `v1`: height and width swapped, as the first release had it.
    """
    factor = round(1 / ratio)
    blocks = grid.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (n, h, a, w, b, c)
    order = (0, 1, 3, 2, 4, 5) if version == "v2" else (0, 3, 1, 2, 4, 5)
    return blocks.permute(order).flatten(3)


def merge_visual_features(
    embeds: Float[Tensor, "batch length dim"],
    visual: Bool[Tensor, "batch length"],
    features: Float[Tensor, "*tokens dim"] | None,
) -> Float[Tensor, "batch length dim"]:
    """Put features in place of visual tokens, in order.

    Args:
        visual: True at visual tokens.
        features: (tiles, T, dim), or (visual tokens, dim).

    Raises:
        ValueError: Another number of visual tokens than of features; nothing is cut or repeated.
    """
    num_features = 0 if features is None else features.shape[:-1].numel()
    num_visual = int(visual.sum())
    if num_visual != num_features:
        raise ValueError(
            f"the text has {num_visual} visual tokens but the images give {num_features} features; "
            "every image needs <img>, T <IMG_CONTEXT> per tile, </img> in the text"
        )
    assert features is not None
    return embeds.masked_scatter(visual.unsqueeze(-1), features.to(embeds.dtype))
