"""Checkpoint folders: what is broken, elsewhere or too large is refused in one line, before anything is built."""

import json
import os

import pytest

from internvl.model.checkpoint_folder import check_files, find_checkpoint
from internvl.model.errors import CheckpointError, InternVLError
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel

from .tiny import tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def change(folder, part=None, **fields):
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(fields)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("value", ["2", True, -1, 0, [2], 10**7])
def test_a_number_of_layers_that_no_model_has_is_refused(folder, value):
    change(folder, "llm_config", num_hidden_layers=value)
    with pytest.raises(InternVLError, match="num_hidden_layers"):
        read_chat_config(folder)


def test_null_means_the_default(folder):
    change(folder, "llm_config", rope_theta=None, initializer_range=None)
    change(folder, max_dynamic_patch=None, downsample_ratio=None)
    config = read_chat_config(folder)
    assert (config.llm_config.rope_theta, config.max_dynamic_patch, config.downsample_ratio) == (10000, 6, 0.5)


def test_a_config_larger_than_its_weights_is_refused(folder):
    change(folder, "llm_config", num_hidden_layers=900)
    with pytest.raises(CheckpointError, match=r"at least \d+ parameters"):
        load_strictly(InternVLChatModel, folder, config=read_chat_config(folder))


def test_a_quantised_checkpoint_is_named(folder):
    change(folder, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"awq.*take the unquantised one"):
        read_chat_config(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors"])
def test_shards_stay_inside_the_folder(folder, name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        check_files(folder)


def test_a_pipe_is_not_waited_for(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        check_files(folder)


def test_a_missing_checkpoint_says_how_to_download_it(tmp_path):
    with pytest.raises(CheckpointError, match="hf download OpenGVLab/InternVL2-2B --local-dir"):
        find_checkpoint(tmp_path / "absent")


def test_shards_that_are_links_in_a_circle_are_refused(folder):
    (folder / "x.safetensors").symlink_to("x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "x.safetensors"}}))
    with pytest.raises(CheckpointError, match="shards that are not there"):
        check_files(folder)


def test_a_misspelt_folder_is_named(tmp_path):
    (tmp_path / "InternVL2-Tiny").mkdir()
    with pytest.raises(CheckpointError, match="does not exist, did you mean 'InternVL2-Tiny'"):
        find_checkpoint(tmp_path / "InternVL2-tiny")
