"""InternVL2 with V2PE: vision tower -> pixel shuffle -> projector -> merge into the text -> decoder.

    tiles (n, 3, S, S) --ViT--> (n, 1+P, H) --pixel shuffle--> (n, T, 4H) --mlp1--> (n, T, D)
    ids   ... <img> <IMG_CONTEXT> * T*tiles </img> ...  --embed, replace visual tokens-->  (batch, length, D)

Positions are made here, once per forward, from the ids and one stride per image (see v2pe.py). Call
`internvl.model.registration.register_auto_classes()` to make AutoModel know these classes, or load a saved folder with
`trust_remote_code=True` (it carries this code).
"""

import logging
import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention import register_builtin_attention
from .caches import KeyCastingCache, build_cache, check_kv_cache
from .configuration_internvl_chat import InternLM2Config, InternVLChatConfig
from .constants import IGNORE_INDEX, IMAGE_PLACEHOLDER, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from .conversation import Role, get_conversation, neutralise_special_tokens
from .errors import ConfigError
from .language_models import build_native_decoder
from .loss import shift_targets, weighted_cross_entropy
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM
from .rotary import Sequences
from .row_sharing import RowSharing
from .scaling import read_logn_scaling
from .shapes import Bool, Float, Int, Int64, Num, Shaped
from .v2pe import (
    Stride,
    Strides,
    build_position_ids,
    check_stride,
    draw_strides,
    next_position,
    ordinary_positions,
    units_to_strides,
)

logger = logging.getLogger(__name__)


