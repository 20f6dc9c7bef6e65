"""Which decoders a chat model can have, and how each of them takes V2PE positions.

InternLM2 is ours (modeling_internlm2.py). Llama, Qwen2, Qwen3 and Phi3 are transformers' own classes; only their
rotary module is supplied here, by composition: integer positions go to the module that the class came with, so
ordinary positions are exactly transformers' (but for frequencies that depend on length, which are chosen per sequence),
floating positions get float32 tables from float64 angles. Attention reaches the seam in attention.py by name, and
documents of a packed row reach it as `cu_seqlens`.

    family     InternVL2 sizes            decoder
    internlm2  2B, 8B, 26B                InternLM2ForCausalLM
    qwen2      1B (and InternVL2.5, 3)    Qwen2ForCausalLM
    llama      40B, 76B                   LlamaForCausalLM
    phi3       4B                         Phi3ForCausalLM
    qwen3      (InternVL3.5)              Qwen3ForCausalLM
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .attention import DEFAULT_ATTENTION, is_registered
from .errors import ConfigError
from .logn_scaling import build_query_scales
from .rope_scaling import TRAINED_ROPE_TYPES
from .v2pe import next_position, ntk_base, rotary_tables

# Rope types whose frequencies depend on the final length of a sequence.
_TYPES_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a batch lie, and how long they will be.

    Attributes:
        cu_seqlens: (documents + 1,) borders of a packed row; None: every row is a sequence.
        final_lengths: Final length in positions, of every sequence or, (batch, length), of every token's sequence;
            None: the length so far.
    """

    cu_seqlens: Tensor | None = None
    final_lengths: Tensor | int | None = None

    def lengths_of_tokens(self, position_ids: Tensor) -> Tensor:
        """Final length of the sequence that a token belongs to: int64, (batch, 1) or (1, length) of a packed row."""
        if torch.is_tensor(self.final_lengths) and self.final_lengths.shape == position_ids.shape:
            return self.final_lengths.long()
        if self.final_lengths is not None:
            lengths = torch.as_tensor(self.final_lengths, device=position_ids.device).reshape(-1)
        elif self.cu_seqlens is None:
            lengths = position_ids.amax(dim=1).ceil() + 1
        else:
            # Positions rise within a document: its last one is the largest.
            last = self._borders(position_ids)[1:] - 1
            lengths = position_ids[0, last.clamp(min=0)].ceil() + 1
        if self.cu_seqlens is None:
            return lengths.long().unsqueeze(1)
        return torch.repeat_interleave(lengths.long(), self._borders(position_ids).diff()).unsqueeze(0)

    def _borders(self, position_ids: Tensor) -> Tensor:
        assert self.cu_seqlens is not None
        return self.cu_seqlens.reshape(-1).to(position_ids.device, torch.int64)


class V2PERotaryEmbedding(nn.Module):
    """Rotary tables of one decoder for ordinary and for V2PE positions.

    Args:
        native: The rotary module of transformers that it stands in for.
        config: Config of the decoder.

    Attributes:
        sequences: Of the forward pass that runs (see `_note_sequences`); frequencies that depend on length are chosen
            per sequence by it, so that neither the next sample nor cached keys get those of another length.
    """

    def __init__(self, native: Any, config: Any):
        super().__init__()
        self.native: Any = native
        self.config: Any = config
        self.sequences = Sequences()

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (batch, length, rotated width).

        Integer positions: as transformers makes them (scaled as the config says, in the dtype of `hidden_states`), but
        for sequences beyond the length that the model was trained on, whose dynamic NTK or longrope frequencies follow
        from their own final length (float32). Floating positions: float32, scaled by linear or YaRN if the config says
        `scale_v2pe`, and never otherwise beyond what the model was trained with.
        """
        kind = self.config.rope_parameters["rope_type"]
        lengths = self.sequences.lengths_of_tokens(position_ids) if kind in _TYPES_BY_LENGTH else None
        if not position_ids.is_floating_point():
            if lengths is None or not bool((lengths > self._unscaled_length(kind)).any()):
                return self.native(hidden_states, position_ids=position_ids)
        elif kind not in TRAINED_ROPE_TYPES and not getattr(self.config, "scale_v2pe", False):
            kind = "default"
        frequencies, scale = self._frequencies(kind, lengths, position_ids.device)
        if frequencies.dim() == 1:
            width, base = 2 * len(frequencies), self.config.rope_parameters["rope_theta"]
            cos, sin = rotary_tables(
                position_ids, head_dim=width, base=base, inverse_frequency=frequencies, scale=scale
            )
        else:
            angles = position_ids.double().unsqueeze(-1) * frequencies
            cos, sin = (angles.cos() * scale).float(), (angles.sin() * scale).float()
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)

    def _unscaled_length(self, kind: str) -> int:
        """Tokens up to which a sequence has the frequencies of short ones."""
        if kind == "dynamic":
            return self.config.max_position_embeddings
        return self.config.rope_parameters["original_max_position_embeddings"]

    def _frequencies(self, kind: str, lengths: Tensor | None, device: torch.device) -> tuple[Tensor, float]:
        """Inverse frequencies, float64, (width / 2,) or with the dimensions of `lengths` in front; factor of tables."""
        parameters = self.config.rope_parameters
        if kind in ("default", "dynamic"):
            width = int(_head_dim(self.config) * parameters.get("partial_rotary_factor", 1.0))
            base = torch.tensor(parameters["rope_theta"], dtype=torch.float64, device=device)
            if kind == "dynamic" and lengths is not None:
                base = ntk_base(
                    parameters["rope_theta"],
                    lengths,
                    max_position_embeddings=self.config.max_position_embeddings,
                    factor=parameters["factor"],
                    head_dim=width,
                )
            exponents = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
            return base.unsqueeze(-1) ** -exponents, 1.0
        compute = ROPE_INIT_FUNCTIONS[kind]
        frequencies, scale = compute(self.config, device)
        if lengths is None:
            return frequencies.double(), scale
        limit = self._unscaled_length(kind)
        long_frequencies, _ = compute(self.config, device, seq_len=limit + 1)
        return torch.where((lengths > limit).unsqueeze(-1), long_frequencies, frequencies).double(), scale


def _note_sequences(model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of a decoder of transformers, which hands positions alone to its rotary module.

    Everything that it does not know itself reaches the attention seam: `cu_seqlens`, and `query_scale`, which is made
    here.
    """
    model.rotary_emb.sequences = Sequences(kwargs.get("cu_seqlens"), kwargs.get("rope_lengths"))
    num_keys = kwargs.pop("num_keys", None)
    states = kwargs.get("inputs_embeds")
    query_scale = build_query_scales(
        model.config,
        states=kwargs.get("input_ids", *args[:1]) if states is None else states,
        past_key_values=kwargs.get("past_key_values"),
        attention_mask=kwargs.get("attention_mask"),
        cu_seqlens=kwargs.get("cu_seqlens"),
        num_keys=num_keys,
    )
    if query_scale is not None:
        kwargs["query_scale"] = query_scale
    return args, kwargs


