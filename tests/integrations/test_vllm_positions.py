"""The vLLM plug-in's integer positions are those of v2pe.py; without vLLM."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.model.rotary import apply_rotary, rotary_tables
from internvl.model.v2pe import STRIDE_UNITS, build_position_ids, next_position

VISUAL, TEXT = 1, 0
INT32 = 2**31 - 1


def load_plugin(name):
    """A module of the plug-in, which is not installed here."""
    folder = Path(__file__).parents[2] / "integrations" / "vllm" / "v2pe_vllm"
    for module in dict.fromkeys(("positions", name)):
        spec = importlib.util.spec_from_file_location(f"v2pe_vllm.{module}", folder / f"{module}.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[f"v2pe_vllm.{name}"]


positions = load_plugin("positions")


def build_prompt(lengths):
    """Ids of texts and images in turn, and the plug-in's images (without strides)."""
    ids = torch.tensor([kind for text, image in lengths for kind in [TEXT] * text + [VISUAL] * image] + [TEXT])
    return ids, positions.find_runs(ids == VISUAL)


def compare(ids, runs, units, num_image_token):
    images = [positions.Image(start, length, unit) for (start, length), unit in zip(runs, units, strict=True)]
    rows, delta = positions.build_rows(len(ids), images, num_image_token=num_image_token)
    expected = build_position_ids(
        ids, image_token_id=VISUAL, num_image_token=num_image_token, strides=[unit / STRIDE_UNITS for unit in units]
    )
    found = positions.read_positions(rows, num_image_token=num_image_token)
    is_power_of_two = num_image_token & (num_image_token - 1) == 0
    # Else 1/T has no end in binary, and either sum may round once more than the other.
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if is_power_of_two else 1e-9)
    assert len(ids) + delta == next_position(expected[-1])
    assert rows.dtype == torch.int64
    assert rows.max() <= INT32
    return rows


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), max_size=8),
    num_image_token=st.sampled_from((1, 4, 49, 64, 256)),
    data=st.data(),
)
def test_positions_are_those_of_the_model(lengths, num_image_token, data):
    ids, runs = build_prompt(lengths)
    units = data.draw(st.lists(st.integers(1, 512 * STRIDE_UNITS), min_size=len(runs), max_size=len(runs)))
    compare(ids, runs, units, num_image_token)


@settings(max_examples=5, deadline=None)
@given(stride=st.sampled_from((1 / 16, 1, 4, 256)) | st.integers(1, STRIDE_UNITS).map(lambda unit: unit / STRIDE_UNITS))
def test_positions_of_a_million_tokens(stride):
    ids, runs = build_prompt([(5, 13 * 256)] * 300 + [(2600, 1)])
    assert len(ids) > 1_000_000
    compare(ids, runs, [int(stride * STRIDE_UNITS)] * len(runs), 256)


def test_a_prompt_may_end_with_an_image():
    ids = torch.tensor([TEXT, VISUAL, VISUAL, VISUAL])
    compare(ids, [(1, 3)], [STRIDE_UNITS], 4)


def test_equal_rows_are_whole_positions():
    """What vLLM gives decoded tokens: index + delta in all rows."""
    rows = torch.tensor([[7, 8]]).expand(3, -1)
    assert positions.read_positions(rows, num_image_token=4).tolist() == [7.0, 8.0]
    assert positions.read_positions(rows[0], num_image_token=4).tolist() == [7.0, 8.0]


@pytest.mark.parametrize("stride", [0, -1, 0.1, float("inf"), float("nan"), True, "64", None])
def test_strides_that_integers_cannot_express_are_refused(stride):
    with pytest.raises(ValueError, match="multiple of 1/65536"):
        positions.stride_to_units(stride)


def test_strides_in_units():
    assert [positions.stride_to_units(stride) for stride in (1 / 16, 1, 4.0)] == [4096, 65536, 262144]


@pytest.mark.parametrize("width", [8, 6])
def test_rotation_is_that_of_the_model(width):
    """The whole head is rotated, or its first part (Phi3's partial_rotary_factor)."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(5, 3 * 8, generator=generator), torch.randn(5, 8, generator=generator)
    frequencies = [10.0**-i for i in range(width // 2)]
    rows, _ = positions.build_rows(5, [positions.Image(1, 3, 4096)], num_image_token=4)
    embedding = load_plugin("rotary").V2PERotaryEmbedding(
        head_dim=8, frequencies=frequencies, table_scale=1.5, num_image_token=4
    )
    cos, sin = rotary_tables(
        positions.read_positions(rows, num_image_token=4)[None],
        torch.tensor(frequencies, dtype=torch.float64),
        scale=1.5,
    )
    for states, rotated in zip((query, key), embedding(rows, query, key), strict=True):
        heads = states.view(5, -1, 8).transpose(0, 1)[None]
        expected = torch.cat([apply_rotary(heads[..., :width], cos, sin), heads[..., width:]], dim=-1)
        torch.testing.assert_close(rotated.view(5, -1, 8).transpose(0, 1)[None], expected)
