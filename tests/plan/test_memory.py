"""The estimator's formulas against the modules themselves: parameters, and bytes that autograd saves."""

import pytest
import torch
import torch.distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from internvl.model.attention import register_builtin_attention
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.loss import shift_targets, weighted_cross_entropy
from internvl.model.modeling_intern_vit import InternVisionEncoderLayer, InternVisionModel
from internvl.model.modeling_internvl_chat import InternVLChatModel, build_language_model
from internvl.parallel.comm import Messenger
from internvl.parallel.grid import Grid, build_grid
from internvl.parallel.ring import RingWork, run_backward, run_forward
from internvl.parallel.ring_plan import build_ring_plan
from internvl.parallel.shared_row import register_shared_attention
from internvl.plan.activations import (
    saved_beside_layers,
    saved_by_decoder_layer,
    saved_by_vision_layer,
)
from internvl.plan.memory import batch_memory, communication_buffers, vision_activations, vision_forward
from internvl.plan.released_models import RELEASED
from internvl.plan.setting import Setting
from internvl.plan.sizes import Trained, count_parameters, extract_sizes, read_sizes
from internvl.train.arguments import ModelArguments
from internvl.train.trainable import VIT_LORA_TARGETS, add_lora, find_lora_targets, select_trainable

TOKENS, TILES = 32, 2
TOWERS = {
    "layer_norm": {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
    "rms_norm": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
}
FAMILIES = {
    "internlm2": {"architectures": ["InternLM2ForCausalLM"], "bias": False},
    "internlm2 with biases": {"architectures": ["InternLM2ForCausalLM"], "bias": True},
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "llama with biases": {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "tied qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "pad_token_id": 0},
}


def tile_setting(dtype, **frozen):
    return Setting(
        max_packed_tokens=64, tiles=TILES, dtype=str(dtype).removeprefix("torch."), gpus=1, trained=Trained(**frozen)
    )


def chat_config(family="internlm2", tower="layer_norm"):
    return InternVLChatConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
            **TOWERS[tower],
        },
        llm_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            **FAMILIES[family],
        },
        ps_version="v2",
        img_context_token_id=61,
    )


