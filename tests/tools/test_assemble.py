"""Chat models from parts; the language model must answer text exactly as it did alone."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from internvl.model.constants import SPECIAL_TOKENS
from internvl.model.modeling_intern_vit import InternVisionModel
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.tools.assemble import Parts, assemble, main

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "norm_type": "layer_norm",
    "qk_normalization": False,
}
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"])),
    "tied qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, tie_word_embeddings=True, architectures=["Qwen2ForCausalLM"])
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request, tmp_path_factory):
    """A random decoder of transformers with a byte-level BPE tokenizer."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["which digit is the first", "which fruit is it"] * 9, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    FAMILIES[request.param]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def assembled(llm, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "chat"
    return out, assemble(Parts(llm, vision_config=VISION), out=out, template="Hermes-2")


def test_text_answers_are_those_of_the_bare_language_model(llm, assembled):
    from transformers import AutoModelForCausalLM

    out, _ = assembled
    model, tokenizer = InternVLChatModel.from_pretrained(out), load_tokenizer(out)
    bare = AutoModelForCausalLM.from_pretrained(llm)
    ids = tokenizer("which fruit is the first digit", return_tensors="pt")["input_ids"]
    never = list(range(290, len(tokenizer)))
    expected = bare.generate(ids, max_new_tokens=12, do_sample=False, suppress_tokens=[i for i in never if i < 300])
    got = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, suppress_tokens=never)
    assert got[0].tolist() == expected[0, ids.shape[1] :].tolist()


def test_image_tokens_are_added_and_start_as_the_mean(assembled):
    out, _ = assembled
    model, tokenizer = InternVLChatModel.from_pretrained(out), load_tokenizer(out)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(ids[0], ids[0] + 9))
    rows = model.get_input_embeddings().weight
    torch.testing.assert_close(rows[ids[0]], rows[: ids[0]].mean(dim=0))
    assert model.img_context_token_id == ids[2]
    answer = model.chat(tokenizer, torch.randn(2, 3, 28, 28), "which digit?", {"max_new_tokens": 4})
    assert isinstance(answer, str)


def test_given_parts_are_taken(llm, tmp_path):
    torch.manual_seed(7)
    from internvl.model.configuration_internvl_chat import InternVisionConfig

    InternVisionModel(InternVisionConfig(**VISION)).save_pretrained(tmp_path / "vit")
    donor = assemble(Parts(llm, vision_config=VISION), out=tmp_path / "donor", template="Hermes-2", seed=1)
    torch.save(donor.mlp1.state_dict(), tmp_path / "mlp.pt")
    model = assemble(
        Parts(llm, vision_path=tmp_path / "vit", mlp_path=tmp_path / "mlp.pt"),
        out=tmp_path / "chat",
        template="Hermes-2",
        force_image_size=42,
    )
    tower = InternVisionModel.from_pretrained(tmp_path / "vit")
    assert torch.equal(model.vision_model.encoder.layers[1].attn.qkv.weight, tower.encoder.layers[1].attn.qkv.weight)
    assert torch.equal(model.mlp1[1].weight, donor.mlp1[1].weight)
    assert model.num_image_token == 9
    assert model.vision_model.embeddings.position_embedding.shape[1] == 37


def test_wrong_parts_are_clear_errors(llm, tmp_path, capsys):
    assert main(["--llm_path", str(tmp_path / "no"), "--out", str(tmp_path / "o"), "--template", "Hermes-2"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["--llm_path", str(llm), "--out", str(tmp_path / "o"), "--template", "vicuna"]) == 2
    assert "unknown conversation template" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["--llm_path", str(llm), "--out", str(tmp_path / "full"), "--template", "Hermes-2"]) == 2
    assert "not empty" in capsys.readouterr().err
