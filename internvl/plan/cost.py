"""Cost of a step: work, messages and time, from sizes and flags.

A multiplication and an addition are two FLOPs. Per token a matrix costs 2 FLOPs per weight in the forward pass. The
gradient of its input costs as much, and so does its own gradient, each only where it is needed. A step is one row per
group of `chunk_num` ranks.
"""

from dataclasses import dataclass

from internvl.parallel.ulysses import kv_repeats
from internvl.plan.cards import Rates
from internvl.plan.memory import decoder_activations, vision_activations
from internvl.plan.setting import Setting
from internvl.plan.sizes import ModelSizes, Trained, count_parameters
from internvl.plan.traffic import decoder_traffic, loss_traffic, tower_traffic

# FLOPs of attention's backward pass over those of its forward pass: gradients take four products to its two; flash
# kernels recompute the scores (FlashAttention-2, Dao, arXiv:2307.08691, section 4.1).
_ATTENTION_GRADIENT, _FLASH_GRADIENT = 2.0, 2.5


@dataclass(frozen=True)
class Part:
    """Work of a part of the model, by what limits it."""

    matmul: float = 0.0  # FLOPs of matrix products
    attention: float = 0.0  # FLOPs of attention kernels
    traffic: float = 0.0  # bytes that all other kernels read and write

    @property
    def flops(self) -> float:
        """FLOPs of either kind."""
        return self.matmul + self.attention

    def count_seconds(self, rates: Rates) -> float:
        """Time of one GPU that does all of it; kernels run one after the other."""
        products = self.matmul / rates.matmul_tflops + self.attention / rates.attention_tflops
        return products / 1e12 + self.traffic / (rates.memory_gbs * 1e9)


@dataclass(frozen=True)
class Work:
    """Work of a row."""

    model: float  # FLOPs that the mathematics needs; model FLOPs utilisation (MFU) counts these
    parts: dict[str, Part]  # what is executed, recomputation included

    @property
    def executed(self) -> float:
        """FLOPs that are executed."""
        return sum(part.flops for part in self.parts.values())


@dataclass(frozen=True)
class RowContent:
    """What decides how much work a row is, or several rows added up."""

    tokens: float  # tokens
    pairs: float  # query-key pairs of causal attention: the sum of n (n + 1) / 2 over documents of n tokens
    targets: float  # tokens that are trained on; they meet the output layer
    tiles: float  # tiles


