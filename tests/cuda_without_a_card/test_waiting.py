"""Layers do not wait for the GPU: what a forward pass reads, or copies, it does once and not in every layer."""

import pytest

from . import programs

PROGRAMS = {
    "packed row": (programs.train, {}),
    "row that ranks share": (programs.train, {"is_ring": True}),
    "row in a decoder of transformers": (programs.train, {"architectures": ["Qwen2ForCausalLM"]}),
    "prompt": (programs.generate, {}),
    "prompt in chunks": (programs.generate, {"prefill_chunk_size": 16}),
    "padded prompts": (programs.generate, {"num_prompts": 3}),
    "padded prompts in a decoder of transformers": (
        programs.generate,
        {"num_prompts": 3, "llm": {"architectures": ["Qwen2ForCausalLM"]}},
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_further_layer_waits_for_nothing(without_a_card, name):
    program, options = PROGRAMS[name]
    one, two = (without_a_card(program, layers, **options) for layers in (1, 2))
    one, two = (counts[-1] if isinstance(counts, list) else counts for counts in (one, two))
    assert two.syncs == one.syncs
    # A cache layer of transformers starts with two tensors that are copied from the host.
    started = 2 if program is programs.generate else 0
    assert two.copies.total() - one.copies.total() == started
    assert not two.mixed


def test_the_borders_of_a_row_are_sent_once_and_not_waited_for(without_a_card):
    steps = without_a_card(programs.train, 2, num_steps=2, is_ring=True)
    assert not [line for counts in steps for line in counts.copies if "kernels.py" in line or "attention.py" in line]


@pytest.mark.parametrize("vit_batch_size", [None, 3])
def test_tiles_are_normalised_and_encoded_without_waiting(without_a_card, vit_batch_size):
    counts = without_a_card(programs.encode_tiles, vit_batch_size)
    assert (counts.waits, counts.mixed.total(), counts.sdpa_shapes) == (0, 0, [])
