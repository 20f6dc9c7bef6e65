import json
import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, InternVLForConditionalGeneration

from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.tools import export_native
from internvl.tools.export_native import export_checkpoint, import_checkpoint
from internvl.tools.native_weights import split_wqkv
from internvl.train.arguments import ModelArguments
from internvl.train.trainable import select_trainable
from tests.train.tiny_run import make_checkpoint

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}
DECODER = {
    "architectures": ["InternLM2ForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
DYNAMIC = {"type": "dynamic", "factor": 2.0}
FAMILIES = {
    "internlm2": {"bias": False, "rope_scaling": DYNAMIC},
    "internlm2 with biases": {"bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8},
    "phi3": {"architectures": ["Phi3ForCausalLM"]},
}


def build_model(*, vision=None, llm=None, **chat):
    """A random model in which no weight, scale or bias is trivial."""
    config = InternVLChatConfig(
        vision_config=VISION | (vision or {}),
        llm_config=DECODER | (llm or {}),
        **{"ps_version": "v2", "template": "Hermes-2", "img_context_token_id": 9, "force_image_size": 28} | chat,
    )
    model = InternVLChatModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and not name.endswith("bias")
            parameter.normal_(float(is_scale), 0.2, generator=generator)
    return model


@torch.no_grad()
def compute_logits(model, *, side=28, **extra):
    """Logits of a row with text and two tiles of noise (so that the order of visual tokens shows)."""
    num_image_token = (side // 7 // 2) ** 2
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(10, 64, (40,), generator=generator).tolist()
    ids = torch.tensor([[*text[:5], *[9] * num_image_token, *text[5:9], *[9] * num_image_token, *text[9:]]])
    pixels = torch.randn(2, 3, side, side, generator=generator)
    return model(input_ids=ids, pixel_values=pixels, **extra).logits


def assert_same_logits(native_folder, model, **options):
    native, report = InternVLForConditionalGeneration.from_pretrained(native_folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = compute_logits(model, rope_pos_id_version="default", **options)
    assert expected.std() > 0.1
    torch.testing.assert_close(compute_logits(native.eval(), **options), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_logits_equal_ours(family, tmp_path):
    model = build_model(llm=FAMILIES[family])
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert_same_logits(tmp_path / "native", model)


@pytest.mark.parametrize(
    "change",
    [
        {"vision": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}},
        {"select_layer": -2},
        {"select_layer": 1},
        {"vision": {"initializer_factor": 1.0, "hidden_act": "relu"}},
    ],
    ids=lambda change: str(change),
)
def test_vision_towers_of_every_kind_are_exact(change, tmp_path):
    model = build_model(**change)
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert_same_logits(tmp_path / "native", model)


def test_tiles_of_another_size_than_the_position_table(tmp_path):
    model = build_model(force_image_size=56)
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert json.loads((tmp_path / "native" / "config.json").read_text())["image_seq_length"] == 16
    assert_same_logits(tmp_path / "native", model, side=56)


def test_dynamic_ntk_beyond_the_trained_length_is_the_same_in_one_forward(tmp_path):
    model = build_model(llm={"bias": False, "rope_scaling": DYNAMIC, "max_position_embeddings": 16})
    model.save_pretrained(tmp_path / "chat")
    plain = build_model(llm={"bias": False, "rope_scaling": None, "max_position_embeddings": 16})
    assert not torch.allclose(compute_logits(plain), compute_logits(model), atol=1e-2)
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert_same_logits(tmp_path / "native", model)


@pytest.mark.parametrize("family", ["internlm2", "qwen2"])
def test_yarn_and_its_reach_over_v2pe_survive_the_round_trip(family, tmp_path):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "scale_v2pe": True}
    model = build_model(llm=FAMILIES[family] | {"rope_scaling": yarn})
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert_same_logits(tmp_path / "native", model)
    import_checkpoint(tmp_path / "native", tmp_path / "back")
    again = InternVLChatModel.from_pretrained(tmp_path / "back").eval()
    stride = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.25}
    torch.testing.assert_close(compute_logits(again, **stride), compute_logits(model, **stride), atol=1e-4, rtol=1e-4)
    unscaled = build_model(llm=FAMILIES[family] | {"rope_scaling": {**yarn, "scale_v2pe": False}})
    assert not torch.allclose(compute_logits(unscaled, **stride), compute_logits(model, **stride), atol=1e-2)


def test_scaling_that_transformers_phi3_does_not_know_is_refused(tmp_path):
    build_model(llm=FAMILIES["phi3"] | {"rope_scaling": {"type": "linear", "factor": 2.0}}).save_pretrained(
        tmp_path / "chat"
    )
    with pytest.raises(ConfigError, match="transformers' Phi3 takes no linear"):
        export_checkpoint(tmp_path / "chat", tmp_path / "native")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tied_output_layer_stays_tied(family, tmp_path):
    llm = FAMILIES[family] | {"tie_word_embeddings": True}
    model = build_model(llm=llm, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    import_checkpoint(tmp_path / "native", tmp_path / "again")
    assert_same_logits(tmp_path / "native", model)
    native = InternVLForConditionalGeneration.from_pretrained(tmp_path / "native")
    again = InternVLChatModel.from_pretrained(tmp_path / "again")
    for loaded in (native, again):
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(compute_logits(again.eval()), compute_logits(model), atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_there_and_back_changes_no_bit(family, tmp_path):
    stride = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.5}
    model = build_model(llm=FAMILIES[family], max_dynamic_patch=7, use_thumbnail=True, **stride)
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native", max_shard_size="20KB")
    assert len(list((tmp_path / "native").glob("*.safetensors"))) > 1
    import_checkpoint(tmp_path / "native", tmp_path / "again", max_shard_size="20KB")
    again = InternVLChatModel.from_pretrained(tmp_path / "again").eval()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(compute_logits(again), compute_logits(model))  # with the stride
    fields = ("max_dynamic_patch", "use_thumbnail", "template", "force_image_size", "img_context_token_id")
    assert [getattr(again.config, name) for name in fields] == [7, True, "Hermes-2", 28, 9]


def test_internlm2_comes_back_as_an_equal_llama(tmp_path):
    model = build_model(llm={"bias": True, "rope_scaling": DYNAMIC, "max_position_embeddings": 16})
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    import_checkpoint(tmp_path / "native", tmp_path / "again")
    again = InternVLChatModel.from_pretrained(tmp_path / "again").eval()
    assert again.config.llm_config.architectures == ["LlamaForCausalLM"]
    for options in ({}, {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.25}):
        expected = compute_logits(model, **options)
        torch.testing.assert_close(compute_logits(again, **options), expected, atol=1e-4, rtol=1e-4)


def test_a_native_checkpoint_that_we_did_not_write_needs_a_template(tmp_path):
    build_model(llm=FAMILIES["qwen2"]).save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    path = tmp_path / "native" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("internvl_chat")["template"] == "Hermes-2"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="add --template"):
        import_checkpoint(tmp_path / "native", tmp_path / "again")
    import_checkpoint(tmp_path / "native", tmp_path / "again", template="internvl2_5")
    config = InternVLChatConfig.from_pretrained(tmp_path / "again")
    assert (config.template, config.image_size, config.max_dynamic_patch) == ("internvl2_5", 28, 12)


def test_an_output_layer_of_its_own_wins_over_the_flag(tmp_path):
    """Native configs that do not mention `tie_word_embeddings` mean True, also for models that are not tied."""
    model = build_model(llm=FAMILIES["qwen2"])
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    path = tmp_path / "native" / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    path.write_text(json.dumps(config))
    import_checkpoint(tmp_path / "native", tmp_path / "again")
    again = InternVLChatModel.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(compute_logits(again), compute_logits(model))


def test_export_generates_the_same_tokens(tmp_path):
    model = build_model(llm={"bias": False})
    model.save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "native").eval()
    assert isinstance(native, InternVLForConditionalGeneration)
    ids = torch.tensor([[5, 6, 9, 9, 9, 9, 7, 8]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(ids)
    expected = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **options)
    generated = native.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **options)
    assert generated[0, -6:].tolist() == expected[0, -6:].tolist()
    assert len(set(expected[0, -6:].tolist())) > 1


def test_weights_keep_their_dtype(tmp_path):
    build_model().to(torch.bfloat16).save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    with safe_open(tmp_path / "native" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_query_rows_of_a_group_stay_together():
    rows = torch.arange(2 * (3 + 2)).repeat_interleave(4)  # 2 groups of 3 query heads, key, value; 4 wide
    query, key, value = split_wqkv(rows, num_kv_heads=2, head_dim=4)
    assert [part[::4].tolist() for part in (query, key, value)] == [[0, 1, 2, 5, 6, 7], [3, 8], [4, 9]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ps_version": "v1"}, "transposed order"),
        ({"vision": {"qk_normalization": True, "layer_norm_eps": 1e-5}}, "layer_norm_eps is 1e-05"),
        ({"downsample_ratio": 0.51, "vision": {"hidden_size": 16}}, "downsample_ratio is 0.51"),
    ],
)
def test_what_transformers_computes_differently_is_refused(change, message, tmp_path):
    build_model(**change).save_pretrained(tmp_path / "chat")
    with pytest.raises(ConfigError, match=message):
        export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("projector_hidden_act", "relu", "projector_hidden_act is 'relu'"),
        ("vision_feature_select_strategy", "full", "can only express 'default'"),
        ("vision_config.use_mean_pooling", False, "use_mean_pooling is False"),
        ("vision_config.image_size", [28, 56], "28 x 56"),
    ],
)
def test_native_models_that_our_layout_cannot_express_are_refused(path, value, message, tmp_path):
    build_model(llm=FAMILIES["llama"]).save_pretrained(tmp_path / "chat")
    export_checkpoint(tmp_path / "chat", tmp_path / "native")
    file = tmp_path / "native" / "config.json"
    config = json.loads(file.read_text())
    *parents, name = path.split(".")
    (config[parents[0]] if parents else config)[name] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(tmp_path / "native", tmp_path / "again")


