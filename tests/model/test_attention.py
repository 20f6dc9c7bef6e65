"""The seam against plain masked softmax in float64."""

import pytest
import torch

from internvl.model.attention import attend, real_span
from internvl.model.errors import ConfigError


def reference(query, key, value, allowed):
    """Softmax attention with an explicit mask (batch, queries, keys)."""
    repeat = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeat, 1).double() for states in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed.unsqueeze(1), float("-inf"))
    return torch.nan_to_num(scores.softmax(-1)) @ value


def states(batch, heads, kv_heads, queries, keys, dim=16):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return make(batch, heads, queries, dim), make(batch, kv_heads, keys, dim), make(batch, kv_heads, keys, dim)


def causal(queries, keys):
    return torch.arange(keys) <= torch.arange(keys - queries, keys).unsqueeze(1)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(33, 33), (1, 33), (9, 33), (1500, 2100)])
def test_queries_see_all_earlier_keys(heads, kv_heads, queries, keys):
    query, key, value = states(2, heads, kv_heads, queries, keys)
    out = attend(None, query, key, value, scaling=16**-0.5)
    expected = reference(query, key, value, causal(queries, keys).expand(2, -1, -1))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("borders", [[0, 1, 2, 30], [0, 30], [0, 0, 7, 7, 30], list(range(31))])
def test_documents_of_a_row_do_not_see_each_other(borders):
    query, key, value = states(1, 4, 2, 30, 30)
    out = attend(None, query, key, value, scaling=0.25, cu_seqlens=torch.tensor(borders))
    document = torch.bucketize(torch.arange(30), torch.tensor(borders), right=True)
    allowed = causal(30, 30) & (document.unsqueeze(0) == document.unsqueeze(1))
    torch.testing.assert_close(out.double(), reference(query, key, value, allowed.unsqueeze(0)), rtol=0, atol=5e-6)


@pytest.mark.parametrize("queries", [12, 1, 4])
def test_padding_is_not_seen(queries):
    query, key, value = states(3, 4, 2, queries, 12)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = 0
    mask[1, 9:] = 0
    out = attend(None, query, key, value, scaling=0.25, attention_mask=mask)
    allowed = causal(queries, 12) & mask.bool().unsqueeze(1)
    expected = reference(query, key, value, allowed)
    real = mask.bool()[:, -queries:]
    torch.testing.assert_close(out.double().transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=0, atol=5e-6)


def test_holes_in_the_mask_are_refused():
    with pytest.raises(ValueError, match="between real tokens"):
        real_span(torch.tensor([True, False, True]))


def test_unknown_names_are_refused():
    query, key, value = states(1, 2, 2, 3, 3)
    with pytest.raises(ConfigError, match="registered"):
        attend("no_such_kernel", query, key, value, scaling=1.0)