@dataclass(frozen=True)
class CostPlan:
    """Predicted work and time of a step (of a prefill when answering)."""

    flops_step: float  # FLOPs of all GPUs
    flops_rank: float  # FLOPs per GPU
    model_flops_step: float  # FLOPs of all GPUs without recomputation
    flops_items: dict[str, float]  # FLOPs of a row by part
    sent: dict[str, float]  # bytes that a rank sends, by purpose; for the ring, of the rank that sends most
    seconds: dict[str, float]  # of a GPU's computing at the given rates, by part
    communication_s: float  # seconds of `sent` at the given rate
    # seconds of what goes to main memory and back, at the given rate; the optimiser's work is left out
    offloading_s: float
    tokens_step: int  # tokens of all rows of the step
    peak_flops: float  # FLOPs per second that all GPUs could do at most

    @property
    def compute_s(self) -> float:
        """Seconds of computing."""
        return sum(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, if nothing overlaps: FLOPs without recomputation over those of the peak."""
        return self.model_flops_step / (self.peak_flops * self.step_s)

    @property
    def step_s(self) -> float:
        """Seconds if nothing overlaps; at best it is the largest of the three."""
        return self.compute_s + self.communication_s + self.offloading_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all GPUs per second, if nothing overlaps."""
        return self.tokens_step / self.step_s


def count_pairs(length: int, documents: int) -> float:
    """Query-key pairs of a row of equal documents: n (n + 1) / 2 in each."""
    each = length / documents
    return documents * each * (each + 1) / 2


def describe_row(setting: Setting) -> RowContent:
    """The row that a setting asks for: full, with documents of equal length."""
    tokens = setting.max_packed_tokens
    return RowContent(tokens, count_pairs(tokens, setting.documents), tokens * setting.supervised, setting.tiles)


def decoder_flops(model: ModelSizes, row: RowContent) -> tuple[float, float]:
    """Forward FLOPs of all layers for a row: (matrices 2 N sum(in out), attention 4 Q pairs)."""
    decoder = model.decoder
    matrices = 2 * row.tokens * sum(linear.matrix for linear in decoder.linears)
    attention = 4 * decoder.query_width * row.pairs
    return decoder.num_layers * matrices, decoder.num_layers * attention


def vision_flops(model: ModelSizes, row: RowContent) -> tuple[float, float]:
    """Forward FLOPs of a row's tiles: (the tower's, the projector's).

    Per tile of t = patches + 1 tokens: patches 2 * 3 P^2 H each, layers 2 t sum(in out) + 4 t^2 H.
    """
    vision = model.vision
    tokens = vision.num_patches + 1
    layer = 2 * tokens * sum(linear.matrix for linear in vision.linears) + 4 * tokens**2 * vision.hidden_size
    patches = 2 * vision.num_patches * 3 * vision.patch_size**2 * vision.hidden_size
    projector = 2 * model.num_image_token * sum(linear.matrix for linear in model.projector_linears)
    return row.tiles * (patches + vision.num_layers * layer), row.tiles * projector


def count_model_flops(model: ModelSizes, trained: Trained, row: RowContent) -> dict[str, float]:
    """FLOPs that training on a row needs, by part: forward and the gradients that are used, without recomputation."""
    matrices, attention = decoder_flops(model, row)
    tower, projector = vision_flops(model, row)
    head = 2.0 * row.targets * model.decoder.table
    enters = trained.decoder_has_gradient
    num_graded, num_trained = (n / model.vision.num_layers for n in trained.count_vit_layers(model.vision.num_layers))
    return {
        "decoder": matrices * (1 + enters + trained.llm),
        "attention": attention * (1 + _ATTENTION_GRADIENT * enters),
        "output layer": head * (1 + enters + trained.head),
        "vision": tower * (1 + num_graded + num_trained)
        + projector * (1 + trained.vision_has_gradient + (not trained.freeze_mlp)),
    }


def training_work(model: ModelSizes, setting: Setting) -> Work:
    """Work of a row in training: forward, needed gradients, recomputation.

    Recomputation: decoder layers once with `grad_checkpoint` (attention not with `keep_attention`), their MLPs once
    more with `mlp_tile_tokens`, since one is inside the other; the tower likewise with `grad_checkpoint` and with
    `vit_batch_size`.
    """
    decoder, vision = model.decoder, model.vision
    trained, row = setting.trained, describe_row(setting)
    matrices, attention = decoder_flops(model, row)
    tower, _ = vision_flops(model, row)
    enters = trained.decoder_has_gradient
    num_graded = trained.count_vit_layers(vision.num_layers)[0] / vision.num_layers
    needed = count_model_flops(model, trained, row)
    again = dict.fromkeys(needed, 0.0)
    again["attention"] += attention * enters * (_FLASH_GRADIENT - _ATTENTION_GRADIENT)
    layers_again = setting.grad_checkpoint and enters
    if layers_again:
        again["decoder"] += matrices
        again["attention"] += 0 if setting.keep_attention else attention
    times = setting.grad_checkpoint + (setting.vit_batch_size is not None)
    if enters and setting.mlp_tile_tokens and setting.mlp_tile_tokens < setting.local_tokens:
        again["decoder"] += 2 * row.tokens * decoder.num_layers * 3 * decoder.hidden_size * decoder.intermediate_size
    again["vision"] += tower * num_graded * times
    flops = {name: needed[name] + again[name] for name in needed}
    forward, backward = decoder_traffic(decoder, setting.width, fused=setting.fused)
    in_layers = row.tokens * decoder.num_layers * (forward * (1 + layers_again) + backward * enters)
    forward, backward = tower_traffic(vision, setting.width)
    in_tower = _tower_tokens(model, row) * (forward * (1 + times * num_graded) + backward * num_graded)
    parts = {
        "decoder": Part(matmul=flops["decoder"]),
        "attention": Part(attention=flops["attention"]),
        "norms, rotary, SwiGLU": Part(traffic=in_layers),
        "output layer": Part(flops["output layer"], traffic=loss_traffic(model, row.targets, head_trains=trained.head)),
        "vision": _vision_part(model, flops["vision"], in_tower),
    }
    return Work(sum(needed.values()), parts)


def prefill_work(model: ModelSizes, setting: Setting) -> Work:
    """Work of a prompt: the forward pass; the output layer sees its last token only."""
    row, decoder = describe_row(setting), model.decoder
    matrices, attention = decoder_flops(model, row)
    in_layers = row.tokens * decoder.num_layers * decoder_traffic(decoder, setting.width, fused=setting.fused)[0]
    in_tower = _tower_tokens(model, row) * tower_traffic(model.vision, setting.width)[0]
    parts = {
        "decoder": Part(matmul=matrices),
        "attention": Part(attention=attention),
        "norms, rotary, SwiGLU": Part(traffic=in_layers),
        "output layer": Part(matmul=2.0 * decoder.table),
        "vision": _vision_part(model, sum(vision_flops(model, row)), in_tower),
    }
    return Work(sum(part.flops for part in parts.values()), parts)


def _tower_tokens(model: ModelSizes, row: RowContent) -> float:
    """Tokens of a row's tiles, times layers of the tower."""
    return row.tiles * (model.vision.num_patches + 1) * model.vision.num_layers


def _vision_part(model: ModelSizes, flops: float, traffic: float) -> Part:
    """Tower and projector: 4 t H of a layer's 2 sum(in out) + 4 t H FLOPs per token are attention's."""
    vision = model.vision
    scores = 4 * (vision.num_patches + 1) * vision.hidden_size
    share = scores / (scores + 2 * sum(linear.matrix for linear in vision.linears))
    return Part(flops * (1 - share), flops * share, traffic)


def ring_rows(length: int, ring_size: int) -> tuple[float, float]:
    """Rows of K and V that a rank sends for one document of `length` tokens: (mean, most).

    Zigzag chunks of c = length / 2R tokens. Rank s sends chunk s to every later rank and both its chunks to every
    earlier one: c (R - 1 - s) + 2 c s. Mean 3/4 length (R - 1) / R, most length (R - 1) / R, of the last rank.
    Several documents need no more (internvl/parallel/ring_plan.py counts them).
    """
    most = length * (ring_size - 1) / ring_size
    return 0.75 * most, most


def count_sent(model: ModelSizes, setting: Setting) -> dict[str, float]:
    """Bytes that a rank sends in a step, by purpose (symbols as in memory.py; U: ulysses degree, R: ring size).

        ring          per layer, of the rows of `ring_rows` (the rank that sends most): K and V of its heads, 2 aK / U,
                      in the forward pass, twice that in the backward pass (K and V again, their gradients back), once
                      more with recomputation unless attention's outputs are kept
        ulysses       per layer and pass aN (2Q + 2K) (U - 1) / U, K repeated where U does not divide its heads;
                      forward, backward, recomputation
        features      at most all features of this rank's tiles, forward and backward
        gradients     ZeRO 0: all-reduce 2 G (W - 1) / W; else reduce-scatter G (W - 1) / W, G = a x trained parameters
        weights       ZeRO 1, 2: updated weights gathered, G (W - 1) / W; ZeRO 3: all weights gathered in the forward
                      and in the backward pass, 2 aP (W - 1) / W, P all parameters (arXiv:1910.02054, section 7)

    Answering: see `count_sent_by_prefill`.
    """
    if setting.mode == "infer":
        return count_sent_by_prefill(model, setting)
    grid, width, decoder = setting.grid, setting.width, model.decoder
    again = setting.grad_checkpoint and setting.trained.decoder_has_gradient
    backward = 1 if setting.trained.decoder_has_gradient else 0
    kv = decoder.kv_width * kv_repeats(decoder.num_kv_heads, setting.ulysses_degree)
    _, rows = ring_rows(grid.pad_length(setting.max_packed_tokens), grid.ring_size)
    ring_passes = 1 + 2 * backward + (again and not setting.keep_attention)
    ulysses_passes = 1 + backward + again
    degree, share = setting.ulysses_degree, 1 - 1 / setting.chunk_num
    features = setting.local_tiles * model.num_image_token * width * decoder.hidden_size
    to_tiles = setting.trained.vision_has_gradient or not setting.trained.freeze_mlp
    sent = {
        "ring": decoder.num_layers * rows * 2 * width * kv / degree * ring_passes,
        "ulysses": decoder.num_layers
        * (width * setting.local_tokens * (2 * decoder.query_width + 2 * kv) * (1 - 1 / degree))
        * ulysses_passes,
        "features": features * share * (2 if to_tiles else 1),
    }
    count, others = count_parameters(model, setting.trained), 1 - 1 / setting.gpus
    gradients, weights = width * count.trained * others, width * count.total * others
    sent["gradients"] = gradients * (2 if setting.zero_stage == 0 else 1)
    sent["weights"] = {0: 0.0, 1: gradients, 2: gradients, 3: 2 * weights}[setting.zero_stage]
    return sent


def count_sent_by_prefill(model: ModelSizes, setting: Setting) -> dict[str, float]:
    """Bytes that a rank sends while a prompt of L tokens passes in chunks of C (internvl/parallel/cached_attention.py).

    First chunk: a ring, K and V of `ring_rows` of C tokens. Later ones, per layer and token of this rank's share
    (L - C) / P: its query to P - 1 ranks, aQ each, and from this rank partial results with log-sum-exp, float32, for as
    many queries of others.
    """
    decoder, width, others = model.decoder, setting.width, setting.chunk_num - 1
    _, rows = ring_rows(setting.first_chunk, setting.chunk_num)
    later = (setting.max_packed_tokens - setting.first_chunk) / setting.chunk_num * others
    features = setting.local_tiles * model.num_image_token * width * decoder.hidden_size
    return {
        "ring": decoder.num_layers * rows * 2 * width * decoder.kv_width,
        "queries": decoder.num_layers * later * width * decoder.query_width,
        "partial results": decoder.num_layers * later * 4 * (decoder.query_width + decoder.num_heads),
        "features": features * others / setting.chunk_num,
    }


def count_offloaded(model: ModelSizes, setting: Setting) -> float:
    """Bytes that travel to main memory and back: activations; gradients there and weights back for the optimiser."""
    if setting.mode == "infer":
        return 0.0
    moved = 2.0 * (decoder_activations(model, setting).host + vision_activations(model, setting).host)
    if setting.offload_optimizer:
        count = count_parameters(model, setting.trained).trained
        moved += 2.0 * setting.width * count / (setting.gpus if setting.zero_stage else 1)
    return moved


def plan_cost(model: ModelSizes, setting: Setting) -> CostPlan:
    """Work, messages and time of a step."""
    work = (training_work if setting.mode == "train" else prefill_work)(model, setting)
    rows, sent, rates = setting.grid.data_size, count_sent(model, setting), setting.rates
    flops_rank = work.executed / setting.chunk_num
    return CostPlan(
        flops_step=work.executed * rows,
        flops_rank=flops_rank,
        model_flops_step=work.model * rows,
        flops_items={name: part.flops for name, part in work.parts.items() if part.flops},
        sent=sent,
        seconds={name: part.count_seconds(rates) / setting.chunk_num for name, part in work.parts.items()},
        communication_s=sum(sent.values()) / (setting.bandwidth_gbs * 1e9),
        offloading_s=count_offloaded(model, setting) / (setting.offload_gbs * 1e9),
        tokens_step=setting.max_packed_tokens * rows,
        peak_flops=setting.gpus * setting.card.peak.matmul_tflops * 1e12,
    )
