import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import GenerationConfig

from internvl.errors import ConfigError, DataError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.tools import make_tiny
from internvl.tools.make_tiny import TinySpec, make_checkpoint

TURN = '<|im_start|>user\nNote "mango".'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "InternVL2-Tiny"
    assert make_checkpoint(out, TinySpec())
    return out


@pytest.fixture(scope="module")
def model(folder):
    return InternVLChatModel.from_pretrained(folder)


def read_weights(folder):
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return weights


def test_config_has_the_fields_of_internvl2(folder):
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "template": "internlm2-chat",
        "ps_version": "v2",
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "force_image_size": 56,
        "dynamic_image_size": True,
        "use_thumbnail": False,
        "max_dynamic_patch": 64,
    }
    assert config.items() >= expected.items()
    assert config["auto_map"] == {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    }
    assert config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]
    assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert config["vision_config"]["norm_type"] == "layer_norm"


def test_auto_map_names_files_in_the_folder(folder):
    config = json.loads((folder / "config.json").read_text())
    for auto_map in (config["auto_map"], config["llm_config"]["auto_map"]):
        for target in auto_map.values():
            module, _, name = target.partition(".")
            assert f"class {name}(" in (folder / f"{module}.py").read_text()


def test_parameters_have_the_names_and_shapes_of_internvl2(folder):
    shapes = {name: tuple(weight.shape) for name, weight in read_weights(folder).items()}
    vocab = len(load_tokenizer(folder))
    expected = {
        "vision_model.embeddings.class_embedding": (1, 1, 64),
        "vision_model.embeddings.position_embedding": (1, 17, 64),
        "vision_model.embeddings.patch_embedding.weight": (64, 3, 14, 14),
        "vision_model.encoder.layers.1.ls1": (64,),
        "vision_model.encoder.layers.1.attn.qkv.bias": (192,),
        "vision_model.encoder.layers.1.mlp.fc1.weight": (128, 64),
        "mlp1.0.weight": (256,),
        "mlp1.1.weight": (64, 256),
        "mlp1.3.weight": (64, 64),
        "language_model.model.tok_embeddings.weight": (vocab, 64),
        "language_model.model.layers.0.attention.wqkv.weight": (192, 64),
        "language_model.model.layers.1.feed_forward.w2.weight": (64, 128),
        "language_model.model.norm.weight": (64,),
        "language_model.output.weight": (vocab, 64),
    }
    assert shapes.items() >= expected.items()
    assert len(shapes) == 4 + 2 * 14 + 6 + 3 + 2 * 7
    assert all(weight.dtype == torch.float32 for weight in read_weights(folder).values())


def test_weights_follow_the_recipe(model):
    weights = dict(model.named_parameters())
    stds = {
        "language_model.model.tok_embeddings.weight": 0.1,
        "language_model.model.layers.0.attention.wqkv.weight": 0.05,
        "language_model.model.layers.1.feed_forward.w2.weight": 0.05,
        "vision_model.embeddings.position_embedding": 0.02,
    }
    for name, std in stds.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.1), name
    assert torch.equal(weights["language_model.output.weight"], weights["language_model.model.tok_embeddings.weight"])
    assert weights["mlp1.1.weight"].abs().max().item() == pytest.approx(1 / 16, rel=0.02)
    assert torch.equal(weights["vision_model.encoder.layers.0.ls1"], torch.ones(64))
    assert torch.equal(weights["vision_model.encoder.layers.0.norm1.weight"], torch.ones(64))
    assert torch.equal(weights["mlp1.0.bias"], torch.zeros(256))
    assert torch.equal(weights["language_model.model.layers.0.ffn_norm.weight"], torch.ones(64))


def test_model_answers_a_prompt_with_a_tile(folder, model):
    tokenizer = load_tokenizer(folder)
    assert model.num_image_token == 4
    assert model.img_context_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    answer = model.chat(tokenizer, torch.zeros(1, 3, 56, 56), "<image>\nWhich fruit?", {"max_new_tokens": 4})
    assert isinstance(answer, str)


def test_generation_config_stops_at_the_end_of_a_turn(folder):
    stop = load_tokenizer(folder).convert_tokens_to_ids("<|im_end|>")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, stop]


def test_folder_carries_its_code(folder, model, tmp_path):
    """In a process that cannot import this package, so that only the folder's own files can serve."""
    code = (
        "import json, sys; sys.modules['internvl'] = None\n"
        "from transformers import AutoConfig, AutoModel, AutoTokenizer\n"
        f"load = dict(pretrained_model_name_or_path={str(folder)!r}, trust_remote_code=True)\n"
        "model, tokenizer = AutoModel.from_pretrained(**load), AutoTokenizer.from_pretrained(**load)\n"
        f"print(json.dumps([type(model).__name__, AutoConfig.from_pretrained(**load).force_image_size,"
        f" tokenizer({TURN!r})['input_ids'], sum(float(p.double().sum()) for p in model.parameters())]))"
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, image_size, ids, total = json.loads(done.stdout.splitlines()[-1])
    assert (name, image_size) == ("InternVLChatModel", 56)
    assert ids == load_tokenizer(folder)(TURN)["input_ids"]
    assert total == pytest.approx(sum(float(p.double().sum()) for p in model.parameters()))


def test_larger_weights_are_sharded(folder, tmp_path):
    make_checkpoint(tmp_path / "sharded", TinySpec(), max_shard_size="300KB")
    shards = list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))
    assert len(shards) >= 3
    assert max(path.stat().st_size for path in shards) < 330_000
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    whole = read_weights(folder)
    assert set(index["weight_map"]) == set(whole)
    loaded = dict(InternVLChatModel.from_pretrained(tmp_path / "sharded").named_parameters())
    assert all(torch.equal(weight, loaded[name]) for name, weight in whole.items())


def test_seed_decides_the_weights(folder, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        torch.manual_seed(seed + 100)  # the global generator must not matter
        make_checkpoint(tmp_path / name, TinySpec(seed=seed))
    first, again, other = (read_weights(path) for path in (folder, tmp_path / "again", tmp_path / "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "language_model.output.weight"
    assert not torch.equal(first[name], other[name])
    assert (folder / "tokenizer.model").read_bytes() == (tmp_path / "again" / "tokenizer.model").read_bytes()


def test_model_card_says_that_weights_are_random(folder):
    card = (folder / "README.md").read_text()
    assert "Random weights" in card
    assert "not a\nreleased model" in card


def test_finished_folder_is_left_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not make_checkpoint(folder, TinySpec())
    with pytest.raises(DataError, match="--overwrite"):
        make_checkpoint(folder, TinySpec(seed=5))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_users_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="not made by"):
        make_checkpoint(tmp_path / "mine", TinySpec(), overwrite=True)


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(InternVLChatModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        make_checkpoint(tmp_path / "tiny", TinySpec())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [({"layers": 0}, "layers is 0"), ({"hidden_size": 63}, "multiple of heads"), ({"image_size": 42}, "even number")],
)
def test_impossible_sizes_are_clear_errors(change, message):
    with pytest.raises(ConfigError, match=message):
        TinySpec(**change)


def test_command_line_has_an_option_per_field_and_reports_user_errors(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_tiny.main(["--help"])
    text = capsys.readouterr().out
    assert "--embedding_std" in text
    assert "--max_shard_size" in text
    assert make_tiny.main(["--out", str(tmp_path / "x"), "--vocab_size", "100"]) == 2
    assert "error: no tokenizer of 89 pieces" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
