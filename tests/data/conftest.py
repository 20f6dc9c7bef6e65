"""A small sentencepiece tokenizer, and data sets on disk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.meta import SourceSpec
from internvl.data.strides import StrideOptions
from internvl.data.visuals import FrameOptions, TileOptions
from internvl.model.constants import SPECIAL_TOKENS
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
IMAGE_SIZE = 28
TOKENS_PER_TILE = 4


def train_tokenizer(folder: Path, *, add_dummy_prefix: bool) -> InternLM2Tokenizer:
    text = folder / "text.txt"
    text.write_text("\n".join(topics.topics[name] for name in ("assignment", "booleans", "calls")), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_dummy_prefix,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    tokenizer = InternLM2Tokenizer(str(folder / "tokenizer.model"))
    tokenizer.add_special_tokens({"additional_special_tokens": [*CHAT_TOKENS, *SPECIAL_TOKENS]})
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> InternLM2Tokenizer:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), add_dummy_prefix=False)


@pytest.fixture(scope="session")
def prefixing_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> InternLM2Tokenizer:
    return train_tokenizer(tmp_path_factory.mktemp("prefixing"), add_dummy_prefix=True)


@pytest.fixture
def make_encoder(tokenizer: InternLM2Tokenizer) -> Callable[..., SampleEncoder]:
    def make(**options: Any) -> SampleEncoder:
        defaults: dict[str, Any] = {
            "tokenizer": tokenizer,
            "conversation_name": "internlm2-chat",
            "image_size": IMAGE_SIZE,
            "num_image_token": TOKENS_PER_TILE,
            "max_seq_length": 4096,
            "dynamic_image_size": True,
            "use_thumbnail": True,
            "max_dynamic_patch": 6,
        }
        options = defaults | options
        parts = {"text": TextOptions, "tiles": TileOptions, "frames": FrameOptions, "strides": StrideOptions}
        own = {name: {field.name for field in fields(part)} & set(options) for name, part in parts.items()}
        assert sum(map(len, own.values())) == len(options)
        return SampleEncoder(
            **{name: part(**{option: options[option] for option in own[name]}) for name, part in parts.items()}
        )

    return make


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, width: int = 40, height: int = 30, *, seed: int = 0) -> Path:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[..., SourceSpec]:
    def make(name: str, lines: Sequence[object], **options: Any) -> SourceSpec:
        """Write a data set; strings are written as they are, everything else as json."""
        annotation = tmp_path / f"{name}.jsonl"
        annotation.write_text(
            "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8"
        )
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        return SourceSpec(name=name, annotation=annotation, root=root, **options)

    return make


def conversation(*texts: str) -> list[dict[str, str]]:
    """Turns of human and gpt, taking turns."""
    return [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(texts)]
