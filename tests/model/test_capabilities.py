from types import SimpleNamespace

import pytest
import torch
from torch import nn

from internvl.errors import MissingDependencyError
from internvl.model import attention, capabilities
from internvl.parallel.kernels import CpuFlash, activate_flash


@pytest.fixture
def older(monkeypatch):
    """A torch whose flash operators for the CPU want as many K/V heads as query heads, without the newer functions."""
    monkeypatch.setattr(capabilities, "_GROUPS_HEADS_ON_CPU", False)
    monkeypatch.setattr(capabilities, "nn", SimpleNamespace(attention=SimpleNamespace()))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_probe_agrees_with_whole_attention():
    query, key = draw(1, 4, 3, 8), draw(1, 2, 5, 8)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    expected, _ = flash(query, *[key.repeat_interleave(2, dim=1)] * 2)
    got, _ = flash(query, *[capabilities.repeat_heads(key, 4)] * 2)
    torch.testing.assert_close(got, expected)


def test_repeated_heads_give_the_same_attention(older):
    query, key, value = draw(1, 4, 3, 8), draw(1, 2, 7, 8), draw(1, 2, 7, 8).flip(2)
    with torch.no_grad():
        chunk = attention.attend_causal(query, key, value, 0.3)
    torch.testing.assert_close(chunk, attention._attend_with_masks(query, key, value, 0.3))


@pytest.mark.parametrize("borders", [None, (0, 2, 5)])
def test_gradients_of_repeated_heads_add_up(older, borders):
    q, k, v = (draw(5, heads, 8).requires_grad_() for heads in (4, 2, 2))
    kernel = CpuFlash()
    with torch.no_grad():
        out, lse = kernel.forward(q, k, v, scale=0.3, borders=borders)
        got = kernel.backward(torch.ones_like(out), q, k, v, out, lse, scale=0.3, borders=borders)
    documents = [slice(0, 5)] if borders is None else [slice(0, 2), slice(2, 5)]
    whole = [
        nn.functional.scaled_dot_product_attention(
            *(x[rows].transpose(0, 1)[None] for x in (q, k, v)),
            scale=0.3,
            is_causal=borders is not None,
            enable_gqa=True,
        )
        for rows in documents
    ]
    expected = torch.autograd.grad(sum(x.sum() for x in whole), (q, k, v))
    torch.testing.assert_close(got, expected)


def test_other_flash_implementations_are_refused_by_an_older_torch(older):
    with pytest.raises(MissingDependencyError, match=r"torch .* has no other flash implementations"):
        activate_flash("FA3")


def test_a_varlen_function_without_windows_is_none(monkeypatch):
    def first_release(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        raise AssertionError("never called")

    monkeypatch.setattr(capabilities, "import_module", lambda name: SimpleNamespace(varlen_attn=first_release))
    assert capabilities.find_varlen_attention.__wrapped__() is None
