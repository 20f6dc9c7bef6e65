"""Which parameters are trained: freezing, LoRA adapters, and folding adapters back into plain weights.

part        frozen by           exceptions
ViT         freeze_backbone     unfreeze_vit_layers; use_backbone_lora trains adapters only
projector   freeze_mlp
LLM         freeze_llm          unfreeze_lm_head; use_llm_lora trains adapters only
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from internvl.errors import ConfigError, MissingDependencyError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.train.arguments import ModelArguments

LLM_LORA_TARGETS = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
VIT_LORA_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LORA_DROPOUT = 0.05
LORA_ALPHA_PER_RANK = 2

logger = logging.getLogger(__name__)


def select_trainable(model: InternVLChatModel, args: ModelArguments) -> None:
    """Freeze parts and add adapters, as the module's table says.

    Raises:
        ConfigError: `unfreeze_vit_layers` names no layer, or nothing is left to train.
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
        add_lora(language, args.use_llm_lora, LLM_LORA_TARGETS)
    if args.unfreeze_lm_head:
        model.get_output_embeddings().requires_grad_(True)
    if args.unfreeze_vit_layers:
        _unfreeze_vit_layers(vision.encoder.layers, args.unfreeze_vit_layers)
    counts = {name: _count_trained(part) for name, part in model.named_children()}
    if not sum(counts.values()):
        raise ConfigError("no parameter is left to train; drop a --freeze_* flag or add LoRA")
    logger.info("trained parameters: %s", ", ".join(f"{name} {count:,}" for name, count in counts.items()))


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
    """
    merged: dict[str, Tensor] = {}
    for key, weight in state.items():
        if ".lora_" in key:
            continue
        layer = key.removesuffix(".base_layer.weight")
        down = state.get(f"{layer}.lora_A.default.weight")
        up = state.get(f"{layer}.lora_B.default.weight")
        if key.endswith(".base_layer.weight") and down is not None and up is not None:
            update = LORA_ALPHA_PER_RANK * torch.matmul(up.float(), down.float())
            weight = (weight.float() + update).to(weight.dtype)
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
