"""Exports for vLLM have the positions and frequencies of this project; what cannot be served is refused by its name."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from internvl.errors import CheckpointError, ConfigError
from internvl.infer.settings import InferenceSettings
from internvl.model.conversation import ConversationTokenizer
from internvl.model.registration import load_tokenizer
from internvl.model.rotary import Sequences, build_rotary_tables, rotary_tables
from internvl.model.scaling import parse_rope_scaling
from internvl.tools import export_vllm
from internvl.tools.export_vllm import build_served_config, choose_positions, export_checkpoint
from tests.model.test_language_models import ROPES, build
from tests.model.tiny import tiny_config

VISUAL = torch.tensor([[0.0, 1.0, 1.25, 1.5, 2.0, 3.0]], dtype=torch.float64)
SCALINGS = {
    "InternLM2ForCausalLM": [None, "linear:4", "yarn:4", "dynamic:2"],
    "Qwen2ForCausalLM": [None, "linear:4", "yarn:4"],
    "LlamaForCausalLM": [None, "trained"],
    "Qwen3ForCausalLM": [None],
    "Phi3ForCausalLM": [None, "trained"],
}


def chat_config(**fields):
    config = tiny_config()
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.fixture
def checkpoint():
    return Path(__file__).parents[2] / "pretrained" / "InternVL2-Tiny"


def serve(config, **settings):
    settings = InferenceSettings(**settings)
    return build_served_config(config, choose_positions(config, settings))


@pytest.mark.parametrize(
    ("family", "scaling"), [(family, scaling) for family, scalings in SCALINGS.items() for scaling in scalings]
)
def test_frequencies_are_those_of_the_model(family, scaling):
    fields = {"rope_parameters": ROPES[family]} if scaling == "trained" else {}
    if family == "Phi3ForCausalLM" and scaling == "trained":
        fields["original_max_position_embeddings"] = 64
    if scaling != "trained":
        fields = {"rope_scaling": scaling and dict(parse_rope_scaling(scaling).to_dict())}
    config = build(family, **fields).config
    served = serve(config, rope_pos_id_stride=2)
    expected = build_rotary_tables(config.llm_config, VISUAL, Sequences())
    frequencies = torch.tensor(served["rope_frequencies"], dtype=torch.float64)
    found = rotary_tables(VISUAL, frequencies, scale=served["rope_table_scale"])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert served["text_config"]["rope_parameters"]["rope_type"] == "default"
    assert served["mrope_section"] == [len(frequencies)]


def test_config_names_what_the_plugin_needs(checkpoint, tmp_path):
    settings = InferenceSettings(rope_pos_id_stride=1 / 16, max_num=3)
    export_checkpoint(checkpoint, tmp_path / "out", settings=settings)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["V2PEInternVLChatModel"]
    assert config["model_type"] == "v2pe_internvl_chat"
    assert (config["rope_pos_id_version"], config["rope_pos_id_stride"]) == ("v2pe_fix", 0.0625)
    assert (config["min_dynamic_patch"], config["max_dynamic_patch"]) == (1, 3)
    assert "auto_map" not in json.dumps(config)
    assert config["text_config"]["architectures"] == ["InternLM2ForCausalLM"]


def test_weights_are_the_same_files_or_copies(checkpoint, tmp_path, monkeypatch):
    weights = checkpoint / "model.safetensors"
    export_checkpoint(checkpoint, tmp_path / "linked")
    assert (tmp_path / "linked" / "model.safetensors").samefile(weights)

    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    export_checkpoint(checkpoint, tmp_path / "copied")
    assert not (tmp_path / "copied" / "model.safetensors").samefile(weights)
    assert (tmp_path / "copied" / "model.safetensors").read_bytes() == weights.read_bytes()


def test_chats_become_the_ids_of_this_project_without_code(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    conversation = ConversationTokenizer(load_tokenizer(checkpoint), "internlm2-chat")
    expected = conversation.encode_prompt("<image>\nwhat is it?")
    assert ids == [token for piece in expected for token in piece.ids]


def test_answers_end_at_the_end_of_a_turn(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "out")
    tokenizer = load_tokenizer(checkpoint)
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}


class TestPositions:
    def test_default_is_one_position_per_token(self):
        config = tiny_config()
        served = serve(config)
        assert (served["rope_pos_id_version"], served["rope_pos_id_stride"]) == ("default", config.num_image_token)

    def test_the_checkpoint_gives_the_stride(self):
        config = chat_config(rope_pos_id_version="v2pe_fix", rope_pos_id_stride=16)
        assert serve(config)["rope_pos_id_stride"] == 16
        assert serve(config, rope_pos_id_stride=4)["rope_pos_id_stride"] == 4
        assert serve(config, rope_pos_id_version="default")["rope_pos_id_version"] == "default"

    def test_random_strides_are_served_at_a_fixed_one_only(self):
        config = chat_config(rope_pos_id_version="v2pe_rnd")
        with pytest.raises(ConfigError, match="v2pe_rnd"):
            serve(config)
        served = serve(config, rope_pos_id_stride=4)
        assert (served["rope_pos_id_version"], served["rope_pos_id_stride"]) == ("v2pe_fix", 4)
        assert serve(config, rope_pos_id_version="default")["rope_pos_id_version"] == "default"
        config.rope_pos_id_stride = 8
        assert serve(config)["rope_pos_id_stride"] == 8

    def test_positions_on_several_axes_are_refused(self):
        config = chat_config(rope_pos_id_version="mrope")
        with pytest.raises(ConfigError, match="mrope is on several axes"):
            serve(config)
        assert serve(config, rope_pos_id_version="default")["rope_pos_id_version"] == "default"

    def test_strides_that_integers_cannot_express_are_refused(self):
        with pytest.raises(ConfigError, match="multiple of 1/65536"):
            serve(tiny_config(), rope_pos_id_stride=0.1)


class TestLength:
    def test_dynamic_scaling_with_ordinary_positions_is_served_up_to_where_it_begins(self):
        config = build("InternLM2ForCausalLM", max_position_embeddings=512).config
        served = choose_positions(config, InferenceSettings())
        assert build_served_config(config, served)["text_config"]["max_position_embeddings"] == 512
        with pytest.raises(ConfigError, match=r"at most 512.*dynamic"):
            build_served_config(config, served, max_model_len=513)

    def test_longrope_is_served_up_to_where_it_begins(self):
        rope = {"rope_parameters": ROPES["Phi3ForCausalLM"], "original_max_position_embeddings": 64}
        config = build("Phi3ForCausalLM", **rope).config
        with pytest.raises(ConfigError, match=r"at most 64.*longrope"):
            build_served_config(
                config, choose_positions(config, InferenceSettings(rope_pos_id_stride=1)), max_model_len=65
            )

    def test_v2pe_positions_are_served_at_any_length(self):
        config = build("InternLM2ForCausalLM", max_position_embeddings=512).config
        served = choose_positions(config, InferenceSettings(rope_pos_id_stride=1))
        fields = build_served_config(config, served, max_model_len=100_000)
        assert fields["text_config"]["max_position_embeddings"] == 100_000


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"pad2square": True}, "pad2square"),
        ({"normalize_type": "clip"}, "normalize_type"),
        ({"select_layer": -2}, "select_layer"),
        ({"force_image_size": 56}, "force_image_size"),
    ],
)
def test_what_vllm_does_otherwise_is_refused(fields, name):
    with pytest.raises(ConfigError, match=name):
        serve(chat_config(**fields))


def test_decoders_that_vllm_does_not_have_are_refused():
    config = tiny_config()
    config.llm_config.bias = True
    with pytest.raises(ConfigError, match=r"llm_config\.bias"):
        serve(config)
    config = tiny_config()
    config.llm_config.logn_scaling = 512
    with pytest.raises(ConfigError, match="logn_scaling"):
        serve(config)


def test_command_exports_and_refuses(checkpoint, tmp_path, capsys):
    arguments = [str(checkpoint), str(tmp_path / "out"), "--rope_pos_id_stride", "1/16", "--rope_scaling", "yarn:4"]
    assert export_vllm.main(arguments) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_pos_id_stride"] == 0.0625
    assert config["rope_table_scale"] > 1
    assert export_vllm.main(arguments) == 2
    assert "not an empty folder" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        export_checkpoint(tmp_path / "missing", tmp_path / "other")
