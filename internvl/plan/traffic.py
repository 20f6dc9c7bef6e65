"""Traffic: bytes that kernels other than matrix products and attention read and write, and so the time they take.

A kernel that computes little takes as long as its bytes travel between memory and chip. Written in plain torch, a norm
in float32 is six kernels, each of which reads and writes all numbers; fused into one it reads and writes them once.
Bytes per bfloat16 number, forward and backward, were counted over the operators of a decoder layer (InternLM2).
"""

from internvl.model.loss import CHUNK_BYTES
from internvl.plan.sizes import DecoderSizes, ModelSizes, VisionSizes

Passes = tuple[float, float]  # forward, backward

# RMS norm and rotary embedding, per number that goes in
UNFUSED_BYTES: Passes = (36, 92)
FUSED_BYTES: Passes = (4, 8)
# SwiGLU's act(gate) * up, per number that comes out
_UNFUSED_SWIGLU: Passes = (10, 22)
_FUSED_SWIGLU: Passes = (6, 10)
_RESIDUAL: Passes = (6, 6)  # of a sum
# One kernel each in torch: LayerNorm, GELU, product with a scale (and the scale's gradient)
_LAYER_NORM: Passes = (4, 6)
_GELU: Passes = (4, 6)
_SCALE: Passes = (4, 8)
# Of the loss: a logit as it comes out, in float32, its log-probability, gradient, gradient in bfloat16, read twice
_LOGIT = 42
# Of the output layer's gradient, per weight and chunk of logits: the chunk's is written, read and added in float32
_HEAD_GRADIENT = 12


def _sum(*parts: tuple[int, Passes], width: int) -> Passes:
    """Bytes of numbers with so many bytes each; float32 needs twice those of bfloat16."""
    forward, backward = (sum(count * passes[i] for count, passes in parts) for i in (0, 1))
    return forward * width / 2, backward * width / 2


def decoder_traffic(decoder: DecoderSizes, width: int, *, fused: bool) -> Passes:
    """Bytes per token and decoder layer.

    Symbols as in activations.py: 2D numbers in two norms, Q + K that are rotated (and normed in Qwen3), F of SwiGLU,
    2D of residual sums.
    """
    hidden, heads = decoder.hidden_size, decoder.query_width + decoder.kv_width
    normed = 2 * hidden + heads * (2 if decoder.family == "qwen3" else 1)
    return _sum(
        (normed, FUSED_BYTES if fused else UNFUSED_BYTES),
        (decoder.intermediate_size, _FUSED_SWIGLU if fused else _UNFUSED_SWIGLU),
        (2 * hidden, _RESIDUAL),
        width=width,
    )


def tower_traffic(vision: VisionSizes, width: int) -> Passes:
    """Bytes per token (patches and class) and layer of the vision tower: norms, scales and sums 2H each, GELU I."""
    hidden = vision.hidden_size
    return _sum(
        (2 * hidden, _LAYER_NORM if vision.norm_type == "layer_norm" else UNFUSED_BYTES),
        (2 * hidden * vision.qk_normalization, UNFUSED_BYTES),
        (vision.intermediate_size, _GELU),
        (2 * hidden, _SCALE),
        (2 * hidden, _RESIDUAL),
        width=width,
    )


def loss_traffic(model: ModelSizes, targets: float, *, head_trains: bool) -> float:
    """Bytes of the chunked loss (internvl/model/loss.py) on so many supervised tokens."""
    logits = targets * model.decoder.vocab_size
    chunks = 4 * logits / CHUNK_BYTES
    return _LOGIT * logits + (_HEAD_GRADIENT * chunks * model.decoder.table if head_trains else 0)
