"""InternVL2 with V2PE: vision tower -> pixel shuffle -> projector -> merge into the text -> decoder.

    tiles (n, 3, S, S) --ViT--> (n, 1+P, H) --pixel shuffle--> (n, T, 4H) --mlp1--> (n, T, D)
    ids   ... <img> <IMG_CONTEXT> * T*tiles </img> ...  --embed, replace visual tokens-->  (batch, length, D)

Positions are made here, once per forward, from the ids and one stride per image (see v2pe.py). Call
`internvl.model.registration.register_auto_classes()` to make AutoModel know these classes, or load a saved folder with
`trust_remote_code=True` (it carries this code).
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention import register_builtin_attention
from .caches import KeyCastingCache
from .chat import ChatMixin
from .configuration_internvl_chat import InternVLChatConfig
from .constants import IGNORE_INDEX
from .errors import ConfigError
from .language_models import build_native_decoder
from .logn_scaling import read_logn_scaling
from .loss import shift_targets, weighted_cross_entropy
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM
from .row_sharing import RowSharing
from .v2pe import (
    Strides,
    build_position_ids,
    check_stride,
    draw_strides,
    ordinary_positions,
    positions_per_row,
    units_to_strides,
)

logger = logging.getLogger(__name__)


class InternVLChatModel(ChatMixin):
    """The chat model. Parameter names and folder layout are those of released InternVL2 checkpoints.

    Attributes:
        img_context_token_id: Id of `<IMG_CONTEXT>`. Read from the config; older checkpoints do not carry it, then
            set it once (`model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")`).
        num_image_token: T, visual tokens per tile.
        vit_batch_size: Most tiles that the vision tower sees at a time, see `extract_feature`; None: all.
    """

    config_class = InternVLChatConfig
    config: InternVLChatConfig
    main_input_name = "pixel_values"
    base_model_prefix = "language_model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is normalised by `loss_denominator`, not by the Trainer's item count
    _no_split_modules = ["InternVisionEncoderLayer", "InternLM2DecoderLayer"]
    _supports_sdpa = True
    _auto_class = "AutoModel"

    def __init__(self, config: InternVLChatConfig):
        register_builtin_attention()
        super().__init__(config)
        self.vision_model = InternVisionModel(config.vision_config)
        self.language_model = build_language_model(config.llm_config)
        vision_width = config.vision_config.hidden_size * round(1 / config.downsample_ratio) ** 2
        text_width = config.llm_config.hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(vision_width),
            nn.Linear(vision_width, text_width),
            nn.GELU(),
            nn.Linear(text_width, text_width),
        )
        self.num_image_token = config.num_image_token
        self.img_context_token_id = config.img_context_token_id
        self.vit_batch_size: int | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.llm_config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the decoder."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the decoder."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Output layer of the decoder."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output layer of the decoder."""
        self.language_model.set_output_embeddings(value)

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As of `PreTrainedModel`; the config carries `img_context_token_id`, so that a saved folder is complete."""
        self.config.img_context_token_id = self.img_context_token_id
        super().save_pretrained(save_directory, *args, **kwargs)

    # ---------------------------------------------------------------------------------------------------- features

    def extract_feature(self, pixel_values: Tensor, *, num_batches: int | None = None) -> Tensor:
        """Visual tokens of tiles: (tiles, 3, S, S) -> (tiles, T, D).

        With `vit_batch_size` n the tower runs on n tiles at a time, and the backward pass computes a micro-batch's
        activations anew: only its tiles are kept (of a frozen tower only its output). Features and gradients are the
        same. Zero tiles give zero features that still lead a backward pass, of zeros, through tower and projector.

        Args:
            pixel_values: Tiles.
            num_batches: Run the tower at least so often, on blank tiles that contribute nothing. Sharded weights
                (ZeRO-3) are gathered in every run, so that all ranks must run it equally often.

        Raises:
            ConfigError: `vit_batch_size` is no positive number.
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

    def _run_tower(self, tiles: Tensor) -> Tensor:
        """(tiles, 3, S, S) -> (tiles, patches, H), without the class token."""
        return self.vision_model(tiles, select_layer=self.config.select_layer)[:, 1:]

    def _project(self, states: Tensor) -> Tensor:
        """(tiles, patches, H) -> (tiles, T, D)."""
        side = math.isqrt(states.shape[1])
        grid = states.unflatten(1, (side, side))
        return self.mlp1(pixel_shuffle(grid, self.config.downsample_ratio, self.config.ps_version).flatten(1, 2))

    def _embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_flags: Tensor | None,
        visual_features: Tensor | None,
        *,
        row_sharing: RowSharing | None = None,
        num_vit_batches: int | None = None,
    ) -> Tensor:
        """Token embeddings with visual features in place: (batch, length, D), of this rank's tokens of a shared row."""
        if visual_features is None:
            needed = self.training or row_sharing is not None
            visual_features = self._encode_images(pixel_values, image_flags, num_vit_batches, needed=needed)
        visual = self._visual_mask(input_ids)
        if row_sharing is not None:
            assert visual_features is not None
            visual_features = row_sharing.exchange_features(visual_features, visual)
            input_ids, visual = row_sharing.shard(input_ids), row_sharing.shard(visual)
        embeds = self.get_input_embeddings()(input_ids)
        if visual_features is None and not bool(visual.any()):
            return embeds
        if self.img_context_token_id is None:
            raise ConfigError(
                "img_context_token_id is not set: this checkpoint's config does not carry it. "
                "Set model.img_context_token_id = tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>')"
            )
        return merge_visual_features(embeds, visual, visual_features)

    def _encode_images(
        self, pixel_values: Tensor | None, image_flags: Tensor | None, num_batches: int | None, *, needed: bool
    ) -> Tensor | None:
        """Features of the real tiles, (tiles, T, D); of no tiles None, or zero features if they are `needed`.

        They are where ranks work together: every rank's backward pass must reach the vision tower, or sharded
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

    def _visual_mask(self, input_ids: Tensor) -> Tensor:
        """(batch, length) bool, True at visual tokens (nowhere while `img_context_token_id` is unknown)."""
        return input_ids == (-1 if self.img_context_token_id is None else self.img_context_token_id)

    # --------------------------------------------------------------------------------------------------- positions

    def build_positions(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        image_strides: Tensor | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
    ) -> Tensor:
        """Positions of a batch: int64 for `default` (the decoder may scale those), float64 for V2PE.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 0 where padded.
            cu_seqlens: (documents + 1,) borders of a packed row.
            image_strides: (images,) int64 strides in units of 1/65536, in the order of the row. Wins over
                `rope_pos_id_stride`.
            rope_pos_id_version: `default`, `v2pe_fix` or `v2pe_rnd`; None: the checkpoint's own. A checkpoint that
                was trained with `v2pe_rnd` has no stride of its own: it runs on ordinary positions (which are among
                its strides) until one is chosen.
            rope_pos_id_stride: Stride of `v2pe_fix`; None: the checkpoint's own.

        Raises:
            ConfigError: Unknown version, `v2pe_fix` without a stride, a stride that is not positive.
        """
        version = rope_pos_id_version
        if version is None:
            version = self.config.rope_pos_id_version
            if image_strides is None and version == "v2pe_rnd":
                logger.info("no stride given for a v2pe_rnd checkpoint: default positions are used")
                version = "default"
        stride = self.config.rope_pos_id_stride if rope_pos_id_stride is None else rope_pos_id_stride
        if image_strides is None:
            check_stride(version, stride)
        positions = build_position_ids(
            input_ids,
            image_token_id=-1 if self.img_context_token_id is None else self.img_context_token_id,
            num_image_token=self.num_image_token,
            strides=self._strides(input_ids, version, stride, image_strides),
            cu_seqlens=cu_seqlens,
            attention_mask=attention_mask,
        )
        return positions.to(torch.int64) if version == "default" else positions

    def _strides(self, input_ids: Tensor, version: str, stride: float | None, image_strides: Tensor | None) -> Strides:
        if version == "default":
            if image_strides is not None and bool((units_to_strides(image_strides) != self.num_image_token).any()):
                raise ConfigError(
                    "the batch carries strides but rope_pos_id_version is 'default'; pass 'v2pe_fix' or 'v2pe_rnd'"
                )
            return None
        if image_strides is not None:
            return units_to_strides(image_strides)
        if version == "v2pe_fix":
            return stride
        # Random strides outside the data pipeline come from a fixed seed: the same call gives the same answer.
        visual = self._visual_mask(input_ids)
        num_images = int((visual[:, 1:] & ~visual[:, :-1]).sum() + visual[:, 0].sum())
        generator = torch.Generator().manual_seed(0)
        return draw_strides(num_images, self.config.rope_pos_id_random_strides, generator)

    # ----------------------------------------------------------------------------------------------------- forward

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_flags: Tensor | None = None,
        past_key_values=None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        image_strides: Tensor | None = None,
        visual_features: Tensor | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
        rope_lengths: Tensor | int | None = None,
        loss_weight: Tensor | None = None,
        loss_denominator: Tensor | float | None = None,
        loss_function: Callable[..., Tensor] = weighted_cross_entropy,
        logits_to_keep: int = 0,
        return_logits: bool | None = None,
        row_sharing: RowSharing | None = None,
        num_vit_batches: int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits and, with `labels`, the loss sum(w * CE) / sum(w).

        A row that a group of ranks shares (`row_sharing`) is given whole, except for `pixel_values`, of which every
        rank gives its own tiles. Positions, targets and weights are made of the whole row before it is cut, so that
        no target is lost at a seam. Loss and logits are those of the rank's own tokens: the losses of the group add
        up to that of the row.

        Args:
            pixel_values: (tiles, 3, S, S), tiles of all images in the order of the row.
            input_ids: (batch, length) int64.
            attention_mask: (batch, length), 0 where padded.
            position_ids: (batch, length) in natural units; wins over everything below that makes positions.
                Floating positions are V2PE's, integer ones ordinary (see modeling_internlm2.py).
            image_flags: (tiles,) 1 for real tiles; tiles with 0 are left out.
            past_key_values: Cache of transformers.
            labels: (batch, length) int64, -100 where not supervised.
            use_cache: Make a cache when none is given, and return it.
            cu_seqlens: (documents + 1,) borders of the documents of a packed row (batch of one).
            image_strides: (images,) int64 in units of 1/65536, see `build_positions`.
            visual_features: (tiles, T, D) from `extract_feature`, instead of `pixel_values`.
            rope_pos_id_version: See `build_positions`.
            rope_pos_id_stride: See `build_positions`.
            rope_lengths: Final length per sequence for dynamic NTK, see modeling_internlm2.py (made here for a shared
                row).
            loss_weight: (batch, length) weight of every label (see loss.py); None: 1 each.
            loss_denominator: What the weighted sum is divided by; None: the sum of weights of this call.
            loss_function: What computes the loss, with arguments and result of `weighted_cross_entropy`.
            logits_to_keep: Logits of the last n positions only; 0: of all.
            return_logits: None: logits, except in a training step.
            row_sharing: How the row is shared among ranks; the decoder's attention must be one that knows of it.
            num_vit_batches: See `extract_feature`.
            **kwargs: Passed to the decoder.

        Raises:
            ConfigError: Positions cannot be made (see `build_positions`).
            ValueError: Another number of visual tokens than of features.
        """
        if input_ids is None:
            raise ValueError("InternVLChatModel needs input_ids (positions and visual tokens are found in them)")
        if cu_seqlens is not None:
            cu_seqlens = cu_seqlens.cpu()  # once: every layer reads the borders, and would wait for the device
        if position_ids is None and past_key_values is None:
            position_ids = self.build_positions(
                input_ids,
                attention_mask=attention_mask,
                cu_seqlens=cu_seqlens,
                image_strides=image_strides,
                rope_pos_id_version=rope_pos_id_version,
                rope_pos_id_stride=rope_pos_id_stride,
            )
        if position_ids is not None:
            position_ids = positions_per_row(position_ids, input_ids)
        if labels is not None:
            targets, weights = shift_targets(labels, loss_weight)
            if loss_denominator is None:
                loss_denominator = weights.sum()
        if row_sharing is not None:
            if position_ids is None or input_ids.shape[0] != 1:
                raise ValueError(f"a shared row is a batch of one without a cache, got a batch of {input_ids.shape[0]}")
            if cu_seqlens is None:
                cu_seqlens = torch.tensor([0, input_ids.shape[1]])
            rope_lengths = row_sharing.shard(_final_lengths(position_ids, cu_seqlens), pad_value=1)
            position_ids = row_sharing.shard(position_ids)
            if read_logn_scaling(self.language_model.config) is not None:
                num_keys = 1 + ordinary_positions(1, input_ids.shape[1], 0, None, cu_seqlens, input_ids.device)
                kwargs["num_keys"] = row_sharing.shard(num_keys, pad_value=1)
            if labels is not None:
                targets, weights = row_sharing.shard(targets, pad_value=IGNORE_INDEX), row_sharing.shard(weights)
        inputs_embeds = self._embed(
            input_ids,
            pixel_values,
            image_flags,
            visual_features,
            row_sharing=row_sharing,
            num_vit_batches=num_vit_batches,
        )
        if use_cache and past_key_values is None:
            past_key_values = KeyCastingCache()
        decoder: Any = self.language_model.model
        outputs = decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            cu_seqlens=cu_seqlens,
            rope_lengths=rope_lengths,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        head: Any = self.get_output_embeddings()
        loss = None
        if labels is not None:
            loss = loss_function(hidden_states, head.weight, targets, weights, denominator=loss_denominator)
        if return_logits is None:
            return_logits = labels is None or not self.training
        logits = head(hidden_states[:, -logits_to_keep:]).float() if return_logits else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