class InternVLChatModel(PreTrainedModel):
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

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save config, weights and code; the config gets `img_context_token_id`, so that the folder is complete."""
        self.config.img_context_token_id = self.img_context_token_id
        super().save_pretrained(save_directory, *args, **kwargs)

    # ---------------------------------------------------------------------------------------------------- features

    def extract_feature(
        self, pixel_values: Float[Tensor, "tiles 3 height width"], *, num_batches: int | None = None
    ) -> Float[Tensor, "tiles tokens dim"]:
        """Visual tokens of tiles.

        With `vit_batch_size` n the tower runs on n tiles at a time, and the backward pass recomputes the activations
        of each batch: only its tiles are kept (of a frozen tower only its output). Features and gradients are the
        same. Zero tiles give zero features whose backward pass still reaches tower and projector.

        Args:
            pixel_values: Tiles.
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

    def _run_tower(self, tiles: Float[Tensor, "tiles 3 height width"]) -> Float[Tensor, "tiles patches hidden"]:
        return self.vision_model(tiles, select_layer=self.config.select_layer)[:, 1:]  # without the class token

    def _project(self, states: Float[Tensor, "tiles patches hidden"]) -> Float[Tensor, "tiles tokens dim"]:
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
    ) -> Float[Tensor, "batch length dim"]:
        """Token embeddings with visual features in place, of this rank's tokens of a shared row."""
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

    def _visual_mask(self, input_ids: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
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
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: Stride | None = None,
    ) -> Num[Tensor, "batch length"]:
        """Positions of a batch: int64 for `default` (the decoder may scale those), float64 for V2PE.

        Args:
            input_ids: Tokens.
            attention_mask: 0 where padded.
            cu_seqlens: Document borders of a packed row.
            image_strides: Strides in units of 1/65536, in the order of the row. They win over `rope_pos_id_stride`.
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

    def _strides(self, input_ids: Tensor, version: str, stride: Stride | None, image_strides: Tensor | None) -> Strides:
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

    def _share_positions(
        self, row_sharing: RowSharing, position_ids: Tensor | None, cu_seqlens: Tensor | None
    ) -> dict[str, Tensor]:
        """What the decoder needs to know of a whole row to run on this rank's tokens."""
        if position_ids is None or len(position_ids) != 1:
            got = "a cache" if position_ids is None else f"a batch of {len(position_ids)}"
            raise ValueError(f"a shared row is a batch of one without a cache, got {got}")
        length = position_ids.shape[1]
        if cu_seqlens is None:
            cu_seqlens = torch.tensor([0, length])
        lengths = Sequences(cu_seqlens).lengths_of_tokens(position_ids)
        shares = {
            "position_ids": row_sharing.shard(position_ids),
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
        pixel_values: Float[Tensor, "tiles 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch keys"] | None = None,
        position_ids: Num[Tensor, "*positions"] | None = None,
        image_flags: Int[Tensor, "..."] | None = None,
        past_key_values: Cache | None = None,
        labels: Int64[Tensor, "batch length"] | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        image_strides: Int[Tensor, " images"] | None = None,
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
        rank gives its own tiles. Loss and logits are those of the rank's own tokens: the losses of the group add up
        to that of the row.

        Args:
            pixel_values: Tiles of all images in the order of the row.
            input_ids: Required: positions and visual tokens are found in them.
            attention_mask: 0 where padded.
            position_ids: Positions in natural units, one row or one per row of ids; no others are made then.
            image_flags: 1 for real tiles; tiles with 0 are left out.
            past_key_values: Cache of transformers.
            labels: -100 where not supervised.
            use_cache: Make a cache when none is given, and return it.
            cu_seqlens: Document borders of a packed row (batch of one).
            image_strides, rope_pos_id_version, rope_pos_id_stride: See `build_positions`.
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
                rope_pos_id_version=rope_pos_id_version,
                rope_pos_id_stride=rope_pos_id_stride,
            )
        if position_ids is not None:
            position_ids = _positions_per_row(position_ids, input_ids)
        whole_row = {"position_ids": position_ids, "rope_lengths": rope_lengths, "cu_seqlens": cu_seqlens}
        if labels is not None:
            targets, weights = shift_targets(labels, loss_weight)
            loss_denominator = weights.sum() if loss_denominator is None else loss_denominator
        # Positions, targets and weights are made of the whole row before it is cut, so that none is lost at a seam.
        if row_sharing is not None:
            kwargs |= self._share_positions(row_sharing, position_ids, cu_seqlens)
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
        outputs = self.language_model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            **(whole_row | kwargs),
        )
        hidden_states, head, loss, logits = outputs.last_hidden_state, self.get_output_embeddings(), None, None
        if labels is not None:
            loss = loss_function(hidden_states, head.weight, targets, weights, denominator=loss_denominator)
        if return_logits or (return_logits is None and (labels is None or not self.training)):
            logits = head(hidden_states[:, -logits_to_keep:]).float()
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    # -------------------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        image_flags: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_strides: Tensor | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
        prefill_chunk_size: int | None = None,
        kv_cache: str = "dynamic",
        context_parallel: Any | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generate with a key/value cache; returns new tokens only, (batch, new tokens).

        Arguments as in `forward`; further ones as of transformers' `generate` (`max_new_tokens`, `do_sample`, ...).
        The n-th generated token sits at `ceil(last prompt position) + n`.

        `prefill_chunk_size`: run the prompt through the decoder in pieces of so many tokens, so that activations of
        the whole prompt never exist at a time; the answer is the same.

        `kv_cache`: where keys and values are kept, `dynamic`, `static`, `offloaded` or `quantized` (see caches.py);
        all but `quantized` give the same answer.

        `context_parallel`: an `internvl.infer.context_parallel.ContextParallel`, whose ranks all make the same call;
        the prompt, its images and its keys and values are spread over them. The answer is the same.
        """
        if context_parallel is not None:
            return context_parallel.generate(
                self,
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                visual_features=visual_features,
                generation_config=generation_config,
                image_flags=image_flags,
                position_ids=position_ids,
                image_strides=image_strides,
                rope_pos_id_version=rope_pos_id_version,
                rope_pos_id_stride=rope_pos_id_stride,
                prefill_chunk_size=prefill_chunk_size,
                kv_cache=kv_cache,
                **generate_kwargs,
            )
        check_kv_cache(kv_cache)
        if prefill_chunk_size is not None and prefill_chunk_size < 1:
            raise ConfigError(f"prefill_chunk_size must be a positive number of tokens, got {prefill_chunk_size}")
        if input_ids is None:
            raise ValueError("generate needs input_ids")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        num_new_tokens = _max_new_tokens(generation_config, generate_kwargs)
        if generate_kwargs.get("use_cache", True) and generate_kwargs.get("past_key_values") is None:
            generate_kwargs["past_key_values"] = build_cache(
                kv_cache,
                num_layers=self.config.llm_config.num_hidden_layers,
                max_length=None if num_new_tokens is None else input_ids.shape[1] + num_new_tokens,
                device=input_ids.device,
            )
        if position_ids is None:
            position_ids = self.build_positions(
                input_ids,
                attention_mask=attention_mask,
                image_strides=image_strides,
                rope_pos_id_version=rope_pos_id_version,
                rope_pos_id_stride=rope_pos_id_stride,
            )
        position_ids = _positions_per_row(position_ids, input_ids)
        inputs_embeds = self._embed(input_ids, pixel_values, image_flags, visual_features)
        if prefill_chunk_size is not None and generate_kwargs.get("past_key_values") is not None:
            if num_new_tokens is None:
                raise ConfigError("prefill_chunk_size needs max_new_tokens: the rotary base depends on it")
            self._prefill(
                inputs_embeds,
                attention_mask,
                position_ids,
                generate_kwargs,
                chunk_size=prefill_chunk_size,
                num_new_tokens=num_new_tokens,
            )
            num_copies = _copies_per_prompt(generation_config, generate_kwargs)
            if num_copies > 1:
                generate_kwargs["past_key_values"].batch_repeat_interleave(num_copies)
        return self.language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            generation_config=generation_config,
            **generate_kwargs,
        )

    def _prefill(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        generate_kwargs: dict[str, Any],
        *,
        chunk_size: int,
        num_new_tokens: int,
    ) -> None:
        """Fill the cache with all chunks of the prompt but the last, and fix the rotary base of the sequence.

        A cache may hold the beginning of the prompt already.
        """
        generate_kwargs["rope_lengths"] = next_position(position_ids[:, -1].double()).long() + num_new_tokens
        length = inputs_embeds.shape[1]
        num_cached = generate_kwargs["past_key_values"].get_seq_length()
        for first in range(num_cached, length - chunk_size, chunk_size):
            chunk = slice(first, first + chunk_size)
            self.language_model.model(
                inputs_embeds=inputs_embeds[:, chunk],
                attention_mask=attention_mask[:, : chunk.stop],
                position_ids=position_ids[:, chunk],
                past_key_values=generate_kwargs["past_key_values"],
                use_cache=True,
                rope_lengths=generate_kwargs.get("rope_lengths"),
            )

    def chat(
        self,
        tokenizer,
        pixel_values: Tensor | None,
        question: str,
        generation_config: dict[str, Any],
        history: Sequence[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
        system_message: str | None = None,
        **_ignored: Any,
    ):
        """Answer one question about images.

        Args:
            tokenizer: Tokenizer of the checkpoint.
            pixel_values: (tiles, 3, S, S) tiles of all images, those of earlier turns first; None without images.
            question: Text with one `<image>` per image; without any, `<image>` is put in front of the first turn.
                Chat markers and image tokens that stand literally in texts are neutralised.
            generation_config: Arguments of `generate`; the dict is not changed.
            history: Earlier turns (question, answer).
            return_history: Return `(answer, history)`.
            num_patches_list: Tiles per image; None: one image that holds all tiles.
            IMG_START_TOKEN: Marker in front of an image.
            IMG_END_TOKEN: Marker behind an image.
            IMG_CONTEXT_TOKEN: The visual token.
            verbose: Log prompt and answer.
            rope_pos_id_version: See `build_positions`.
            rope_pos_id_stride: See `build_positions`.
            system_message: Replaces the template's own.

        Returns:
            The answer, or `(answer, history)`.

        Raises:
            ValueError: Numbers of placeholders, images and tiles do not fit.
        """
        if num_patches_list is None:
            num_patches_list = [] if pixel_values is None else [len(pixel_values)]
        if history is None and pixel_values is not None and IMAGE_PLACEHOLDER not in question:
            question = f"{IMAGE_PLACEHOLDER}\n{question}"
        history = list(history or [])
        markers = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        prompt = self._render_prompt(question, history, num_patches_list, markers, system_message)
        [answer] = self._answer_prompts(
            tokenizer,
            [prompt],
            pixel_values,
            sum(num_patches_list),
            generation_config,
            image_token=IMG_CONTEXT_TOKEN,
            rope_pos_id_version=rope_pos_id_version,
            rope_pos_id_stride=rope_pos_id_stride,
        )
        if verbose:
            logger.info("%s %s", prompt, answer)
        return (answer, [*history, (question, answer)]) if return_history else answer

    def batch_chat(
        self,
        tokenizer,
        pixel_values: Tensor | None,
        questions: Sequence[str],
        generation_config: dict[str, Any],
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
        image_counts: Sequence[int] | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
        system_message: str | None = None,
        **_ignored: Any,
    ) -> list[str]:
        """Answer several questions at once; prompts of unequal length are padded on the left.

        Args:
            tokenizer: Tokenizer of the checkpoint.
            pixel_values: (tiles, 3, S, S) tiles of all images in the order of the questions.
            questions: Texts with one `<image>` per image; a question that has images and no `<image>` gets them put
                in front.
            generation_config: Arguments of `generate`; the dict is not changed.
            num_patches_list: Tiles per image; None: one image of one tile per question.
            IMG_START_TOKEN: Marker in front of an image.
            IMG_END_TOKEN: Marker behind an image.
            IMG_CONTEXT_TOKEN: The visual token.
            verbose: Log prompts and answers.
            image_counts: Images per question; None: one each, or none without `pixel_values`.
            rope_pos_id_version: See `build_positions`.
            rope_pos_id_stride: See `build_positions`.
            system_message: Replaces the template's own.

        Raises:
            ValueError: Numbers of questions, placeholders, images and tiles do not fit.
        """
        if image_counts is None:
            image_counts = [0 if pixel_values is None else 1] * len(questions)
        if num_patches_list is None:
            num_patches_list = [1] * sum(image_counts)
        if len(image_counts) != len(questions) or sum(image_counts) != len(num_patches_list):
            raise ValueError(
                f"{len(questions)} questions, image_counts for {len(image_counts)} of them with {sum(image_counts)} "
                f"images, num_patches_list for {len(num_patches_list)} images: these numbers must fit together"
            )
        markers = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        prompts, first = [], 0
        for question, count in zip(questions, image_counts, strict=True):
            if count and IMAGE_PLACEHOLDER not in question:
                question = f"{IMAGE_PLACEHOLDER}\n" * count + question
            tiles = num_patches_list[first : first + count]
            prompts.append(self._render_prompt(question, [], tiles, markers, system_message))
            first += count
        answers = self._answer_prompts(
            tokenizer,
            prompts,
            pixel_values,
            sum(num_patches_list),
            generation_config,
            image_token=IMG_CONTEXT_TOKEN,
            rope_pos_id_version=rope_pos_id_version,
            rope_pos_id_stride=rope_pos_id_stride,
        )
        if verbose:
            for prompt, answer in zip(prompts, answers, strict=True):
                logger.info("%s %s", prompt, answer)
        return answers

    def _render_prompt(
        self,
        question: str,
        history: Sequence[tuple[str, str]],
        tiles_per_image: Sequence[int],
        markers: tuple[str, str, str],
        system_message: str | None,
    ) -> str:
        """The prompt's text, every `<image>` spelt out with its visual tokens."""
        messages: list[tuple[Role, str | None]] = []
        for past_question, past_answer in history:
            messages += [
                ("user", neutralise_special_tokens(past_question)),
                ("assistant", neutralise_special_tokens(past_answer)),
            ]
        messages += [("user", neutralise_special_tokens(question)), ("assistant", None)]
        conversation = get_conversation(self.config.template or "internlm2-chat")
        pieces = conversation.render(messages, system_message=system_message).split(IMAGE_PLACEHOLDER)
        num_images = len(tiles_per_image)
        if len(pieces) - 1 != num_images:
            raise ValueError(
                f"the conversation has {len(pieces) - 1} {IMAGE_PLACEHOLDER} placeholders for {num_images} images"
            )
        begin, visual, end = markers
        for index, tiles in enumerate(tiles_per_image):
            pieces[index] += begin + visual * (self.num_image_token * tiles) + end
        return "".join(pieces)

    def _answer_prompts(
        self,
        tokenizer,
        prompts: Sequence[str],
        pixel_values: Tensor | None,
        num_tiles_in_text: int,
        generation_config: dict[str, Any],
        *,
        image_token: str,
        **positions: Any,
    ) -> list[str]:
        num_tiles = 0 if pixel_values is None else len(pixel_values)
        if num_tiles_in_text != num_tiles:
            raise ValueError(f"num_patches_list adds up to {num_tiles_in_text} tiles, pixel_values has {num_tiles}")
        image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if image_token_id is None or image_token_id == tokenizer.unk_token_id:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens without {image_token}, expected that of an InternVL2 "
                "model; load it from the checkpoint's own folder"
            )
        self.img_context_token_id = image_token_id
        stop = get_conversation(self.config.template or "internlm2-chat").stop_token
        rows = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts]
        width = max(len(row) for row in rows)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        input_ids = torch.stack([F.pad(row, (width - len(row), 0), value=pad_id) for row in rows])
        attention_mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
        tokens = self.generate(
            pixel_values=None if pixel_values is None else pixel_values.to(self.device, self.dtype),
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            **positions,
            **{"eos_token_id": tokenizer.convert_tokens_to_ids(stop), "pad_token_id": pad_id, **generation_config},
        )
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.split(stop)[0].strip() for text in texts]


