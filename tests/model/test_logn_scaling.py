"""Log-n scaling of queries: the formula, off by default, and the same for packed, padded, cached and chunked rows."""

import json
import math

import pytest
import torch

from internvl.model.attention import attend, packed_sdpa, register_attention
from internvl.model.configuration_internvl_chat import InternLM2Config, InternVLChatConfig
from internvl.model.errors import ConfigError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.rotary import logn_scales
from internvl.model.scaling import choose_logn_scaling

from .test_language_models import FAMILIES, NEVER, build
from .tiny import document, tiny_config

TRAIN_LENGTH = 6  # far below the tests' rows
V2PE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.5}


def test_scales_follow_the_formula():
    num_keys = [1, 2, 191, 192, 193, 2115, 10**6]
    expected = [max(1.0, math.log(n) / math.log(192)) for n in num_keys]
    assert logn_scales(torch.tensor(num_keys), 192).tolist() == pytest.approx(expected, rel=1e-6)
    assert expected[:4] == [1.0] * 4
    assert expected[4] > 1


def test_scores_are_multiplied():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 9, 16).unbind(0)
    scale = logn_scales(torch.arange(1, 10), 3).unsqueeze(0)
    found = attend(None, query, key, value, scaling=0.25, query_scale=scale)
    scores = (query @ key.transpose(2, 3)) * 0.25
    for i in range(9):
        scores[:, :, i] *= max(1.0, math.log(i + 1) / math.log(3))
    expected = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1) @ value
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def reference(query, key, value, *, scaling, cu_seqlens, attention_mask):
    """Packed attention that counts the keys of one whole row itself."""
    num_keys = torch.arange(1, key.shape[2] + 1)[-query.shape[2] :]
    scale = (num_keys.double().log() / math.log(TRAIN_LENGTH)).clamp(min=1).float()
    query = query * scale[:, None]
    return packed_sdpa(query, key, value, scaling=scaling, cu_seqlens=cu_seqlens, attention_mask=attention_mask)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", [{"rope_pos_id_version": "default"}, V2PE])
def test_every_decoder_has_it_by_tokens_and_not_by_positions(family, positions):
    ids, pixels = document(0)
    inputs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, **positions}
    plain, scaled = build(family), build(family, logn_scaling=TRAIN_LENGTH)
    usual = plain(**inputs).logits
    register_attention("logn_reference", reference)
    plain.language_model.config._attn_implementation = "logn_reference"
    found = scaled(**inputs).logits
    torch.testing.assert_close(found, plain(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert (found - usual).abs().max() > 1e-2
    torch.testing.assert_close(found[:, :TRAIN_LENGTH], usual[:, :TRAIN_LENGTH], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_off_and_within_the_training_length_nothing_changes_by_a_bit(family):
    ids, pixels = document(1)
    inputs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, **V2PE}
    plain = build(family)(**inputs).logits
    assert torch.equal(build(family, logn_scaling=None)(**inputs).logits, plain)
    assert torch.equal(build(family, logn_scaling=len(ids))(**inputs).logits, plain)
    assert not torch.equal(build(family, logn_scaling=len(ids) - 1)(**inputs).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_row_equals_separate_documents(family):
    model = build(family, logn_scaling=TRAIN_LENGTH)
    documents = [document(2, tiles=(3, 1)), document(3, tiles=(2,)), document(4, tiles=(), text=1)]
    lengths = [len(ids) for ids, _ in documents]
    packed = model(
        input_ids=torch.cat([ids for ids, _ in documents]).unsqueeze(0),
        pixel_values=torch.cat([pixels for _, pixels in documents]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
        **V2PE,
    ).logits[0]
    for row, (ids, pixels) in zip(packed.split(lengths), documents, strict=True):
        alone = model(input_ids=ids.unsqueeze(0), pixel_values=pixels, **V2PE).logits[0]
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}, {"kv_cache": "static"}])
def test_cached_decode_equals_the_uncached_forward(family, options):
    """Two prompts of unequal length and image count, padded on the left."""
    model = build(family, logn_scaling=TRAIN_LENGTH)
    prompts = [document(5, tiles=(1,)), document(6, tiles=(3, 2))]
    width = max(len(ids) for ids, _ in prompts)
    ids = torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids, _ in prompts])
    mask = torch.stack([torch.arange(width) >= width - len(ids) for ids, _ in prompts]).long()
    new = model.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=torch.cat([pixels for _, pixels in prompts]),
        max_new_tokens=5,
        do_sample=False,
        suppress_tokens=NEVER,
        output_logits=True,
        return_dict_in_generate=True,
        **V2PE,
        **options,
    )
    for row, (prompt, pixels) in enumerate(prompts):
        whole = torch.cat([prompt, new.sequences[row]]).unsqueeze(0)
        logits = model(input_ids=whole, pixel_values=pixels, **V2PE).logits[0, len(prompt) - 1 : -1]
        found = torch.stack([step[row] for step in new.logits])
        torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["InternLM2ForCausalLM", "LlamaForCausalLM"])
def test_gradients_flow_and_recomputed_layers_give_the_same(family):
    ids, pixels = document(7)
    inputs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, "labels": ids.unsqueeze(0), **V2PE}
    grads = []
    for recompute in (False, True):
        model = build(family, logn_scaling=TRAIN_LENGTH).train()
        if recompute:
            model.gradient_checkpointing_enable()
        model(**inputs).loss.backward()
        grads.append([parameter.grad for parameter in model.language_model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)


def test_bf16_queries_stay_bf16():
    for family in ("InternLM2ForCausalLM", "Qwen2ForCausalLM"):
        model = build(family, logn_scaling=TRAIN_LENGTH).to(torch.bfloat16)
        ids, pixels = document(9)
        out = model(input_ids=ids.unsqueeze(0), pixel_values=pixels.bfloat16(), **V2PE)
        assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_checkpoint_keeps_it(family, tmp_path):
    model = build(family, logn_scaling=TRAIN_LENGTH)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["llm_config"]["logn_scaling"] == TRAIN_LENGTH
    again = InternVLChatModel.from_pretrained(tmp_path)
    ids, pixels = document(8)
    inputs = {"input_ids": ids.unsqueeze(0), "pixel_values": pixels, **V2PE}
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_a_flag_wins_over_the_config():
    config = InternLM2Config(logn_scaling=100)
    choose_logn_scaling(config, None)
    assert config.logn_scaling == 100
    choose_logn_scaling(config, 50)
    assert config.logn_scaling == 50
    choose_logn_scaling(config, 0)
    assert config.logn_scaling is None


@pytest.mark.parametrize("length", [1, 0, -4, 2.5, True, "512"])
@pytest.mark.parametrize("family", ["InternLM2ForCausalLM", "LlamaForCausalLM"])
def test_no_number_of_tokens_is_refused(family, length):
    with pytest.raises(ConfigError, match=r"llm_config\.logn_scaling is .*, expected the number of tokens"):
        InternVLChatConfig(llm_config={"architectures": [family], "logn_scaling": length})
    with pytest.raises(ConfigError, match=r"--logn_scaling is"):
        choose_logn_scaling(tiny_config().llm_config, -1)
