"""Weights of a chat model under the names of transformers' own InternVL, and back.

Weights are renamed and fused matrices are cut, so nothing is rounded.

    InternVLChatModel                             InternVLForConditionalGeneration
    vision_model.encoder.layers.0.attn.qkv        model.vision_tower.encoder.layer.0.attention.{q,k,v}_proj
    vision_model.encoder.layers.0.ls1             model.vision_tower.encoder.layer.0.lambda_1
    mlp1.{0,1,3}                                  model.multi_modal_projector.{layer_norm,linear_1,linear_2}
    language_model.model.*                        model.language_model.*
    language_model.lm_head                        lm_head
    ...layers.0.attention.wqkv (InternLM2)        ...layers.0.self_attn.{q,k,v}_proj
"""

import re
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor

from internvl.errors import CheckpointError
from internvl.model.configuration_internvl_chat import InternLM2Config, InternVLChatConfig

# Names by their beginnings, the first match counts; `#` is the number of a layer.
_VISION_LAYER, _NATIVE_VISION_LAYER = "vision_model.encoder.layers.#.", "model.vision_tower.encoder.layer.#."
_NAMES = (
    ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (_VISION_LAYER + "ls1", _NATIVE_VISION_LAYER + "lambda_1"),
    (_VISION_LAYER + "ls2", _NATIVE_VISION_LAYER + "lambda_2"),
    (_VISION_LAYER + "attn.proj.", _NATIVE_VISION_LAYER + "attention.projection_layer."),
    (_VISION_LAYER + "attn.", _NATIVE_VISION_LAYER + "attention."),
    (_VISION_LAYER + "norm1.", _NATIVE_VISION_LAYER + "layernorm_before."),
    (_VISION_LAYER + "norm2.", _NATIVE_VISION_LAYER + "layernorm_after."),
    (_VISION_LAYER + "mlp.", _NATIVE_VISION_LAYER + "mlp."),
    ("mlp1.0.", "model.multi_modal_projector.layer_norm."),
    ("mlp1.1.", "model.multi_modal_projector.linear_1."),
    ("mlp1.3.", "model.multi_modal_projector.linear_2."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
_LLAMA_NAMES_OF_INTERNLM2 = (
    ("tok_embeddings.", "embed_tokens."),
    ("attention.wo.", "self_attn.o_proj."),
    ("feed_forward.w1.", "mlp.gate_proj."),
    ("feed_forward.w2.", "mlp.down_proj."),
    ("feed_forward.w3.", "mlp.up_proj."),
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("language_model.output.", "language_model.lm_head."),
)


def to_native_state(state: Mapping[str, Tensor], config: InternVLChatConfig) -> dict[str, Tensor]:
    """Weights of a chat model under the native names.

    Raises:
        CheckpointError: A weight that no rule covers.
    """
    state = _cut_vision_attention(state)
    if isinstance(config.llm_config, InternLM2Config):
        state = _write_as_llama(state, config.llm_config)
    return {_rename(key, _NAMES): weight for key, weight in state.items()}


def from_native_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a native model under the names of a chat model; the inverse of `to_native_state`, but for InternLM2.

    Raises:
        CheckpointError: A weight that no rule covers.
    """
    names = tuple((new, old) for old, new in _NAMES)
    renamed = {_rename(key, names): weight for key, weight in state.items()}
    fused: dict[str, Tensor] = {}
    for key, weight in renamed.items():
        kind = re.search(r"^vision_model\..*\.attn\.([qkv])_proj\.", key)
        if kind is None:
            fused[key] = weight
        elif kind[1] == "q":
            parts = [renamed[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            fused[key.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    return fused


def split_wqkv(fused: Tensor, *, num_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """InternLM2's fused matrix (or bias) as query, key and value.

    Rows: one group per key/value head, with its query heads, then the key head, then the value head.

        ((g n d), ...) -> (g (n-2) d, ...), (g d, ...), (g d, ...)
    """
    groups = rearrange(fused, "(g n d) ... -> g n d ...", g=num_kv_heads, d=head_dim)
    query = rearrange(groups[:, :-2], "g n d ... -> (g n d) ...")
    return query, groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)


def _cut_vision_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cut: dict[str, Tensor] = {}
    for key, weight in state.items():
        if ".attn.qkv." in key:
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                cut[key.replace(".qkv.", f".{letter}_proj.")] = part
        else:
            cut[key] = weight
    return cut


def _write_as_llama(state: Mapping[str, Tensor], config: InternLM2Config) -> dict[str, Tensor]:
    head_dim = config.hidden_size // config.num_attention_heads
    llama: dict[str, Tensor] = {}
    for key, weight in state.items():
        if not key.startswith("language_model."):
            llama[key] = weight
        elif ".attention.wqkv." in key:
            parts = split_wqkv(weight, num_kv_heads=config.num_key_value_heads, head_dim=head_dim)
            for letter, part in zip("qkv", parts, strict=True):
                llama[key.replace(".attention.wqkv.", f".self_attn.{letter}_proj.")] = part
        else:
            for old, new in _LLAMA_NAMES_OF_INTERNLM2:
                key = key.replace(old, new)
            llama[key] = weight
    return llama


def _rename(key: str, names: Sequence[tuple[str, str]]) -> str:
    layer = re.search(r"\blayers?\.(\d+)\.", key)
    general = re.sub(r"\b(layers?)\.\d+\.", r"\1.#.", key, count=1)
    for old, new in names:
        if general.startswith(old):
            return (new + general[len(old) :]).replace("#", layer[1] if layer else "#")
    raise CheckpointError(f"weight {key} has no counterpart in the other layout; is this an InternVL checkpoint?")
