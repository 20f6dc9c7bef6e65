"""The loss by liger-kernel's fused linear cross entropy (CUDA), instead of our chunked one."""

from collections.abc import Callable

import torch
from torch import Tensor

from internvl.errors import ConfigError, MissingDependencyError
from internvl.model.constants import IGNORE_INDEX


def import_liger_loss() -> Callable[..., Callable[..., Tensor]]:
    """liger-kernel's class; MissingDependencyError if it, or triton, which it needs, is not installed."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise MissingDependencyError(
            f"--loss_kernel liger: {error}; pip install liger-kernel triton (needs a GPU), or use --loss_kernel chunked"
        ) from error
    return LigerFusedLinearCrossEntropyLoss


def liger_cross_entropy(
    hidden_states: Tensor,
    output_weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """As `internvl.model.loss.weighted_cross_entropy`, for weights that are all equal where they are not 0.

    The kernel's backward pass knows one factor for the whole sum, so tokens cannot weigh differently.

    Raises:
        MissingDependencyError: liger-kernel, or triton, which it needs, is not installed.
        ConfigError: Weights differ (`--loss_reduction sample` or `square`).
    """
    liger_loss = import_liger_loss()
    flat_weights = weights.reshape(-1)
    weight = flat_weights.max()
    if bool(((flat_weights != 0) & (flat_weights != weight)).any()):
        raise ConfigError("--loss_kernel liger weighs all tokens the same; use --loss_reduction token, or chunked")
    ignored = targets.reshape(-1).masked_fill(flat_weights == 0, IGNORE_INDEX)
    summed = liger_loss(ignore_index=IGNORE_INDEX, reduction="sum")
    total = summed(output_weight.to(hidden_states.dtype), hidden_states.flatten(0, 1), ignored).float() * weight
    scale = torch.as_tensor(flat_weights.sum() if denominator is None else denominator, dtype=torch.float32)
    scale = scale.to(total.device)
    return total / torch.where(scale > 0, scale, 1.0)
