"""The loss of the run, which also tells what every document of a row contributed to it."""

import torch
from torch import Tensor

from internvl.model.loss import weighted_cross_entropy


class DocumentLoss:
    """The chunked loss, which remembers what every token of this rank contributed."""

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
        """As `weighted_cross_entropy`."""
        token_losses = torch.zeros_like(weights, dtype=torch.float32)
        self._tokens = (weights, token_losses)
        return weighted_cross_entropy(
            hidden_states, output_weight, targets, weights, denominator=denominator, token_losses=token_losses
        )

    def sum_documents(self, documents: Tensor, *, num_documents: int) -> tuple[Tensor, Tensor]:
        """sum(w) and sum(w * CE) of every document, over the tokens of this rank.

        Args:
            documents: (1, local length) int64, number of the document that each of these tokens is in.
            num_documents: Documents of the row.

        Returns:
            Both float64 (documents,).
        """
        flat, tokens = documents.reshape(-1), self._tokens
        nothing = torch.zeros(num_documents, dtype=torch.float64, device=flat.device)
        weights, losses = (nothing.index_add(0, flat, values.reshape(-1).double()) for values in tokens)
        return weights, losses
