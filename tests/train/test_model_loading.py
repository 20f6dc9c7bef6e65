import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.errors import CheckpointError, ConfigError
from internvl.model.constants import IMG_CONTEXT_TOKEN, SPECIAL_TOKENS
from internvl.model.language_models import grow_vocabulary
from internvl.model.loading import read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.train.arguments import DataTrainingArguments, ModelArguments
from internvl.train.model_loading import (
    count_visual_tokens,
    load_training_model,
    load_training_tokenizer,
    settle_flags,
)


def load(checkpoint, model_flags=None, **changes):
    data = DataTrainingArguments(**{"force_image_size": 28, **changes})
    args = ModelArguments(model_name_or_path=str(checkpoint), **(model_flags or {}))
    tokenizer, num_added = load_training_tokenizer(args, data.max_seq_length)
    return load_training_model(args, data, tokenizer=tokenizer, num_added_tokens=num_added), tokenizer, num_added


def change_config(checkpoint, folder, **fields):
    """A copy of a checkpoint's config with other fields."""
    config = json.loads((checkpoint / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return read_chat_config(folder)


def test_the_checkpoint_decides_what_no_flag_does(checkpoint, tmp_path):
    config = change_config(checkpoint, tmp_path, template="Hermes-2", force_image_size=56, dynamic_image_size=False)
    args = DataTrainingArguments()
    settle_flags(args, config)
    assert (args.conv_style, args.force_image_size, args.down_sample_ratio) == ("Hermes-2", 56, 0.5)
    assert count_visual_tokens(args, config) == 16


def test_without_a_checkpoint_flags_are_those_of_the_released_models():
    args = DataTrainingArguments()
    assert settle_flags(args, None) == []
    assert (args.conv_style, args.force_image_size, args.down_sample_ratio) == ("internlm2-chat", 448, 0.5)
    assert count_visual_tokens(args, None) == 256


def test_flags_that_differ_from_the_checkpoint_are_told_with_its_values(checkpoint, tmp_path):
    config = change_config(checkpoint, tmp_path, use_thumbnail=True, dynamic_image_size=True, max_dynamic_patch=12)
    args = DataTrainingArguments(conv_style="Hermes-2", force_image_size=56, dynamic_image_size=True)
    assert settle_flags(args, config) == [
        "conv_style Hermes-2 (internlm2-chat)",
        "force_image_size 56 (28)",
        "use_thumbnail False (True)",
    ]


def test_tiles_that_cannot_be_joined_are_refused(checkpoint):
    with pytest.raises(ConfigError, match=r"35 has 5 patches per side.*expected a multiple of 14"):
        settle_flags(DataTrainingArguments(force_image_size=35), read_chat_config(checkpoint))


def test_flags_are_written_to_the_config(checkpoint):
    model, tokenizer, num_added = load(
        checkpoint,
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=0.5,
        dynamic_image_size=True,
        use_thumbnail=True,
        max_dynamic_patch=7,
    )
    assert num_added == 0
    assert (model.config.rope_pos_id_version, model.config.rope_pos_id_stride) == ("v2pe_fix", 0.5)
    assert (model.config.dynamic_image_size, model.config.use_thumbnail, model.config.max_dynamic_patch) == (
        True,
        True,
        7,
    )
    assert model.img_context_token_id == tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)


@pytest.mark.parametrize("flag", ["yarn:4", {"type": "yarn", "factor": 4}])
def test_rope_scaling_is_trained_with_and_saved(checkpoint, tmp_path, flag):
    model, tokenizer, _ = load(checkpoint, {"rope_scaling": flag}, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=1)
    plain, _, _ = load(checkpoint, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=1)
    ids = torch.tensor([[5, 6, 7, 8] * 20])
    assert not torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["llm_config"]["rope_scaling"]
    assert (saved["type"], saved["factor"], saved["scale_v2pe"]) == ("yarn", 4.0, True)
    again, _, _ = load(tmp_path, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=1)
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    without, _, _ = load(tmp_path, {"rope_scaling": "none"}, rope_pos_id_version="v2pe_fix", rope_pos_id_stride=1)
    assert without.config.llm_config.rope_scaling is None


def test_flags_of_the_vision_tower_are_written_to_the_config(checkpoint, tmp_path):
    model, _, _ = load(checkpoint, {"drop_path_rate": 0.5, "vision_select_layer": -2, "ps_version": "v1"})
    assert [layer.drop_path1.rate for layer in model.vision_model.encoder.layers] == [0.0, 0.5]
    assert (model.config.select_layer, model.config.ps_version) == (-2, "v1")
    tiles = torch.randn(2, 3, 28, 28)
    model.save_pretrained(tmp_path)
    again = InternVLChatModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.extract_feature(tiles), model.extract_feature(tiles))
    plain, _, _ = load(checkpoint)
    assert not torch.allclose(plain.extract_feature(tiles), model.extract_feature(tiles))


