"""The liger loss, with a CPU double of the library's class that computes the real numbers."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from internvl.errors import ConfigError, MissingDependencyError
from internvl.model.loss import shift_targets, weighted_cross_entropy
from internvl.train.liger import liger_cross_entropy


class Double:
    """Test double of liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss (a triton kernel)."""

    def __init__(self, *, ignore_index, reduction):
        self.options = {"ignore_index": ignore_index, "reduction": reduction}

    def __call__(self, lin_weight, _input, target):
        return F.cross_entropy(_input @ lin_weight.T, target, **self.options)


@pytest.fixture
def liger(monkeypatch):
    package, module = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Double
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)


def make_row():
    torch.manual_seed(0)
    labels = torch.randint(0, 11, (1, 9))
    labels[0, 2:5] = -100
    states, weight = torch.randn(1, 9, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    return states, weight, *shift_targets(labels, None)


@pytest.mark.parametrize("denominator", [None, 7.5])
def test_equals_the_chunked_loss(liger, denominator):
    results = []
    for function in (liger_cross_entropy, weighted_cross_entropy):
        states, weight, targets, weights = make_row()
        loss = function(states, weight, targets, weights * 0.5, denominator=denominator)
        loss.backward()
        results.append((loss.detach(), states.grad, weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_tokens_that_weigh_differently_are_refused(liger):
    states, weight, targets, weights = make_row()
    with pytest.raises(ConfigError, match="loss_reduction token"):
        liger_cross_entropy(states, weight, targets, weights * torch.rand(9))


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(MissingDependencyError, match="pip install liger-kernel"):
        liger_cross_entropy(*make_row())
