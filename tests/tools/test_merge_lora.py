import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.tools import merge_lora
from internvl.tools.merge_lora import merge_checkpoint
from internvl.train.arguments import ModelArguments
from internvl.train.trainable import select_trainable
from tests.train.tiny_run import flags, make_checkpoint, make_data, tail, train

SHARD_SIZE = "20KB"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def adapted(plain):
    """The model with adapters of different ranks on both parts, none of them zero."""
    model = InternVLChatModel.from_pretrained(plain)
    select_trainable(model, ModelArguments(use_llm_lora=2, use_backbone_lora=3))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=generator)
    model.config.use_llm_lora, model.config.use_backbone_lora = 2, 3
    return model.eval()


@pytest.fixture(params=["5GB", SHARD_SIZE], ids=["one file", "sharded"])
def checkpoint(request, adapted, plain, tmp_path):
    """As a Trainer leaves it: adapters in the weights, tokenizer and training state beside them."""
    folder = tmp_path / "checkpoint-2"
    adapted.save_pretrained(folder, max_shard_size=request.param)
    load_tokenizer(plain).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder


@torch.no_grad()
def run(model):
    """Logits of a row with one image."""
    image = model.img_context_token_id
    ids = torch.tensor([[5, 6, *[image] * model.num_image_token, 7, 8, 9, 10]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, pixel_values=pixels).logits


def test_merged_logits_equal_those_of_the_adapters(plain, adapted, checkpoint, tmp_path):
    assert merge_checkpoint(checkpoint, tmp_path / "merged") == 2 * 5 + 2 * 4
    expected = run(adapted)
    assert not torch.allclose(run(InternVLChatModel.from_pretrained(plain).eval()), expected, atol=1e-3)
    merged, report = InternVLChatModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(run(merged.eval()), expected, atol=1e-5, rtol=1e-5)


def test_merged_folder_is_a_complete_plain_checkpoint(checkpoint, tmp_path):
    out = tmp_path / "new" / "merged"
    merge_checkpoint(checkpoint, out, max_shard_size=SHARD_SIZE)
    config = json.loads((out / "config.json").read_text())
    assert (config["use_llm_lora"], config["use_backbone_lora"]) == (0, 0)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    names = set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"])
    assert names == set(InternVLChatModel(InternVLChatConfig.from_pretrained(out)).state_dict())
    assert load_tokenizer(out)("abc <img>")["input_ids"] == load_tokenizer(checkpoint)("abc <img>")["input_ids"]
    assert (out / "generation_config.json").read_bytes() == (checkpoint / "generation_config.json").read_bytes()
    assert not (out / "optimizer.pt").exists()


def test_weights_keep_their_dtype(adapted, tmp_path):
    state = {name: weight.to(torch.bfloat16) for name, weight in adapted.state_dict().items()}
    adapted.save_pretrained(tmp_path / "half", state_dict=state)
    merge_checkpoint(tmp_path / "half", tmp_path / "merged")
    assert {weight.dtype for weight in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_adapters_of_the_public_code_are_read(adapted, tmp_path):
    """It wraps both parts in PeftModel, which shows in the names."""
    adapted.save_pretrained(tmp_path / "public")
    path = tmp_path / "public" / "model.safetensors"
    state = {
        name.replace("language_model.", "language_model.base_model.model.").replace(
            "vision_model.", "vision_model.base_model.model."
        ): weight
        for name, weight in load_file(path).items()
    }
    save_file(state, path, {"format": "pt"})
    merge_checkpoint(tmp_path / "public", tmp_path / "merged")
    merged = InternVLChatModel.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(run(merged), run(adapted), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_checkpoint_of_a_run_merges_into_the_runs_own_weights(plain, tmp_path):
    (tmp_path / "data").mkdir()
    changes = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "use_llm_lora": 2, "freeze_backbone": True}
    result = train(flags(plain, make_data(tmp_path / "data" / "tiny"), tmp_path / "run", **changes))
    assert result.returncode == 0, tail(result)
    merge_checkpoint(tmp_path / "run" / "checkpoint-2", tmp_path / "merged")
    merged, own = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "run"))
    assert merged.keys() == own.keys()
    assert all(torch.equal(merged[name], own[name]) for name in own)
    assert any(not torch.equal(own[name], weight) for name, weight in load_file(plain / "model.safetensors").items())


def test_plain_checkpoint_is_a_clear_error(plain, tmp_path):
    with pytest.raises(CheckpointError, match="holds no LoRA adapters"):
        merge_checkpoint(plain, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        merge_checkpoint(tmp_path / "nowhere", tmp_path / "merged")


def test_files_in_the_target_are_never_touched(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        merge_checkpoint(tmp_path / "checkpoint", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_failure_leaves_nothing_behind(adapted, tmp_path, monkeypatch):
    adapted.save_pretrained(tmp_path / "checkpoint")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(InternVLChatModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        merge_checkpoint(tmp_path / "checkpoint", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_command_line_reports_user_errors(plain, adapted, tmp_path, capsys):
    assert merge_lora.main([str(plain), str(tmp_path / "merged")]) == 2
    assert "error:" in capsys.readouterr().err
    adapted.save_pretrained(tmp_path / "checkpoint")
    assert merge_lora.main([str(tmp_path / "checkpoint"), str(tmp_path / "merged")]) == 0
    assert InternVLChatConfig.from_pretrained(tmp_path / "merged").use_llm_lora == 0
