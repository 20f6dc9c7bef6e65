"""Process grid: data x ring x ulysses, and which part of a row every rank of a group holds.

`chunk_num` consecutive ranks share a row. Inside such a group the ulysses index runs fastest: the ranks that exchange
whole tensors are neighbours, usually on one machine, and the ring passes keys and values between machines.

    world 8, chunk_num 4, ulysses_degree 2               ulysses 0   ulysses 1
                                          data 0  ring 0   rank 0      rank 1     ulysses group [0 1], [2 3], ...
                                                  ring 1   rank 2      rank 3     ring group    [0 2], [1 3], ...
                                          data 1  ring 0   rank 4      rank 5     group         [0 1 2 3], [4 5 6 7]
                                                  ring 1   rank 6      rank 7

A row is padded once, at its end, to a multiple of 2 * chunk_num and cut by `shards.shard_row` among the R rings; the
shard of a ring is cut into U equal contiguous pieces, one per ulysses rank:

    row         c0 c1 c2 c3                    R = 2, one document
    ring 0      c0 c3       ring 1   c1 c2     zigzag, see deal.py
    rank 0      c0          rank 1   c3        U = 2: halves of ring 0's shard
    rank 2      c1          rank 3   c2        halves of ring 1's shard

`GridShape` is that arithmetic and needs no processes. `Grid` adds the process groups of one rank (`build_grid`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from internvl.errors import ParallelError
from internvl.parallel.shards import pad_length, shard_row, unshard_row

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Coordinates of a rank in the grid."""

    data: int
    ring: int
    ulysses: int


@dataclass(frozen=True)
class GridShape:
    """Sizes of the grid, and what follows from them. Raises ParallelError naming the flag if they do not fit."""

    world_size: int = 1  # number of ranks; a multiple of `chunk_num`
    chunk_num: int = 1  # ranks that share a row
    ulysses_degree: int = 1  # ranks that share the heads; divides `chunk_num`

    def __post_init__(self) -> None:
        if self.chunk_num < 1 or self.world_size % self.chunk_num:
            raise ParallelError(
                f"--chunk_num {self.chunk_num} does not divide the {self.world_size} processes of the run; "
                f"use one of {_divisors(self.world_size)}, or start another number of processes"
            )
        if self.ulysses_degree < 1 or self.chunk_num % self.ulysses_degree:
            raise ParallelError(
                f"--ulysses_degree {self.ulysses_degree} does not divide --chunk_num {self.chunk_num}; "
                f"use one of {_divisors(self.chunk_num)}"
            )

    @property
    def ring_size(self) -> int:
        """Ranks of a ring, R = chunk_num / ulysses_degree."""
        return self.chunk_num // self.ulysses_degree

    @property
    def data_size(self) -> int:
        """Rows that the run works on at a time: number of groups."""
        return self.world_size // self.chunk_num

    def locate(self, rank: int) -> Place:
        """Coordinates of a global rank."""
        data, group_rank = divmod(rank, self.chunk_num)
        return Place(data, *divmod(group_rank, self.ulysses_degree))

    def row_groups(self) -> list[list[int]]:
        """Global ranks that share a row, group by group: consecutive ones."""
        return [list(range(first, first + self.chunk_num)) for first in range(0, self.world_size, self.chunk_num)]

    def ring_groups(self) -> list[list[int]]:
        """Global ranks of every ring, in ring order."""
        return [ranks[u :: self.ulysses_degree] for ranks in self.row_groups() for u in range(self.ulysses_degree)]

    def ulysses_groups(self) -> list[list[int]]:
        """Global ranks that share the heads, in the order of their pieces."""
        degree = self.ulysses_degree
        return [ranks[r * degree :][:degree] for ranks in self.row_groups() for r in range(self.ring_size)]

    def pad_length(self, length: int) -> int:
        """Length of a row of `length` tokens with its padding: the next multiple of 2 * chunk_num."""
        return pad_length(length, self.chunk_num)

    def shard(
        self,
        x: Shaped[Tensor, "*row"],
        *,
        group_rank: int,
        dim: int = 0,
        pad_value: float = 0,
        borders: Sequence[int] | None = None,
    ) -> Shaped[Tensor, "*shard"]:
        """The part of a whole row that rank `group_rank` of a group holds (see the picture above).

        Of the `length` entries of `x` along `dim` these are `pad_length(length) / chunk_num`, in row order; the row is
        padded at its end with `pad_value`. 0 <= group_rank < chunk_num. `borders` are those of the row's documents;
        None: one document.
        """
        ring_rank, ulysses_rank = divmod(group_rank, self.ulysses_degree)
        padded = _pad_end(x, self.pad_length(x.shape[dim]), dim, pad_value)
        of_ring = shard_row(padded, rank=ring_rank, size=self.ring_size, dim=dim, borders=borders)
        return of_ring.chunk(self.ulysses_degree, dim)[ulysses_rank]

    def unshard(
        self,
        parts: Sequence[Shaped[Tensor, "*shard"]],
        *,
        dim: int = 0,
        length: int | None = None,
        borders: Sequence[int] | None = None,
    ) -> Shaped[Tensor, "*row"]:
        """Join the shards of group ranks 0, 1, ...: the inverse of `shard`. `length` cuts off the padding.

        Raises ParallelError for another number of parts than `chunk_num`.
        """
        if len(parts) != self.chunk_num:
            raise ParallelError(f"unshard got {len(parts)} parts, expected one per rank of the group: {self.chunk_num}")
        degree = self.ulysses_degree
        rings = [torch.cat(list(parts[r * degree :][:degree]), dim) for r in range(self.ring_size)]
        return unshard_row(rings, dim=dim, length=length, borders=borders)


