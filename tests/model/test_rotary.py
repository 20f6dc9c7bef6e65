"""Rotary tables: exact where visual tokens are near each other, and one rule for which scaling applies."""

import math

import pytest
import torch

from internvl.model.configuration_internvl_chat import InternLM2Config
from internvl.model.rotary import ntk_base, plain_frequencies, rotary_tables, scaling_in_use

from .test_language_models import ROPES, build


def test_neighbouring_visual_tokens_keep_distinct_tables_at_a_million():
    """Stride 1 with 256 tokens per tile at position 1,000,000, InternVL2-2B's head."""
    near = torch.tensor([[1_000_000.0, 1_000_000.0 + 1 / 256]], dtype=torch.float64)
    cos, sin = rotary_tables(near, plain_frequencies(torch.tensor(1e6, dtype=torch.float64), 128))
    changed = (cos[0, 0] != cos[0, 1]) | (sin[0, 0] != sin[0, 1])
    assert cos.dtype == torch.float32
    assert changed.float().mean() > 0.5
    exact = math.cos(1_000_000.0 + 1 / 256)
    assert cos[0, 1, 0].item() == pytest.approx(exact, abs=1e-7)


def test_dynamic_ntk_leaves_short_sequences_alone():
    lengths = torch.tensor([10, 256, 512])
    base = ntk_base(1e4, lengths, max_position_embeddings=256, factor=2.0, head_dim=32)
    assert base[:2].tolist() == [1e4, 1e4]
    assert base[2].item() == pytest.approx(1e4 * 3 ** (32 / 30))


ORDINARY, FRACTIONS = torch.arange(4).unsqueeze(0), torch.arange(4).unsqueeze(0) / 4


@pytest.mark.parametrize(
    ("entry", "ordinary", "fractions"),
    [
        (None, "default", "default"),
        ({"type": "v2pe", "factor": 1.0}, "default", "default"),
        ({"type": "dynamic", "factor": 2.0}, "dynamic", "default"),
        ({"type": "linear", "factor": 2.0}, "linear", "default"),
        ({"type": "yarn", "factor": 2.0}, "yarn", "default"),
        ({"type": "linear", "factor": 2.0, "scale_v2pe": True}, "linear", "linear"),
        ({"type": "yarn", "factor": 2.0, "scale_v2pe": True}, "yarn", "yarn"),
    ],
)
def test_one_rule_says_which_scaling_applies(entry, ordinary, fractions):
    for config in (
        InternLM2Config(rope_scaling=entry),
        build("LlamaForCausalLM", rope_scaling=entry).config.llm_config,
    ):
        assert scaling_in_use(config, ORDINARY) == ordinary
        assert scaling_in_use(config, FRACTIONS) == fractions


@pytest.mark.parametrize("family", list(ROPES))
def test_frequencies_of_the_training_apply_to_all_positions(family):
    config = build(family, rope_parameters=ROPES[family]).config.llm_config
    kind = ROPES[family]["rope_type"]
    assert scaling_in_use(config, ORDINARY) == scaling_in_use(config, FRACTIONS) == kind
