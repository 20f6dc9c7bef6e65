"""A tiny random checkpoint in InternVL2's folder layout, and pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl.infer.session import Session
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.synth.miniature.tiny_tokenizer import train_tokenizer

VOCAB_SIZE = 512
LLM_CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bias": False,
    "initializer_range": 0.5,  # so large that answers differ from question to question
}
VISION_CONFIG = {
    "image_size": 28,
    "patch_size": 14,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "initializer_range": 0.5,
}


def write_checkpoint(folder: Path) -> Path:
    """Config, random weights and tokenizer: one visual token per 28 x 28 tile."""
    folder.mkdir()
    tokenizer = train_tokenizer(folder, vocab_size=VOCAB_SIZE, template="internlm2-chat")
    config = InternVLChatConfig(
        vision_config=VISION_CONFIG,
        llm_config=LLM_CONFIG,
        template="internlm2-chat",
        force_image_size=28,
        use_thumbnail=True,
        dynamic_image_size=True,
        ps_version="v2",
        max_dynamic_patch=4,
    )
    torch.manual_seed(0)
    model = InternVLChatModel(config)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("infer") / "tiny")


@pytest.fixture
def session(checkpoint):
    return Session.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def make_image(tmp_path):
    def make(name: str, width: int = 28, height: int = 28, *, seed: int = 0) -> Path:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        return path

    return make
