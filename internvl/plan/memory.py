"""Memory per rank by item, from sizes and flags.

Symbols: N tokens of a row on this rank, D / F width and SwiGLU width of the decoder, Q / K numbers per token in all
queries / all keys, H / I width and MLP width of the vision tower, a bytes of an activation (2 or 4), W GPUs.

The peak is reached in one of these phases. Weights, gradients (with accumulation they stay) and optimiser states are
there in all of them; the rest differs:

    phase                 alive beside weights, gradients, optimiser states, batch, communication buffers
    vision forward        activations of tower and projector, a layer in work
    loss                  all activations, the loss's own tensors
    decoder backward      all activations, one layer recomputed (if so), gradients of a layer's activations
    embedding backward    activations of the tower, gradients of the embeddings and of their table
    vision backward       activations of the tower, a micro-batch recomputed, gradients of a layer's activations
    optimizer step        float32 gradients

What layers keep is counted in activations.py. `benchmarks/plan.py` compares the peak with real steps on the CPU;
on a GPU none of this was measured. What a GPU holds beside tensors is in `gpu_overhead`.
"""

import math
from dataclasses import dataclass

from internvl.model.loss import CHUNK_BYTES
from internvl.parallel.ulysses import kv_repeats
from internvl.plan.activations import (
    STATISTIC,
    Attention,
    saved_beside_layers,
    saved_by_decoder_layer,
    saved_by_projector,
    saved_by_vision_layer,
)
from internvl.plan.setting import Setting
from internvl.plan.sizes import ModelSizes, count_parameters

