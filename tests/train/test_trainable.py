import pytest
import torch

from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.train.arguments import ModelArguments
from internvl.train.trainable import LLM_LORA_TARGETS, find_lora_targets, merge_lora, select_trainable

FUSED = {"InternLM2ForCausalLM": 5, "Phi3ForCausalLM": 4}  # linear layers per decoder layer; 7 where none is fused


@pytest.fixture
def model(checkpoint):
    return InternVLChatModel.from_pretrained(checkpoint).eval()


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_parts_freeze_one_by_one(model):
    select_trainable(model, ModelArguments(freeze_llm=True, freeze_backbone=True))
    assert trained_names(model) == {f"mlp1.{name}" for name, _ in model.mlp1.named_parameters()}


def test_unfrozen_vit_layers_count_from_the_end(model):
    select_trainable(model, ModelArguments(freeze_llm=True, freeze_backbone=True, unfreeze_vit_layers=-1))
    vision = {name for name in trained_names(model) if name.startswith("vision_model")}
    assert vision
    assert all(name.startswith("vision_model.encoder.layers.1.") for name in vision)


def test_unfreezing_a_layer_that_is_not_there_is_an_error(model):
    with pytest.raises(ConfigError, match="has 2 layers"):
        select_trainable(model, ModelArguments(freeze_backbone=True, unfreeze_vit_layers=2))


def test_lm_head_can_be_trained_alone(model):
    args = ModelArguments(freeze_llm=True, freeze_backbone=True, freeze_mlp=True, unfreeze_lm_head=True)
    select_trainable(model, args)
    assert trained_names(model) == {"language_model.output.weight"}


def test_lora_trains_adapters_of_every_named_layer(model):
    select_trainable(model, ModelArguments(use_llm_lora=2, use_backbone_lora=3, freeze_mlp=True))
    names = trained_names(model)
    assert all(".lora_" in name for name in names)
    for layer in ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"):
        assert f"language_model.model.layers.1.{layer}.lora_B.default.weight" in names
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert f"vision_model.encoder.layers.0.{layer}.lora_A.default.weight" in names


def test_merged_adapters_compute_the_same(model, checkpoint):
    plain = InternVLChatModel.from_pretrained(checkpoint).eval()
    select_trainable(model, ModelArguments(use_llm_lora=2, use_backbone_lora=2))
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(3, 20).unsqueeze(0)
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    expected_logits, expected_features = model(input_ids=ids).logits, model.extract_feature(pixels)
    assert not torch.allclose(plain(input_ids=ids).logits, expected_logits, atol=1e-3)
    plain.load_state_dict(merge_lora(model.state_dict()))
    torch.testing.assert_close(plain(input_ids=ids).logits, expected_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.extract_feature(pixels), expected_features, atol=1e-5, rtol=1e-5)


def build_model(architecture):
    """A chat model with the given decoder, random and tiny."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = {
        "architectures": [architecture],
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    config = InternVLChatConfig(vision_config=vision | {"image_size": 28}, llm_config=llm, ps_version="v2")
    return InternVLChatModel(config).eval()


@pytest.mark.parametrize("architecture", LLM_LORA_TARGETS)
def test_adapters_of_every_decoder_cover_its_layers_and_merge(architecture):
    model, plain = build_model(architecture), build_model(architecture)
    select_trainable(model, ModelArguments(use_llm_lora=2, freeze_backbone=True, freeze_mlp=True))
    adapted = {name.partition(".lora_A")[0] for name in trained_names(model) if ".lora_A." in name}
    linear = {name for name, module in plain.language_model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert adapted == {f"language_model.{name}" for name in linear if ".layers." in name}
    assert len(adapted) == 2 * FUSED.get(architecture, 7)
    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
        expected = model.eval()(input_ids=ids).logits
        assert not torch.allclose(plain(input_ids=ids).logits, expected, atol=1e-3)
        plain.load_state_dict(merge_lora(model.state_dict()))
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_unknown_decoder_is_an_error_that_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"decoder is a Linear; .*Phi3ForCausalLM"):
        find_lora_targets(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        ("lora_B.default.weight", "x", r"missing \['language_model.model.layers.0.attention.wqkv.lora_B"),
        ("base_layer.weight", "x", r"unknown \['language_model.model.layers.0.attention.wqkv.lora_A"),
        ("", "language_model.model.layers.0.attention.wqkv.lora_magnitude_vector.default.weight", "unknown .*magnit"),
    ],
)
def test_adapters_that_do_not_fit_are_an_error(model, drop, add, message):
    select_trainable(model, ModelArguments(use_llm_lora=2))
    state = model.state_dict()
    state.pop(f"language_model.model.layers.0.attention.wqkv.{drop}", None)
    state[add] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=message):
        merge_lora(state)


def test_merging_without_adapters_changes_nothing(model):
    state = model.state_dict()
    merged = merge_lora(state)
    assert merged.keys() == state.keys()
    assert all(merged[key] is state[key] for key in state)
