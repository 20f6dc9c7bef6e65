"""Options of model cards and of transformers' `generate`: each has an effect, or is refused by name."""

import pytest
import torch
from transformers import GenerationConfig

from internvl.model.errors import CheckpointError, ConfigError
from internvl.model.finite_scores import RefuseNonFiniteScores
from internvl.model.loading_options import translate_loading_options

from .tiny import document, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def prompt():
    ids, pixels = document(1)
    return {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, "pad_token_id": 0, "eos_token_id": 2}


def test_options_of_model_cards_change_nothing():
    card = {"use_flash_attn": True, "load_in_8bit": False, "load_in_4bit": False, "low_cpu_mem_usage": True}
    assert translate_loading_options(card) == {"low_cpu_mem_usage": True}
    for name in ("eager", "sdpa", "flash_attention_2"):
        assert translate_loading_options({"attn_implementation": name}) == {}


@pytest.mark.parametrize("option", [{"load_in_8bit": True}, {"load_in_4bit": True}, {"quantization_config": object()}])
def test_quantisation_is_refused_by_name(option):
    with pytest.raises(ConfigError, match=f"{next(iter(option))} is not supported.*bfloat16"):
        translate_loading_options(option)


def test_unknown_attention_is_refused():
    with pytest.raises(ConfigError, match="attn_implementation is 'flex'"):
        translate_loading_options({"attn_implementation": "flex"})


def test_a_config_object_a_dict_and_single_arguments_are_one(model, prompt):
    limits = {"max_new_tokens": 3, "do_sample": False}
    single = model.generate(**prompt, **limits)
    assert torch.equal(single, model.generate(**prompt, generation_config=limits))
    assert torch.equal(single, model.generate(**prompt, generation_config=GenerationConfig(**limits)))
    length = prompt["input_ids"].shape[1]
    assert torch.equal(single, model.generate(**prompt, max_length=length + 3, do_sample=False))
    with pytest.raises(ConfigError, match=f"max_length is {length} and the prompt has {length} tokens"):
        model.generate(**prompt, max_length=length)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompt_lookup_num_tokens": 2}, "no ids of their own"),
        ({"assistant_model": object()}, "no ids of their own"),
        ({"guidance_scale": 2.0}, "no ids of their own"),
        ({"encoder_repetition_penalty": 1.2}, "no ids of their own"),
        ({"is_assistant": True}, "no ids of their own"),
        ({"token_healing": True}, "no ids of their own"),
        ({"num_beam_groups": 2}, "code of the hub"),
        ({"penalty_alpha": 0.6}, "code of the hub"),
        ({"cache_implementation": "static"}, "kv_cache"),
    ],
)
def test_options_that_would_fail_or_do_nothing_are_refused_by_name(model, prompt, options, reason):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: .*{reason}"):
        model.generate(**prompt, max_new_tokens=2, **options)


def test_options_that_switch_nothing_on_are_taken(model, prompt):
    plain = model.generate(**prompt, max_new_tokens=2)
    nothing = {"guidance_scale": 1.0, "num_beam_groups": 1, "is_assistant": False, "assistant_model": None}
    assert torch.equal(plain, model.generate(**prompt, max_new_tokens=2, **nothing))


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_nan_ends_an_answer_with_an_error(prompt, options):
    broken = tiny_model()
    with torch.no_grad():
        broken.language_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        broken.generate(**prompt, max_new_tokens=2, **options)


def test_excluded_tokens_are_no_error():
    scores = torch.tensor([[0.0, float("-inf")]])
    assert torch.equal(RefuseNonFiniteScores("x")(torch.zeros(1, 0, dtype=torch.int64), scores), scores)
