"""Shards: cuts a row over the ranks of a group as the deal says (`deal.py`), and joins it again.

The row is padded once, at its end, whatever documents it holds. Ids, embeddings, positions, labels and weights are all
cut by this one function, after they were made on the whole row; so no target is lost where runs of two ranks meet.

    documents of 6 and 4 tokens, 2 ranks    row      a b c d e f | g h i j . .
                                            rank 0   a b c j . .
                                            rank 1   d e f g h i
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from internvl.parallel.deal import Runs, deal_row


def pad_length(length: int, num_ranks: int) -> int:
    """Length of a row of `length` tokens with its padding: the next multiple of 2 * `num_ranks`."""
    return -(-length // (2 * num_ranks)) * 2 * num_ranks


def deal_padded(length: int, *, size: int, borders: Sequence[int] | None = None) -> tuple[Runs, ...]:
    """Runs of every rank in a row of `length` tokens and its padding; without borders it is one document."""
    padded = pad_length(length, size)
    return deal_row(tuple(borders or (0, length)), num_tokens=padded // size, size=size)


def shard_row(
    x: Shaped[Tensor, "*row"],
    *,
    rank: int,
    size: int,
    dim: int = 0,
    pad_value: float = 0,
    borders: Sequence[int] | None = None,
) -> Shaped[Tensor, "*shard"]:
    """Cut out the tokens of one rank (differentiable).

    Args:
        x: The whole row along `dim`: (..., length, ...), any dtype, any length from 0.
        rank: The rank that holds the tokens, 0 <= rank < size.
        size: Ranks that share the row. A single rank gets the whole row, padded to an even length.
        dim: The dimension of the tokens.
        pad_value: Value of the padding.
        borders: Of the documents of the row, from 0; None: one document (zigzag order).

    Returns:
        (..., padded length / size, ...), the same length on every rank, in row order.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size}: expected 0 <= rank < size")
    length = x.shape[dim]
    runs = deal_padded(length, size=size, borders=borders)[rank]
    pieces = [x.narrow(dim, min(run.start, length), run.count_overlap(0, length)) for run in runs]
    shape = list(x.shape)
    shape[dim] = sum(map(len, runs)) - sum(piece.shape[dim] for piece in pieces)
    return torch.cat([*pieces, x.new_full(shape, pad_value)], dim=dim)


def unshard_row(
    parts: Sequence[Shaped[Tensor, "*shard"]],
    *,
    dim: int = 0,
    length: int | None = None,
    borders: Sequence[int] | None = None,
) -> Shaped[Tensor, "*row"]:
    """Join the shards of all ranks: the inverse of `shard_row` (differentiable).

    Args:
        parts: What `shard_row` made for rank 0, 1, ..., all of one shape.
        dim: The dimension of the tokens.
        length: Tokens of the row before it was padded; None keeps the padding.
        borders: Those that it was cut with.

    Returns:
        (..., length, ...), or as long as all parts together, with the padding.
    """
    lengths = {part.shape[dim] for part in parts}
    if len(lengths) != 1 or (num_tokens := lengths.pop()) % 2:
        raise ValueError(f"shards of {[part.shape[dim] for part in parts]} tokens: expected one even number")
    total = num_tokens * len(parts)
    if length is not None and not 0 <= length <= total:
        raise ValueError(f"length {length}: the shards hold {total} tokens")
    shares = deal_padded(total, size=len(parts), borders=borders)
    pieces = {
        run: piece
        for part, runs in zip(parts, shares, strict=True)
        for run, piece in zip(runs, part.split([len(run) for run in runs], dim), strict=True)
    }
    row = torch.cat([pieces[run] for run in sorted(pieces)] or [parts[0]], dim=dim)
    return row if length is None else row.narrow(dim, 0, length)
