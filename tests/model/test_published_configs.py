"""config.json of released checkpoints: InternVL2, 2.5, 3 and V2PE in the format of their remote code.

The fixtures hold the keys that those files have (remote code, written by transformers 4), with sizes shrunk so that the
models build in a moment; what decides how positions turn (theta, scaling, original lengths) is as published.
"""

import json
import math

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from internvl.model.configuration_internvl_chat import InternLM2Config, InternVisionConfig, InternVLChatConfig
from internvl.model.errors import ConfigError
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import register_auto_classes

from .tiny import document

VISUAL = 61
# Fields that transformers 4 wrote into every nested config.
WRITTEN_BY_TRANSFORMERS_4 = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "bfloat16",
    "torchscript": False,
    "transformers_version": "4.37.2",
    "typical_p": 1.0,
    "use_bfloat16": True,
}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.02,
    "use_cache": True,
}
INTERNLM2 = {
    **SIZES,
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "flash_attention_2",
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
    },
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "model_type": "internlm2",
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
}
QWEN2 = {
    **SIZES,
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "pad_token_id": None,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
LLAMA = {
    **SIZES,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "flash_attention_2",
    "bos_token_id": 1,
    "eos_token_id": 7,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "llama",
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
}
PHI3 = {
    **SIZES,
    "architectures": ["Phi3ForCausalLM"],
    "attention_dropout": 0.0,
    "attn_implementation": "flash_attention_2",
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "original_max_position_embeddings": 4096,
    "pad_token_id": 0,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.0, 1.5, 2.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3], "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
}
INTERNVIT_300M = {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True, "initializer_factor": 1.0}
INTERNVIT_6B = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False, "initializer_factor": 0.1}
INTERNVL3_ROPE = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}
# name: decoder, tower, template, rope theta
RELEASED = {
    "InternVL2-1B": (QWEN2, INTERNVIT_300M, "Hermes-2", 1e6),
    "InternVL2-2B": (INTERNLM2, INTERNVIT_300M, "internlm2-chat", 1e6),
    "InternVL2-4B": (PHI3, INTERNVIT_300M, "phi3-chat", 1e4),
    "InternVL2-8B": (INTERNLM2, INTERNVIT_300M, "internlm2-chat", 1e6),
    "InternVL2-26B": (
        {**INTERNLM2, "rope_scaling": {"factor": 3.0, "type": "dynamic"}},
        INTERNVIT_6B,
        "internlm2-chat",
        1e6,
    ),
    "InternVL2-40B": (LLAMA, INTERNVIT_6B, "Hermes-2", 5e6),
    "InternVL2-Llama3-76B": (
        {**LLAMA, "rope_theta": 500000.0, "max_position_embeddings": 8192, "bos_token_id": 128000},
        INTERNVIT_6B,
        "internlm2-chat",
        5e5,
    ),
    "InternVL2_5-2B": (INTERNLM2, INTERNVIT_300M, "internvl2_5", 1e6),
    "InternVL2_5-4B": ({**QWEN2, "tie_word_embeddings": True}, INTERNVIT_300M, "internvl2_5", 1e6),
    "InternVL3-8B": ({**QWEN2, "rope_scaling": INTERNVL3_ROPE}, INTERNVIT_300M, "internvl2_5", 1e6),
    "V2PE-2B": (
        {**INTERNLM2, "rope_scaling": {"factor": 1.0, "type": "v2pe"}, "rope_pos_id_version": "v2pe_rnd"},
        INTERNVIT_300M,
        "internlm2-chat",
        1e6,
    ),
}


def released_config(name):
    decoder, tower, template, _ = RELEASED[name]
    return {
        "_commit_hash": None,
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 28,
        "llm_config": {**WRITTEN_BY_TRANSFORMERS_4, **decoder},
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": template,
        "torch_dtype": "bfloat16",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            **WRITTEN_BY_TRANSFORMERS_4,
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": 16,
            "image_size": 28,
            "initializer_range": 0.02,
            "intermediate_size": 32,
            "layer_norm_eps": 1e-06,
            "model_type": "intern_vit_6b",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 2,
            "patch_size": 7,
            "use_flash_attn": True,
            **tower,
        },
    }


@pytest.fixture
def read(tmp_path):
    def read(name, **changes):
        (tmp_path / "config.json").write_text(json.dumps({**released_config(name), **changes}))
        return read_chat_config(tmp_path)

    return read


def theta_of(llm_config):
    return llm_config.rope_theta if llm_config.model_type == "internlm2" else llm_config.rope_parameters["rope_theta"]


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_read(read, name):
    decoder, tower, template, theta = RELEASED[name]
    config = read(name)
    assert (config.template, config.image_size, config.num_image_token) == (template, 28, 4)
    assert config.vision_config.qk_normalization == tower["qk_normalization"]
    assert config.llm_config.max_position_embeddings == decoder["max_position_embeddings"]
    assert theta_of(config.llm_config) == theta
    again = type(config)(**json.loads(json.dumps(json.loads(config.to_json_string()))))
    assert theta_of(again.llm_config) == theta


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_build_answer_and_load_again(read, name, tmp_path):
    """Without flash-attn, although the config names it; rotary angles follow the theta of the config."""
    config = read(name)
    torch.manual_seed(0)
    model = InternVLChatModel(config).eval()
    model.img_context_token_id = VISUAL
    assert model.language_model.config._attn_implementation != "flash_attention_2"
    if config.llm_config.model_type != "internlm2":
        cos, _ = model.language_model.model.rotary_emb(torch.zeros(1), torch.tensor([[3.0]], dtype=torch.float64))
        if config.llm_config.rope_parameters["rope_type"] != "longrope":
            assert cos[0, 0, 3].item() == pytest.approx(math.cos(3 * RELEASED[name][3] ** (-6 / 8)), abs=1e-6)
    ids, pixels = document(0)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels}
    for version, stride in (("default", None), ("v2pe_fix", 0.5)):
        positions = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
        assert torch.isfinite(model(**kwargs, **positions).logits).all()
        new = model.generate(**kwargs, **positions, max_new_tokens=2, suppress_tokens=[VISUAL], do_sample=False)
        assert new.shape[0] == 1
    model.save_pretrained(tmp_path / "again")
    again = load_strictly(InternVLChatModel, tmp_path / "again")
    assert torch.equal(again(**kwargs).logits, model(**kwargs).logits)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("read", ["dict", "file", "AutoConfig", "AutoConfig with remote code"])