def test_the_log_says_that_v2pe_is_lost(tmp_path, caplog):
    llm = {"rope_scaling": DYNAMIC}
    build_model(llm=llm, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=2.0).save_pretrained(tmp_path / "chat")
    with caplog.at_level(logging.INFO):
        export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert "plain positions" in caplog.text
    assert "v2pe_fix" in caplog.text
    assert "beyond 128 tokens" in caplog.text


def test_command_line_works_both_ways_and_reports_user_errors(tmp_path, capsys):
    chat, native, again = (str(tmp_path / name) for name in ("chat", "native", "again"))
    build_model(llm=FAMILIES["qwen2"]).save_pretrained(chat)
    assert export_native.main([chat, native]) == 0
    assert export_native.main([native, again, "--back"]) == 0
    assert InternVLChatConfig.from_pretrained(again).template == "Hermes-2"
    assert export_native.main([chat, native]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert export_native.main([chat, str(tmp_path / "x"), "--back"]) == 2
    assert "model_type is 'internvl_chat', expected 'internvl'" in capsys.readouterr().err
    assert export_native.main([native, str(tmp_path / "x")]) == 2
    assert "model_type is 'internvl', expected 'internvl_chat'" in capsys.readouterr().err
    assert export_native.main([chat, str(tmp_path / "x"), "--template", "Hermes-2"]) == 2
    assert "goes with --back" in capsys.readouterr().err


def test_image_token_comes_from_the_tokenizer_where_the_config_is_silent(tmp_path):
    """As in released checkpoints."""
    chat = make_checkpoint(tmp_path / "chat")
    config = json.loads((chat / "config.json").read_text())
    expected = config.pop("img_context_token_id")
    (chat / "config.json").write_text(json.dumps(config))
    export_checkpoint(chat, tmp_path / "native")
    assert json.loads((tmp_path / "native" / "config.json").read_text())["image_token_id"] == expected
    assert (tmp_path / "native" / "tokenizer.model").read_bytes() == (chat / "tokenizer.model").read_bytes()
    assert (tmp_path / "native" / "generation_config.json").is_file()
    (chat / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        export_checkpoint(chat, tmp_path / "other")


def test_adapters_have_to_be_merged_first(tmp_path):
    model = build_model()
    select_trainable(model, ModelArguments(use_llm_lora=2))
    model.save_pretrained(tmp_path / "chat")
    with pytest.raises(CheckpointError, match=r"internvl\.tools\.merge_lora"):
        export_checkpoint(tmp_path / "chat", tmp_path / "native")


def test_a_missing_weight_is_a_clear_error(tmp_path):
    build_model().save_pretrained(tmp_path / "chat")
    path = tmp_path / "chat" / "model.safetensors"
    state = load_file(path)
    del state["vision_model.encoder.layers.1.ls2"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: .*layers\.1\.ls2"):
        export_checkpoint(tmp_path / "chat", tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]


def test_missing_folder_is_a_clear_error(tmp_path):
    for convert in (export_checkpoint, import_checkpoint):
        with pytest.raises(CheckpointError, match="nowhere does not exist"):
            convert(tmp_path / "nowhere", tmp_path / "out")
