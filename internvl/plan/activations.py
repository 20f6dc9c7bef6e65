"""Activations: bytes that autograd keeps from a layer's forward pass to its backward pass.

Counted tensor by tensor in the code of internvl/model (and of transformers' decoders), every storage once; a test
compares the sums with `torch.autograd.graph.saved_tensors_hooks`.

Symbols: D / F width and SwiGLU width of the decoder, Q / K numbers per token in all queries / all keys, H / I width and
MLP width of the vision tower, a bytes of an activation (2 or 4).
"""

from typing import Literal

from internvl.parallel.ulysses import kv_repeats
from internvl.plan.sizes import DecoderSizes, Linear, ModelSizes, VisionSizes

Attention = Literal["packed", "ring", "ulysses"]

STATISTIC = 4  # bytes of a float32


def _saved_norm(size: int, width: int, *, num_norms: int = 1, trained: bool) -> int:
    """transformers' RMS norm of `size` numbers in `num_norms` groups: input in float32, 1 / rms; with a weight that
    trains the normed input, too."""
    return 4 * size + STATISTIC * num_norms + (width * size if trained else 0)


def _saved_decoder_norm(decoder: DecoderSizes, width: int, *, trained: bool) -> int:
    """RMS norm of a hidden state; InternLM2's keeps its input as it came, and 1 / rms."""
    if decoder.family == "internlm2":
        return width * decoder.hidden_size + STATISTIC
    return _saved_norm(decoder.hidden_size, width, trained=trained)


def _saved_adapter(linear: Linear, width: int, rank: int, mask_bytes: int) -> int:
    """LoRA: dropout's mask and output, and what A makes of it."""
    return (mask_bytes + width) * linear.inputs + width * rank if rank else 0


def saved_by_decoder_layer(
    decoder: DecoderSizes,
    width: int,
    *,
    attention: Attention = "packed",
    ulysses_degree: int = 1,
    trained: bool = True,
    lora_rank: int = 0,
    mask_bytes: int = 1,
) -> int:
    """Bytes per token that a decoder layer keeps for its backward pass.

        norms        2 (4D + 4), + 2 aD where their weights train; InternLM2's 2 (aD + 4)
        linears      inputs of qkv and of w1, w3: 2 aD; of w2: aF - where they train, or dropout's and A's with LoRA
        attention    q aQ, k aK, v inside the fused a(Q + 2K) (its own aK where it has a matrix), out aQ, log-sum-exp
        packed       outputs of the documents are joined: wo's input is another aQ
        ring         k and v are copied: 2 aK instead of k and the fused matrix's output
        ulysses      q, k, v of other ranks in one tensor, k and v copied, output dealt back: aQ more
        SwiGLU       gate, act(gate), up: 3 aF; InternLM2's gate, up: 2 aF

    Args:
        decoder: Sizes.
        width: a, bytes of an activation.
        attention: `packed` (this rank has the row), or shared by `ring` or by `ulysses` (also hybrid).
        ulysses_degree: Decides how often keys are repeated.
        trained: Whether the layer's own weights train.
        lora_rank: Of adapters; 0: none.
        mask_bytes: Of dropout's mask per number: 1 on CUDA, `width` on the CPU.
    """
    hidden, wide = decoder.hidden_size, decoder.intermediate_size
    query, kv = decoder.query_width, decoder.kv_width * kv_repeats(decoder.num_kv_heads, ulysses_degree)
    total = 2 * _saved_decoder_norm(decoder, width, trained=trained)
    if decoder.family == "qwen3":
        total += _saved_norm(query, width, num_norms=decoder.num_heads, trained=trained)
        total += _saved_norm(decoder.kv_width, width, num_norms=decoder.num_kv_heads, trained=trained)
    if trained:
        total += width * (2 * hidden + wide)
    total += sum(_saved_adapter(linear, width, lora_rank, mask_bytes) for linear in decoder.linears)
    if attention == "ulysses":
        total += width * (query + 2 * kv + 2 * kv)
    elif attention == "ring":
        total += width * (query + 2 * kv)
    else:
        total += width * (query + kv + (query + 2 * kv if decoder.fused_qkv else kv))
    total += width * query + STATISTIC * decoder.num_heads
    if trained and attention != "ring":
        total += width * query
    return total + (2 if decoder.family == "internlm2" else 3) * width * wide


def saved_by_vision_layer(
    vision: VisionSizes, width: int, *, trained: bool = True, lora_rank: int = 0, mask_bytes: int = 1
) -> int:
    """Bytes per token (patches and class) that a layer of the vision tower keeps for its backward pass.

        norms        LayerNorm 2 (aH + 2 statistics of a bytes), RMS norm 2 (4H + 4), + 2 aH where weights train
        linears      inputs of qkv, fc1: 2 aH; of fc2: aI - where they train; proj's is attention's output
        attention    q, k, v in one 3 aH, out aH, log-sum-exp; normed q and k are tensors of their own
        MLP          gelu's input aI
        scales       their inputs, 2 aH, where they train

    Args: As in `saved_by_decoder_layer`.
    """
    hidden, wide = vision.hidden_size, vision.intermediate_size
    if vision.norm_type == "layer_norm":
        total = 2 * (width * hidden + 2 * width)
    else:
        total = 2 * _saved_norm(hidden, width, trained=trained)
    total += width * (4 * hidden + wide) + STATISTIC * vision.num_heads
    if vision.qk_normalization:
        # In float32 the norms' inputs are the fused tensor that is kept anyway.
        copies = 0 if width == 4 else 4 * hidden
        total += 2 * (copies + STATISTIC + width * hidden * (2 if trained else 1))
    if trained:
        total += width * (2 * hidden + wide + 2 * hidden)
    return total + sum(_saved_adapter(linear, width, lora_rank, mask_bytes) for linear in vision.linears)


def saved_by_projector(model: ModelSizes, width: int, *, trained: bool) -> int:
    """Bytes per visual token: LayerNorm's input and statistics, gelu's input; the linears' inputs where they train."""
    inputs, hidden = model.shuffle_width, model.decoder.hidden_size
    total = width * (inputs + 2) + width * hidden
    return total + (width * (inputs + hidden) if trained else 0)


def saved_beside_layers(decoder: DecoderSizes, width: int, *, trained: bool) -> int:
    """Bytes per token of a decoder outside its layers: rotary tables (float32, halves for InternLM2), final norm."""
    tables = 2 * STATISTIC * decoder.head_dim // (2 if decoder.family == "internlm2" else 1)
    return tables + _saved_decoder_norm(decoder, width, trained=trained)
