"""Trainable: which parameters are trained - freezing, LoRA adapters, and folding adapters back into plain weights.

part        frozen by           exceptions
ViT         freeze_backbone     unfreeze_vit_layers; use_backbone_lora trains adapters only
projector   freeze_mlp
LLM         freeze_llm          unfreeze_lm_head; use_llm_lora trains adapters only

An adapted layer computes W x + s * B A x. The rank is the shape of A and the scale s is `LORA_ALPHA_PER_RANK` for
every run (alpha = s * rank, as in the public code), so a state dict alone is enough to fold its adapters.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from internvl.errors import CheckpointError, ConfigError, MissingDependencyError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.train.arguments import ModelArguments

_LLAMA_LORA_TARGETS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
# Adapted linear layers by the decoder's class; a subclass has those of its base.
LLM_LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "InternLM2ForCausalLM": (
        "attention.wqkv",
        "attention.wo",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ),
    "LlamaForCausalLM": _LLAMA_LORA_TARGETS,
    "Qwen2ForCausalLM": _LLAMA_LORA_TARGETS,
    "Qwen3ForCausalLM": _LLAMA_LORA_TARGETS,
    "Phi3ForCausalLM": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
}
VIT_LORA_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LORA_DROPOUT = 0.05
LORA_ALPHA_PER_RANK = 2

_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"

logger = logging.getLogger(__name__)


def select_trainable(model: InternVLChatModel, args: ModelArguments) -> None:
    """Freeze parts and add adapters, as the module's table says.

    Raises:
        ConfigError: `unfreeze_vit_layers` names no layer, no LoRA targets are known for the decoder, or nothing is
            left to train.
        MissingDependencyError: LoRA is wanted and peft is not installed.
    """
    vision, language = model.vision_model, model.language_model
    if args.freeze_backbone:
        vision.requires_grad_(False)
    if args.freeze_llm:
        language.requires_grad_(False)
    if args.freeze_mlp:
        model.mlp1.requires_grad_(False)
    if args.use_backbone_lora:
        add_lora(vision, args.use_backbone_lora, VIT_LORA_TARGETS)
    if args.use_llm_lora:
        add_lora(language, args.use_llm_lora, find_lora_targets(language))
    if args.unfreeze_lm_head:
        model.get_output_embeddings().requires_grad_(True)
    if args.unfreeze_vit_layers:
        _unfreeze_vit_layers(vision.encoder.layers, args.unfreeze_vit_layers)
    counts = {name: _count_trained(part) for name, part in model.named_children()}
    if not sum(counts.values()):
        raise ConfigError("no parameter is left to train; drop a --freeze_* flag or add LoRA")
    logger.info("trained parameters: %s", ", ".join(f"{name} {count:,}" for name, count in counts.items()))


def find_lora_targets(language_model: nn.Module) -> tuple[str, ...]:
    """Ends of the names of the linear layers that get adapters: attention and MLP, not the output layer.

    Raises:
        ConfigError: A decoder that is not in `LLM_LORA_TARGETS`.
    """
    for kind in type(language_model).__mro__:
        if kind.__name__ in LLM_LORA_TARGETS:
            return LLM_LORA_TARGETS[kind.__name__]
    raise ConfigError(
        f"--use_llm_lora: the decoder is a {type(language_model).__name__}; LoRA targets are known for "
        f"{', '.join(LLM_LORA_TARGETS)}. Train it with --use_llm_lora 0, or add its layers to LLM_LORA_TARGETS"
    )


def add_lora(part: nn.Module, rank: int, targets: Sequence[str]) -> None:
    """Put LoRA adapters of the given rank on the named linear layers and freeze all other weights of the part."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError("LoRA needs peft: pip install peft") from error
    config = LoraConfig(
        r=rank, lora_alpha=LORA_ALPHA_PER_RANK * rank, lora_dropout=LORA_DROPOUT, target_modules=list(targets)
    )
    inject_adapter_in_model(config, part)


def merge_lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the adapters of a state dict into its weights; without adapters it comes back unchanged.

    W + alpha / r * B A, computed in float32 and stored in the dtype of W. Keys are those of the plain model again.

    Raises:
        CheckpointError: An adapter without its layer, a layer without its adapter, or an adapter of another kind.
    """
    adapted = {key.removesuffix(_BASE) for key in state if key.endswith(_BASE)}
    expected = {layer + end for layer in adapted for end in (_DOWN, _UP)}
    found = {key for key in state if ".lora_" in key}
    if expected != found:
        raise CheckpointError(
            f"adapters do not fit the weights: missing {sorted(expected - found)[:3]}, unknown "
            f"{sorted(found - expected)[:3]}; expected X{_DOWN} and X{_UP} for every X{_BASE} (plain LoRA)"
        )
    merged: dict[str, Tensor] = {}
    for key, weight in state.items():
        if key in found:
            continue
        if key.endswith(_BASE):
            layer = key.removesuffix(_BASE)
            # In float32: bfloat16 would round most of a small update away.
            update = torch.matmul(state[layer + _UP].float(), state[layer + _DOWN].float())
            weight = (weight.float() + LORA_ALPHA_PER_RANK * update).to(weight.dtype)
        merged[key.replace(".base_layer.", ".")] = weight
    return merged


def _unfreeze_vit_layers(layers: nn.ModuleList, first: int) -> None:
    chosen = list(layers)[first:]
    if not chosen or first < -len(layers):
        raise ConfigError(f"--unfreeze_vit_layers {first}: the vision tower has {len(layers)} layers")
    for layer in chosen:
        layer.requires_grad_(True)


def _count_trained(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
