"""The decoder's own autograd functions against autograd through the plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from internvl.model.configuration_internvl_chat import InternLM2Config
from internvl.model.modeling_internlm2 import InternLM2MLP, InternLM2RMSNorm

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def gradients(module: torch.nn.Module, compute, states: Tensor, by: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Result of `compute(states)`, and its gradients by the states and all weights."""
    states = states.clone().requires_grad_()
    module.zero_grad()
    out = compute(states)
    out.backward(by.to(out.dtype))
    return out.detach(), [states.grad, *(weight.grad.clone() for weight in module.parameters())]


def assert_same(module: torch.nn.Module, plain, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 7, 24, generator=generator).to(dtype)
    by = torch.randn(2, 7, 24, generator=generator)
    out, grads = gradients(module, module, states, by)
    expected, expected_grads = gradients(module, plain, states, by)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert grad.dtype == wanted.dtype
        torch.testing.assert_close(grad, wanted, rtol=DTYPES[dtype], atol=DTYPES[dtype] * wanted.abs().max().item())


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_the_formula(dtype, weight_dtype):
    norm = InternLM2RMSNorm(24, eps=1e-6).to(weight_dtype)
    torch.nn.init.normal_(norm.weight)

    def plain(states: Tensor) -> Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return norm.weight * wide.to(states.dtype)

    assert_same(norm, plain, dtype)


def test_rms_norm_of_zeros_has_finite_gradients():
    norm, states = InternLM2RMSNorm(8, eps=1e-6), torch.zeros(1, 3, 8, requires_grad=True)
    norm(states).sum().backward()
    assert states.grad.isfinite().all()
    assert norm.weight.grad.equal(torch.zeros(8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_silu_is_the_formula(dtype):
    torch.manual_seed(0)
    mlp = InternLM2MLP(InternLM2Config(hidden_size=24, intermediate_size=40)).to(dtype)
    assert_same(mlp, lambda states: mlp.w2(F.silu(mlp.w1(states)) * mlp.w3(states)), dtype)


def test_another_activation_is_taken_from_the_config():
    mlp = InternLM2MLP(InternLM2Config(hidden_size=24, intermediate_size=40, hidden_act="gelu"))
    assert_same(mlp, lambda states: mlp.w2(F.gelu(mlp.w1(states)) * mlp.w3(states)), torch.float32)


def test_frozen_weights_get_no_gradient():
    norm, states = InternLM2RMSNorm(8, eps=1e-6).requires_grad_(False), torch.randn(1, 3, 8, requires_grad=True)
    norm(states).sum().backward()
    assert states.grad is not None
    assert norm.weight.grad is None