@pytest.mark.parametrize("missing", ["vision_config", "llm_config"])
def test_a_config_that_is_no_chat_model_is_an_error(checkpoint, tmp_path, missing):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    del config[missing]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"not describe an InternVL .* model: {missing} missing .*tools.assemble"):
        load(folder)


def test_another_tile_size_resizes_the_position_table(checkpoint):
    model, _, _ = load(checkpoint, force_image_size=56)
    assert model.vision_model.embeddings.position_embedding.shape == (1, 1 + 64, 16)
    assert model.config.num_image_token == model.num_image_token == 16
    assert model.config.vision_config.image_size == 56
    assert model.extract_feature(torch.zeros(2, 3, 56, 56)).shape == (2, 16, 32)


def test_a_tile_size_that_patches_do_not_divide_is_an_error(checkpoint):
    with pytest.raises(ConfigError, match="not a multiple of the ViT's patch size 7"):
        load(checkpoint, force_image_size=30)


def test_another_downsample_ratio_is_an_error(checkpoint):
    with pytest.raises(ConfigError, match=r"contradicts the checkpoint's downsample_ratio 0\.5"):
        load(checkpoint, down_sample_ratio=1.0)


def test_missing_weights_are_an_error(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["mlp1.1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys: mlp1\.1\.weight"):
        load(folder)


def test_new_tokens_start_as_the_mean_of_the_old_ones(checkpoint):
    model = InternVLChatModel.from_pretrained(checkpoint)
    old_input = model.get_input_embeddings().weight.detach().clone()
    old_output = model.get_output_embeddings().weight.detach().clone()
    num_old = len(old_input)
    grow_vocabulary(model.language_model, num_old + len(SPECIAL_TOKENS), len(SPECIAL_TOKENS))
    for layer, old in ((model.get_input_embeddings(), old_input), (model.get_output_embeddings(), old_output)):
        assert len(layer.weight) == num_old + len(SPECIAL_TOKENS)
        torch.testing.assert_close(layer.weight[:num_old].detach(), old)
        torch.testing.assert_close(layer.weight[-1].detach(), old.mean(dim=0))
    assert model.config.llm_config.vocab_size == num_old + len(SPECIAL_TOKENS)
    assert model(input_ids=torch.tensor([[1, num_old]])).logits.shape[-1] == num_old + len(SPECIAL_TOKENS)


def test_projector_weights_can_come_from_a_file(checkpoint, tmp_path):
    model = InternVLChatModel.from_pretrained(checkpoint)
    state = {key: torch.full_like(value, 0.5) for key, value in model.mlp1.state_dict().items()}
    torch.save(state, tmp_path / "mlp.pt")
    data = DataTrainingArguments(force_image_size=28)
    args = ModelArguments(model_name_or_path=str(checkpoint), mlp_path=str(tmp_path / "mlp.pt"))
    tokenizer, _ = load_training_tokenizer(args, 256)
    assert (load_training_model(args, data, tokenizer=tokenizer).mlp1[1].weight == 0.5).all()
    torch.save({"1.weight": torch.zeros(2)}, tmp_path / "mlp.pt")
    with pytest.raises(CheckpointError, match="does not hold the projector's weights"):
        load_training_model(args, data, tokenizer=tokenizer)
    (tmp_path / "mlp.pt").write_text("no weights")
    with pytest.raises(CheckpointError, match="does not hold the projector's weights"):
        load_training_model(args, data, tokenizer=tokenizer)


def test_a_config_of_another_model_is_an_error(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"of another shape: .*norm\.weight is \(32,\), expected \(64,\)"):
        load(folder)
