"""Rotary tables: cosines and sines of positions, and every scaling that stretches a model beyond its training length.

    scaling            what it changes                        ordinary positions   V2PE positions
    default            nothing                                yes                  yes
    linear             positions / factor                     yes                  with `scale_v2pe`
    yarn               slow frequencies / factor              yes                  with `scale_v2pe`
    dynamic            the base grows with the length (NTK)   yes                  never: it counts tokens
    llama3, longrope   frequencies of the model's training    yes                  yes
    log-n              length of queries, not the tables      counts keys, whatever their positions

`scaling_in_use` decides which row applies, for every decoder. A config names its scaling in `rope_scaling` (InternLM2)
or `rope_parameters` (decoders of transformers), see scaling.py. Integers are ordinary positions; floats are V2PE's, or
those of several axes, which are scaled alike.

Angles are computed in float64 and only cosines and sines are rounded, to float32. With bf16 tables, or angles, most
entries of neighbouring visual tokens would be identical at small strides, and the method would be lost.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .fused import CompiledOnCuda
from .positions import find_scheme
from .scaling import TRAINED_ROPE_TYPES, read_logn_scaling, read_scaling_entry
from .shapes import Float, Float32, Float64, Int, Int64, Num, Shaped
from .v2pe import ordinary_positions


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a batch lie, and how long they will be."""

    # (documents + 1,) borders of a packed row; None: every row is a sequence
    cu_seqlens: Int[Tensor, " borders"] | None = None
    # final length in positions, of every sequence or, (batch, length), of every token's sequence; None: the length so
    # far
    final_lengths: Int[Tensor, "..."] | int | None = None

    def lengths_of_tokens(self, position_ids: Num[Tensor, "*axes batch length"]) -> Int64[Tensor, "#batch #length"]:
        """Final length of the sequence that a token belongs to: (batch, 1), or (1, length) of a packed row."""
        if position_ids.dim() == 3:
            position_ids = position_ids.amax(dim=0)
        if isinstance(self.final_lengths, Tensor) and self.final_lengths.shape == position_ids.shape:
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


def scaling_in_use(config: PreTrainedConfig, position_ids: Num[Tensor, "*axes batch length"]) -> str:
    """The scaling that these positions get: a row of the table above, by its name in the decoder's config."""
    entry = read_scaling_entry(config)
    kind = str(entry.get("rope_type", entry.get("type", "default")))
    is_v2pe = position_ids.is_floating_point()
    scales_v2pe = bool(entry.get("scale_v2pe", getattr(config, "scale_v2pe", False)))
    return kind if not is_v2pe or scales_v2pe or kind in TRAINED_ROPE_TYPES else "default"


def exceeds_training(
    config: PreTrainedConfig, position_ids: Num[Tensor, "*axes batch length"], sequences: Sequences
) -> bool:
    """Whether a sequence is so long that its frequencies differ from those of short ones."""
    limit = unscaled_length(config, scaling_in_use(config, position_ids))
    return limit is not None and bool((sequences.lengths_of_tokens(position_ids) > limit).any())


def build_rotary_tables(
    config: PreTrainedConfig,
    position_ids: Num[Tensor, "*axes batch length"],
    sequences: Sequences,
    version: str | None = None,
) -> tuple[Float32[Tensor, "batch *kv_heads length half"], Float32[Tensor, "batch *kv_heads length half"]]:
    """Cosines and sines of a decoder's rotary angles, scaled as `scaling_in_use` says.

    Args:
        config: Of the decoder.
        position_ids: Floating: V2PE positions or those of several axes; integer: ordinary ones.
        version: Of positions on several axes (positions.py); None: they are on one.
        sequences: Of the batch. Frequencies that depend on length are chosen per sequence and by its final length, so
            that cached keys keep theirs while the sequence grows.
    """
    scheme = find_scheme(version or "default")
    num_axes = 1 if position_ids.dim() == 2 else len(position_ids)
    if num_axes != scheme.num_axes:
        raise ValueError(
            f"position_ids are on {num_axes} axes, those of rope_pos_id_version {version or 'default'} on "
            f"{scheme.num_axes}; leave them out, or name the version that they were made with"
        )
    kind = scaling_in_use(config, position_ids)
    lengths = None if unscaled_length(config, kind) is None else sequences.lengths_of_tokens(position_ids)
    frequencies, scale = find_frequencies(config, kind, lengths=lengths, device=position_ids.device)
    if num_axes == 1:
        return rotary_tables(position_ids, frequencies, scale=scale)
    axes = scheme.axes_of_channels(frequencies.shape[-1], config.num_key_value_heads)
    if axes.dim() == 2 and frequencies.dim() == 3:
        frequencies = frequencies.unsqueeze(1)  # of a batch, for all heads alike
    return _tables_of_angles(_choose_axes(position_ids, axes) * frequencies, scale)