def test_every_way_to_read_a_config_takes_a_released_one(name, read, tmp_path):
    register_auto_classes()
    fields = released_config(name)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = {
        "dict": lambda: InternVLChatConfig.from_dict(fields),
        "file": lambda: InternVLChatConfig.from_pretrained(tmp_path),
        "AutoConfig": lambda: AutoConfig.from_pretrained(tmp_path),
        "AutoConfig with remote code": lambda: AutoConfig.from_pretrained(tmp_path, trust_remote_code=True),
    }[read]()
    assert isinstance(config, InternVLChatConfig)
    assert config.template == RELEASED[name][2]
    assert theta_of(config.llm_config) == RELEASED[name][3]


@pytest.mark.parametrize("name", RELEASED)
def test_numbers_may_be_written_as_another_type_and_anything_may_be_null(name):
    # Older releases of transformers, which declare it with types and not their names, refuse labels of other types.
    label_type = PretrainedConfig.__dataclass_fields__["label2id"].type
    checked = () if isinstance(label_type, str) else ("label2id",)

    def rewrite(value):
        if isinstance(value, dict):
            return {key: entry if key in checked else rewrite(entry) for key, entry in value.items()}
        if type(value) is int:
            return float(value)
        if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
            return int(value)
        return value

    fields = released_config(name)
    expected, config = InternVLChatConfig.from_dict(fields), InternVLChatConfig.from_dict(rewrite(fields))
    assert config.vision_config.to_dict() == expected.vision_config.to_dict()
    assert type(config.llm_config.num_hidden_layers) is type(config.force_image_size) is int
    assert config.use_thumbnail is True
    optional = {
        "attention_bias",
        "bias",
        "hidden_act",
        "initializer_range",
        "pad_token_id",
        "rms_norm_eps",
        "use_cache",
    }
    InternVLChatConfig.from_dict({**fields, "llm_config": {**fields["llm_config"], **dict.fromkeys(optional)}})
    InternVLChatConfig.from_dict({**fields, "vision_config": dict.fromkeys(fields["vision_config"])})


def test_configs_are_made_in_python_as_before():
    assert InternLM2Config(num_attention_heads=4, num_key_value_heads=None).num_key_value_heads == 4
    vision, decoder = InternVisionConfig(image_size=28, patch_size=7), InternLM2Config(vocab_size=64)
    config = InternVLChatConfig(vision, decoder, template="Hermes-2")
    assert (config.vision_config, config.llm_config, config.template) == (vision, decoder, "Hermes-2")


def test_scaling_of_released_configs_arrives(read):
    assert read("InternVL2-26B").llm_config.rope_scaling == {"type": "dynamic", "factor": 3.0}
    assert read("V2PE-2B").llm_config.rope_scaling is None
    assert read("InternVL3-8B").llm_config.rope_parameters["factor"] == 2.0
    assert read("InternVL3-8B").llm_config.rope_parameters["rope_type"] == "dynamic"
    phi3 = read("InternVL2-4B").llm_config.rope_parameters
    assert (phi3["rope_type"], phi3["original_max_position_embeddings"]) == ("longrope", 4096)
    llama = {**LLAMA, "rope_scaling": {"factor": 1.0, "type": "v2pe"}}
    config = read("InternVL2-40B", llm_config=llama).llm_config
    assert (config.rope_parameters["rope_type"], config.rope_parameters["rope_theta"]) == ("default", 5e6)


def test_fields_of_v2pe_runs_are_accepted(read):
    """What training with the public V2PE code wrote beside the fields of InternVL2."""
    run = {
        "attn_type": "ring",
        "chunk_num": 8,
        "compress_seq": False,
        "group_list": None,
        "img_emb_down_sample_ratio": None,
        "interaction": True,
        "rope_pos_id_stride": 64,
        "rope_pos_id_version": "v2pe_fix",
    }
    config = read("V2PE-2B", **run)
    assert (config.rope_pos_id_version, config.rope_pos_id_stride) == ("v2pe_fix", 64)
    assert not {"attn_type", "chunk_num", "group_list"} & set(config.to_dict())


@pytest.mark.parametrize("architecture", ["InternLM3ForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_decoders_of_later_releases_that_are_not_supported_are_named(read, architecture):
    with pytest.raises(ConfigError, match=f"'{architecture}'; supported: InternLM2ForCausalLM, LlamaForCausalLM"):
        read("InternVL3-8B", llm_config={**QWEN2, "architectures": [architecture]})


def test_the_first_release_shuffled_pixels_the_other_way(read):
    """A config without `ps_version` means v1."""
    fields = released_config("InternVL2-2B")
    del fields["ps_version"]
    assert read("InternVL2-2B").ps_version == "v2"
    assert type(read("InternVL2-2B"))(**fields).ps_version == "v1"
