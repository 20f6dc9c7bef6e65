"""Scaled rotary tables of InternLM2 against transformers' own functions, and whom they apply to."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from internvl.model.configuration_internvl_chat import InternLM2Config
from internvl.model.errors import ConfigError
from internvl.model.v2pe import yarn_frequencies

from .tiny import document, tiny_model


@pytest.mark.parametrize(("factor", "original", "base"), [(4.0, 4096, 1e4), (2.0, 32768, 1e6), (16.0, 256, 1e4)])
def test_yarn_equals_transformers(factor, original, base):
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=int(original * factor),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": base,
            "factor": factor,
            "original_max_position_embeddings": original,
        },
    )
    expected, expected_scale = ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu")
    frequencies, scale = yarn_frequencies(base, head_dim=64, factor=factor, original_length=original)
    torch.testing.assert_close(frequencies.float(), expected, rtol=1e-5, atol=0)
    assert scale == pytest.approx(expected_scale)


def logits(model, version, stride=None):
    ids, pixels = document(0)
    return model(
        input_ids=ids.unsqueeze(0), pixel_values=pixels, rope_pos_id_version=version, rope_pos_id_stride=stride
    ).logits


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_reaches_v2pe_only_when_asked(kind):
    plain = tiny_model(rope_scaling=None)
    ordinary = tiny_model(rope_scaling={"type": kind, "factor": 4.0})
    both = tiny_model(rope_scaling={"type": kind, "factor": 4.0, "scale_v2pe": True})
    assert torch.equal(logits(ordinary, "v2pe_fix", 2), logits(plain, "v2pe_fix", 2))
    assert not torch.allclose(logits(ordinary, "default"), logits(plain, "default"))
    assert not torch.allclose(logits(both, "v2pe_fix", 2), logits(plain, "v2pe_fix", 2))
    assert torch.equal(logits(both, "default"), logits(ordinary, "default"))


def test_linear_scaling_divides_positions():
    plain, scaled = tiny_model(rope_scaling=None), tiny_model(rope_scaling={"type": "linear", "factor": 4.0})
    ids, _ = document(1, tiles=(), text=20)
    positions = torch.arange(len(ids), dtype=torch.float64).unsqueeze(0)
    expected = plain(input_ids=ids.unsqueeze(0), position_ids=positions / 4).logits
    torch.testing.assert_close(scaled(input_ids=ids.unsqueeze(0), rope_pos_id_version="default").logits, expected)


def test_entries_that_make_no_sense_are_refused():
    for entry in ({"type": "dynamic", "factor": 2.0, "scale_v2pe": True}, {"type": "yarn", "factor": 0.5}):
        with pytest.raises(ConfigError, match="rope_scaling"):
            InternLM2Config(rope_scaling=entry)
