"""InternVL2 with V2PE: vision tower -> pixel shuffle -> projector -> merge into the text -> decoder.

    tiles ... --vision tower, projector (visual_features.py)--> (n, T, D)
    ids   ... <img> <IMG_CONTEXT> * T*tiles </img> ...  --embed, replace visual tokens-->  (batch, length, D)

Positions are made here, once per forward, from the ids and one stride per image (see v2pe.py). Call
`internvl.model.registration.register_auto_classes()` to make AutoModel know these classes, or load a saved folder with
`trust_remote_code=True` (it carries this code).
"""

import logging
from collections.abc import Callable
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention import register_builtin_attention
from .caches import KeyCastingCache
from .chat import ChatMixin
from .configuration_internvl_chat import InternLM2Config, InternVLChatConfig
from .errors import ConfigError
from .language_models import build_native_decoder
from .loading_options import translate_loading_options
from .loss import shift_targets, weighted_cross_entropy
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM
from .positions import check_stride, choose_positions, find_scheme, has_axes, positions_per_row
from .positions_scheme import Stride, Strides, read_row
from .rotary import Sequences
from .row_sharing import RowSharing
from .scaling import read_logn_scaling
from .shapes import Bool, Float, Int, Int64, Num, Shaped
from .v2pe import draw_strides, ordinary_positions, units_to_strides
from .visual_features import VisualFeaturesMixin, merge_visual_features

logger = logging.getLogger(__name__)