def count_saved(run, module):
    """Bytes that autograd keeps of what `run` computes: every storage once, weights not."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    del out
    return sum(saved.values())


# -------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model(family, tower):
    config = chat_config(family, tower)
    model = InternVLChatModel(config)
    assert count_parameters(extract_sizes("tiny", config)).total == sum(p.numel() for p in model.parameters())


CHOICES = {
    "freeze_backbone": {"freeze_backbone": True},
    "freeze_llm": {"freeze_llm": True},
    "freeze_mlp": {"freeze_mlp": True},
    "llm lora": {"use_llm_lora": 4, "freeze_backbone": True},
    "vit lora": {"use_backbone_lora": 3},
    "both loras, head": {"use_llm_lora": 4, "use_backbone_lora": 2, "unfreeze_lm_head": True},
    "head of a frozen llm": {"freeze_llm": True, "unfreeze_lm_head": True},
    "last vit layers": {"freeze_backbone": True, "unfreeze_vit_layers": -2},
    "vit lora and whole last layer": {"use_backbone_lora": 2, "unfreeze_vit_layers": -1},
}


@pytest.mark.parametrize("family", ["internlm2", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("choice", CHOICES)
def test_trained_parameters_are_those_that_training_selects(choice, family):
    config = chat_config(family)
    model = InternVLChatModel(config)
    select_trainable(model, ModelArguments(**CHOICES[choice]))
    count = count_parameters(extract_sizes("tiny", config), Trained(**CHOICES[choice]))
    assert count.total == sum(p.numel() for p in model.parameters())
    for part, predicted in (
        (model.vision_model, count.trained_vision),
        (model.mlp1, count.trained_projector),
        (model.language_model, count.trained_decoder),
    ):
        assert predicted == sum(p.numel() for p in part.parameters() if p.requires_grad)


def test_published_sizes_have_the_parameters_of_the_model_cards():
    millions = {name: round(count_parameters(read_sizes(name)).total / 1e6, 2) for name in RELEASED}
    assert millions["InternVL2-2B"] == 2205.75
    assert millions["InternVL2-8B"] == 8075.37
    assert millions["InternVL2-26B"] == 25514.19
    assert millions["InternVL2-Llama3-76B"] == 76262.36


# ------------------------------------------------------------------------------------------------------- activations


def decoder_and_sizes(family, dtype, *, lora=0, frozen=False):
    register_builtin_attention()
    config = chat_config(family)
    torch.manual_seed(0)
    decoder = build_language_model(config.llm_config).to(dtype).train()
    if lora:
        add_lora(decoder, lora, find_lora_targets(decoder))
    if frozen:
        decoder.requires_grad_(False)
    return decoder, extract_sizes("tiny", config).decoder


def run_decoder(decoder, dtype, cu_seqlens):
    embeds = torch.randn(1, TOKENS, 32, dtype=dtype, requires_grad=True)
    positions = torch.arange(TOKENS, dtype=torch.float64).unsqueeze(0)
    return lambda: (
        decoder.model(
            inputs_embeds=embeds, position_ids=positions, cu_seqlens=cu_seqlens, use_cache=False
        ).last_hidden_state
    )


WIDTHS = {torch.float32: 4, torch.bfloat16: 2}


@pytest.mark.parametrize("training", ["all", "lora", "frozen"])
@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("family", ["internlm2", "llama", "qwen2", "qwen3", "phi3"])
def test_decoder_saves_what_the_formula_says(family, dtype, training):
    lora, width = (4 if training == "lora" else 0), WIDTHS[dtype]
    decoder, sizes = decoder_and_sizes(family, dtype, lora=lora, frozen=training == "frozen")
    run = run_decoder(decoder, dtype, torch.tensor([0, 20, TOKENS]))
    trained = training == "all"
    layer = saved_by_decoder_layer(sizes, width, trained=trained, lora_rank=lora, mask_bytes=width)
    predicted = sizes.num_layers * layer + saved_beside_layers(sizes, width, trained=trained)
    assert count_saved(run, decoder) == TOKENS * predicted


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("family", ["internlm2", "qwen2"])
def test_ring_attention_saves_what_the_formula_says(family, dtype):
    decoder, sizes = decoder_and_sizes(family, dtype)
    register_shared_attention(Grid(), name="ring of one")
    decoder.config._attn_implementation = "ring of one"
    layer = saved_by_decoder_layer(sizes, WIDTHS[dtype], attention="ring")
    predicted = sizes.num_layers * layer + saved_beside_layers(sizes, WIDTHS[dtype], trained=True)
    run = run_decoder(decoder, dtype, torch.tensor([0, 20, TOKENS]))
    assert count_saved(run, decoder) == TOKENS * predicted


@pytest.fixture
def ranks():
    """This process as the first of four whose messages go nowhere: sizes are right, values are not."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("ulysses_degree", [1, 2, 4])
@pytest.mark.parametrize("family", ["internlm2", "qwen2"])
def test_a_shared_row_saves_what_the_formula_says(ranks, family, ulysses_degree):
    decoder, sizes = decoder_and_sizes(family, torch.float32)
    grid = build_grid(chunk_num=4, ulysses_degree=ulysses_degree)
    register_shared_attention(grid, name="four ranks")
    decoder.config._attn_implementation = "four ranks"
    kind = "ring" if ulysses_degree == 1 else "ulysses"
    layer = saved_by_decoder_layer(sizes, 4, attention=kind, ulysses_degree=ulysses_degree)
    predicted = sizes.num_layers * layer + saved_beside_layers(sizes, 4, trained=True)
    run = run_decoder(decoder, torch.float32, torch.tensor([0, 40, 4 * TOKENS]))
    assert count_saved(run, decoder) == TOKENS * predicted


class PeakCounter(TorchDispatchMode):
    """Counts the bytes that are alive at most among storages that came into being under it."""

    def __init__(self, *before):
        super().__init__()
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.before:
                storage = tensor.untyped_storage()
                self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


