"""InternLM2 decoder: grouped-query attention with one fused query/key/value matrix, SwiGLU, RMS norms.

Parameter names are those of released InternVL2 checkpoints. Rotary tables are made once per forward pass (rotary.py)
and shared by all layers. Attention goes through the seam in attention.py, with documents of a packed row marked by
`cu_seqlens`.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .attention import AttentionFunction, Padding, attend, find_padding
from .configuration_internvl_chat import InternLM2Config
from .fused import CompiledOnCuda
from .language_models import FinalLengthMixin
from .rotary import Sequences, apply_rotary, build_query_scales, build_rotary_tables
from .shapes import Float, Float32, Int, Num, Shaped
from .v2pe import ordinary_positions


class InternLM2RMSNorm(nn.Module):
    """Root-mean-square norm with float32 statistics."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:  # noqa: D102
        if hidden_states.is_cuda and hidden_states.dtype == self.weight.dtype:
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)  # one kernel
        return _RMSNorm.apply(hidden_states, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """w * x / rms(x); keeps x and one number per token for its backward pass, and makes few copies of a long row."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
        states = hidden_states.float()
        inverse_rms = torch.rsqrt(_mean_last(states, states) + eps)
        ctx.save_for_backward(hidden_states, weight, inverse_rms)
        normalized = (states * inverse_rms).to(hidden_states.dtype)
        return normalized.mul_(weight) if weight.dtype == normalized.dtype else weight * normalized

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_states, weight, inverse_rms = ctx.saved_tensors
        normalized = hidden_states.float() * inverse_rms
        grad = grad.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normalized).flatten(0, -2).sum(0).to(weight.dtype)
        scaled = grad * weight.float()
        along = _mean_last(scaled, normalized)
        grad_states = scaled.sub_(normalized.mul_(along)).mul_(inverse_rms)
        return grad_states.to(hidden_states.dtype), grad_weight, None


def _mean_last(first: Tensor, second: Tensor) -> Tensor:
    """Mean of the products along the last axis, (..., n) x (..., n) -> (..., 1), without a copy of either."""
    return torch.linalg.vecdot(first, second, dim=-1).unsqueeze(-1) / first.shape[-1]


class InternLM2Attention(nn.Module):
    """Causal self-attention.

    `wqkv` holds one group per key/value head: its query heads, then the key head, then the value head.
    """

    def __init__(self, config: InternLM2Config, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.queries_per_kv = config.num_attention_heads // config.num_key_value_heads
        total_heads = config.num_attention_heads + 2 * self.num_kv_heads
        self.wqkv = nn.Linear(config.hidden_size, total_heads * self.head_dim, bias=config.bias)
        self.wo = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch length hidden"],
        rotary: tuple[Float32[Tensor, "batch *kv_heads length half"], Float32[Tensor, "batch *kv_heads length half"]],
        cu_seqlens: Int[Tensor, " borders"] | None,
        padding: Padding | None,
        past_key_values: Cache | None,
        query_scale: Float32[Tensor, "#batch length"] | None = None,
        attention: AttentionFunction | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """Attend to the row's documents, or to cached and new tokens; `rotary` are cosines and sines."""
        heads = self.wqkv(hidden_states).unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        groups = heads.permute(0, 2, 3, 1, 4)  # (batch, kv heads, queries + key + value, length, head_dim)
        query, key, value = groups.split([self.queries_per_kv, 1, 1], dim=2)
        query = apply_rotary(query, *rotary).flatten(1, 2)
        key = apply_rotary(key.squeeze(2), *rotary)
        value = value.squeeze(2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_index)
        out = attend(
            attention or self.config._attn_implementation,
            query,
            key,
            value,
            scaling=self.head_dim**-0.5,
            cu_seqlens=cu_seqlens,
            attention_mask=padding,
            query_scale=query_scale,
        )
        return self.wo(out.transpose(1, 2).flatten(2))


class InternLM2MLP(nn.Module):
    """SwiGLU: w2(act(w1 x) * w3 x)."""

    def __init__(self, config: InternLM2Config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.is_silu = config.hidden_act == "silu"

    def forward(self, hidden_states: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:  # noqa: D102
        gate, up = self.w1(hidden_states), self.w3(hidden_states)
        return self.w2(_GatedSiLU.apply(gate, up) if self.is_silu else self.act(gate) * up)


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) * up; keeps the two for its backward pass, and not silu(gate) as a third tensor of that width."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return gated_silu(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return gated_silu_backward(grad, *ctx.saved_tensors)


@CompiledOnCuda
def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate).mul_(up)


@CompiledOnCuda
def gated_silu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gated_silu`."""
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class InternLM2DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, config: InternLM2Config, layer_index: int):
        super().__init__()
        self.attention = InternLM2Attention(config, layer_index)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_states: Float[Tensor, "batch length hidden"], *context: object
    ) -> Float[Tensor, "batch length hidden"]:
        """One layer; `context` as in `InternLM2Attention.forward`."""
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), *context)
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states))


class InternLM2PreTrainedModel(PreTrainedModel):
    """Shared settings of the decoder classes."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, InternLM2RMSNorm):
            nn.init.ones_(module.weight)


class InternLM2Model(InternLM2PreTrainedModel):
    """Embeddings, decoder layers, final norm."""

    _auto_class = "AutoModel"

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings."""
        return self.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.tok_embeddings = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch keys"] | None = None,
        position_ids: Num[Tensor, "*axes #batch length"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch length hidden"] | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        rope_lengths: Int[Tensor, "..."] | int | None = None,
        num_keys: Int[Tensor, "batch length"] | None = None,
        attention: AttentionFunction | None = None,
        rope_pos_id_version: str | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm.

        Args:
            input_ids: Tokens; or give `inputs_embeds`.
            attention_mask: Of cached and new tokens, 0 where padded.
            position_ids: Floating: V2PE positions, or those of several axes; integer: ordinary ones (rotary.py says
                which of them are scaled); None: ordinary ones, made here.
            past_key_values: Cache; keys are stored rotated.
            inputs_embeds: Token embeddings.
            use_cache: Fill (and if needed make) a cache.
            cu_seqlens: Borders of a packed row.
            rope_lengths: Final length in positions of every sequence (documents of a packed row, rows otherwise), or
                (batch, length) of every token's sequence, for dynamic NTK: one base per sequence, the same for keys
                that are already cached. None: the length so far.
            num_keys: Keys that every token sees, for log-n scaling where a process holds a part of a row.
            attention: The attention function of this call; None: the one that the config names.
            rope_pos_id_version: Of positions on several axes (positions.py).
            **kwargs: Ignored (generation passes fields that this decoder has no use for).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.tok_embeddings(input_ids)
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache()
        num_cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        batch, length = inputs_embeds.shape[:2]
        if position_ids is None:
            position_ids = ordinary_positions(
                batch, length, num_cached, attention_mask, cu_seqlens, inputs_embeds.device
            )
        sequences = Sequences(cu_seqlens, rope_lengths)
        position_ids = position_ids.expand(*position_ids.shape[:-2], batch, length)
        rotary = build_rotary_tables(self.config, position_ids, sequences, rope_pos_id_version)
        query_scale = build_query_scales(
            self.config,
            states=inputs_embeds,
            num_cached=num_cached,
            attention_mask=attention_mask,
            cu_seqlens=cu_seqlens,
            num_keys=num_keys,
        )
        hidden_states = inputs_embeds
        context = (rotary, cu_seqlens, find_padding(attention_mask), past_key_values, query_scale, attention)
        for layer in self.layers:
            hidden_states = layer(hidden_states, *context)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values,
        )


class InternLM2ForCausalLM(FinalLengthMixin, InternLM2PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The decoder with its output layer (not tied to the embeddings)."""

    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.vocab_size = config.vocab_size
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings."""
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.tok_embeddings = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.output

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output layer."""
        self.output = cast(nn.Linear, value)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch keys"] | None = None,
        position_ids: Num[Tensor, "*axes #batch length"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch length hidden"] | None = None,
        use_cache: bool | None = None,
        rope_lengths: Int[Tensor, "..."] | int | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits in float32, of the last `logits_to_keep` positions (0: of all).

        All other arguments are those of `InternLM2Model.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            rope_lengths=rope_lengths,
            **kwargs,
        )
        logits = self.output(outputs.last_hidden_state[:, -logits_to_keep:]).float()
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)
