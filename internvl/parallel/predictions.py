"""Predictions: the output layer's work on a row, shared evenly by the ranks that hold it.

Only tokens that predict something meet the output layer. They stand together, at the ends of documents, so the rank
that holds the end of a long one would have most of them. Their hidden states are sent once, in equal numbers, and the
gradients come back:

    row          . . . a b c . . . d      rank 0 | rank 1 hold        . . . a b | c . . . d
    predictions  a b c d                  rank 0 | rank 1 compute           a b | c d

Every rank has the whole row's targets and weights, so nothing but hidden states travels.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from internvl.parallel.vision import exchange_rows, split_tiles


def take_share(
    x: Shaped[Tensor, " length"], predicts: Bool[Tensor, " length"], *, rank: int, size: int, pad_value: float
) -> Shaped[Tensor, " share"]:
    """Entries of a whole row at the predictions of one rank: as many for every rank, padded, at least one."""
    chosen = x[predicts]
    own = split_tiles(len(chosen), size)[rank]
    num_missing = count_share(len(chosen), size) - len(own)
    return F.pad(chosen[own.start : own.stop], (0, num_missing), value=pad_value)


def count_share(num_predictions: int, size: int) -> int:
    """Predictions of every rank, with the padding. One at least, since kernels need a token."""
    return max(1, -(-num_predictions // size))


def send_predictions(
    states: Float[Tensor, "local dim"],
    own: Int64[Tensor, " own"],
    *,
    held: Sequence[Int64[Tensor, " _"]],
    group: dist.ProcessGroup | None,
) -> Float[Tensor, "share dim"]:
    """Bring hidden states to the ranks whose share of the predictions they are. Collective, backward too.

    Args:
        states: Of this rank's tokens.
        own: Places among them of the tokens that predict something.
        held: Numbers of the predictions that each rank holds, rising, from `vision.locate_wanted`.
        group: The ranks that share the row; None: this one alone.

    Returns:
        Those of this rank's predictions in row order, then zeros, see `take_share`.
    """
    rank = 0 if group is None else group.rank()
    num_predictions = sum(map(len, held))
    stops = [tokens.stop for tokens in split_tiles(num_predictions, len(held))]
    borders = torch.tensor([0, *stops], device=own.device)
    cuts = [torch.searchsorted(numbers, borders) for numbers in held]
    sent = torch.stack(cuts).diff(dim=1).tolist()  # from a rank, to a rank
    numbers = torch.cat([numbers[cut[rank] : cut[rank + 1]] for numbers, cut in zip(held, cuts, strict=True)])
    arrived = exchange_rows(states, own, sent=sent[rank], received=[row[rank] for row in sent], group=group)
    num_missing = count_share(num_predictions, len(held)) - len(numbers)
    return F.pad(arrived[numbers.argsort()], (0, 0, 0, num_missing))