class EmptyKernel:
    """Results of the right sizes, and nothing beside them."""

    def forward(self, q, k, v, *, scale, borders):
        return torch.empty_like(q), torch.empty(q.shape[1], len(q))

    def backward(self, grad_out, q, k, v, out, lse, *, scale, borders):
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("dtype", WIDTHS)
def test_the_ring_holds_what_the_formula_says(dtype, size):
    """The rank that holds most, in the backward pass of one document over all ranks."""
    sizes = extract_sizes("tiny", chat_config()).decoder
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    peaks = []
    for rank in range(size):
        q, k, v = (
            torch.zeros(TOKENS, heads, sizes.head_dim, dtype=dtype)
            for heads in (sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads)
        )
        plan = build_ring_plan([0, size * TOKENS], num_tokens=TOKENS, rank=rank, size=size)
        work, messenger = RingWork(plan, 1.0, EmptyKernel()), Messenger(dist.group.WORLD)
        out, lse = run_forward(q, k, v, work, messenger)
        grad_out = torch.zeros_like(out)
        with PeakCounter(q, k, v, out, lse, grad_out) as counter:
            run_backward(grad_out, q, k, v, out, lse, work, messenger)
        peaks.append(counter.peak)
    dist.destroy_process_group()
    setting = Setting(
        max_packed_tokens=size * TOKENS,
        gpus=size,
        chunk_num=size,
        zero_stage=0,
        dtype=str(dtype).removeprefix("torch."),
    )
    predicted = communication_buffers(extract_sizes("tiny", chat_config()), setting)["ring buffers"]
    assert 0.85 * predicted <= max(peaks) <= predicted


@pytest.mark.parametrize("keep", ["all", "lora", "frozen"])
@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("tower", TOWERS)
def test_vision_layer_saves_what_the_formula_says(tower, dtype, keep):
    config, width = chat_config(tower=tower), WIDTHS[dtype]
    model = InternVisionModel(config.vision_config).to(dtype).train()
    if keep == "lora":
        add_lora(model, 4, VIT_LORA_TARGETS)
    if keep == "frozen":
        model.requires_grad_(False)
    layer = model.encoder.layers[0]
    assert isinstance(layer, InternVisionEncoderLayer)
    states = torch.randn(TILES, 17, 32, dtype=dtype, requires_grad=True)
    predicted = saved_by_vision_layer(
        extract_sizes("tiny", config).vision,
        width,
        trained=keep == "all",
        lora_rank=4 if keep == "lora" else 0,
        mask_bytes=width,
    )
    assert count_saved(lambda: layer(states), layer) == TILES * 17 * predicted


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("frozen", [{}, {"freeze_mlp": True}, {"freeze_backbone": True}])
def test_tiles_projector_and_tower_save_what_the_formula_says(frozen, dtype):
    config = chat_config()
    model = InternVLChatModel(config).to(dtype).train()
    select_trainable(model, ModelArguments(**frozen))
    pixels = torch.randint(0, 256, (TILES, 3, 28, 28), dtype=torch.uint8)
    predicted = vision_activations(extract_sizes("tiny", config), tile_setting(dtype, **frozen)).kept
    assert count_saved(lambda: model.extract_feature(pixels), model) == predicted


@pytest.mark.parametrize("dtype", WIDTHS)
def test_tiles_travel_as_uint8_and_are_normalised_in_float32(dtype):
    config, setting = chat_config(), tile_setting(dtype)
    model, sizes = InternVLChatModel(config).to(dtype).eval(), extract_sizes("tiny", config)
    pixels = torch.randint(0, 256, (TILES, 3, 28, 28), dtype=torch.uint8)
    assert batch_memory(sizes, setting) == pixels.nbytes + setting.max_packed_tokens * 36
    with torch.no_grad(), PeakCounter(pixels, *model.parameters()) as counter:
        model.extract_feature(pixels)
    assert counter.peak == pytest.approx(vision_forward(sizes, setting), rel=0.1)


@pytest.mark.parametrize("supervised", [3, TOKENS])
def test_loss_keeps_two_gradients_and_never_logits_of_the_row(supervised):
    decoder, sizes = decoder_and_sizes("internlm2", torch.float32)
    states = torch.randn(1, TOKENS, 32, requires_grad=True)
    labels = torch.full((1, TOKENS), -100)
    labels[:, -supervised:] = 5
    targets, weights = shift_targets(labels, None)
    loss = weighted_cross_entropy(states, decoder.output.weight, targets, weights)
    grads = loss.grad_fn.next_functions[0][0].grads
    assert sum(grad.untyped_storage().nbytes() for grad in grads) == 4 * (sizes.table + TOKENS * sizes.hidden_size)