def _final_lengths(position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Length in positions of the document that every token of a packed row belongs to: int64 (1, length)."""
    borders = cu_seqlens.reshape(-1).to(position_ids.device, torch.int64)
    last = position_ids[0, (borders[1:] - 1).clamp(min=0)].ceil().long()
    return torch.repeat_interleave(last + 1, borders.diff()).unsqueeze(0)


def build_language_model(config: Any) -> Any:
    """The decoder that a config describes.

    Raises:
        ConfigError: Its architecture is not supported.
    """
    # By name: code that a checkpoint carries may hold a second copy of the config class.
    return InternLM2ForCausalLM(config) if config.model_type == "internlm2" else build_native_decoder(config)


def pixel_shuffle(grid: Tensor, ratio: float, version: str) -> Tensor:
    """Fold neighbouring patches into channels.

    Args:
        grid: (tiles, height, width, channels).
        ratio: Side ratio, 0.5 folds 2 x 2 patches into one.
        version: `v2`: (tiles, height*ratio, width*ratio, channels/ratio**2), rows first. `v1`: the same with height
            and width swapped, as the first release had it.
    """
    factor = round(1 / ratio)
    blocks = grid.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (n, h, a, w, b, c)
    order = (0, 1, 3, 2, 4, 5) if version == "v2" else (0, 3, 1, 2, 4, 5)
    return blocks.permute(order).flatten(3)


def merge_visual_features(embeds: Tensor, visual: Tensor, features: Tensor | None) -> Tensor:
    """Put features in place of visual tokens, in order.

    Args:
        embeds: (batch, length, D).
        visual: (batch, length) bool, True at visual tokens.
        features: (tiles, T, D), or (visual tokens, D).

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
