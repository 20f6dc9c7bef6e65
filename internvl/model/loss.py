"""One loss everywhere: sum(w * CE) / sum(w) over the supervised tokens.

The weight of a token depends on its document (see `build_loss_weight`). Only supervised tokens meet the output layer,
a chunk at a time, and the gradient is taken in the same pass, so that logits of a whole row never exist.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import IGNORE_INDEX
from .errors import ConfigError

LossReduction = Literal["token", "sample", "square"]

_CHUNK_BYTES = 64 * 2**20  # float32 logits that exist at a time


def build_loss_weight(labels: Tensor, cu_seqlens: Tensor | None, reduction: LossReduction) -> Tensor:
    """Weight of every token in the loss.

    A document with n supervised tokens gives each of them 1 (`token`), 1 / n (`sample`: every document counts the
    same) or 1 / sqrt(n) (`square`: between the two). The first token of a document is nobody's target and weighs 0.

    Args:
        labels: (batch, length) int64, -100 where not supervised; `labels[i]` is the target of position i - 1.
        cu_seqlens: (documents + 1,) borders of a packed row (batch of one); None: every row is a document.
        reduction: See above.

    Returns:
        float32, same shape as `labels`; 0 where not supervised.

    Raises:
        ConfigError: Unknown reduction.
    """
    if reduction not in get_args(LossReduction):
        raise ConfigError(f"loss_reduction must be one of {get_args(LossReduction)}, got {reduction!r}")
    supervised = labels != IGNORE_INDEX
    if cu_seqlens is None:
        counts = supervised.sum(dim=1, keepdim=True).expand_as(labels)
        supervised = supervised.clone()
        supervised[:, :1] = False
    else:
        borders = cu_seqlens.reshape(-1).to(labels.device, torch.int64)
        running = F.pad(supervised.reshape(-1).cumsum(0), (1, 0))
        per_document = running[borders[1:]] - running[borders[:-1]]
        counts = torch.repeat_interleave(per_document, borders.diff()).reshape(labels.shape)
        starts = borders[:-1][borders.diff() > 0]
        supervised = supervised.reshape(-1).clone()
        supervised[starts] = False
        supervised = supervised.reshape(labels.shape)
    power = {"token": 0.0, "sample": -1.0, "square": -0.5}[reduction]
    return torch.where(supervised, counts.clamp(min=1).float().pow(power), 0.0)


def shift_targets(labels: Tensor, loss_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Targets and weights of every position: what position i predicts stands at i + 1.

    Without `loss_weight` every supervised token weighs 1.

    Returns:
        targets int64 and weights float32, same shape as `labels`; the last position has weight 0.
    """
    weights = (labels != IGNORE_INDEX).float() if loss_weight is None else loss_weight.float()
    weights = torch.where(labels == IGNORE_INDEX, 0.0, weights)
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    return targets, F.pad(weights[:, 1:], (0, 1), value=0.0)


def weighted_cross_entropy(
    hidden_states: Tensor,
    output_weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """sum(w * CE) / denominator of a linear output layer, without logits of the whole row.

    Args:
        hidden_states: (batch, length, hidden).
        output_weight: (vocabulary, hidden).
        targets: (batch, length) int64, what each position predicts.
        weights: (batch, length) float32, 0 where nothing is predicted.
        denominator: Sum of weights to divide by; None: that of `weights`. A sum of 0 gives loss 0.

    Returns:
        float32 scalar.
    """
    chosen = weights.reshape(-1).nonzero().squeeze(1)
    flat_weights = weights.reshape(-1)[chosen]
    if denominator is None:
        denominator = flat_weights.sum()
    scale = torch.as_tensor(denominator, dtype=torch.float32, device=hidden_states.device)
    states = hidden_states.flatten(0, 1)[chosen]
    total = _LinearCrossEntropy.apply(states, output_weight, targets.reshape(-1)[chosen], flat_weights)
    return total / torch.where(scale > 0, scale, 1.0)


class _LinearCrossEntropy(torch.autograd.Function):
    """sum(w * CE(hidden @ weight.T, target)); the forward pass also takes the gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
        need_states, need_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        grad_states = torch.zeros_like(states) if need_states else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for first in range(0, len(states), _chunk_tokens(weight)):
            part = slice(first, first + _chunk_tokens(weight))
            logits = F.linear(states[part], weight.to(states.dtype)).float()
            log_probabilities = torch.log_softmax(logits, dim=-1)
            picked = log_probabilities.gather(1, targets[part].unsqueeze(1))
            total -= (picked.squeeze(1) * token_weights[part]).sum()
            if not (need_states or need_weight):
                continue
            grad_logits = log_probabilities.exp_()
            grad_logits.scatter_add_(1, targets[part].unsqueeze(1), torch.full_like(picked, -1.0))
            grad_logits = grad_logits.mul_(token_weights[part].unsqueeze(1)).to(states.dtype)
            if grad_states is not None:
                grad_states[part] = grad_logits @ weight.to(states.dtype)
            if grad_weight is not None:
                grad_weight += grad_logits.T @ states[part]
        ctx.save_for_backward(grad_states, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):
        grad_states, grad_weight = ctx.saved_tensors
        return (
            None if grad_states is None else grad_states * grad_total.to(grad_states.dtype),
            None if grad_weight is None else grad_weight * grad_total.to(grad_weight.dtype),
            None,
            None,
        )


def _chunk_tokens(weight: Tensor) -> int:
    return max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