def rotary_tables(
    position_ids: Num[Tensor, "batch length"], frequencies: Float[Tensor, "*#row half"], *, scale: float = 1.0
) -> tuple[Float32[Tensor, "batch length half"], Float32[Tensor, "batch length half"]]:
    """Cosines and sines, times `scale`, of positions times inverse frequencies (one set, or one per token)."""
    return _tables_of_angles(position_ids.to(torch.float64).unsqueeze(-1) * frequencies, scale)


def _tables_of_angles(angles: Float64[Tensor, "*row half"], scale: float) -> tuple[Tensor, Tensor]:
    return (angles.cos() * scale).to(torch.float32), (angles.sin() * scale).to(torch.float32)


def _choose_axes(
    position_ids: Num[Tensor, "axes batch length"], axes: Int64[Tensor, "*kv_heads half"]
) -> Float64[Tensor, "batch *kv_heads length half"]:
    """The position that turns each frequency: that of its axis, 0 where it has none."""
    still = torch.zeros_like(position_ids[:1])
    places = torch.cat([position_ids, still]).to(torch.float64)  # the last one is `NO_AXIS`
    chosen = places[axes.to(places.device)]  # (*kv_heads, half, batch, length)
    return chosen.movedim(-2, 0).movedim(-2, -1)


def find_frequencies(
    config: PreTrainedConfig,
    kind: str,
    *,
    lengths: Int64[Tensor, "*row"] | None = None,
    device: torch.device | None = None,
) -> tuple[Float64[Tensor, "*row half"], float]:
    """Inverse frequencies of a scaling, and the factor of the tables.

    Args:
        config: Of the decoder.
        kind: From `scaling_in_use`.
        lengths: Final lengths of sequences, for one set of frequencies each; None: one set, that of sequences up to
            `unscaled_length`.
        device: Of the result.
    """
    entry = read_scaling_entry(config)
    # Decoders of transformers keep the base in the entry, and may rotate a part of the head only.
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(head_dim * entry.get("partial_rotary_factor", 1.0))
    base = entry.get("rope_theta") or config.rope_theta
    if kind == "dynamic" and lengths is not None:
        bases = ntk_base(
            base,
            lengths,
            max_position_embeddings=config.max_position_embeddings,
            factor=entry["factor"],
            head_dim=width,
        )
        return plain_frequencies(bases, width), 1.0
    is_linear = kind == "linear" and config.model_type == "internlm2"
    if kind in ("default", "dynamic") or is_linear:
        # torch.full fills on the device, torch.tensor would copy to it and wait.
        frequencies = plain_frequencies(torch.full((), base, dtype=torch.float64, device=device), width)
        return (frequencies / entry["factor"] if is_linear else frequencies), 1.0
    if kind == "yarn" and config.model_type == "internlm2":
        original_length = entry.get("original_max_position_embeddings", config.max_position_embeddings)
        frequencies, scale = yarn_frequencies(
            base, head_dim=width, factor=entry["factor"], original_length=original_length
        )
        return frequencies.to(device), scale
    # The families of transformers were trained with, and are compared to, transformers' own formulas.
    compute = ROPE_INIT_FUNCTIONS[kind]
    frequencies, scale = compute(config, device)
    limit = unscaled_length(config, kind)
    if lengths is not None and limit is not None:
        long_frequencies, _ = compute(config, device, seq_len=limit + 1)
        frequencies = torch.where((lengths > limit).unsqueeze(-1), long_frequencies, frequencies)
    return frequencies.double(), scale


def unscaled_length(config: PreTrainedConfig, kind: str) -> int | None:
    """Tokens up to which a sequence has the frequencies of short ones; None: they are the same at any length."""
    if kind == "dynamic":
        return config.max_position_embeddings
    return read_scaling_entry(config)["original_max_position_embeddings"] if kind == "longrope" else None


