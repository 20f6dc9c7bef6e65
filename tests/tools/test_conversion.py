import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from internvl.errors import CheckpointError, ConfigError
from internvl.tools.conversion import convert_folder, read_state_dict


@pytest.fixture
def source(tmp_path):
    """A small checkpoint with files that travel and files that do not."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    torch.manual_seed(0)
    folder = tmp_path / "source"
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in (
        "tokenizer_config.json",
        "tokenization_x.py",
        "generation_config.json",
        "optimizer.pt",
        "rng_state.pth",
    ):
        (folder / name).write_text("{}")
    return folder


def test_folder_appears_when_it_is_complete_with_its_companions(source, tmp_path):
    out = tmp_path / "deep" / "out"
    with convert_folder(source, out, model_type="llama") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "generation_config.json").write_text("new")
        assert not out.exists()
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenization_x.py",
        "tokenizer_config.json",
    }
    assert (out / "generation_config.json").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_empty_folder_may_be_the_target_and_a_file_may_not(source, tmp_path):
    (tmp_path / "empty").mkdir()
    with convert_folder(source, tmp_path / "empty", model_type="llama") as folder:
        (folder / "config.json").write_text("{}")
    assert (tmp_path / "empty" / "config.json").is_file()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="not an empty folder"),
        convert_folder(source, tmp_path / "file", model_type="llama"),
    ):
        pass


def test_another_model_type_is_refused(source, tmp_path):
    with (
        pytest.raises(CheckpointError, match="model_type is 'llama', expected 'internvl'"),
        convert_folder(source, tmp_path / "out", model_type="internvl"),
    ):
        pass


def test_state_dict_is_read_from_files_of_every_kind(source, tmp_path):
    state = read_state_dict(source)
    model = LlamaForCausalLM.from_pretrained(source)
    assert state.keys() == model.state_dict().keys()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    for name in ("sharded", "old"):
        again = read_state_dict(tmp_path / name)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], state[key]) for key in state)


def test_broken_weight_file_is_a_clear_error(source):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_state_dict(source)
