"""One loss everywhere: sum(w * CE) / sum(w) over the supervised tokens.

The weight of a token depends on its document (see `build_loss_weight`). Only supervised tokens reach the output layer,
a chunk at a time, and gradients are computed in the same pass: logits of a whole row never exist.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import IGNORE_INDEX
from .errors import ConfigError
from .shapes import Float, Float32, Int, Int64, Num

LossReduction = Literal["token", "sample", "square"]

CHUNK_BYTES = 128 * 2**20  # float32 logits that exist at a time


def build_loss_weight(
    labels: Int64[Tensor, "batch length"], cu_seqlens: Int[Tensor, " borders"] | None, reduction: str
) -> Float32[Tensor, "batch length"]:
    """Weight of every token in the loss, 0 where not supervised.

    A document with n supervised tokens gives each of them 1 (`token`), 1 / n (`sample`: every document counts the
    same) or 1 / sqrt(n) (`square`: between the two). No token predicts the first one of a document, which weighs 0.

    Args:
        labels: -100 where not supervised; `labels[i]` is the target of position i - 1.
        cu_seqlens: Document borders of a packed row (batch of one); None: every row is a document.

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


def shift_targets(
    labels: Int64[Tensor, "batch length"], loss_weight: Float[Tensor, "batch length"] | None
) -> tuple[Int64[Tensor, "batch length"], Float32[Tensor, "batch length"]]:
    """What every position predicts, which is the label of the next one, and its weight (0 at the last position).

    Without `loss_weight` every supervised token weighs 1.
    """
    weights = (labels != IGNORE_INDEX).float() if loss_weight is None else loss_weight.float()
    weights = torch.where(labels == IGNORE_INDEX, 0.0, weights)
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    return targets, F.pad(weights[:, 1:], (0, 1), value=0.0)


def weighted_cross_entropy(
    hidden_states: Float[Tensor, "batch length hidden"],
    output_weight: Float[Tensor, "vocabulary hidden"],
    targets: Int64[Tensor, "batch length"],
    weights: Float32[Tensor, "batch length"],
    *,
    denominator: Num[Tensor, ""] | float | None = None,
    token_losses: Float32[Tensor, "batch length"] | None = None,
) -> Float32[Tensor, ""]:
    """sum(w * CE) / denominator of a linear output layer, without logits of the whole row.

    Args:
        weights: 0 where nothing is predicted.
        denominator: Sum of weights to divide by; None: that of `weights`. A sum of 0 gives loss 0.
        token_losses: Receives w * CE of every position that predicts something; other entries stay as they are.
    """
    chosen = weights.reshape(-1).nonzero().squeeze(1)
    flat_weights = weights.reshape(-1)[chosen]
    if denominator is None:
        denominator = flat_weights.sum()
    scale = torch.as_tensor(denominator, dtype=torch.float32, device=hidden_states.device)
    states = hidden_states.flatten(0, 1)
    if not torch.is_grad_enabled():  # inside an autograd function gradients are always off
        states, output_weight = states.detach(), output_weight.detach()
    noted = None if token_losses is None else token_losses.view(-1)
    total = _LinearCrossEntropy.apply(states, output_weight, targets.reshape(-1), flat_weights, chosen, noted)
    return total / torch.where(scale > 0, scale, 1.0)


class _LinearCrossEntropy(torch.autograd.Function):
    """sum(w * CE(hidden @ weight.T, target)), with gradients made in the forward pass, chunk by chunk.

    The backward pass returns them without a copy, therefore a second one has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        chosen: Tensor,
        noted: Tensor | None,
    ) -> Tensor:
        """`token_weights` belong to the tokens numbered in `chosen`, the other tensors to all tokens."""
        need_states, need_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        grad_states = torch.zeros_like(states) if need_states else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        size = _chunk_tokens(weight)
        for rows, row_weights in zip(chosen.split(size), token_weights.split(size), strict=True):
            chunk = states[rows]
            losses, grad_logits = _weigh_chunk(chunk, weight, targets[rows], row_weights)
            total += losses.sum()
            if noted is not None:
                noted[rows] = losses
            if grad_states is not None:
                grad_states[rows] = grad_logits @ weight.to(states.dtype)
            if grad_weight is not None and states.dtype == grad_weight.dtype:
                grad_weight.addmm_(grad_logits.T, chunk)
            elif grad_weight is not None:
                grad_weight += grad_logits.T @ chunk
            del grad_logits  # not to stand beside the next chunk's logits
        ctx.grads = grad_states, None if grad_weight is None else grad_weight.to(weight.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradients of this loss were taken already; compute the loss again")
        grads, ctx.grads = ctx.grads, None
        scaled = (None if grad is None else grad.mul_(grad_total.to(grad.dtype)) for grad in grads)
        return (*scaled, None, None, None, None)


def _weigh_chunk(states: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor) -> tuple[Tensor, Tensor]:
    """w * CE of some tokens, float32, and the gradient of their sum by their logits in the dtype of `states`."""
    logits = F.linear(states, weight.to(states.dtype)).float()
    log_probabilities = torch.log_softmax(logits, dim=-1)
    del logits
    picked = log_probabilities.gather(1, targets.unsqueeze(1))
    losses = -(picked.squeeze(1) * token_weights)
    grad_logits = log_probabilities.exp_()
    grad_logits.scatter_add_(1, targets.unsqueeze(1), torch.full_like(picked, -1.0))
    return losses, grad_logits.mul_(token_weights.unsqueeze(1)).to(states.dtype)


def _chunk_tokens(weight: Tensor) -> int:
    return max(1, CHUNK_BYTES // (4 * weight.shape[0]))