def plain_frequencies(base: Float64[Tensor, "*row"], width: int) -> Float64[Tensor, "*row half"]:
    """base ** (-2i / width), the inverse frequencies of unscaled rotary tables, for every base."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=base.device) / width
    return base.unsqueeze(-1) ** -exponents


def ntk_base(
    base: float, lengths: Int64[Tensor, "*row"], *, max_position_embeddings: int, factor: float, head_dim: int
) -> Float64[Tensor, "*row"]:
    """Rotary base of dynamic NTK scaling for sequences of the given final lengths.

    base' = base * (factor * length / max_position_embeddings - (factor - 1)) ** (head_dim / (head_dim - 2)) beyond
    `max_position_embeddings`, `base` up to it (the rule of InternLM2's dynamic rotary embedding).
    """
    ratio = factor * lengths.to(torch.float64) / max_position_embeddings - (factor - 1)
    return base * ratio.clamp(min=1.0) ** (head_dim / (head_dim - 2))


def yarn_frequencies(
    base: float, *, head_dim: int, factor: float, original_length: int, beta_fast: float = 32.0, beta_slow: float = 1.0
) -> tuple[Float64[Tensor, " half"], float]:
    """Inverse frequencies and table scale of YaRN (arXiv 2309.00071).

    Frequencies that turn often within `original_length` stay, those that turn less than once are divided by `factor`,
    and a linear ramp lies between. Tables are scaled by 0.1 ln(factor) + 1.
    """
    plain = plain_frequencies(torch.tensor(base, dtype=torch.float64), head_dim)

    def dimension_of(rotations: float) -> float:
        return head_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_of(beta_fast)), 0)
    high = min(math.ceil(dimension_of(beta_slow)), head_dim - 1)
    index = torch.arange(head_dim // 2, dtype=torch.float64)
    stretched = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - stretched) + plain / factor * stretched, 0.1 * math.log(factor) + 1.0


def apply_rotary(
    states: Float[Tensor, "#batch *heads length head_dim"],
    cos: Float32[Tensor, "#batch *kv_heads length half"],
    sin: Float32[Tensor, "#batch *kv_heads length half"],
) -> Float[Tensor, "#batch *heads length head_dim"]:
    """Queries or keys, rotated in float32 ("rotate half" form) and cast back; the result is contiguous.

    Tables may differ per key/value head, which is then the first dimension of heads.
    """
    table_shape = (*cos.shape[:-2], *[1] * (states.dim() - cos.dim()), *cos.shape[-2:])
    return _Rotation.apply(states, cos.view(table_shape), sin.view(table_shape))


class _Rotation(torch.autograd.Function):
    """(a, b) -> (a cos - b sin, b cos + a sin); its backward is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin), None, None


@CompiledOnCuda
def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) of the halves of the last axis, in float32."""
    states_float = states.float()
    swapped = states_float.roll(states.shape[-1] // 2, dims=-1)  # (b, a)
    rotated = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    torch.mul(states_float, torch.cat([cos, cos], dim=-1), out=rotated)
    rotated.addcmul_(swapped, torch.cat([-sin, sin], dim=-1))
    return rotated.to(states.dtype)


# Log-n: queries that see more keys than in training are made longer, so that attention stays as sharp.


def build_query_scales(
    config: PreTrainedConfig,
    *,
    states: Shaped[Tensor, "batch length *width"],
    num_cached: int,
    attention_mask: Shaped[Tensor, "batch keys"] | None,
    cu_seqlens: Int[Tensor, " borders"] | None,
    num_keys: Int[Tensor, "batch length"] | None,
) -> Float32[Tensor, "#batch length"] | None:
    """Factors of the queries of one forward pass; None without log-n scaling.

    Queries are scaled at the attention seam (attention.py), so that every decoder and every kernel has it.

    Args:
        config: Of the decoder; `logn_scaling` is the training length in tokens, or None.
        states: What the pass runs on; its shape and device count.
        num_cached: Tokens before them, in a cache.
        attention_mask: Of cached and new tokens, 0 where padded.
        cu_seqlens: Borders of a packed row; every document counts from 1.
        num_keys: Keys that every token sees, where a process holds a part of the row; None: it holds all of it.
    """
    train_length = read_logn_scaling(config)
    if train_length is None:
        return None
    if num_keys is None:
        batch, length = states.shape[:2]
        num_keys = 1 + ordinary_positions(batch, length, num_cached, attention_mask, cu_seqlens, states.device)
    return logn_scales(num_keys, train_length)


def logn_scales(num_keys: Int[Tensor, "*row"], train_length: int) -> Float32[Tensor, "*row"]:
    """s(n) = max(1, log n / log N) of queries that see n keys each, themselves included, after training on N.

    The entropy of a softmax grows with the number of its entries: among 16 times as many keys the one that matters
    gets a smaller share of the attention, however near its position is. With scores multiplied by log n / log N that
    share stays about the same (Su Jianlin, "From the invariance of entropy to attention's scale",
    https://kexue.fm/archives/8823; also in Qwen, arXiv 2309.16609). n counts tokens: the visual tokens of an image are
    as many keys at any stride. It does not depend on later tokens, so cached keys and values stay right.
    """
    scales = num_keys.to(torch.float64).log() / math.log(train_length)
    return scales.clamp(min=1.0).to(torch.float32)
