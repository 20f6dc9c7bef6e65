import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.parallel.ulysses import kv_repeats


@pytest.mark.parametrize(("num_kv_heads", "degree", "repeats"), [(8, 4, 1), (2, 4, 2), (1, 4, 4), (2, 3, 3), (6, 4, 2)])
def test_kv_heads_are_repeated_only_as_far_as_needed(num_kv_heads, degree, repeats):
    assert kv_repeats(num_kv_heads, degree) == repeats


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
def test_a_rank_has_the_kv_heads_of_its_queries(num_kv_heads, degree, factor):
    num_heads = num_kv_heads * degree * factor
    copies = [head for head in range(num_kv_heads) for _ in range(kv_repeats(num_kv_heads, degree))]
    own_heads, own_copies = num_heads // degree, len(copies) // degree
    assert len(copies) % degree == own_heads % own_copies == 0
    for rank in range(degree):
        for i in range(own_heads):
            head = copies[rank * own_copies + i // (own_heads // own_copies)]
            assert head == (rank * own_heads + i) // (num_heads // num_kv_heads)