def _asked(name: str, generation_config: GenerationConfig | None, generate_kwargs: dict[str, Any]) -> int | None:
    asked = generate_kwargs.get(name)
    return getattr(generation_config, name, None) if asked is None else asked


def _max_new_tokens(generation_config: GenerationConfig | None, generate_kwargs: dict[str, Any]) -> int | None:
    asked = _asked("max_new_tokens", generation_config, generate_kwargs)
    return None if asked is None else int(asked)


def _copies_per_prompt(generation_config: GenerationConfig | None, generate_kwargs: dict[str, Any]) -> int:
    """Rows that transformers makes of every prompt."""
    return max(_asked(name, generation_config, generate_kwargs) or 1 for name in ("num_beams", "num_return_sequences"))


def _positions_per_row(position_ids: Tensor, input_ids: Tensor) -> Tensor:
    """(batch, length) positions from one row of them or from one per row of ids; another number is a ValueError."""
    rows = position_ids.reshape(-1, position_ids.shape[-1])
    if rows.shape[-1] != input_ids.shape[-1] or len(rows) not in (1, len(input_ids)):
        raise ValueError(
            f"position_ids has {rows.shape[-1]} positions for {input_ids.shape[-1]} tokens, {len(rows)} rows for "
            f"{len(input_ids)}; give one position per token"
        )
    return rows.expand(len(input_ids), -1)


def build_language_model(config: PreTrainedConfig) -> Any:
    """The decoder that a config describes: a PreTrainedModel that can generate, with its layers in `model`.

    Raises:
        ConfigError: Its architecture is not supported.
    """
    # By name: code that a checkpoint carries may hold a second copy of the config class.
    if config.model_type == "internlm2":
        return InternLM2ForCausalLM(cast(InternLM2Config, config))
    return build_native_decoder(config)


def pixel_shuffle(
    grid: Shaped[Tensor, "tiles height width channels"], ratio: float, version: str
) -> Shaped[Tensor, "tiles rows columns folded_channels"]:
    """Fold neighbouring patches into channels.

    Args:
        grid: States of patches.
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
        embeds: Of all tokens.
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