@dataclass(frozen=True)
class Grid:
    """The place of this rank, and its process groups (None: of a single rank). Made by `build_grid`."""

    shape: GridShape = GridShape()  # sizes of the grid
    rank: int = 0  # global number of this rank
    group: dist.ProcessGroup | None = None  # ranks that share this rank's row
    ring_group: dist.ProcessGroup | None = None  # ranks of this rank's ring
    ulysses_group: dist.ProcessGroup | None = None  # ranks that share this rank's heads
    host_group: dist.ProcessGroup | None = None  # all ranks, over gloo: for numbers that no GPU should wait for

    @property
    def data_rank(self) -> int:
        """Number of the row, among those that the run works on at a time."""
        return self.shape.locate(self.rank).data

    @property
    def data_size(self) -> int:
        """Rows that the run works on at a time."""
        return self.shape.data_size

    @property
    def group_rank(self) -> int:
        """Number of this rank among those that share its row."""
        return self.rank % self.shape.chunk_num

    @property
    def group_size(self) -> int:
        """Ranks that share a row, `chunk_num`."""
        return self.shape.chunk_num

    def shard(
        self, x: Shaped[Tensor, "*row"], *, dim: int = 0, pad_value: float = 0, borders: Sequence[int] | None = None
    ) -> Shaped[Tensor, "*shard"]:
        """The part of a whole row that this rank holds (see `GridShape.shard`)."""
        return self.shape.shard(x, group_rank=self.group_rank, dim=dim, pad_value=pad_value, borders=borders)

    def unshard(
        self,
        parts: Sequence[Shaped[Tensor, "*shard"]],
        *,
        dim: int = 0,
        length: int | None = None,
        borders: Sequence[int] | None = None,
    ) -> Shaped[Tensor, "*row"]:
        """Join the shards of all ranks of the group (see `GridShape.unshard`)."""
        return self.shape.unshard(parts, dim=dim, length=length, borders=borders)


def build_grid(
    *, chunk_num: int = 1, ulysses_degree: int = 1, num_heads: int | None = None, num_kv_heads: int | None = None
) -> Grid:
    """Make the grid of this run. Collective: every rank calls it once, with the same arguments.

    Without an initialised torch.distributed the grid is a single rank.

    Args:
        chunk_num, ulysses_degree: As in `GridShape`.
        num_heads: Query heads of the decoder, checked against `ulysses_degree` when given.
        num_kv_heads: Key/value heads of the decoder; says in the log how often they are repeated.

    Raises:
        ParallelError: The sizes do not fit (see `GridShape`, `check_heads`).
    """
    is_alone = not dist.is_initialized()
    shape = GridShape(1 if is_alone else dist.get_world_size(), chunk_num, ulysses_degree)
    if num_heads is not None:
        check_heads(num_heads, num_heads if num_kv_heads is None else num_kv_heads, ulysses_degree=ulysses_degree)
    if is_alone:
        return Grid(shape)
    rank = dist.get_rank()
    group = _own_group(shape.row_groups(), rank)
    ring_group = group if ulysses_degree == 1 else _own_group(shape.ring_groups(), rank)
    ulysses_group = group if shape.ring_size == 1 else _own_group(shape.ulysses_groups(), rank)
    host_group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD
    return Grid(shape, rank, group, ring_group, ulysses_group, host_group)


def check_heads(num_heads: int, num_kv_heads: int, *, ulysses_degree: int) -> None:
    """Raise ParallelError unless `ulysses_degree` divides the query heads.

    Key/value heads that are too few are repeated (see `ulysses.kv_repeats`); query heads are not.
    """
    if num_heads % ulysses_degree:
        raise ParallelError(
            f"--ulysses_degree {ulysses_degree} does not divide the {num_heads} attention heads of the decoder; "
            f"use one of {_divisors(num_heads)}, or let the ring take more of --chunk_num"
        )
    if num_kv_heads % ulysses_degree:
        logger.info(
            "--ulysses_degree %d does not divide the %d key/value heads: copies of them are sent; "
            "a degree that divides them sends less",
            ulysses_degree,
            num_kv_heads,
        )


def _own_group(groups: list[list[int]], rank: int) -> dist.ProcessGroup | None:
    """Create all groups, return the one that holds `rank`; groups of one are not created."""
    # torch.distributed requires that every rank creates every group, in one order.
    own = None
    for ranks in groups:
        created = dist.new_group(ranks) if len(ranks) > 1 else None
        if rank in ranks:
            own = created
    if own is not None:
        dist.barrier(group=own)  # nccl connects in a group's first collective, which all its ranks must join
    return own


def _pad_end(x: Tensor, length: int, dim: int, pad_value: float) -> Tensor:
    missing = length - x.shape[dim]
    if not missing:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_full(shape, pad_value)], dim)


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
