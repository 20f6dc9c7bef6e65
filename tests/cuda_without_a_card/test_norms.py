"""RMS norms are torch's fused kernel on CUDA."""

from . import programs


def test_rms_norms_are_one_kernel_and_equal_within_rounding(without_a_card):
    out, d_states, d_weight, *of_tower = without_a_card(programs.compare_norms)
    assert max(out, d_states, of_tower[0], of_tower[1]) < 2**-5
    assert max(d_weight, of_tower[2]) < 2**-3  # a sum over 18 tokens
