"""A tiny random chat model for tests."""

import torch

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel

VISUAL, BEGIN, END = 61, 59, 60


def tiny_config(**llm):
    return InternVLChatConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "norm_type": "layer_norm",
            "qk_normalization": False,
            "qkv_bias": True,
            "initializer_factor": 1.0,
            "initializer_range": 0.2,
        },
        llm_config={
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bias": False,
            "max_position_embeddings": 64,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "initializer_range": 0.2,
            **llm,
        },
        ps_version="v2",
        template="internlm2-chat",
        img_context_token_id=VISUAL,
    )


def tiny_model(seed=0, **llm):
    torch.manual_seed(seed)
    return InternVLChatModel(tiny_config(**llm)).eval()


def document(seed, tiles=(1, 2), text=5):
    """(ids, pixel_values) of a text with one image per entry of `tiles`."""
    generator = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(3, 50, (n,), generator=generator).tolist()  # noqa: E731
    ids = words(text)
    for count in tiles:
        ids += [BEGIN, *[VISUAL] * (4 * count), END, *words(text)]
    return torch.tensor(ids), torch.randn(sum(tiles), 3, 28, 28, generator=generator)
