"""Checkpointed layers that keep the results of their ring attention."""

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from internvl.parallel.kernels import CpuFlash
from internvl.parallel.recompute import keep_ring_outputs
from internvl.parallel.ring import ring_attention


class CountingKernel(CpuFlash):
    """Remembers how often it was called."""

    calls: list[str]

    def __init__(self):
        object.__setattr__(self, "calls", [])

    def forward(self, *tensors, **settings):
        self.calls.append("forward")
        return super().forward(*tensors, **settings)

    def backward(self, *tensors, **settings):
        self.calls.append("backward")
        return super().backward(*tensors, **settings)


def make_layer(kernel):
    """Two attentions in a row, with something to recompute around them."""

    def layer(x):
        for _ in range(2):
            x = x + ring_attention(x.sin(), x.cos(), x * 2, cu_seqlens=[0, 5, 12], group=None, kernel=kernel)
        return x

    return layer


@pytest.mark.parametrize("keeps", [False, True])
def test_kept_outputs_save_the_second_run_and_change_no_gradient(keeps):
    x = torch.randn(12, 2, 32, requires_grad=True)
    plain = make_layer(CpuFlash())
    (expected,) = torch.autograd.grad(plain(plain(x)).square().sum(), x)
    kernel = CountingKernel()
    settings = {"use_reentrant": False} | ({"context_fn": keep_ring_outputs} if keeps else {})
    out = x
    for _ in range(2):
        out = checkpoint(make_layer(kernel), out, **settings)
    assert kernel.calls == ["forward"] * 4
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.equal(grad, expected)
    assert kernel.calls.count("forward") == (4 if keeps else 8)
    assert kernel.calls.count("backward") == 4


def test_backward_can_be_run_twice():
    x = torch.randn(12, 2, 32, requires_grad=True)
    out = checkpoint(make_layer(CpuFlash()), x, use_reentrant=False, context_fn=keep_ring_outputs).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_calls_outside_of_the_layer_are_not_concerned():
    x = torch.randn(12, 2, 32, requires_grad=True)
    kernel = CountingKernel()
    plain = make_layer(kernel)
    out = checkpoint(make_layer(CpuFlash()), x, use_reentrant=False, context_fn=keep_ring_outputs)
    before = plain(x)
    out.sum().backward()
    assert torch.equal(plain(x), before)
    assert kernel.calls == ["forward"] * 4


def test_a_graph_without_backward_is_freed():
    outputs = []

    def layer(x):
        out = ring_attention(x, x, x, cu_seqlens=[0, 12], group=None)
        outputs.append(weakref.ref(out))
        return out * 2

    x = torch.randn(12, 2, 32, requires_grad=True)
    out = checkpoint(layer, x, use_reentrant=False, context_fn=keep_ring_outputs)
    del out
    gc.collect()
    assert outputs[0]() is None