class InternVLChatModel(VisualFeaturesMixin, ChatMixin):
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

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **options: Any
    ) -> Any:
        """As in transformers, with the options of InternVL2's model cards (see loading_options.py)."""
        return super().from_pretrained(pretrained_model_name_or_path, *args, **translate_loading_options(options))

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save config, weights and code; the config gets `img_context_token_id`, so that the folder is complete."""
        self.config.img_context_token_id = self.img_context_token_id
        super().save_pretrained(save_directory, *args, **kwargs)

    # -------------------------------------------------------------------------------------------------- embeddings

    def _embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_flags: Tensor | None,
        visual_features: Tensor | None,
        *,
        row_sharing: RowSharing | None = None,
        num_vit_batches: int | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """Token embeddings with visual features in place, of this rank's tokens of a shared row."""
        if visual_features is None:
            needed = self.training or row_sharing is not None
            visual_features = self._encode_images(pixel_values, image_flags, num_vit_batches, needed=needed)
        visual = self.find_visual_tokens(input_ids)
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

    def find_visual_tokens(self, input_ids: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
        """True at visual tokens (nowhere while `img_context_token_id` is unknown)."""
        return input_ids == (-1 if self.img_context_token_id is None else self.img_context_token_id)

    # --------------------------------------------------------------------------------------------------- positions

    def build_positions(
        self,
        input_ids: Int[Tensor, "batch length"],
        *,
        attention_mask: Shaped[Tensor, "batch length"] | None = None,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        image_strides: Int[Tensor, " images"] | None = None,
        image_grids: Int[Tensor, "images 4"] | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: Stride | None = None,
    ) -> Num[Tensor, "*axes batch length"]:
        """Positions of a batch: int64 for `default` (the decoder may scale those), float64 for all others.

        Args:
            input_ids: Tokens.
            attention_mask: 0 where padded.
            cu_seqlens: Document borders of a packed row.
            image_strides: Strides in units of 1/65536, in the order of the row. They win over `rope_pos_id_stride`.
            image_grids: (rows, columns, thumbnail, frame) of every image (`positions_scheme.ImageGrid`), for versions
                of several axes; None: every image is one tile.
            rope_pos_id_version: See `choose_version`.
            rope_pos_id_stride: Positions that one tile spans; None: the checkpoint's own.

        Raises:
            ConfigError: Unknown version, `v2pe_fix` without a stride, a stride that is not positive, or grids that do
                not fit the images.
        """
        version, stride = self._choose_positions(rope_pos_id_version, rope_pos_id_stride, image_strides)
        if image_strides is None:
            check_stride(version, stride)
        row = read_row(
            input_ids,
            image_token_id=-1 if self.img_context_token_id is None else self.img_context_token_id,
            num_image_token=self.num_image_token,
            strides=self._strides(input_ids, version, stride, image_strides),
            grids=image_grids,
            cu_seqlens=cu_seqlens,
            attention_mask=attention_mask,
        )
        positions = row.finish(find_scheme(version).place(row))
        return positions.to(torch.int64) if version == "default" else positions

    def choose_version(
        self,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: Stride | None = None,
        image_strides: Int[Tensor, " images"] | None = None,
    ) -> str:
        """The positions that a call is on, as `positions.choose_positions` decides.

        A checkpoint that was trained with `v2pe_rnd` has no stride of its own: it runs on ordinary positions (which are
        among its strides) until one is chosen, or comes with the batch.
        """
        return self._choose_positions(rope_pos_id_version, rope_pos_id_stride, image_strides)[0]

    def _choose_positions(
        self, version: str | None, stride: Stride | None, image_strides: Tensor | None
    ) -> tuple[str, Stride | None]:
        saved = self.config.rope_pos_id_version
        if version is None and stride is None and image_strides is None and saved == "v2pe_rnd":
            logger.info("no stride given for a v2pe_rnd checkpoint: default positions are used")
            version = "default"
        return choose_positions(version, stride, saved, self.config.rope_pos_id_stride)

    def _strides(self, input_ids: Tensor, version: str, stride: Stride | None, image_strides: Tensor | None) -> Strides:
        if version == "default":
            if image_strides is not None and bool((units_to_strides(image_strides) != self.num_image_token).any()):
                raise ConfigError(
                    "the batch carries strides but rope_pos_id_version is 'default'; pass 'v2pe_fix' or 'v2pe_rnd'"
                )
            return None
        if image_strides is not None:
            # Batches say 0 for images that take no fractional steps.
            return None if has_axes(version) and not image_strides.any() else units_to_strides(image_strides)
        if version != "v2pe_rnd":
            return stride
        # Random strides outside the data pipeline come from a fixed seed: the same call gives the same answer.
        visual = self.find_visual_tokens(input_ids)
        num_images = int((visual[:, 1:] & ~visual[:, :-1]).sum() + visual[:, 0].sum())
        generator = torch.Generator().manual_seed(0)
        return draw_strides(num_images, self.config.rope_pos_id_random_strides, generator)

    def _share_positions(
        self, row_sharing: RowSharing, position_ids: Tensor | None, cu_seqlens: Tensor | None
    ) -> dict[str, Tensor]:
        """What the decoder needs to know of a whole row to run on this rank's tokens."""
        if position_ids is None or position_ids.shape[-2] != 1:
            got = "a cache" if position_ids is None else f"a batch of {position_ids.shape[-2]}"
            raise ValueError(f"a shared row is a batch of one without a cache, got {got}")
        length = position_ids.shape[-1]
        if cu_seqlens is None:
            cu_seqlens = torch.tensor([0, length])
        lengths = Sequences(cu_seqlens).lengths_of_tokens(position_ids)
        shares = {
            "position_ids": _shard_positions(row_sharing, position_ids),
            "rope_lengths": row_sharing.shard(lengths, pad_value=1),
            "cu_seqlens": cu_seqlens,
        }
        if read_logn_scaling(self.language_model.config) is not None:
            num_keys = 1 + ordinary_positions(1, length, 0, None, cu_seqlens, position_ids.device)
            shares["num_keys"] = row_sharing.shard(num_keys, pad_value=1)
        return shares

    # ----------------------------------------------------------------------------------------------------- forward

    def forward(
        self,
        pixel_values: Num[Tensor, "tiles 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch keys"] | None = None,
        position_ids: Num[Tensor, "*positions"] | None = None,
        image_flags: Int[Tensor, "..."] | None = None,
        past_key_values: Cache | None = None,
        labels: Int64[Tensor, "batch length"] | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        image_strides: Int[Tensor, " images"] | None = None,
        image_grids: Int[Tensor, "images 4"] | None = None,
        visual_features: Float[Tensor, "..."] | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: Stride | None = None,
        rope_lengths: Int[Tensor, "..."] | int | None = None,
        loss_weight: Float[Tensor, "batch length"] | None = None,
        loss_denominator: Num[Tensor, ""] | float | None = None,
        loss_function: Callable[..., Tensor] = weighted_cross_entropy,
        logits_to_keep: int = 0,
        return_logits: bool | None = None,
        row_sharing: RowSharing | None = None,
        num_vit_batches: int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits and, with `labels`, the loss sum(w * CE) / sum(w).

        A row that a group of ranks shares (`row_sharing`) is given whole, except for `pixel_values`, of which every
        rank gives its own tiles. Logits are those of the rank's own tokens, the loss that of its share of the
        predictions: the losses of the group add up to that of the row.

        Args:
            pixel_values: Tiles of all images in the order of the row: uint8, or normalised floats.
            input_ids: Required: positions and visual tokens are found in them.
            attention_mask: 0 where padded.
            position_ids: Positions in natural units, one row or one per row of ids; no others are made then. On
                several axes (axes, rows, length), of the version that the call chooses.
            image_flags: 1 for real tiles; tiles with 0 are left out.
            past_key_values: Cache of transformers.
            labels: -100 where not supervised.
            use_cache: Make a cache when none is given, and return it.
            cu_seqlens: Document borders of a packed row (batch of one).
            image_strides: See `build_positions`.
            image_grids: See `build_positions`.
            rope_pos_id_version: See `build_positions`.
            rope_pos_id_stride: See `build_positions`.
            visual_features: From `extract_feature`, instead of `pixel_values`.
            rope_lengths: See `InternLM2Model.forward` (made here for a shared row).
            loss_weight: Weight of every label (see loss.py); None: 1 each.
            loss_denominator: What the weighted sum is divided by; None: the sum of weights of this call.
            loss_function: Computes the loss, with arguments and result of `weighted_cross_entropy`.
            logits_to_keep: Logits of the last n positions only; 0: of all.
            return_logits: None: logits, except in a training step.
            row_sharing: How ranks share the row; the decoder's attention must know of it.
            num_vit_batches: See `extract_feature`.
            **kwargs: Passed to the decoder.
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
                image_grids=image_grids,
                rope_pos_id_version=rope_pos_id_version,
                rope_pos_id_stride=rope_pos_id_stride,
            )
        whole_row: dict[str, Any] = {
            "position_ids": position_ids,
            "rope_lengths": rope_lengths,
            "cu_seqlens": cu_seqlens,
        }
        if position_ids is not None:
            whole_row["position_ids"] = position_ids = positions_per_row(position_ids, input_ids)
            if position_ids.dim() == 3:
                version = self.choose_version(rope_pos_id_version, rope_pos_id_stride, image_strides)
                whole_row["rope_pos_id_version"] = version
        if labels is not None:
            targets, weights = shift_targets(labels, loss_weight)
            loss_denominator = weights.sum() if loss_denominator is None else loss_denominator
        # Positions, targets and weights are made of the whole row before it is cut, so that none is lost at a seam.
        if row_sharing is not None:
            row_sharing = row_sharing.of_row(cu_seqlens)
            kwargs |= self._share_positions(row_sharing, position_ids, cu_seqlens)
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
        outputs = self.language_model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            **(whole_row | kwargs),
        )
        hidden_states, head, loss, logits = outputs.last_hidden_state, self.get_output_embeddings(), None, None
        if labels is not None:
            predicting = (hidden_states, targets, weights)
            if row_sharing is not None:
                predicting = row_sharing.share_predictions(*predicting)
            states, targets, weights = predicting
            loss = loss_function(states, head.weight, targets, weights, denominator=loss_denominator)
        if return_logits or (return_logits is None and (labels is None or not self.training)):
            logits = head(hidden_states[:, -logits_to_keep:]).float()
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


def _shard_positions(row_sharing: RowSharing, position_ids: Num[Tensor, "*axes 1 length"]) -> Tensor:
    if position_ids.dim() == 2:
        return row_sharing.shard(position_ids)
    return torch.stack([row_sharing.shard(axis) for axis in position_ids])


def build_language_model(config: PreTrainedConfig) -> Any:
    """The decoder that a config describes: a PreTrainedModel that can generate, with its layers in `model`.

    Raises:
        ConfigError: Its architecture is not supported.
    """
    # By name: code that a checkpoint carries may hold a second copy of the config class.
    if config.model_type == "internlm2":
        return InternLM2ForCausalLM(cast(InternLM2Config, config))
    return build_native_decoder(config)
