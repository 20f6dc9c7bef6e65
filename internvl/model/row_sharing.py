"""Row sharing: what the model asks of the code that spreads a row over ranks (internvl/parallel/shared_row.py).

whole row on every rank    ids, borders, strides, labels    -> positions, targets and weights of the whole row
                           borders of the documents         -> which tokens each rank holds
then cut once              ids, positions                   -> this rank's tokens
tiles of this rank         features -> exchanged            -> features of this rank's visual tokens
tokens of this rank        hidden states -> exchanged       -> those of this rank's share of the predictions
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from .shapes import Bool, Float, Int, Int64, Shaped


@runtime_checkable
class RowSharing(Protocol):
    """One rank's view of a row that a group of ranks shares."""

    def of_row(self, cu_seqlens: Int[Tensor, " borders"] | None) -> "RowSharing":
        """The view of a row with these documents (None: one), before anything is cut."""
        ...

    def shard(self, x: Shaped[Tensor, "1 length *rest"], *, pad_value: float = 0) -> Shaped[Tensor, "1 local *rest"]:
        """This rank's tokens of a tensor of the whole row, which is padded with `pad_value` to be cut evenly."""
        ...

    def exchange_features(
        self, features: Float[Tensor, "tiles tokens dim"], visual: Bool[Tensor, "1 length"]
    ) -> Float[Tensor, "visual dim"]:
        """Features of this rank's visual tokens, with a backward pass. All ranks of the group must call it.

        Args:
            features: Of the tiles that this rank encoded.
            visual: Visual tokens of the whole row.
        """
        ...

    def share_predictions(
        self,
        states: Float[Tensor, "1 local dim"],
        targets: Int64[Tensor, "1 length"],
        weights: Float[Tensor, "1 length"],
    ) -> tuple[Float[Tensor, "1 share dim"], Int64[Tensor, "1 share"], Float[Tensor, "1 share"]]:
        """The predictions whose loss this rank computes, with a backward pass. All ranks of the group must call it.

        Args:
            states: Hidden states of this rank's tokens.
            targets, weights: Of the whole row; the weight is 0 where nothing is predicted.
        """
        ...
