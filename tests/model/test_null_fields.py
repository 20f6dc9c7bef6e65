"""A field that is null in a file of a checkpoint means what it means when it is absent: the default."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
from transformers import GenerationConfig, PretrainedConfig

from internvl.model.configuration_internvl_chat import DECODER_CONFIGS, InternVisionConfig, InternVLChatConfig
from internvl.model.errors import InternVLError
from internvl.model.loading import read_chat_config
from internvl.model.registration import load_tokenizer
from tests.train.tiny_run import make_checkpoint

from .qwen_folder import make_qwen_checkpoint

# Of all decoders that take further fields, and of older files.
ANY_CONFIG = {"architectures", "attn_implementation", "auto_map", "dtype", "logn_scaling", "model_type",
              "quantization_config", "rope_parameters", "rope_scaling", "rope_theta", "torch_dtype",
              "use_cache"}  # fmt: skip
TOKENIZER = {"add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens",
             "auto_map", "chat_template", "clean_up_tokenization_spaces", "errors", "extra_special_tokens", "legacy",
             "merges_file", "model_input_names", "model_max_length", "name_or_path", "padding_side", "processor_class",
             "response_schema", "sp_model_kwargs", "spaces_between_special_tokens", "split_special_tokens",
             "tokenizer_class", "truncation_side", "use_default_system_prompt", "vocab_file"}  # fmt: skip


@pytest.fixture(scope="module", params=[make_checkpoint, make_qwen_checkpoint], ids=["internlm2", "qwen2"])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "checkpoint"
    request.param(folder)
    return folder


def list_differences(path: Path, part: str | None, names: Iterable[str], read: Callable[[], object]) -> list[str]:
    """Fields that are read otherwise when they are null than when they are absent."""
    text = path.read_text(encoding="utf-8")
    differing = []
    for name in sorted({*names, *(json.loads(text)[part] if part else json.loads(text))}):
        results = []
        for is_null in (True, False):
            content = json.loads(text)
            fields = content[part] if part else content
            fields.pop(name, None)
            if is_null:
                fields[name] = None
            path.write_text(json.dumps(content), encoding="utf-8")
            try:
                results.append(read())
            except InternVLError as error:
                results.append(type(error))
        if results[0] != results[1]:
            differing.append(name)
    path.write_text(text, encoding="utf-8")
    return differing


@pytest.mark.parametrize("part", [None, "vision_config", "llm_config"])
def test_in_config_json(folder, part):
    path = folder / "config.json"
    decoder = DECODER_CONFIGS[json.loads(path.read_text())["llm_config"]["architectures"][0]]
    kind = {None: InternVLChatConfig, "vision_config": InternVisionConfig, "llm_config": decoder}[part]
    names = ANY_CONFIG | {field.name for field in dataclasses.fields(kind)}
    differing = list_differences(path, part, names, lambda: read_chat_config(folder).to_dict())
    # transformers: as many as heads
    is_value = part == "llm_config" and decoder.__name__ == "Qwen2Config"
    # Older releases of transformers declare these with types, not their names, and keep null.
    kept = {
        field.name
        for field in dataclasses.fields(PretrainedConfig)
        if field.name in ("output_hidden_states", "return_dict") and NoneType in get_args(field.type)
    }
    assert [name for name in differing if name not in kept] == (["num_key_value_heads"] if is_value else [])


def test_in_tokenizer_config_json(folder):
    def read() -> object:
        tokenizer = load_tokenizer(folder)
        ids = tokenizer("<|im_start|> ab<img>")["input_ids"]
        return type(tokenizer), ids, tokenizer.special_tokens_map, tokenizer.padding_side, tokenizer.model_max_length

    differing = list_differences(folder / "tokenizer_config.json", None, TOKENIZER, read)
    # InternLM2 needs its tokens. For others null says that there is no such token.
    is_internlm2 = (folder / "tokenizer.model").exists()
    assert differing == ([] if is_internlm2 else ["eos_token", "pad_token", "unk_token"])


def test_in_generation_config_json(folder):
    path = folder / "generation_config.json"
    path.write_text('{"eos_token_id": [2]}', encoding="utf-8")
    read = lambda: GenerationConfig.from_pretrained(folder).to_dict()  # noqa: E731
    assert list_differences(path, None, GenerationConfig().to_dict(), read) == []
