"""Row sharing: what the model asks of the code that spreads a row over ranks (internvl/parallel/shared_row.py).

whole row on every rank    ids, borders, strides, labels    -> positions, targets and weights of the whole row
                           borders of the documents         -> which tokens each rank holds
then cut once              ids, positions, targets, weights -> this rank's tokens
tiles of this rank         features -> exchanged            -> features of this rank's visual tokens
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from .shapes import Bool, Float, Int, Shaped


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
