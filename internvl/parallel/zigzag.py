"""Zigzag sharding: cuts a row over the ranks of a group, and joins it again.

Under causal attention late tokens cost more than early ones. A row of 2 * size equal chunks, of which rank r holds the
r-th from the front and the r-th from the back, costs every rank the same (zigzag order, known from Megatron's context
parallelism and the zigzag ring of ring-flash-attention):

    size 3   row     | 0 | 1 | 2 | 3 | 4 | 5 |
             rank 0  | 0 | 5 |
             rank 1  | 1 | 4 |
             rank 2  | 2 | 3 |

The row is padded once, at its end, whatever documents it holds. Ids, embeddings, positions, labels and weights are all
cut by this one function, after they were made on the whole row; so no target is lost where chunks meet.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor


def count_chunk_tokens(length: int, size: int) -> int:
    """Tokens of one chunk when a row of `length` tokens is padded to a multiple of 2 * `size`."""
    return -(-length // (2 * size))


def list_chunks(rank: int, size: int) -> tuple[int, int]:
    """Numbers of the two chunks that `rank` holds, in the order in which it holds them."""
    return rank, 2 * size - 1 - rank


def shard_row(
    x: Shaped[Tensor, "*row"], *, rank: int, size: int, dim: int = 0, pad_value: float = 0
) -> Shaped[Tensor, "*shard"]:
    """Cut out the tokens of one rank (differentiable).

    Args:
        x: The whole row along `dim`: (..., length, ...), any dtype, any length from 0.
        rank: The rank that holds the tokens, 0 <= rank < size.
        size: Ranks that share the row. A single rank gets the whole row, padded to an even length.
        dim: The dimension of the tokens.
        pad_value: Value of the padding.

    Returns:
        (..., 2 * chunk, ...), the same length on every rank; chunk = length / (2 * size), rounded up.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size}: expected 0 <= rank < size")
    length = x.shape[dim]
    chunk = count_chunk_tokens(length, size)
    pieces = []
    for number in list_chunks(rank, size):
        start, stop = min(number * chunk, length), min((number + 1) * chunk, length)
        pieces.append(x.narrow(dim, start, stop - start))
        if stop - start < chunk:
            missing = list(x.shape)
            missing[dim] = chunk - (stop - start)
            pieces.append(x.new_full(missing, pad_value))
    return torch.cat(pieces, dim=dim)


def unshard_row(
    parts: Sequence[Shaped[Tensor, "*shard"]], *, dim: int = 0, length: int | None = None
) -> Shaped[Tensor, "*row"]:
    """Join the shards of all ranks: the inverse of `shard_row` (differentiable).

    Args:
        parts: What `shard_row` made for rank 0, 1, ..., all of one shape.
        dim: The dimension of the tokens.
        length: Tokens of the row before it was padded; None keeps the padding.

    Returns:
        (..., length, ...), or (..., 2 * size * chunk, ...) with the padding.
    """
    lengths = {part.shape[dim] for part in parts}
    if len(lengths) != 1 or (total := lengths.pop()) % 2:
        raise ValueError(f"shards of {[part.shape[dim] for part in parts]} tokens: expected one even number")
    chunk = total // 2
    front = [part.narrow(dim, 0, chunk) for part in parts]
    back = [part.narrow(dim, chunk, chunk) for part in reversed(parts)]
    row = torch.cat([*front, *back], dim=dim)
    if length is None:
        return row
    if not 0 <= length <= row.shape[dim]:
        raise ValueError(f"length {length}: the shards hold {row.shape[dim]} tokens")
    return row.narrow(dim, 0, length)


def build_local_indices(
    length: int, *, rank: int, size: int, device: torch.device | str | None = None
) -> Int64[Tensor, " local_tokens"]:
    """Place in the row of every token that `rank` holds; tokens of padding have places from `length` on."""
    chunk = count_chunk_tokens(length, size)
    places = torch.arange(chunk, device=device)
    return torch.cat([places + number * chunk for number in list_chunks(rank, size)])
