"""Which decoders a chat model can have, and how each of them takes V2PE positions.

InternLM2 is ours (modeling_internlm2.py). Llama, Qwen2, Qwen3 and Phi3 are transformers' own classes; only their
rotary module is supplied here, by composition: integer positions go to the module that the class came with, so
ordinary positions are exactly transformers', floating positions get float32 tables from float64 angles. Attention
reaches the seam in attention.py by name, and documents of a packed row reach it as `cu_seqlens`.

    family     InternVL2 sizes            decoder
    internlm2  2B, 8B, 26B                InternLM2ForCausalLM
    qwen2      1B (and InternVL2.5, 3)    Qwen2ForCausalLM
    llama      40B, 76B                   LlamaForCausalLM
    phi3       4B                         Phi3ForCausalLM
    qwen3      (InternVL3.5)              Qwen3ForCausalLM
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig

from .attention import DEFAULT_ATTENTION, is_registered
from .errors import ConfigError
from .v2pe import next_position, rotary_tables

# Rope types whose frequencies are part of the trained model; the others stretch ordinary positions only.
_TRAINED_ROPE_TYPES = ("llama3", "longrope")


class V2PERotaryEmbedding(nn.Module):
    """Rotary tables of one decoder for ordinary and for V2PE positions.

    Args:
        native: The rotary module of transformers that it stands in for.
        config: Config of the decoder.
    """

    def __init__(self, native: Any, config: Any):
        super().__init__()
        self.native: Any = native
        self.config: Any = config

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (batch, length, rotated width).

        Integer positions: as transformers makes them (scaled as the config says, in the dtype of `hidden_states`).
        Floating positions: never scaled beyond what the model was trained with, float32.
        """
        if not position_ids.is_floating_point():
            return self.native(hidden_states, position_ids=position_ids)
        parameters = self.config.rope_parameters
        if parameters["rope_type"] in _TRAINED_ROPE_TYPES:
            angles = position_ids.double().unsqueeze(-1) * self.native.inv_freq.double()
            scale = self.native.attention_scaling
            cos, sin = (angles.cos() * scale).float(), (angles.sin() * scale).float()
        else:
            width = int(_head_dim(self.config) * parameters.get("partial_rotary_factor", 1.0))
            cos, sin = rotary_tables(position_ids, head_dim=width, base=parameters["rope_theta"])
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)


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


class LlamaForCausalLM(WholePositionsMixin, transformers.LlamaForCausalLM):
    """transformers' Llama with V2PE positions."""


class Qwen2ForCausalLM(WholePositionsMixin, transformers.Qwen2ForCausalLM):
    """transformers' Qwen2 with V2PE positions."""


class Qwen3ForCausalLM(WholePositionsMixin, transformers.Qwen3ForCausalLM):
    """transformers' Qwen3 with V2PE positions."""


class Phi3ForCausalLM(WholePositionsMixin, transformers.Phi3ForCausalLM):
    """transformers' Phi3 with V2PE positions."""


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


class KeyCastingCache(DynamicCache):
    """A key/value cache that keeps keys in the dtype of the values.

    transformers' decoders hand over keys in the dtype of the rotary tables (float32 here), and its cache would then
    keep everything in that.
    """

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """As of `DynamicCache`."""
        return super().update(key_states.to(value_states.dtype), value_states, layer_idx, *args, **kwargs)


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
