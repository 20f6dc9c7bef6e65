"""Attention on CUDA: one flash kernel per layer, whatever the lengths, and the numbers of the CPU."""

import pytest

from . import programs

VARLEN, FLASH = "_varlen_attn", "_scaled_dot_product_flash_attention"
TOWER_LAYERS = 2


def test_a_packed_row_is_one_kernel_call_per_layer(without_a_card):
    (counts,) = without_a_card(programs.train, 3)
    assert counts.attention == {VARLEN: 3, FLASH: TOWER_LAYERS}


@pytest.mark.parametrize("decoder", ["InternLM2ForCausalLM", "Qwen2ForCausalLM"])
def test_no_step_has_a_kernel_chosen_for_its_shapes(without_a_card, decoder):
    """Torch would choose cuDNN's, which makes a plan for each of them."""
    steps = without_a_card(programs.train, 1, num_steps=3, architectures=[decoder])
    assert [counts.sdpa_shapes for counts in steps] == [[], [], []]
    assert without_a_card(programs.generate, 1, llm={"architectures": [decoder]}).sdpa_shapes == []


def test_a_further_chunk_is_one_kernel_call_per_layer(without_a_card):
    # 40 tokens: chunks of 16, 16 and 8; the last three new tokens are a call each.
    counts = without_a_card(programs.generate, 3, prefill_chunk_size=16, num_new_tokens=4)
    assert counts.attention == {FLASH: 3 * (3 + 3)}


def test_a_padded_batch_is_one_kernel_call_per_layer(without_a_card):
    assert without_a_card(programs.generate, 3, num_prompts=3, num_new_tokens=4).attention == {VARLEN: 3 * 4}


LEFT, RIGHT = [0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]
CASES = {
    "documents": {"queries": 30, "keys": 30, "borders": [0, 1, 1, 7, 30]},
    "whole row": {"queries": 30, "keys": 30},
    "new token": {"queries": 1, "keys": 30},
    "further chunk": {"queries": 9, "keys": 30},
    "chunks of a batch": {"batch": 2, "queries": 9, "keys": 30},
    "padded batch": {"batch": 3, "queries": 8, "keys": 8, "mask": [LEFT, RIGHT, [1] * 8]},
    "padded new tokens": {"batch": 3, "queries": 1, "keys": 8, "mask": [LEFT, [1] * 8, [0] * 7 + [1]]},
    "padded chunk": {"batch": 2, "queries": 6, "keys": 8, "mask": [LEFT, RIGHT]},
    "row of padding": {"batch": 2, "queries": 8, "keys": 8, "mask": [[0] * 8, LEFT]},
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_gradients_are_those_of_the_cpu(without_a_card, name):
    assert max(without_a_card(programs.compare_with_cpu, **CASES[name])) < 3e-2


def test_what_the_kernels_return_is_on_the_device(without_a_card):
    assert without_a_card(programs.find_devices_of_fakes, (0, 20, 20, 60)) == {"cuda"}
