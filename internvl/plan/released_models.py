"""Released InternVL2 checkpoints: the sizes that memory and work depend on.

Fields are those of `vision_config` and `llm_config` in their config.json files.
"""

Fields = dict[str, object]

_VIT_300M: Fields = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}
_VIT_6B: Fields = {
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "image_size": 448,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
}


def _decoder(architecture: str, vocab: int, hidden: int, wide: int, layers: int, heads: int, kv_heads: int) -> Fields:
    return {
        "architectures": [architecture],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **({"bias": False} if architecture == "InternLM2ForCausalLM" else {"pad_token_id": None}),
    }


RELEASED: dict[str, tuple[Fields, Fields]] = {
    "InternVL2-1B": (_VIT_300M, _decoder("Qwen2ForCausalLM", 151655, 896, 4864, 24, 14, 2)),
    "InternVL2-2B": (_VIT_300M, _decoder("InternLM2ForCausalLM", 92553, 2048, 8192, 24, 16, 8)),
    "InternVL2-4B": (_VIT_300M, _decoder("Phi3ForCausalLM", 32020, 3072, 8192, 32, 32, 32)),
    "InternVL2-8B": (_VIT_300M, _decoder("InternLM2ForCausalLM", 92553, 4096, 14336, 32, 32, 8)),
    "InternVL2-26B": (_VIT_6B, _decoder("InternLM2ForCausalLM", 92553, 6144, 16384, 48, 48, 8)),
    "InternVL2-40B": (_VIT_6B, _decoder("LlamaForCausalLM", 64009, 7168, 20480, 60, 56, 8)),
    "InternVL2-Llama3-76B": (_VIT_6B, _decoder("LlamaForCausalLM", 128265, 8192, 28672, 80, 64, 8)),
}
