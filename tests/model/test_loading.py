"""Loading is strict: nothing missing, nothing left over, whatever the weights are stored in."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from internvl.model import loading
from internvl.model.errors import CheckpointError, ConfigError
from internvl.model.loading import load_strictly, read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel

from .test_language_models import build
from .tiny import document, tiny_model

STORES = ["safetensors", "sharded safetensors", "bin", "sharded bin"]


def write(folder, state, store):
    """A folder's weights from a state dict, in one file or in two with their index."""
    for path in (*folder.glob("*.safetensors*"), *folder.glob("*.bin*")):
        path.unlink()
    state = {name: weight.clone() for name, weight in state.items()}
    stem, ending = ("model", "safetensors") if store.endswith("safetensors") else ("pytorch_model", "bin")
    save = save_file if ending == "safetensors" else torch.save
    options = {"metadata": {"format": "pt"}} if ending == "safetensors" else {}
    if not store.startswith("sharded"):
        save(state, folder / f"{stem}.{ending}", **options)
        return
    names = sorted(state)
    shards = {name: f"{stem}-0000{1 + i % 2}-of-00002.{ending}" for i, name in enumerate(names)}
    for shard in set(shards.values()):
        save({name: state[name] for name in names if shards[name] == shard}, folder / shard, **options)
    index = {"metadata": {"total_size": 0}, "weight_map": shards}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def state(model):
    return dict(model.state_dict())


@pytest.mark.parametrize("store", STORES)
def test_a_complete_checkpoint_loads(folder, model, state, store):
    write(folder, state, store)
    again = load_strictly(InternVLChatModel, folder)
    assert not again.training
    ids, pixels = document(0)
    kwargs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels}
    assert torch.equal(model(**kwargs).logits, again(**kwargs).logits)


@pytest.mark.parametrize("store", STORES)
def test_missing_unexpected_and_misshapen_weights_are_listed(folder, state, store):
    del state["mlp1.1.bias"], state["language_model.model.norm.weight"]
    state["interaction.weight"] = state["layer_scale.gamma"] = torch.ones(1)
    state["mlp1.0.bias"] = torch.ones(3)
    write(folder, state, store)
    with pytest.raises(CheckpointError) as raised:
        load_strictly(InternVLChatModel, folder)
    message = str(raised.value)
    assert "2 missing keys: language_model.model.norm.weight, mlp1.1.bias;" in message
    assert "2 unexpected keys: interaction.weight, layer_scale.gamma;" in message
    assert "1 weights of another shape: mlp1.0.bias is (3,), expected (64,);" in message
    assert message.startswith(f"the weights of {folder} do not fit InternVLChatModel")


@pytest.mark.parametrize("store", STORES)
def test_buffers_of_older_code_are_passed_over(folder, state, store):
    for name in (
        "language_model.model.layers.0.attention.rotary_emb.inv_freq",
        "language_model.model.layers.1.attention.rotary_emb.inv_freq",
        "vision_model.embeddings.position_ids",
    ):
        state[name] = torch.ones(4)
    write(folder, state, store)
    load_strictly(InternVLChatModel, folder)


@pytest.mark.parametrize(
    "name", ["language_model.inv_freq", "position_ids.weight", "mlp1.rotary_emb.inv_freq.scale", "my_position_ids"]
)
def test_names_that_only_look_like_such_buffers_are_not(folder, state, name):
    write(folder, {**state, name: torch.ones(4)}, "safetensors")
    with pytest.raises(CheckpointError, match=f"1 unexpected keys: {name}"):
        load_strictly(InternVLChatModel, folder)


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_decoders_of_transformers_are_loaded_as_strictly(family, tmp_path):
    model = build(family, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    state = dict(model.state_dict())
    write(tmp_path, {**state, "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, "bin")
    load_strictly(InternVLChatModel, tmp_path)
    del state["language_model.lm_head.weight"]
    write(tmp_path, state, "safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing keys: language_model\.lm_head\.weight"):
        load_strictly(InternVLChatModel, tmp_path)


def test_one_of_two_tied_weights_is_enough(tmp_path):
    model = build("Qwen2ForCausalLM", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_strictly(InternVLChatModel, tmp_path)
    ids, _ = document(1, tiles=())
    assert torch.equal(model(input_ids=ids.unsqueeze(0)).logits, again(input_ids=ids.unsqueeze(0)).logits)


def test_a_long_list_is_cut(folder, state):
    write(folder, {**state, **{f"extra.{i:02}": torch.ones(1) for i in range(23)}}, "safetensors")
    with pytest.raises(CheckpointError, match=r"23 unexpected keys: extra\.00, .*extra\.19 and 3 more;"):
        load_strictly(InternVLChatModel, folder)
    assert loading._MOST_NAMES == 20


def test_adapters_are_not_dropped_in_silence(folder, state):
    write(folder, {**state, "mlp1.1.lora_A.default.weight": torch.ones(2, 2)}, "safetensors")
    with pytest.raises(CheckpointError, match="holds LoRA adapters; fold them in first"):
        load_strictly(InternVLChatModel, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_files_that_cannot_be_read_are_named(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match=rf"(?s)the weights of --vision_path {folder} cannot be loaded: .*copy"):
        load_strictly(InternVLChatModel, folder, flag="--vision_path")


def test_pickled_code_is_not_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"mlp1.0.bias": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_strictly(InternVLChatModel, folder)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def source(tmp_path):
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
@pytest.mark.parametrize("given", [False, True])
def test_a_state_dict_has_to_fit_like_a_folder(source, change, given):
    state = load_file(source / "model.safetensors")
    if change == "missing":
        del state["model.norm.weight"]
    elif change == "unknown":
        state["model.extra"] = torch.ones(1)
    else:
        state["model.norm.weight"] = torch.ones(9)
    message = {"missing": r"missing keys: model\.norm", "unknown": r"unexpected keys: model\.extra"}.get(
        change, "shape"
    )
    options = {"config": LlamaConfig.from_pretrained(source), "state": state} if given else {}
    if not given:
        save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_strictly(LlamaForCausalLM, source, **options)


def test_auto_classes_and_the_weights_own_dtype(source):
    assert isinstance(load_strictly(AutoModelForCausalLM, source, dtype=torch.float32), LlamaForCausalLM)
    state = {key: weight.to(torch.bfloat16) for key, weight in load_file(source / "model.safetensors").items()}
    model = load_strictly(LlamaForCausalLM, source, config=LlamaConfig.from_pretrained(source), state=state)
    assert model.dtype == torch.bfloat16
    assert not model.training


@pytest.mark.parametrize("content", [None, "{", "[]", '"text"'])
def test_a_missing_or_broken_config_is_named(folder, content):
    path = folder / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_chat_config(folder)


def test_configs_of_other_models_are_refused(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {}}))
    with pytest.raises(CheckpointError, match=r"vision_config and llm_config missing \(model_type 'llava'\)"):
        read_chat_config(folder)
    for llm, error, message in (
        ({"architectures": ["GPT2LMHeadModel"]}, ConfigError, "'GPT2LMHeadModel'; supported: InternLM2ForCausalLM"),
        ({"rope_scaling": {"type": "su", "factor": 1.0}}, ConfigError, "type 'su' .* expected one of none, linear"),
        (3, CheckpointError, "llm_config missing"),
    ):
        changed = {**fields["llm_config"], **llm} if isinstance(llm, dict) else llm
        (folder / "config.json").write_text(json.dumps({**fields, "llm_config": changed}))
        with pytest.raises(error, match=message):
            read_chat_config(folder)
