"""Finite scores: generation ends with an error where a model's output is NaN or infinite."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .errors import CheckpointError
from .shapes import Float, Int64


class RefuseNonFiniteScores(LogitsProcessor):
    """Raises CheckpointError when a row of scores holds NaN or infinity, and passes scores on as they are.

    Minus infinity is how other processors exclude single tokens; only a row of nothing else is an error.

    Args:
        name: Of the checkpoint, for the error.
    """

    def __init__(self, name: str | None):
        self.name = name

    def __call__(
        self, input_ids: Int64[Tensor, "batch length"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Check the largest score of every row: it is NaN when any of them is."""
        if not bool(torch.isfinite(scores.amax(dim=-1)).all()):
            raise CheckpointError(
                f"the output of {self.name or 'the model'} is NaN or infinite; expected finite scores: use bfloat16 or "
                "float32 instead of float16, or copy the checkpoint again if its weights are broken"
            )
        return scores
