"""What the model asks of whoever shares a row among ranks (internvl.parallel.shared_row implements it).

whole row on every rank    ids, borders, strides, labels    -> positions, targets and weights of the whole row
then cut once              ids, positions, targets, weights -> this rank's tokens
tiles of this rank         features -> exchanged            -> features of this rank's visual tokens
"""

from typing import Protocol

from torch import Tensor


class RowSharing(Protocol):
    """One rank's view of a row that a group of ranks shares."""

    def shard(self, x: Tensor, *, pad_value: float = 0) -> Tensor:
        """This rank's tokens of a tensor of the whole row: (1, length, ...) -> (1, local length, ...)."""
        ...

    def exchange_features(self, features: Tensor, visual: Tensor) -> Tensor:
        """Features of this rank's visual tokens, with a backward pass. All ranks of the group must call it.

        Args:
            features: (own tiles, T, D), of the tiles that this rank encoded.
            visual: (1, length) bool, visual tokens of the whole row.

        Returns:
            (own visual tokens, D).
        """
        ...