# Elements, as in shell/deepspeed/zero*.json.
_REDUCE_BUCKET = {0: 0, 1: 200_000_000, 2: 100_000_000, 3: 200_000_000}
_LIVE_PARAMETERS = 1_000_000_000
_LAYERS_ON_DEVICE = 2  # of what is offloaded: the one in use and the one on its way
GIB = 2**30
# CUDA's context with kernels and cuBLAS workspaces of a process, as others report it.
_CUDA_CONTEXT = GIB // 2
# NCCL's buffers for a group of ranks: 0.7 GB were reported for 4 A100s (github.com/NVIDIA/nccl/issues/964), 1.6 GB for
# more (issues/864).
_NCCL_GROUP = GIB


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of a rank at its peak."""

    items: dict[str, int]  # bytes by item; their sum is the peak
    phase: str  # in which the peak is reached
    phases: dict[str, int]  # bytes at the peak of every phase
    # bytes of all weights: every rank holds them in main memory, then on its GPU, before ZeRO-3 cuts them
    loading: int
    host: int = 0  # bytes of main memory that this rank's offloading takes

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.items.values())


def _attention_kind(setting: Setting) -> Attention:
    if setting.chunk_num == 1:
        return "packed"
    return "ring" if setting.ulysses_degree == 1 else "ulysses"


@dataclass(frozen=True)
class Activations:
    """Bytes of a part: kept from forward to backward pass, needed for a moment in the latter, offloaded."""

    kept: int = 0
    working: int = 0
    host: int = 0


def decoder_activations(model: ModelSizes, setting: Setting) -> Activations:
    """What the decoder keeps, and what its backward pass needs beside it.

    All layers keep `saved_by_decoder_layer`. With recomputation a layer keeps its input aD (and attention's output and
    log-sum-exp with `keep_attention`), and one layer at a time keeps all. Backward through the MLP has 2 aF of
    gradients that no freed activation makes room for, 2 aD in the residual stream, and the gradient of one matrix.
    With `mlp_tile_tokens` the MLP's 4 aF (InternLM2: 3) and these 2 aF are needed for so many tokens at a time only.
    """
    decoder, trained, width, tokens = model.decoder, setting.trained, setting.width, setting.local_tokens
    if not trained.decoder_has_gradient:
        return Activations()
    layer = tokens * saved_by_decoder_layer(
        decoder,
        width,
        attention=_attention_kind(setting),
        ulysses_degree=setting.ulysses_degree,
        trained=trained.llm,
        lora_rank=trained.use_llm_lora,
    )
    beside = tokens * saved_beside_layers(decoder, width, trained=trained.llm)
    largest = width * max(linear.matrix for linear in decoder.linears) if trained.llm else 0
    at_once = min(tokens, setting.mlp_tile_tokens or tokens)
    mlp = width * decoder.intermediate_size * (2 + (decoder.family != "internlm2") + trained.llm)
    layer -= (tokens - at_once) * mlp
    working = width * 2 * (at_once * decoder.intermediate_size + tokens * decoder.hidden_size) + largest
    if setting.mlp_tile_tokens:
        layer, working = layer - at_once * mlp, working + at_once * mlp
    per_layer = layer
    if setting.grad_checkpoint:
        per_layer = tokens * width * decoder.hidden_size
        # In float32 the input that is kept is the first norm's.
        working += layer - (per_layer if width == 4 else 0)
        if setting.keep_attention:
            per_layer += tokens * (width * decoder.query_width + STATISTIC * decoder.num_heads)
    return _stack(per_layer, decoder.num_layers, working, beside, offload=setting.offload_activations)


def vision_activations(model: ModelSizes, setting: Setting) -> Activations:
    """What vision tower and projector keep, and what the tower's backward pass needs beside it.

    A patch convolution that trains keeps its input, 3 a S^2 for a tile of S x S pixels. With `vit_batch_size` nothing
    but tiles is kept (of a frozen tower its output), and a micro-batch's activations are recomputed one after the
    other. With recomputation a layer keeps its input aH. Backward through the MLP has aI of
    gradients beside 2 aH in the residual stream; the projector's activations are gone by then.
    """
    vision, trained, width = model.vision, setting.trained, setting.width
    num_layers, num_trained = trained.count_vit_layers(vision.num_layers)
    tokens = vision.num_patches + 1
    stream = tokens * width * vision.hidden_size
    own, adapted = (
        tokens * saved_by_vision_layer(vision, width, trained=is_trained, lora_rank=trained.use_backbone_lora)
        for is_trained in (True, False)
    )
    layers, working = num_trained * own + (num_layers - num_trained) * adapted, 0
    if num_layers:
        working = tokens * width * vision.intermediate_size + 2 * stream
    host = 0
    if setting.grad_checkpoint and num_layers:
        on_device = min(num_layers, _LAYERS_ON_DEVICE) if setting.offload_activations else num_layers
        layers, host = on_device * stream, (num_layers - on_device) * stream
        # The input that is kept is the first norm's (which casts it, if it is an RMS norm in bfloat16).
        working += (own if num_trained else adapted) - (stream if width == 4 or vision.norm_type == "layer_norm" else 0)
    layers += width * _count_pixels(model) if trained.vision else 0
    projector = _projector_activations(model, setting)
    if setting.vit_batch_size is None:
        tiles = setting.local_tiles
        return Activations(tiles * (layers + projector), tiles * (working - projector), tiles * host)
    kept = setting.local_tiles * (stream if projector and not trained.vision_has_gradient else 0)
    return Activations(kept, setting.vit_tiles * max(layers + working, projector), setting.vit_tiles * host)


def _projector_activations(model: ModelSizes, setting: Setting) -> int:
    """Bytes per tile that the projector keeps; nothing if no gradient passes it."""
    trained = setting.trained
    if trained.freeze_mlp and not trained.vision_has_gradient:
        return 0
    return model.num_image_token * saved_by_projector(model, setting.width, trained=not trained.freeze_mlp)


def vision_forward(model: ModelSizes, setting: Setting) -> int:
    """Bytes of a micro-batch in the tower: normalised tiles in float32, and a (4H + 2I) per token of a layer."""
    vision = model.vision
    wide = 4 * vision.hidden_size + 2 * vision.intermediate_size
    pixels = STATISTIC * _count_pixels(model)
    return setting.vit_tiles * (pixels + (vision.num_patches + 1) * setting.width * wide)


def _count_pixels(model: ModelSizes) -> int:
    """Numbers in a tile: three colours."""
    return 3 * model.vision.image_size**2


def _stack(per_layer: int, num_layers: int, working: int, beside: int, *, offload: bool) -> Activations:
    on_device = min(num_layers, _LAYERS_ON_DEVICE) if offload else num_layers
    return Activations(on_device * per_layer + beside, working, (num_layers - on_device) * per_layer)


def loss_memory(model: ModelSizes, setting: Setting) -> int:
    """Tensors of the chunked loss (internvl/model/loss.py) at its peak, for M supervised tokens and V words.

    Output of the final norm and its gradient 2 aND, gradient of the output layer (float32, 4 VD, where it trains; in
    bfloat16 a chunk's or the result's copy, 2 VD), and logits of a chunk: 8 bytes each (logits, log-probabilities).
    """
    decoder, width, tokens = model.decoder, setting.width, setting.local_tokens
    supervised = math.ceil(tokens * setting.supervised)
    chunk = min(max(1, CHUNK_BYTES // (STATISTIC * decoder.vocab_size)), supervised)
    head = (STATISTIC + (width if width == 2 else 0)) * decoder.table if setting.trained.head else 0
    return 2 * width * decoder.hidden_size * tokens + head + 8 * chunk * decoder.vocab_size


def communication_buffers(model: ModelSizes, setting: Setting) -> dict[str, int]:
    """Buffers of ZeRO, ring and ulysses, where they are used.

    ZeRO: gradients of a bucket (two of them in stage 2, which overlaps), the bucket of gathered weights in stage 1,
    and in stage 3 the gathered weights that are alive, at most 1e9 (shell/deepspeed). Ulysses: queries, keys and values
    sent and received. Ring, in its backward pass (internvl/parallel/ring.py), of the N U tokens that a rank of the ring
    holds, with 1 / U of the heads:

        sums       dq, dk, dv in float32: 4 (Q + 2K)
        block      dq, dk and dv of the block in work: a (Q + 2K)
        messages   K and V of this block and of the next, gradients of the block before on their way out, others that
                   come: 8 aK, none where a rank has whole documents
    """
    width, decoder, count = setting.width, model.decoder, count_parameters(model, setting.trained)
    bucket = min(_REDUCE_BUCKET[setting.zero_stage], count.trained)
    zero = width * bucket * (2 if setting.zero_stage in (1, 2) else 1)
    if setting.zero_stage == 3:
        zero += width * min(_LIVE_PARAMETERS, count.total)
    degree, query = setting.ulysses_degree, decoder.query_width
    kv = decoder.kv_width * kv_repeats(decoder.num_kv_heads, degree)
    messages = 8 * width * kv if setting.grid.ring_size > 1 else 0
    per_token = {
        "ring buffers": (STATISTIC + width) * (query + 2 * kv) + messages if setting.chunk_num > 1 else 0,
        "ulysses buffers": 2 * width * (query + 2 * kv) if degree > 1 else 0,
    }
    buffers = {"ZeRO buffers": zero} | {name: setting.local_tokens * size for name, size in per_token.items()}
    return {name: size for name, size in buffers.items() if size}


def model_states(model: ModelSizes, setting: Setting) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimiser states on a rank (ZeRO, Rajbhandari et al., arXiv:1910.02054, 3.1).

    Weights a, gradients a; Adam: two moments in float32, and float32 master weights where the weights are bfloat16 or
    ZeRO keeps a flat copy: 8 or 12 bytes per trained parameter. Stage 1 divides the optimiser's by W, stage 2 gradients
    too, stage 3 weights too.
    """
    count, width, stage = count_parameters(model, setting.trained), setting.width, setting.zero_stage
    per_parameter = 8 if width == 4 and stage == 0 else 12

    def split(size: int, first_stage: int) -> int:
        return -(-size // setting.gpus) if stage >= first_stage else size

    return (
        split(width * count.total, 3),
        split(width * count.trained, 2),
        split(per_parameter * count.trained, 1),
    )


def batch_memory(model: ModelSizes, setting: Setting) -> int:
    """The batch: uint8 tiles of this rank; of the row ids, labels, positions, targets (8 bytes) and weights (4)."""
    return setting.local_tiles * _count_pixels(model) + setting.max_packed_tokens * (4 * 8 + 4)


def plan_training_memory(model: ModelSizes, setting: Setting) -> MemoryPlan:
    """Memory per rank in training, by item, at the peak (see the module's table)."""
    weights, gradients, optimizer = model_states(model, setting)
    decoder, vision = decoder_activations(model, setting), vision_activations(model, setting)
    step = count_parameters(model, setting.trained).trained * 4 if setting.width == 2 else 0
    if setting.zero_stage:
        step = -(-step // setting.gpus)
    fixed = {
        "weights": weights,
        "gradients": gradients,
        "optimizer states": 0 if setting.offload_optimizer else optimizer,
        "batch": batch_memory(model, setting),
        **communication_buffers(model, setting),
    }
    tables = model.decoder.table * setting.width if setting.trained.llm else 0
    embeddings = 2 * setting.local_tokens * setting.width * model.decoder.hidden_size + tables
    phases = {
        "vision forward": {"vision activations": vision.kept + vision_forward(model, setting)},
        "loss": {
            "decoder activations": decoder.kept,
            "vision activations": vision.kept,
            "loss": loss_memory(model, setting),
        },
        "decoder backward": {
            "decoder activations": decoder.kept + decoder.working,
            "vision activations": vision.kept,
        },
        "embedding backward": {"vision activations": vision.kept, "gradients of embeddings": embeddings},
        "vision backward": {"vision activations": vision.kept + vision.working},
        "optimizer step": {"float32 gradients": 0 if setting.offload_optimizer else step},
    }
    loading = setting.width * count_parameters(model, setting.trained).total
    host = decoder.host + vision.host + (optimizer if setting.offload_optimizer else 0)
    return _find_peak(fixed, phases, loading, host)


def plan_inference_memory(model: ModelSizes, setting: Setting) -> MemoryPlan:
    """Memory of a rank that answers a prompt with `chunk_num` others, by item, at the peak.

    KV cache: 2 aK bytes per layer and token, of (prompt + answer) / chunk_num tokens (1 byte instead of a when
    quantized; two layers when offloaded); a growing cache is copied layer by layer, which needs one layer's size more.
    The cache is counted while pictures are encoded, too: a conversation keeps it from turn to turn. Ring: K and V of
    two blocks of the first chunk, and outputs in float32, of the block and merged; of a later chunk the queries of all
    ranks, and partial results sent and received.
    Prefill: embeddings of this rank's prompt aND, and for a chunk's tokens the widest moment of a layer,
    a (4D + 3F); logits of one position. Vision: a micro-batch in a layer of the tower, and features of this rank's
    tiles.
    """
    decoder, width, share = model.decoder, setting.width, setting.chunk_num
    total = setting.max_packed_tokens + setting.max_new_tokens
    layer = 2 * decoder.kv_width * -(-total // share) * (1 if setting.kv_cache == "quantized" else width)
    on_device = min(decoder.num_layers, 2) if setting.kv_cache == "offloaded" else decoder.num_layers
    growing = layer if setting.kv_cache in ("dynamic", "quantized") else 0
    chunk = -(-setting.first_chunk // share)
    ring = chunk * (4 * width * decoder.kv_width + (width + 2 * STATISTIC) * decoder.query_width) if share > 1 else 0
    if share > 1 and setting.first_chunk < setting.max_packed_tokens:
        ring = max(ring, setting.first_chunk * decoder.query_width * (width + 2 * STATISTIC))
    features = setting.local_tiles * model.num_image_token * width * decoder.hidden_size
    weights = width * count_parameters(model, setting.trained).total
    fixed = {
        "weights": weights,
        "KV cache": on_device * layer,
        "batch": batch_memory(model, setting),
        "embeddings": setting.local_tokens * width * decoder.hidden_size + features,
        **({"ring buffers": ring} if ring else {}),
    }
    phases = {
        "vision": {"vision activations": vision_forward(model, setting)},
        "prefill": {
            "decoder activations": chunk * width * (4 * decoder.hidden_size + 3 * decoder.intermediate_size)
            + STATISTIC * decoder.vocab_size,
            "cache that grows": growing,
        },
    }
    return _find_peak(fixed, phases, weights, (decoder.num_layers - on_device) * layer)


def _find_peak(fixed: dict[str, int], phases: dict[str, dict[str, int]], loading: int, host: int) -> MemoryPlan:
    totals = {name: sum(fixed.values()) + sum(items.values()) for name, items in phases.items()}
    peak = max(totals, key=lambda name: totals[name])
    return MemoryPlan({**fixed, **phases[peak]}, peak, totals, loading, host)


def gpu_overhead(setting: Setting) -> dict[str, int]:
    """Bytes that a GPU holds beside tensors: CUDA's context, NCCL's buffers of all ranks and of those of a row."""
    groups = (setting.gpus > 1) + (setting.chunk_num > 1)
    return {"CUDA context": _CUDA_CONTEXT} | ({"NCCL buffers": groups * _NCCL_GROUP} if groups else {})


def plan_memory(model: ModelSizes, setting: Setting) -> MemoryPlan:
    """Memory per rank by item, for either mode."""
    return (plan_training_memory if setting.mode == "train" else plan_inference_memory)(model, setting)
