"""The chunked loss against plain cross entropy."""

import pytest
import torch
import torch.nn.functional as F

from internvl.model import loss as loss_module
from internvl.model.constants import IGNORE_INDEX
from internvl.model.errors import ConfigError
from internvl.model.loss import build_loss_weight, shift_targets, weighted_cross_entropy


def test_weights_follow_the_documents():
    labels = torch.tensor([[-100, 5, 5, 5, 5, -100, 7, -100]])
    borders = torch.tensor([0, 5, 8])
    assert build_loss_weight(labels, borders, "token").tolist() == [[0, 1, 1, 1, 1, 0, 1, 0]]
    assert build_loss_weight(labels, borders, "sample").tolist() == [[0, 0.25, 0.25, 0.25, 0.25, 0, 1, 0]]
    assert build_loss_weight(labels, borders, "square").tolist() == [[0, 0.5, 0.5, 0.5, 0.5, 0, 1, 0]]


def test_a_first_token_is_nobodys_target():
    labels = torch.tensor([[5, 5, 6, 6]])
    assert build_loss_weight(labels, torch.tensor([0, 2, 4]), "token").tolist() == [[0, 1, 0, 1]]
    assert build_loss_weight(labels, None, "token").tolist() == [[0, 1, 1, 1]]


def test_unknown_reductions_are_refused():
    with pytest.raises(ConfigError, match="token"):
        build_loss_weight(torch.tensor([[1]]), None, "mean")


@pytest.mark.parametrize("chunk_bytes", [4 * 11, 4 * 11 * 3, 2**20])
def test_value_and_gradients_equal_plain_cross_entropy(chunk_bytes, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    hidden = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (2, 7))
    labels[0, :3] = IGNORE_INDEX
    token_weights = torch.rand(2, 7)
    targets, weights = shift_targets(labels, token_weights)
    ours = weighted_cross_entropy(hidden, weight, targets, weights, denominator=2.5)
    ours_gradients = torch.autograd.grad(3.0 * ours, (hidden, weight))

    losses = F.cross_entropy(
        (hidden @ weight.T)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=IGNORE_INDEX
    )
    plain = (losses * token_weights[:, 1:].flatten()).sum() / 2.5
    plain_gradients = torch.autograd.grad(3.0 * plain, (hidden, weight))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for got, expected in zip(ours_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_nothing_supervised_gives_zero_and_zero_gradients():
    hidden = torch.randn(1, 4, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    targets, weights = shift_targets(torch.full((1, 4), IGNORE_INDEX), None)
    loss = weighted_cross_entropy(hidden, weight, targets, weights)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


@pytest.mark.parametrize("chunk_bytes", [4 * 11 * 3, 2**20])
def test_what_every_token_contributes_can_be_noted(chunk_bytes, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 7, 5), torch.randn(11, 5)
    targets, weights = torch.randint(0, 11, (2, 7)), torch.rand(2, 7)
    weights[0, 2:4] = 0
    noted = torch.full((2, 7), 0.25)
    loss = weighted_cross_entropy(hidden, weight, targets, weights, denominator=2.0, token_losses=noted)
    expected = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none").view(2, 7)
    torch.testing.assert_close(noted, torch.where(weights > 0, expected * weights, 0.25), rtol=1e-5, atol=1e-6)
    assert loss.item() == pytest.approx(float((expected * weights).sum() / 2), rel=1e-5)
    assert loss.item() == weighted_cross_entropy(hidden, weight, targets, weights, denominator=2.0).item()
