"""Decoders that a chat model can have, and how each of them takes V2PE positions.

InternLM2 is our own class (modeling_internlm2.py). All others are transformers' classes with another rotary module
inside; a line in `DECODER_CONFIGS` (configuration_internvl_chat.py) adds one. Integer positions go to the module that
the class came with, so that ordinary positions are exactly transformers'; floating ones get their tables from
rotary.py. Attention reaches the seam in attention.py by its registered name, and documents of a packed row reach it as
`cu_seqlens`.

    family     InternVL2 sizes            decoder
    internlm2  2B, 8B, 26B                InternLM2ForCausalLM
    qwen2      1B (and InternVL2.5, 3)    Qwen2ForCausalLM
    llama      40B, 76B                   LlamaForCausalLM
    phi3       4B                         Phi3ForCausalLM
    qwen3      (InternVL3.5)              Qwen3ForCausalLM
"""

from functools import cache
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel

from .attention import DEFAULT_ATTENTION, AttentionFunction, is_registered
from .configuration_internvl_chat import DECODER_CONFIGS
from .errors import ConfigError
from .positions import final_lengths, next_text
from .rotary import Sequences, build_query_scales, build_rotary_tables, exceeds_training
from .shapes import Float, Num


class V2PERotaryEmbedding(nn.Module):
    """Rotary tables of a decoder of transformers, for ordinary and for V2PE positions.

    Args:
        native: The rotary module of transformers that it replaces.
        config: Config of the decoder.

    Attributes:
        sequences: Of the current forward pass, see `_note_sequences`.
        on_axes: Positions on several axes and their version, likewise; None: positions are on one.
    """

    def __init__(self, native: nn.Module, config: PreTrainedConfig):
        super().__init__()
        self.native = native
        self.config = config
        self.sequences = Sequences()
        self.on_axes: tuple[Tensor, str | None] | None = None

    def forward(
        self, hidden_states: Tensor, position_ids: Num[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length width"]]:
        """Cosines and sines.

        Integer positions get the tables of transformers, scaled as the config says and in the dtype of
        `hidden_states`. Floating positions, and sequences beyond the length that the model was trained on, get float32
        tables from rotary.py, whose frequencies follow from the sequence's own final length: transformers changes
        them for the whole batch, after keys were cached.
        """
        if self.on_axes is not None:
            cos, sin = build_rotary_tables(self.config, self.on_axes[0], self.sequences, self.on_axes[1])
            if cos.dim() == 4:
                raise ConfigError(
                    f"rope_pos_id_version {self.on_axes[1]} rotates heads differently, which {self.config.model_type} "
                    "does not; use another version, or a checkpoint with InternLM2"
                )
            return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
        if not position_ids.is_floating_point() and not exceeds_training(self.config, position_ids, self.sequences):
            return self.native(hidden_states, position_ids=position_ids)
        cos, sin = build_rotary_tables(self.config, position_ids, self.sequences)
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)


def _note_sequences(
    decoder: PreTrainedModel, args: tuple[object, ...], kwargs: dict[str, Any]
) -> tuple[tuple[object, ...], dict[str, Any]]:
    """Forward pre-hook: tells the rotary module, which is only given positions, where sequences lie.

    Arguments that the decoder does not know reach the attention seam: `cu_seqlens`, and `query_scale`, made here.
    """
    rotary, positions = _rotary(decoder), kwargs.get("position_ids")
    rotary.sequences = Sequences(kwargs.get("cu_seqlens"), kwargs.get("rope_lengths"))
    version = kwargs.pop("rope_pos_id_version", None)
    if positions is not None and positions.dim() == 3:
        # Only the rotary module needs them all; code of transformers takes the first axis for a document's positions.
        rotary.on_axes, kwargs["position_ids"] = (positions, version), positions[0]
    num_keys = kwargs.pop("num_keys", None)
    cache, states = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
    query_scale = build_query_scales(
        decoder.config,
        states=kwargs.get("input_ids", *args[:1]) if states is None else states,
        num_cached=0 if cache is None else cache.get_seq_length(),
        attention_mask=kwargs.get("attention_mask"),
        cu_seqlens=kwargs.get("cu_seqlens"),
        num_keys=num_keys,
    )
    if query_scale is not None:
        kwargs["query_scale"] = query_scale
    return args, kwargs


def _forget_sequences(
    decoder: PreTrainedModel, args: tuple[object, ...], kwargs: dict[str, object], output: object
) -> None:
    _rotary(decoder).sequences, _rotary(decoder).on_axes = Sequences(), None


def _rotary(decoder: PreTrainedModel) -> V2PERotaryEmbedding:
    return cast(V2PERotaryEmbedding, decoder.rotary_emb)


class WholePositionsMixin:
    """Generation: the n-th new token sits at ceil(last prompt position) + n."""

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """The parent's, but rows of positions are repeated here: its older releases would repeat the axes."""
        positions = model_kwargs.pop("position_ids", None)
        input_ids, expanded = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if positions is not None:
            expanded["position_ids"] = positions.repeat_interleave(expand_size, dim=-2)
        return input_ids, expanded

    def _update_model_kwargs_for_generation(
        self, outputs: object, model_kwargs: dict[str, Any], is_encoder_decoder: bool = False, num_new_tokens: int = 1
    ) -> dict[str, Any]:
        positions = model_kwargs.get("position_ids")
        if positions is not None and positions.is_floating_point():
            # The parent appends last + 1, last + 2, ...: give it a whole number to start from, on all axes.
            whole = next_text(positions, model_kwargs.get("rope_pos_id_version")).unsqueeze(-1) - 1
            before, last = positions[..., :-1], positions[..., -1:]
            model_kwargs["position_ids"] = torch.cat([before, whole.expand_as(last)], dim=-1)
        return super()._update_model_kwargs_for_generation(  # type: ignore[misc]
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )


class FinalLengthMixin(WholePositionsMixin):
    """Generation: frequencies that depend on length follow from every sequence's final length, in positions."""

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: Tensor | None = None,
        rope_lengths: Tensor | int | None = None,
        attention: AttentionFunction | None = None,
        rope_pos_id_version: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """`GenerationMixin`'s, since Phi3's own drops the cache where its frequencies would change."""
        return GenerationMixin.prepare_inputs_for_generation(
            self,  # type: ignore[arg-type]
            input_ids,
            inputs_embeds=inputs_embeds,
            rope_lengths=rope_lengths,
            attention=attention,
            rope_pos_id_version=rope_pos_id_version,
            **kwargs,
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: object,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        positions = model_kwargs.get("position_ids")
        if model_kwargs.get("rope_lengths") is None and positions is not None:
            num_new_tokens = max_cache_length + 1 - positions.shape[-1]
            version = model_kwargs.get("rope_pos_id_version")
            model_kwargs["rope_lengths"] = final_lengths(positions, num_new_tokens, version)


@cache
def native_class(name: str) -> type[PreTrainedModel]:
    """transformers' decoder class of that name, with V2PE positions."""
    return type(name, (FinalLengthMixin, getattr(transformers, name)), {"__module__": __name__})


def grow_vocabulary(decoder: PreTrainedModel, vocab_size: int, num_added: int) -> None:
    """Give a decoder at least `vocab_size` tokens, the last `num_added` of which start as the mean of those before."""
    num_old = vocab_size - num_added
    decoder.resize_token_embeddings(max(vocab_size, decoder.config.vocab_size), mean_resizing=False)
    for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        rows = cast(Tensor, layer.weight).data
        rows[num_old:vocab_size] = rows[:num_old].float().mean(dim=0).to(rows.dtype)
    decoder.vocab_size = decoder.config.vocab_size


def build_native_decoder(config: PreTrainedConfig) -> PreTrainedModel:
    """A decoder of transformers whose rotary module takes V2PE positions.

    Raises:
        ConfigError: Unknown architecture, or a sliding attention window that the model would use.
    """
    model_class = native_class(check_architecture(config))
    check_window(config)
    if not is_registered(config._attn_implementation):
        config._attn_implementation = DEFAULT_ATTENTION
    decoder = model_class(config)
    decoder.model.rotary_emb = V2PERotaryEmbedding(decoder.model.rotary_emb, config)
    decoder.model.register_forward_pre_hook(_note_sequences, with_kwargs=True)
    decoder.model.register_forward_hook(_forget_sequences, with_kwargs=True, always_call=True)
    return decoder


def check_window(config: PreTrainedConfig) -> None:
    """Raise ConfigError if a config asks for a sliding attention window that the model would use."""
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        raise ConfigError(
            f"llm_config.sliding_window is {window}, below max_position_embeddings {config.max_position_embeddings}: "
            "sliding attention is not available; set sliding_window to null if the model was trained without it"
        )


def check_architecture(config: PreTrainedConfig) -> str:
    """Name of the decoder class that a config asks for.

    Raises:
        ConfigError: It is not one of those supported.
    """
    name = (getattr(config, "architectures", None) or [None])[0]
    if name not in DECODER_CONFIGS:
        raise ConfigError(f"llm_config.architectures[0] is {name!r}; supported: {', '.join(DECODER_CONFIGS)}")
    return name
