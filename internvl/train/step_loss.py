"""The loss of an optimiser step: one weighted mean over all rows of the step, whichever rank holds them.

    loss = sum(w * CE) / D,    D = sum(w) over every rank and every micro-batch of the step

Engines (DDP, DeepSpeed ZeRO) average gradients over the R ranks and sum them over micro-batches. So every micro-batch
contributes R * sum(w * CE) / D, and the average is the formula above. Without `all_gather` D is the sum of the rank's
own weights, and the loss is the mean of the ranks' means. A rank without targets contributes 0.

Ranks that share a row (`SharedRow`) all get the whole row. Each contributes the loss of its own tokens, so the sum over
ranks holds every target once; the weights of the row are counted once as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from internvl.data.collate import Batch
from internvl.model.constants import IGNORE_INDEX
from internvl.model.loss import LossReduction, build_loss_weight, shift_targets, weighted_cross_entropy
from internvl.parallel.shared_row import SharedRow


@dataclass(frozen=True)
class LossOptions:
    """How tokens are weighted."""

    # weight of a target in a document of n targets: `token` 1, `sample` 1/n, `square` 1/sqrt(n)
    reduction: LossReduction = "token"
    all_gather: bool = False  # divide by the sum of weights over all ranks instead of the rank's own
    # what computes it: `chunked` (internvl/model/loss.py) or `liger` (train/liger.py, CUDA)
    kernel: Literal["chunked", "liger"] = "chunked"

    def weigh(self, batch: Batch) -> Tensor:
        """Weights of the tokens of a row, (1, length) float32."""
        return build_loss_weight(batch["labels"], batch["cu_seqlens"], self.reduction)

    def sum_weights(self, batches: Sequence[Batch]) -> Tensor:
        """Sum of the weights of all targets of some rows, float32 scalar."""
        # No loss is computed for the first token of a row.
        return torch.stack([self.weigh(batch)[:, 1:].sum() for batch in batches]).sum()


def scaled_denominator(own_sum: Tensor, world_sum: Tensor | None, world_size: int) -> Tensor:
    """What a micro-batch's sum(w * CE) is divided by: D / R, or the sum of this rank's weights without `world_sum`.

    Both sums are those of the step's weights, float32 scalars; the engine averages over `world_size` ranks, R.
    """
    denominator = own_sum if world_sum is None else world_sum / world_size
    # Without any weight the loss is 0 too, and 0 / 1 keeps it from becoming NaN.
    return torch.where(denominator > 0, denominator, 1.0)


def ignore_damaged(batch: Batch, damaged: Tensor) -> None:
    """Replace the labels of a row: documents that are not 0 in `damaged` (documents,) have none."""
    borders = batch["cu_seqlens"].reshape(-1).to(damaged.device, torch.int64)
    is_damaged = torch.repeat_interleave(damaged > 0, borders.diff()).to(batch["labels"].device)
    batch["labels"] = batch["labels"].masked_fill(is_damaged, IGNORE_INDEX)


class DocumentLoss:
    """The chunked loss of one row, which remembers what every token of this rank contributed."""

    def __init__(self) -> None:
        self._tokens: tuple[Tensor, ...] = ()

    def __call__(
        self,
        hidden_states: Tensor,
        output_weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        denominator: Tensor | float | None = None,
    ) -> Tensor:
        """Compute `weighted_cross_entropy`."""
        token_losses = torch.zeros_like(weights, dtype=torch.float32)
        self._tokens = (weights, token_losses)
        return weighted_cross_entropy(
            hidden_states, output_weight, targets, weights, denominator=denominator, token_losses=token_losses
        )

    def sum_documents(self, batch: Batch, loss_weight: Tensor, shared_row: SharedRow | None) -> tuple[Tensor, Tensor]:
        """sum(w) and sum(w * CE) of every document of a row, over this rank's predictions; float64 (documents,)."""
        lengths = batch["cu_seqlens"].reshape(-1).to(torch.int64).diff()
        numbers = torch.arange(len(lengths), device=lengths.device)
        # The number of the document that each token is in. The known output size saves a wait for the GPU.
        documents = numbers.repeat_interleave(lengths, output_size=batch["input_ids"].shape[1]).unsqueeze(0)
        if shared_row is not None:
            _, weights = shift_targets(batch["labels"], loss_weight)
            documents = shared_row.take_predictions(documents, weights != 0)  # padding weighs nothing
        nothing = torch.zeros(len(lengths), dtype=torch.float64, device=lengths.device)
        weights, losses = (
            nothing.index_add(0, documents.reshape(-1), values.reshape(-1).double()) for values in self._tokens
        )
        return weights, losses
