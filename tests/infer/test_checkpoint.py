import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from internvl.errors import CheckpointError
from internvl.infer.checkpoint import check_checkpoint, fingerprint_checkpoint, load_checkpoint
from internvl.infer.settings import InferenceSettings


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def load(folder):
    return load_checkpoint(folder, InferenceSettings(dtype="float32", device="cpu"))


def test_a_complete_folder_loads(checkpoint):
    model, tokenizer = load(checkpoint)
    assert not model.training
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == model.img_context_token_id


def keep_only_tokenizer_model(folder):
    for path in (*folder.glob("*token*.json"), folder / "chat_template.jinja"):
        path.unlink()
    assert (folder / "tokenizer.model").is_file()


def test_tokenizer_model_alone_is_enough(checkpoint, copy):
    keep_only_tokenizer_model(copy)
    model, tokenizer = load(copy)
    _, expected = load(checkpoint)
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert model.img_context_token_id == expected.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert tokenizer.chat_template == expected.chat_template


def test_a_tokenizer_without_image_tokens_is_an_error(copy):
    keep_only_tokenizer_model(copy)
    config = json.loads((copy / "config.json").read_text())
    config["llm_config"]["vocab_size"] += 5  # which ids the image tokens have cannot be known
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has 501 tokens without <IMG_CONTEXT>, expected .* with 517; copy"):
        load(copy)


def test_a_fast_tokenizer_without_image_tokens_is_an_error(copy):
    keep_only_tokenizer_model(copy)
    (copy / "tokenizer.model").unlink()
    words = Tokenizer(WordLevel({"<unk>": 0, "which": 1, "digit": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(copy)
    with pytest.raises(CheckpointError, match="has 3 tokens without <IMG_CONTEXT>"):
        load(copy)


def test_a_missing_shard_of_older_files_is_named(copy):
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model-1.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lists shards that are not there: \['pytorch_model-2\.bin'\]"):
        check_checkpoint(copy)


@pytest.mark.parametrize("llm_config", ["no object", 3])
def test_a_config_of_another_shape_is_an_error(copy, llm_config):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "llm_config": llm_config}))
    with pytest.raises(CheckpointError, match="llm_config missing"):
        load(copy)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        check_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_missing_or_broken_config_is_named(copy, content):
    (copy / "config.json").unlink() if content is None else (copy / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check_checkpoint(copy)


def test_missing_weights_are_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        check_checkpoint(copy)


def test_a_missing_shard_is_named(copy):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        check_checkpoint(copy)


def test_weights_cut_short_are_an_error(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        load(copy)


def test_missing_parameters_are_an_error_not_random_weights(copy):
    path = copy / "model.safetensors"
    weights = load_file(path)
    del weights["language_model.output.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"language_model\.output\.weight"):
        load(copy)


def test_fingerprint_follows_content_not_place(checkpoint, copy):
    before = fingerprint_checkpoint(checkpoint)
    (copy / "eval_default").mkdir()
    (copy / "trainer_state.json").write_text("{}")
    assert fingerprint_checkpoint(copy) == before
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint_checkpoint(copy) != before


def test_fingerprint_of_large_files_samples_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("internvl.infer.checkpoint._WHOLE_FILE_BYTES", 10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(300_000))
    before = fingerprint_checkpoint(tmp_path)
    for place in (0, 150_000, 299_999):
        content = bytearray(300_000)
        content[place] = 1
        path.write_bytes(content)
        assert fingerprint_checkpoint(tmp_path) != before


def test_a_bare_language_model_is_refused_with_the_way_out(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config["llm_config"], "model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"vision_config and llm_config missing \(model_type 'llama'\).*assemble"):
        load(copy)