def _forget_sequences(model: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    model.rotary_emb.sequences = Sequences()


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class WholePositionsMixin:
    """Generation: the n-th new token sits at ceil(last prompt position) + n."""

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        positions = model_kwargs.get("position_ids")
        if positions is not None and positions.is_floating_point():
            # The parent appends last + 1, last + 2, ...: give it a whole number to start from.
            whole = next_position(positions[..., -1:]) - 1
            model_kwargs["position_ids"] = torch.cat([positions[..., :-1], whole], dim=-1)
        return super()._update_model_kwargs_for_generation(  # type: ignore[misc]
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )


class FinalLengthMixin(WholePositionsMixin):
    """Generation fixes frequencies that depend on length by the final length of every sequence, in positions."""

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, rope_lengths=None, attention=None, **kwargs):
        """As of all models of transformers; Phi3's own drops the cache where its frequencies would change."""
        return GenerationMixin.prepare_inputs_for_generation(
            self,  # type: ignore[arg-type]
            input_ids,
            inputs_embeds=inputs_embeds,
            rope_lengths=rope_lengths,
            attention=attention,
            **kwargs,
        )

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        positions = model_kwargs.get("position_ids")
        if model_kwargs.get("rope_lengths") is None and positions is not None:
            num_new_tokens = max_cache_length + 1 - positions.shape[-1]
            model_kwargs["rope_lengths"] = next_position(positions[:, -1].double()).long() + num_new_tokens


class LlamaForCausalLM(FinalLengthMixin, transformers.LlamaForCausalLM):  # type: ignore[misc]
    """transformers' Llama with V2PE positions."""


class Qwen2ForCausalLM(FinalLengthMixin, transformers.Qwen2ForCausalLM):  # type: ignore[misc]
    """transformers' Qwen2 with V2PE positions."""


class Qwen3ForCausalLM(FinalLengthMixin, transformers.Qwen3ForCausalLM):  # type: ignore[misc]
    """transformers' Qwen3 with V2PE positions."""


class Phi3ForCausalLM(FinalLengthMixin, transformers.Phi3ForCausalLM):  # type: ignore[misc]
    """transformers' Phi3 with V2PE positions; longrope frequencies of a sequence never change while it grows."""


_NATIVE_FAMILIES = {
    model.__name__: model for model in (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM)
}


def grow_vocabulary(decoder: Any, vocab_size: int, num_added: int) -> None:
    """Give a decoder at least `vocab_size` tokens.

    Embedding and output rows of the last `num_added` of them become the mean of those before.
    """
    num_old = vocab_size - num_added
    decoder.resize_token_embeddings(max(vocab_size, decoder.config.vocab_size), mean_resizing=False)
    for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        rows = layer.weight.data
        rows[num_old:vocab_size] = rows[:num_old].float().mean(dim=0).to(rows.dtype)
    decoder.vocab_size = decoder.config.vocab_size


def build_native_decoder(config: PreTrainedConfig) -> nn.Module:
    """A decoder of transformers whose rotary module takes V2PE positions.

    Raises:
        ConfigError: Unknown architecture, or a sliding attention window that the model would use.
    """
    model_class: Any = _NATIVE_FAMILIES[check_architecture(config)]
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        raise ConfigError(
            f"llm_config.sliding_window is {window}, below max_position_embeddings {config.max_position_embeddings}: "
            "sliding attention is not available; set sliding_window to null if the model was trained without it"
        )
    if not is_registered(config._attn_implementation):
        config._attn_implementation = DEFAULT_ATTENTION
    decoder = model_class(config)
    decoder.model.rotary_emb = V2PERotaryEmbedding(decoder.model.rotary_emb, config)
    decoder.model.register_forward_pre_hook(_note_sequences, with_kwargs=True)
    decoder.model.register_forward_hook(_forget_sequences, with_kwargs=True, always_call=True)
    return decoder


def check_architecture(config: PreTrainedConfig) -> str:
    """Name of the decoder class that a config asks for.

    Raises:
        ConfigError: It is none of those supported.
    """
    name = (getattr(config, "architectures", None) or [None])[0]
    if name not in _NATIVE_FAMILIES:
        raise ConfigError(
            f"llm_config.architectures[0] is {name!r}; supported: InternLM2ForCausalLM, {', '.join(_NATIVE_FAMILIES)}"
        )
    return name
